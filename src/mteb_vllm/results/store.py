"""The results store, in mteb's own layout, which mteb's loaders and leaderboard tools can read.

    <root>/results/<org__name>/<revision>/experiments/settings_<hash>/<Task>.json, model_meta.json, run_settings.jsonl
                                                                      <Task>.json.sha256

The hash in the folder's name covers everything that a result depends on except the task. The candidates that a first stage
retrieved are stored in mteb's format for predictions:

    <root>/predictions/<org__name>/<revision>/experiments/settings_<hash>/<Task>_predictions.json

Files appear by rename. Results and predictions are verified against their digests on every read (see `digests`). A file that
does not match is quarantined as `<file>.broken` and named in the run's warnings, and its task is computed again.
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
    """mteb's result cache with atomic writes and verified reads, safe to share between concurrent runs.

    Attributes:
        quarantined: The damaged files that were found, under their new names.
    """

    def __init__(self, cache_path: Path | str) -> None:
        super().__init__(cache_path)
        self.quarantined: list[Path] = []
        # Results that could not be written to disk; they are kept until the run ends.
        self._unwritten: dict[Path, TaskResult] = {}

    @property
    def root(self) -> Path:
        """The folder that contains `results`."""
        return Path(self.cache_path)

    def claim(
        self, task: AbsTask, meta: ModelMeta, *, wait: bool = True, on_wait: Callable[[], None] | None = None
    ) -> AbstractContextManager[None]:
        """Hold the lock of one result, so that only one of several runs computes it.

        Args:
            task: The task.
            meta: The model's metadata, with the hash of the settings.
            wait: Whether to wait for another run that holds the lock.
            on_wait: Called before waiting.

        Raises:
            BusyError: if another run holds the lock and `wait` is false.
        """
        return lock(self.root, f"{meta.experiment_name}.{task.metadata.name}", wait=wait, on_wait=on_wait)

    def staging(self) -> AbstractContextManager[Path]:
        """Return a temporary folder on the store's file system, from which files are moved into the store."""
        return staging(self.root)

    def cached_result(self, task: AbsTask, meta: ModelMeta) -> TaskResult | None:
        """Return the complete result of a task under these settings, or None.

        A complete result is of the same dataset revision and has a finite main score for every split and subset.
        `lookup.result_status` makes the same decision without importing mteb.
        """
        result = self.load_task_result(task.metadata.name, meta)
        return None if result is None or not _is_complete(result, task) else result.validate_and_filter_scores(task)

    def adopt(self, task: AbsTask, meta: ModelMeta, other: Path) -> TaskResult | None:
        """Copy the result of a run that differs only in settings without effect on the task; None if it is incomplete.

        Args:
            task: The task.
            meta: The model's metadata, with the hash of the settings under which the copy is stored.
            other: The path of the result.
        """
        try:
            result = TaskResult.model_validate_json(read_verified(self.root, other))
        except (OSError, DamagedError):  # then it is computed
            return None
        if not _is_complete(result, task):
            return None
        self.save_to_cache(result, meta)
        return self.cached_result(task, meta)

    def result(self, task: AbsTask, meta: ModelMeta) -> TaskResult:
        """Return the complete result of a task that was just computed.

        Raises:
            ArithmeticError: if its main score is not a number.
        """
        result = self.cached_result(task, meta)
        if result is None:
            raise ArithmeticError(
                "the main score is not a number: the embeddings may all be identical, or the metric is undefined on this data"
            )
        return result

    def has_partial_result(self, task: AbsTask, meta: ModelMeta) -> bool:
        """Whether part of the task's result is stored for the same dataset revision, so that only the rest is computed."""
        result = self.load_task_result(task.metadata.name, meta)
        return result is not None and result.dataset_revision == task.metadata.revision

    def predictions(self, task: AbsTask, meta: ModelMeta) -> Path | None:
        """Return the path of complete predictions for a task and its current data; None if there are none."""
        return None if self.read_predictions(task, meta) is None else self.predictions_path(task, meta)

    def read_predictions(self, task: AbsTask, meta: ModelMeta) -> dict[str, Any] | None:
        """Return the predictions for all of a task's splits and subsets and its current data; None if there are none.

        Returns:
            hf_subset to split to query to document to score.
        """
        found = self._verified(self.predictions_path(task, meta), parse_json)
        if found is None or found["mteb_vllm"]["dataset_revision"] != task.metadata.revision:
            return None
        whole = all(split in found.get(subset, {}) for subset in task.hf_subsets for split in task.eval_splits)
        return found if whole else None

    def predictions_path(self, task: AbsTask, meta: ModelMeta) -> Path:
        """Return the path at which the predictions of a model for a task are stored, whether or not it exists."""
        result = self.get_task_result_path(task.metadata.name, meta)
        folder = result.parent.relative_to(self.cache_path / "results")
        return Path(self.cache_path) / "predictions" / folder / task.prediction_file_name

    def save_predictions(self, task: AbsTask, meta: ModelMeta, written: Path) -> None:
        """Store a file of predictions that mteb has written, merged with the subsets and splits already stored."""
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
        """Load a result as mteb does, after verifying it; a damaged file is quarantined instead of raising."""
        path = self.get_task_result_path(task_name, model_name)
        if (kept := self._unwritten.get(path)) is not None:
            return kept.model_copy(deep=True)
        return self._verified(path, TaskResult.model_validate_json)

    def _verified(self, path: Path, read: Callable[[bytes], _T]) -> _T | None:
        """Return `read` of a file's content; None if there is no such file, or it is damaged and was quarantined."""
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
                moved_to = quarantine(path)
                self.quarantined.append(moved_to)
                logger.warning("%s is damaged (%s); quarantined as %s", path, error, moved_to.name)
                return None

    def _folder(self, folder: Path) -> AbstractContextManager[None]:
        """Hold the lock under which files of a folder are replaced."""
        return lock(self.root, f"{folder.name}.folder")

    def save_to_cache(
        self,
        task_result: TaskResult,
        model_name: str | ModelMeta,
        model_revision: str | None = None,
        *,
        encode_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Save a result as mteb does, but atomically; one that cannot be written is kept in memory and reported."""
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
        # mteb writes files in place, so it writes into a staging folder from which they are moved.
        with self.staging() as staging, self._folder(target):
            inner = ResultCache(staging)
            result = inner.get_task_result_path(task_result.task_name, model_name, model_revision)
            result.parent.mkdir(parents=True)
            settings = result.with_name("run_settings.jsonl")
            with contextlib.suppress(OSError):  # mteb appends to this file, which holds the entries of other tasks
                shutil.copy2(target / settings.name, settings)
            try:
                inner.save_to_cache(task_result, model_name, model_revision, encode_kwargs=encode_kwargs)
            except (TypeError, ValueError):  # the existing file was not in mteb's format
                settings.unlink(missing_ok=True)
                inner.save_to_cache(task_result, model_name, model_revision, encode_kwargs=encode_kwargs)
            write_digest(self.root, path, result.read_bytes(), staging)
            # The result is moved last: where it exists, so do the other files.
            for file in sorted(result.parent.iterdir(), key=lambda file: file == result):
                clear_path(target / file.name, self.root)
                file.replace(target / file.name)


class InMemoryResults(ResultsStore):
    """A results store that keeps its results in memory and writes nothing."""

    def load_task_result(
        self, task_name: str, model_name: str | ModelMeta, *args: Any, **kwargs: Any
    ) -> TaskResult | None:
        """Return a copy of the result kept for a task, or None."""
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
        """Keep a result, rounded as mteb would write it."""
        self._keep(task_result, self.get_task_result_path(task_result.task_name, model_name, model_revision))


def _is_complete(result: TaskResult, task: AbsTask) -> bool:
    """Whether a result is of the task's data and has all of its splits and subsets."""
    if result.dataset_revision != task.metadata.revision:
        return False
    return is_complete(result.scores, task.eval_splits, task.hf_subsets, aggregate=task.is_aggregate)
