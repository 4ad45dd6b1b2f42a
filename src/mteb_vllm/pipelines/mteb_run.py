"""Evaluate one task with mteb, store its result, and describe it as a `TaskOutcome`."""

from __future__ import annotations

import contextlib
import copy
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mteb_vllm.catalogue import mteb_catalogue
from mteb_vllm.errors import EngineError, MissingPackageError, ModelError, PartialResultError
from mteb_vllm.results.failures import failure_from_exception, is_fatal
from mteb_vllm.results.locks import BusyError
from mteb_vllm.results.lookup import copy_measured, read_measured, save_measured, save_shared_result, shared_result
from mteb_vllm.results.record import Status, TaskOutcome, describe_subsets
from mteb_vllm.tasks import loading as data
from mteb_vllm.tasks.labels import labels_as_lists
from mteb_vllm.tasks.loading import Unit
from mteb_vllm.util.attributes import replace_attributes

if TYPE_CHECKING:
    from pathlib import Path

    from mteb.abstasks import AbsTask
    from mteb.models import MTEBModels
    from mteb.models.model_meta import ModelMeta
    from mteb.results import TaskResult
    from mteb.types import ScoresDict

    from mteb_vllm.progress import Progress
    from mteb_vllm.results.store import ResultsStore
    from mteb_vllm.wrappers import VllmWrapperBase, Wrapper

logger = logging.getLogger(__name__)

# Called with a loaded task and the errors of its units (subset and split) that cannot be evaluated; may add more errors.
Prepare = Callable[["AbsTask", MutableMapping[Unit, Exception]], None]


def evaluate_tasks(
    tasks: Sequence[AbsTask], progress: Progress, evaluate: Callable[[AbsTask, bool], TaskOutcome]
) -> Iterator[TaskOutcome]:
    """Evaluate task by task and yield the outcomes; an error makes a failed outcome and does not affect other tasks.

    Tasks that another run is computing are postponed to the end, when their results may be available.

    Args:
        tasks: The mteb tasks.
        progress: Receives progress events.
        evaluate: Evaluates a task; may raise. If its second argument is true it waits for another run that is computing the
            same task, otherwise it raises `BusyError`.
    """
    later: list[AbsTask] = []
    for task, wait in itertools.chain(((task, False) for task in tasks), ((task, True) for task in later)):
        progress.start_task(task.metadata.name)
        try:
            outcome = evaluate(task, wait)
        except BusyError:
            progress.line(f"{task.metadata.name} is being computed by another run: postponed to the end")
            later.append(task)
            continue
        except Exception as error:
            logger.exception("%s failed", task.metadata.name)
            outcome = failed_outcome(task, error)
        progress.end_task(outcome)
        yield outcome


def evaluate_task(
    model: Wrapper,
    task: AbsTask,
    store: ResultsStore,
    *,
    reuse: bool,
    wait: bool,
    start: EngineStart,
    progress: Progress,
    input_fingerprint: str | None = None,
    prepare: Prepare | None = None,
) -> TaskOutcome:
    """Return a task's outcome from its cached result, or compute it; only one run computes a result at a time.

    Args:
        model: A wrapper of this package.
        task: The task.
        store: The results store.
        reuse: Whether cached results are used.
        wait: Whether to wait for another run that is computing the same result.
        start: Opens the model's engine after the task's data are loaded.
        progress: Receives progress events.
        input_fingerprint: The hash of the task's settings and effective prefixes; None if it cannot be known. A result of
            another run with the same hash is used.
        prepare: Called with each loaded part before it is evaluated.

    Raises:
        BusyError: if another run is computing the result and `wait` is false.
    """
    meta = model.mteb_model_meta
    if reuse and (result := cached_result(store, task, meta)) is not None:
        return cached_outcome(task, result, store, meta)
    with store.claim(task, meta, wait=wait, on_wait=progress.waiting):
        if reuse and (result := cached_result(store, task, meta)) is not None:
            return cached_outcome(task, result, store, meta)  # computed by another run in the meantime
        if (
            reuse
            and input_fingerprint is not None
            and (other := shared_result(store.root, input_fingerprint)) is not None
        ):
            result = store.adopt(task, meta, other)
            if result is not None:
                copy_measured(store.root, other, store.get_task_result_path(task.metadata.name, meta))
                return cached_outcome(task, result, store, meta)
        continues = reuse and _has_stored_units(task, store, meta)
        try:
            outcome = computed_outcome(model, task, store, reuse=reuse, start=start, prepare=prepare)
        except PartialResultError as error:
            return _partial_outcome(task, error, store, meta)
        took = outcome.to_measured(model.engine_record())
        if continues:
            took = replace(took, subsets="")
        save_measured(store.root, store.get_task_result_path(task.metadata.name, meta), took)
        if input_fingerprint is not None and _used_known_sides(model, task):
            save_shared_result(store.root, input_fingerprint, store.get_task_result_path(task.metadata.name, meta))
        return outcome


def _has_stored_units(task: AbsTask, store: ResultsStore, meta: ModelMeta) -> bool:
    """Whether some of a task's splits and subsets are stored already, so that only the others are computed."""
    for part in parts_of(task):
        if store.has_partial_result(part, meta) and (result := store.load_task_result(part.metadata.name, meta)):
            scores = _scores(result)
            if any(subset in scores.get(split, {}) for subset, split in data.units(part)):
                return True
    return False


def _used_known_sides(model: Wrapper, task: AbsTask) -> bool:
    """Whether mteb encoded only those sides of a task that the catalogue lists, and the input fingerprint covers."""
    names = {part.metadata.name for part in parts_of(task)}
    known = mteb_catalogue().tasks
    return all(side in known[of].sides for of, side in ((of, side or "") for of, side in model.applied) if of in names)


def parts_of(task: AbsTask) -> list[AbsTask]:
    """Return the parts of an aggregate, or the task itself."""
    from mteb.abstasks.aggregated_task import AbsTaskAggregate

    return list(task.metadata.tasks) if isinstance(task, AbsTaskAggregate) else [task]


def compute(
    model: MTEBModels,
    task: AbsTask,
    store: ResultsStore,
    *,
    reuse: bool,
    start: EngineStart | None = None,
    prepare: Prepare | None = None,
    predictions: bool = False,
) -> float:
    """Evaluate the missing parts of a task and store the result.

    Args:
        model: An mteb encoder, cross-encoder or search model, with `mteb_model_meta`.
        task: The task; the parts of an aggregate are evaluated and combined.
        store: The results store.
        reuse: Whether cached results are used.
        start: Opens the model's engine after data that need it are loaded.
        prepare: Called with each loaded part before it is evaluated.
        predictions: Whether the model's rankings are stored as well.

    Returns:
        the time taken to load the data, in seconds.

    Raises:
        DataError: if the data cannot be loaded.
        PartialResultError: if some subsets or parts have no result; the results of the others are in the store.
    """
    from mteb.abstasks.aggregated_task import AbsTaskAggregate

    meta = model.mteb_model_meta
    parts = parts_of(task)
    seconds, failed = 0.0, dict[str, Exception]()
    for part in parts:
        if reuse and cached_result(store, part, meta, predictions=predictions):
            continue
        try:
            seconds += _compute_part(model, part, store, reuse, start, prepare, predictions)
        except Exception as error:
            if len(parts) == 1 or is_fatal(error):
                raise
            logger.exception("%s, a part of %s, failed", part.metadata.name, task.metadata.name)
            failed[part.metadata.name] = error
    if failed:
        raise PartialResultError(failed, len(parts), "parts")
    if isinstance(task, AbsTaskAggregate):
        store.save_to_cache(task.combine_task_results([store.result(part, meta) for part in parts]), meta)
    return seconds


def cached_result(
    store: ResultsStore, task: AbsTask, meta: ModelMeta, *, predictions: bool = False
) -> TaskResult | None:
    """Return a task's complete result from the store, or None; with `predictions`, only if these are stored as well."""
    result = store.cached_result(task, meta)
    if predictions and result is not None and any(store.predictions(part, meta) is None for part in parts_of(task)):
        return None
    return result


def _compute_part(
    model: MTEBModels,
    task: AbsTask,
    store: ResultsStore,
    reuse: bool,
    start: EngineStart | None,
    prepare: Prepare | None,
    predictions: bool,
) -> float:
    if start is not None:
        start.check()
    started = time.perf_counter()
    with data.open_data(task, store) as broken:
        if prepare is not None:
            prepare(task, broken)
        seconds = time.perf_counter() - started
        evaluate_loaded(model, task, store, reuse=reuse, start=start, predictions=predictions, broken=broken)
    return seconds


def evaluate_loaded(
    model: MTEBModels,
    task: AbsTask,
    store: ResultsStore,
    *,
    reuse: bool,
    start: EngineStart | None = None,
    predictions: bool = False,
    broken: Mapping[Unit, Exception] | None = None,
) -> None:
    """Evaluate the missing subsets and splits of a task whose data are loaded.

    Those in `broken`, with the reason as an error, are skipped, and so are those whose evaluation fails. For the other
    arguments see `compute`.

    Raises:
        PartialResultError: after all others have been evaluated, if any were skipped.
    """
    from mteb_vllm.results.store import InMemoryResults

    meta = model.mteb_model_meta
    # A partial result is continued only if it is of the same data; mteb checks that for complete results only.
    before = store.load_task_result(task.metadata.name, meta) if store.has_partial_result(task, meta) else None
    # Predictions cannot be continued: with them, everything is recomputed.
    recompute = before is not None and (predictions or not reuse)
    failed = dict(broken or {})
    with store.staging() if predictions else contextlib.nullcontext(None) as folder:
        # Collected in memory, since mteb writes one subset at a time: the old result stays until its replacement is complete.
        cache = InMemoryResults(store.root) if recompute else store
        left = [unit for unit in data.units(task) if unit not in failed]
        if before is not None and not recompute:
            missing = before.get_missing_evaluations(task)
            left = [unit for unit in left if unit[0] in missing.get(unit[1], [])]
        if left and start is not None:
            start.ensure()
        while left:
            block = _next_block(left)
            try:
                with data.restrict_to(task, block), labels_as_lists(task), _track_unit(task) as current:
                    _evaluate(model, task, cache, folder)
                done = block
            except Exception as error:
                unit = current[-1] if current else None
                if unit not in left or len(data.units(task)) == 1 or is_fatal(error):
                    raise
                logger.exception("%s, %s failed", task.metadata.name, data.unit_name(unit))
                failed[unit], done = error, [unit]
            left = [unit for unit in left if unit not in done]
        if folder is not None and (written := folder / task.prediction_file_name).exists():
            store.save_predictions(task, meta, written)
        if (
            before is not None
            and recompute
            and (result := cache.load_task_result(task.metadata.name, meta)) is not None
        ):
            # Keep the scores of splits and subsets that are not part of this run.
            store.save_to_cache(before.merge(result), meta)
    if failed:
        raise PartialResultError(
            {data.unit_name(unit): error for unit, error in failed.items()},
            len(data.units(task)),
            "subsets" if len(task.hf_subsets) > 1 else "splits",
        )


def _next_block(left: Sequence[Unit]) -> list[Unit]:
    """Return the units to evaluate next: all, if every split has the same subsets, else those of the first split."""
    subsets, splits = {subset for subset, _ in left}, {split for _, split in left}
    if len(left) == len(subsets) * len(splits):
        return list(left)
    return [unit for unit in left if unit[1] == left[0][1]]


def _evaluate(model: MTEBModels, task: AbsTask, cache: ResultsStore, predictions: Path | None) -> None:
    """Evaluate with mteb those subsets and splits that have no result in the store."""
    import mteb

    answer = mteb.evaluate(
        model,
        task,
        cache=cache,
        overwrite_strategy="only-missing" if cache.has_partial_result(task, model.mteb_model_meta) else "always",
        encode_kwargs={"batch_size": 512, "show_progress_bar": False},
        prediction_folder=predictions,
        show_progress_bar=False,
        co2_tracker=False,
    )
    if answer.exceptions:
        raise RuntimeError(answer.exceptions[0].exception)


@contextlib.contextmanager
def _track_unit(task: AbsTask) -> Iterator[list[Unit]]:
    """Yield a list whose last item is the subset and split being evaluated; it is empty between evaluations."""
    current: list[Unit] = []
    evaluate: Callable[..., ScoresDict] = task._evaluate_subset

    def evaluate_tracked(*args: object, hf_split: str, hf_subset: str, **kwargs: object) -> ScoresDict:
        current.append((hf_subset, hf_split))
        scores = evaluate(*args, hf_split=hf_split, hf_subset=hf_subset, **kwargs)
        current.clear()
        return scores

    with replace_attributes(task, _evaluate_subset=evaluate_tracked):
        yield current


def outcome_of(task: AbsTask, result: TaskResult, status: Status) -> TaskOutcome:
    """Return a task's result as a `TaskOutcome` for the run record."""
    scores = _scores(result)
    return TaskOutcome(
        name=task.metadata.name,
        type=str(task.metadata.type),
        status=status,
        metric=str(task.metadata.main_score),
        main_score=float(result.get_score()),
        scores=scores,
        subsets=describe_subsets((split, subset) for split, subsets in scores.items() for subset in subsets),
    )


def _scores(result: TaskResult) -> dict[str, dict[str, ScoresDict]]:
    return {
        split: {str(entry["hf_subset"]): entry for entry in entries}
        for split, entries in result.to_dict()["scores"].items()
    }


def cached_outcome(task: AbsTask, result: TaskResult, store: ResultsStore, meta: ModelMeta) -> TaskOutcome:
    """Return the outcome of a cached result, with the measurements of the run that computed it."""
    outcome = outcome_of(task, result, "cached")
    outcome.measured = read_measured(store.root, store.get_task_result_path(task.metadata.name, meta))
    return outcome


def computed_outcome(
    model: Wrapper,
    task: AbsTask,
    store: ResultsStore,
    *,
    reuse: bool,
    start: EngineStart,
    prepare: Prepare | None = None,
    predictions: bool = False,
) -> TaskOutcome:
    """Compute a task with a wrapper of this package; return its outcome with times and counts. See `compute`."""
    meta = model.mteb_model_meta
    before, started, opening = copy.copy(model.work), time.perf_counter(), start.seconds
    loading = compute(model, task, store, reuse=reuse, start=start, prepare=prepare, predictions=predictions)
    opening = start.seconds - opening
    # Read back from the store, since mteb rounds on writing: the score shown now is exactly the one that later runs read.
    outcome = outcome_of(task, store.result(task, meta), "computed")
    work = model.work.since(before)
    outcome.seconds = {
        "load": loading,
        "encode": work.seconds,
        "store": work.store_seconds,
        "score": time.perf_counter() - started - loading - opening - work.seconds - work.store_seconds,
    }
    outcome.set_work(work)
    parts = parts_of(task)
    names = {part.metadata.name: f"{part.metadata.name}: " if len(parts) > 1 else "" for part in parts}
    outcome.prompts = {
        f"{names[of]}{side or 'texts'}": dict(applied) for (of, side), applied in model.applied.items() if of in names
    }
    return outcome


def failed_outcome(task: AbsTask, error: Exception) -> TaskOutcome:
    """Return the outcome of a task that failed."""
    return TaskOutcome(
        name=task.metadata.name,
        type=str(task.metadata.type),
        status="failed",
        metric=str(task.metadata.main_score),
        failure=failure_from_exception(error, task=task.metadata.name),
    )


def _partial_outcome(task: AbsTask, error: PartialResultError, store: ResultsStore, meta: ModelMeta) -> TaskOutcome:
    """Return the outcome of a task that failed in part, with the scores of the subsets that were evaluated."""
    outcome = failed_outcome(task, error)
    if (
        store.has_partial_result(task, meta)
        and (result := store.load_task_result(task.metadata.name, meta)) is not None
    ):
        # Not mteb's filter, which gives missing subsets a score of NaN.
        units, scores = data.units(task), _scores(result)
        outcome.scores = {
            split: {subset: scores[split][subset] for subset, of in units if of == split and subset in scores[split]}
            for split in task.eval_splits
            if split in scores
        }
    return outcome


class EngineStart:
    """Opens a model's engine and times it separately from the tasks; an engine that does not open is tried only once.

    Args:
        model: A wrapper of this package.

    Attributes:
        seconds: The time spent on opening the engine.
    """

    def __init__(self, model: VllmWrapperBase) -> None:
        self._model = model
        self._error: Exception | None = None
        self.seconds = 0.0

    def check(self) -> None:
        """Raise the error of an earlier `ensure` again, if there was one."""
        if self._error is not None:
            raise self._error

    def ensure(self) -> None:
        """Open the engine, or raise the error of an earlier attempt again: it would fail for every task.

        Raises:
            EngineError: if vLLM does not open with these arguments.
            MissingPackageError: if vLLM is not installed.
            ModelError: if the model is not of the required kind.
        """
        self.check()
        started = time.perf_counter()
        try:
            self._model.engine  # noqa: B018
        except (EngineError, MissingPackageError, ModelError) as error:
            self._error = error
            raise
        finally:
            self.seconds += time.perf_counter() - started
