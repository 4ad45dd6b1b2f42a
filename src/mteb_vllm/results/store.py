"""The results store: mteb's own layout, so that its loaders and leaderboard tooling read it.

    <root>/results/<org__name>/<revision>/experiments/settings_<hash>/<Task>.json, model_meta.json, run_settings.jsonl
                                                                      <Task>.json.sha256

The hash in the folder's name is that of everything but the task that a result depends on. What a first stage retrieved lies
beside it, in mteb's own form of predictions:

    <root>/predictions/<org__name>/<revision>/experiments/settings_<hash>/<Task>_predictions.json

Files appear by rename. Results and predictions are verified whenever they are read (`digests`): one that is not what was
written there is quarantined (`<file>.broken`) and named in the run's warnings, and its task computed again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

from mteb.abstasks import AbsTask
from mteb.cache import ResultCache
from mteb.models.model_meta import ModelMeta
from mteb.results import TaskResult

from mteb_vllm.results.digests import DamagedError, read_verified, write_digest
from mteb_vllm.results.locks import lock, staging
from mteb_vllm.results.lookup import is_complete
from mteb_vllm.util import disk
from mteb_vllm.util.files import clear_path, parse_json, quarantine

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


class ResultsStore(ResultCache):
    """mteb's result cache, with atomic writes, shared by several runs at a time.

    Attributes:
        quarantined: What was not what had been written there, by the names that it has now.
    """

    def __init__(self, cache_path: Path | str) -> None:
        super().__init__(cache_path)
        self.quarantined: list[Path] = []
        # Results that could not be written: they last as long as the run.
        self._unwritten: dict[Path, TaskResult] = {}

    @property
    def root(self) -> Path:
        """The folder that `results` is in."""
        return Path(self.cache_path)

    def claim(
        self, task: AbsTask, meta: ModelMeta, *, wait: bool = True, on_wait: Callable[[], None] | None = None
    ) -> AbstractContextManager[None]:
        """Holds the lock of one result, so that of several runs only one computes it.

        Args:
            task: The task.
            meta: The model's metadata, with the hash of the settings.
            wait: Whether to wait for another run that holds it.
            on_wait: Called before a wait.

        Raises:
            BusyError: if another run holds it and `wait` is false.
        """
        return lock(self.root, f"{meta.experiment_name}.{task.metadata.name}", wait=wait, on_wait=on_wait)

    def staging(self) -> AbstractContextManager[Path]:
        """A folder on the store's file system where files are written before they appear in it."""
        return staging(self.root)

    def cached_result(self, task: AbsTask, meta: ModelMeta) -> TaskResult | None:
        """The whole result of a task under these settings: all its splits and subsets, of the same data; else None.

        A score that is not a number is no result. `stored.look` says the same without mteb.
        """
        result = self.load_task_result(task.metadata.name, meta)
        return None if result is None or not _answers(result, task) else result.validate_and_filter_scores(task)

    def adopt(self, task: AbsTask, meta: ModelMeta, other: Path) -> TaskResult | None:
        """Takes over the result of a run that differs in nothing that concerns the task; None if it is not whole.

        Args:
            task: The task.
            meta: The model's metadata, with the hash of the settings that the result is to be found under.
            other: Where the result is.
        """
        try:
            result = TaskResult.model_validate_json(read_verified(self.root, other))
        except (OSError, DamagedError):  # whatever became of it meanwhile: it is computed
            return None
        if not _answers(result, task):
            return None
        self.save_to_cache(result, meta)
        return self.cached_result(task, meta)

    def result(self, task: AbsTask, meta: ModelMeta) -> TaskResult:
        """The whole result of a task that was just computed.

        Raises:
            ArithmeticError: if its score is not a number.
        """
        result = self.cached_result(task, meta)
        if result is None:
            raise ArithmeticError(
                "its main score is not a number: the embeddings may be all alike, or the metric is not defined on these data"
            )
        return result

    def has_partial_result(self, task: AbsTask, meta: ModelMeta) -> bool:
        """Whether a part of the task's result is there, of the same data, so that only the rest needs computing."""
        result = self.load_task_result(task.metadata.name, meta)
        return result is not None and result.dataset_revision == task.metadata.revision

    def predictions(self, task: AbsTask, meta: ModelMeta) -> Path | None:
        """Where the predictions for all of a task's splits and subsets are, of the same data; None if they are not known."""
        return None if self.read_predictions(task, meta) is None else self.predictions_path(task, meta)

    def read_predictions(self, task: AbsTask, meta: ModelMeta) -> dict[str, Any] | None:
        """Return the predictions for all of a task's splits and subsets, of the same data; None if they are not known.

        Returns:
            hf_subset to split to query to document to score.
        """
        found = self._verified(self.predictions_path(task, meta), parse_json)
        if found is None or found["mteb_vllm"]["dataset_revision"] != task.metadata.revision:
            return None
        whole = all(split in found.get(subset, {}) for subset in task.hf_subsets for split in task.eval_splits)
        return found if whole else None

    def predictions_path(self, task: AbsTask, meta: ModelMeta) -> Path:
        """Where the predictions of a model for a task belong, whether they are there or not."""
        result = self.get_task_result_path(task.metadata.name, meta)
        folder = result.parent.relative_to(self.cache_path / "results")
        return Path(self.cache_path) / "predictions" / folder / task.prediction_file_name

    def save_predictions(self, task: AbsTask, meta: ModelMeta, written: Path) -> None:
        """Takes over a file of predictions that mteb has written; subsets and splits that are known already stay."""
        path = self.predictions_path(task, meta)
        found = json.loads(written.read_text(encoding="utf-8"))
        about = {"task": task.metadata.name, "dataset_revision": task.metadata.revision}
        before = self._verified(path, parse_json) or {}
        if before.get("mteb_vllm") == about:
            for subset, splits in before.items():
                if subset not in ("mteb_model_meta", "mteb_vllm"):
                    found[subset] = {**splits, **found.get(subset, {})}
        content = json.dumps({**found, "mteb_vllm": about}).encode()
        whole = written.with_suffix(".whole")
        whole.write_bytes(content)
        with self._folder(path.parent):
            write_digest(self.root, path, content, written.parent)
            clear_path(path, self.root)
            whole.replace(path)

    def load_task_result(
        self, task_name: str, model_name: str | ModelMeta, *args: Any, **kwargs: Any
    ) -> TaskResult | None:
        """mteb's, but only what was written there is read; anything else is quarantined instead of ending the run."""
        path = self.get_task_result_path(task_name, model_name)
        if (kept := self._unwritten.get(path)) is not None:
            return kept.model_copy(deep=True)
        return self._verified(path, TaskResult.model_validate_json)

    def _verified(self, path: Path, read: Callable[[bytes], _T]) -> _T | None:
        """Return what `read` makes of a file's content; None where there is no file, or not what was written there."""
        try:
            return read(read_verified(self.root, path))
        except FileNotFoundError:
            return None
        except DamagedError:
            pass
        with self._folder(path.parent):
            try:  # another run may have quarantined it, and computed it again
                return read(read_verified(self.root, path))
            except FileNotFoundError:
                return None
            except DamagedError as error:
                aside = quarantine(path)
                self.quarantined.append(aside)
                logger.warning("%s is damaged (%s); quarantined as %s", path, error, aside.name)
                return None

    def _folder(self, folder: Path) -> AbstractContextManager[None]:
        """Holds the lock under which files of a folder are exchanged."""
        return lock(self.root, f"{folder.name}.folder")

    def save_to_cache(
        self,
        task_result: TaskResult,
        model_name: str | ModelMeta,
        model_revision: str | None = None,
        *,
        encode_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """mteb's, but every file appears whole; a result that cannot be written is kept for the run, and noted."""
        path = self.get_task_result_path(task_result.task_name, model_name, model_revision)
        try:
            self._save(task_result, model_name, model_revision, encode_kwargs)
            self._unwritten.pop(path, None)
        except Exception as error:
            if disk.cause(error) is None:
                raise
            disk.note(path, error)
            self._keep(task_result, path)

    def _keep(self, task_result: TaskResult, path: Path) -> None:
        # mteb rounds scores when it writes them.
        scores = json.loads(json.dumps(task_result.scores), parse_float=lambda text: round(float(text), 6))
        self._unwritten[path] = task_result.model_copy(update={"scores": scores})

    def _save(
        self,
        task_result: TaskResult,
        model_name: str | ModelMeta,
        model_revision: str | None,
        encode_kwargs: Mapping[str, Any] | None,
    ) -> None:
        path = self.get_task_result_path(task_result.task_name, model_name, model_revision)
        target = path.parent
        # mteb writes in place; so it writes into a folder of its own on the same file system, and the files move over.
        with self.staging() as staging, self._folder(target):
            inner = ResultCache(staging)
            result = inner.get_task_result_path(task_result.task_name, model_name, model_revision)
            result.parent.mkdir(parents=True)
            settings = result.with_name("run_settings.jsonl")
            with contextlib.suppress(OSError):  # mteb adds to it: what it says of other tasks, nobody can do without
                shutil.copy2(target / settings.name, settings)
            try:
                inner.save_to_cache(task_result, model_name, model_revision, encode_kwargs=encode_kwargs)
            except (TypeError, ValueError):  # what was in it was not mteb's
                settings.unlink(missing_ok=True)
                inner.save_to_cache(task_result, model_name, model_revision, encode_kwargs=encode_kwargs)
            write_digest(self.root, path, result.read_bytes(), staging)
            # The result comes last: where it is, the rest is.
            for file in sorted(result.parent.iterdir(), key=lambda file: file == result):
                clear_path(target / file.name, self.root)
                file.replace(target / file.name)


class InMemoryResults(ResultsStore):
    """Results that are not written, and last as long as this."""

    def load_task_result(
        self, task_name: str, model_name: str | ModelMeta, *args: Any, **kwargs: Any
    ) -> TaskResult | None:
        """Return what was kept of a task."""
        kept = self._unwritten.get(self.get_task_result_path(task_name, model_name))
        return None if kept is None else kept.model_copy(deep=True)

    def save_to_cache(
        self,
        task_result: TaskResult,
        model_name: str | ModelMeta,
        model_revision: str | None = None,
        *,
        encode_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Keep a result as it would be read back."""
        self._keep(task_result, self.get_task_result_path(task_result.task_name, model_name, model_revision))


def _answers(result: TaskResult, task: AbsTask) -> bool:
    """Whether a result is of the same data, and has all of a task's splits and subsets."""
    if result.dataset_revision != task.metadata.revision:
        return False
    return is_complete(result.scores, task.eval_splits, task.hf_subsets, aggregate=task.is_aggregate)
