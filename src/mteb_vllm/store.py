"""The results store: mteb's own layout, so that its loaders and leaderboard tooling read it.

    <root>/results/<org__name>/<revision>/experiments/settings_<hash>/<Task>.json, model_meta.json, run_settings.jsonl

The hash in the folder's name is that of everything but the task that a result depends on. What a first stage retrieved lies
beside it, in mteb's own form of predictions:

    <root>/predictions/<org__name>/<revision>/experiments/settings_<hash>/<Task>_predictions.json

Files appear by rename; a file that cannot be read is set aside, named in the log, and its task computed again.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from mteb.abstasks import AbsTask
from mteb.cache import ResultCache
from mteb.models.model_meta import ModelMeta
from mteb.results import TaskResult

from mteb_vllm.locks import lock, staging

logger = logging.getLogger(__name__)


class ResultsStore(ResultCache):
    """mteb's result cache, with atomic writes, shared by several runs at a time.

    Attributes:
        set_aside: What could not be read, and was renamed.
    """

    def __init__(self, cache_path: Path | str) -> None:
        super().__init__(cache_path)
        self.set_aside: list[Path] = []

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

    def known(self, task: AbsTask, meta: ModelMeta) -> TaskResult | None:
        """The whole result of a task under these settings: all its splits and subsets, of the same data; else None.

        A score that is not a number is no result.
        """
        result = self.load_task_result(task.metadata.name, meta)
        if result is None or result.dataset_revision != task.metadata.revision:
            return None
        if result.get_missing_evaluations(task):
            return None
        result = result.validate_and_filter_scores(task)
        return result if math.isfinite(result.get_score()) else None

    def adopt(self, task: AbsTask, meta: ModelMeta, other: Path) -> TaskResult | None:
        """Takes over the result of a run that differs in nothing that concerns the task; None if it is not whole.

        Args:
            task: The task.
            meta: The model's metadata, with the hash of the settings that the result is to be found under.
            other: Where the result is.
        """
        try:
            result = TaskResult.from_disk(other)
        except Exception:  # whatever became of it meanwhile: it is computed
            return None
        if result.task_name != task.metadata.name or result.dataset_revision != task.metadata.revision:
            return None
        self.save_to_cache(result, meta)
        return self.known(task, meta)

    def result(self, task: AbsTask, meta: ModelMeta) -> TaskResult:
        """The whole result of a task that was just computed.

        Raises:
            ArithmeticError: if its score is not a number.
        """
        result = self.known(task, meta)
        if result is None:
            raise ArithmeticError(
                "its main score is not a number: the embeddings may be all alike, or the metric is not defined on these data"
            )
        return result

    def started(self, task: AbsTask, meta: ModelMeta) -> bool:
        """Whether a part of the task's result is there, of the same data, so that only the rest needs computing."""
        result = self.load_task_result(task.metadata.name, meta)
        return result is not None and result.dataset_revision == task.metadata.revision

    def predictions(self, task: AbsTask, meta: ModelMeta) -> Path | None:
        """Where the predictions for all of a task's splits and subsets are, of the same data; None if they are not known."""
        path = self.predictions_path(task, meta)
        found = self._read_predictions(path)
        if found is None or (found.get("mteb_vllm") or {}).get("dataset_revision") != task.metadata.revision:
            return None
        whole = all(split in found.get(subset, {}) for subset in task.hf_subsets for split in task.eval_splits)
        return path if whole else None

    def predictions_path(self, task: AbsTask, meta: ModelMeta) -> Path:
        """Where the predictions of a model for a task belong, whether they are there or not."""
        result = self.get_task_result_path(task.metadata.name, meta)
        folder = result.parent.relative_to(self.cache_path / "results")
        return Path(self.cache_path) / "predictions" / folder / task.prediction_file_name

    def keep_predictions(self, task: AbsTask, meta: ModelMeta, written: Path) -> None:
        """Takes over a file of predictions that mteb has written; subsets and splits that are known already stay."""
        path = self.predictions_path(task, meta)
        found = json.loads(written.read_text(encoding="utf-8"))
        about = {"task": task.metadata.name, "dataset_revision": task.metadata.revision}
        before = self._read_predictions(path) or {}
        if before.get("mteb_vllm") == about:
            for subset, splits in before.items():
                if subset not in ("mteb_model_meta", "mteb_vllm"):
                    found[subset] = {**splits, **found.get(subset, {})}
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = written.with_suffix(".whole")
        whole.write_text(json.dumps({**found, "mteb_vllm": about}), encoding="utf-8")
        whole.replace(path)

    def _read_predictions(self, path: Path) -> dict[str, Any] | None:
        try:
            found = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            with self._folder(path.parent):
                try:  # another run may have set it aside, and computed it again
                    found = json.loads(path.read_bytes())
                except FileNotFoundError:
                    return None
                except ValueError as error:
                    self._set_aside(path, error)
                    return None
        return found if isinstance(found, dict) else None

    def load_task_result(
        self, task_name: str, model_name: str | ModelMeta, *args: Any, **kwargs: Any
    ) -> TaskResult | None:
        """mteb's, but a file that cannot be read is set aside instead of ending the run."""
        try:
            return super().load_task_result(task_name, model_name, *args, **kwargs)
        except OSError:
            raise  # a passing trouble of the machine's says nothing of the file
        except Exception:  # json, pydantic and KeyErrors alike: whatever half a file leads to
            path = self.get_task_result_path(task_name, model_name)
        with self._folder(path.parent):
            try:  # another run may have set it aside, and computed it again
                return super().load_task_result(task_name, model_name, *args, **kwargs)
            except OSError:
                raise
            except Exception as error:
                self._set_aside(path, error)
                return None

    def _set_aside(self, path: Path, error: Exception) -> None:
        aside = path.with_suffix(".json.broken")
        path.replace(aside)
        self.set_aside.append(aside)
        logger.warning("%s cannot be read (%s); set aside as %s", path, error, aside.name)

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
        """mteb's, but every file appears whole."""
        target = self.get_task_result_path(task_result.task_name, model_name, model_revision).parent
        target.mkdir(parents=True, exist_ok=True)
        # mteb writes in place; so it writes into a folder of its own on the same file system, and the files move over.
        with self.staging() as staging, self._folder(target):
            inner = ResultCache(staging)
            result = inner.get_task_result_path(task_result.task_name, model_name, model_revision)
            result.parent.mkdir(parents=True)
            settings = target / "run_settings.jsonl"
            if settings.exists():
                shutil.copy2(settings, result.parent)
            inner.save_to_cache(task_result, model_name, model_revision, encode_kwargs=encode_kwargs)
            # The result comes last: where it is, the rest is.
            for file in sorted(result.parent.iterdir(), key=lambda file: file == result):
                file.replace(target / file.name)
