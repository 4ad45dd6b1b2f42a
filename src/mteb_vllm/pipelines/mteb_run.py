"""One task through mteb into the results store, and what a pipeline says of it."""

from __future__ import annotations

import contextlib
import copy
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING

from mteb_vllm.catalogue import mteb_catalogue
from mteb_vllm.engines.timing import replace_attributes
from mteb_vllm.errors import EngineError, MissingPackageError, ModelError, PartialResultError
from mteb_vllm.results.failures import failure_from_exception, is_fatal
from mteb_vllm.results.locks import BusyError
from mteb_vllm.results.lookup import copy_measured, read_measured, save_measured, save_shared_result, shared_result
from mteb_vllm.results.record import Status, TaskOutcome
from mteb_vllm.tasks import loading as data
from mteb_vllm.tasks.loading import Unit

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

# Called with a loaded task and why subsets and splits of it cannot be evaluated, to which it may add.
Prepare = Callable[["AbsTask", MutableMapping[Unit, Exception]], None]


def each_task(
    tasks: Sequence[AbsTask], progress: Progress, evaluate: Callable[[AbsTask, bool], TaskOutcome]
) -> Iterator[TaskOutcome]:
    """Evaluates task by task; one task's failure costs no other anything.

    A task that another run is computing comes last, when its result may be there.

    Args:
        tasks: mteb's tasks.
        progress: Told what is done.
        evaluate: Evaluates one; may raise. Its second argument says whether to wait for another run that is at it, or to
            raise `BusyError`.
    """
    later: list[AbsTask] = []
    for task, wait in itertools.chain(((task, False) for task in tasks), ((task, True) for task in later)):
        progress.start_task(task.metadata.name)
        try:
            outcome = evaluate(task, wait)
        except BusyError:
            progress.line(f"{task.metadata.name} is being computed by another run: it comes later")
            later.append(task)
            continue
        except Exception as error:
            logger.exception("%s failed", task.metadata.name)
            outcome = failed(task, error)
        progress.end_task(outcome)
        yield outcome


def evaluated(
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
    """A task's outcome: what is known of it, else what is computed now, by one run at a time.

    Args:
        model: A wrapper of ours.
        task: The task.
        store: Where results are kept.
        reuse: Whether known results are used.
        wait: Whether to wait for another run that computes the same.
        start: Opens the model's engine, once a task's data are loaded.
        progress: Told of a wait.
        input_fingerprint: The hash of how the task's texts are read, by which the result of another run is this one's, too.
        prepare: Called with each loaded part before it is evaluated.

    Raises:
        BusyError: if another run computes it and `wait` is false.
    """
    meta = model.mteb_model_meta
    if reuse and (result := known(store, task, meta)) is not None:
        return reused(task, result, store, meta)
    with store.claim(task, meta, wait=wait, on_wait=progress.waiting):
        if reuse and (result := known(store, task, meta)) is not None:
            return reused(task, result, store, meta)  # by another run, meanwhile
        if (
            reuse
            and input_fingerprint is not None
            and (other := shared_result(store.root, input_fingerprint)) is not None
        ):
            result = store.adopt(task, meta, other)
            if result is not None:
                copy_measured(store.root, other, store.get_task_result_path(task.metadata.name, meta))
                return reused(task, result, store, meta)
        try:
            outcome = computed_outcome(model, task, store, reuse=reuse, start=start, prepare=prepare)
        except PartialResultError as error:
            return _partly(task, error, store, meta)
        took = outcome.to_measured(model.engine_record())
        save_measured(store.root, store.get_task_result_path(task.metadata.name, meta), took)
        if input_fingerprint is not None and _on_known_sides(model, task):
            save_shared_result(store.root, input_fingerprint, store.get_task_result_path(task.metadata.name, meta))
        return outcome


def _on_known_sides(model: Wrapper, task: AbsTask) -> bool:
    """Whether mteb asked for a task's texts on those sides alone of which the catalogue knows."""
    names = {part.metadata.name for part in parts_of(task)}
    known = mteb_catalogue().tasks
    return all(side in known[of].sides for of, side in ((of, side or "") for of, side in model.applied) if of in names)


def parts_of(task: AbsTask) -> list[AbsTask]:
    """The tasks with data of their own: an aggregate's parts, or the task itself."""
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
    """Evaluate what is not known of a task into the store; return the seconds that its data took to load.

    Args:
        model: An encoder, a cross-encoder or a search model of mteb's, with `mteb_model_meta`.
        task: The task; of an aggregate, the parts are evaluated and combined.
        store: Where results are kept.
        reuse: Whether known results are used.
        start: Opens the model's engine, once data are loaded that need it.
        prepare: Called with each loaded part before it is evaluated.
        predictions: Whether what the model retrieved is kept, too.

    Raises:
        DataError: if the data cannot be loaded.
        PartialResultError: if some subsets, or parts, have no result; those of the others are in the store.
    """
    from mteb.abstasks.aggregated_task import AbsTaskAggregate

    meta = model.mteb_model_meta
    parts = parts_of(task)
    seconds, failed = 0.0, dict[str, Exception]()
    for part in parts:
        if reuse and known(store, part, meta, predictions=predictions):
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


def known(store: ResultsStore, task: AbsTask, meta: ModelMeta, *, predictions: bool = False) -> TaskResult | None:
    """A task's whole result, if it is known; with `predictions`, only if these are known as well."""
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
    with data.loaded(task, store) as broken:
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
    """Evaluate what is not known of a task whose data are loaded.

    `broken` says why subsets and splits cannot be evaluated. They are left out; so is one whose evaluation fails. For the
    other arguments see `compute`.

    Raises:
        PartialResultError: if there are such, when all others have been evaluated.
    """
    from mteb_vllm.results.store import InMemoryResults

    meta = model.mteb_model_meta
    # Parts of a result are read only where they are of the same data: mteb itself asks that of whole ones only.
    before = store.load_task_result(task.metadata.name, meta) if store.has_partial_result(task, meta) else None
    # Where predictions are kept, all of them are made: they are whole or nothing.
    again = before is not None and (predictions or not reuse)
    failed = dict(broken or {})
    with store.staging() if predictions else contextlib.nullcontext(None) as folder:
        # What is known stays as it is until all is there that takes its place: mteb would write a subset at a time.
        cache = InMemoryResults(store.root) if again else store
        left = [unit for unit in data.units(task) if unit not in failed]
        if before is not None and not again:
            missing = before.get_missing_evaluations(task)
            left = [unit for unit in left if unit[0] in missing.get(unit[1], [])]
        if left and start is not None:
            start.ensure()
        while left:
            block = _block(left)
            try:
                with data.narrowed(task, block), _watched(task) as at:
                    _evaluate(model, task, cache, folder)
                done = block
            except Exception as error:
                unit = at[-1] if at else None
                if unit not in left or len(data.units(task)) == 1 or is_fatal(error):
                    raise
                logger.exception("%s, %s failed", task.metadata.name, data.unit_name(unit))
                failed[unit], done = error, [unit]
            left = [unit for unit in left if unit not in done]
        if folder is not None and (written := folder / task.prediction_file_name).exists():
            store.save_predictions(task, meta, written)
        if before is not None and again and (result := cache.load_task_result(task.metadata.name, meta)) is not None:
            # Splits and subsets that were not asked for now stay as they are.
            store.save_to_cache(before.merge(result), meta)
    if failed:
        raise PartialResultError(
            {data.unit_name(unit): error for unit, error in failed.items()},
            len(data.units(task)),
            "subsets" if len(task.hf_subsets) > 1 else "splits",
        )


def _block(left: Sequence[Unit]) -> list[Unit]:
    """Return as many of these as mteb can evaluate at once: all, or those of the first split."""
    subsets, splits = {subset for subset, _ in left}, {split for _, split in left}
    if len(left) == len(subsets) * len(splits):
        return list(left)
    return [unit for unit in left if unit[1] == left[0][1]]


def _evaluate(model: MTEBModels, task: AbsTask, cache: ResultsStore, predictions: Path | None) -> None:
    """Let mteb evaluate what a store has no result of."""
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
def _watched(task: AbsTask) -> Iterator[list[Unit]]:
    """Note which subset and split is being evaluated: the last one, if there is one."""
    at: list[Unit] = []
    evaluate: Callable[..., ScoresDict] = task._evaluate_subset

    def watched(*args: object, hf_split: str, hf_subset: str, **kwargs: object) -> ScoresDict:
        at.append((hf_subset, hf_split))
        scores = evaluate(*args, hf_split=hf_split, hf_subset=hf_subset, **kwargs)
        at.clear()
        return scores

    with replace_attributes(task, _evaluate_subset=watched):
        yield at


def outcome_of(task: AbsTask, result: TaskResult, status: Status) -> TaskOutcome:
    """A task's result as a run's record holds it."""
    return TaskOutcome(
        name=task.metadata.name,
        type=str(task.metadata.type),
        status=status,
        metric=str(task.metadata.main_score),
        main_score=float(result.get_score()),
        scores=_scores(result),
    )


def _scores(result: TaskResult) -> dict[str, dict[str, ScoresDict]]:
    return {
        split: {str(entry["hf_subset"]): entry for entry in entries}
        for split, entries in result.to_dict()["scores"].items()
    }


def reused(task: AbsTask, result: TaskResult, store: ResultsStore, meta: ModelMeta) -> TaskOutcome:
    """A known result, with what the run that computed it has noted."""
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
    """Computes a task with a wrapper of ours, and says what that took; for the arguments see `compute`."""
    meta = model.mteb_model_meta
    before, started, opening = copy.copy(model.work), time.perf_counter(), start.seconds
    loading = compute(model, task, store, reuse=reuse, start=start, prepare=prepare, predictions=predictions)
    opening = start.seconds - opening
    # Read back, so that what is shown now is to the last digit what every later run will read: mteb rounds when it writes.
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
        f"{names[of]}{side or 'texts'}": dict(said) for (of, side), said in model.applied.items() if of in names
    }
    return outcome


def failed(task: AbsTask, error: Exception) -> TaskOutcome:
    """What is said of a task that has no score."""
    return TaskOutcome(
        name=task.metadata.name,
        type=str(task.metadata.type),
        status="failed",
        metric=str(task.metadata.main_score),
        failure=failure_from_exception(error, task=task.metadata.name),
    )


def _partly(task: AbsTask, error: PartialResultError, store: ResultsStore, meta: ModelMeta) -> TaskOutcome:
    """Return a failed task's outcome with the scores of those subsets that have some."""
    outcome = failed(task, error)
    if (
        store.has_partial_result(task, meta)
        and (result := store.load_task_result(task.metadata.name, meta)) is not None
    ):
        # mteb's own filter gives subsets that are missing a score of NaN.
        units, scores = data.units(task), _scores(result)
        outcome.scores = {
            split: {subset: scores[split][subset] for subset, of in units if of == split and subset in scores[split]}
            for split in task.eval_splits
            if split in scores
        }
    return outcome


class EngineStart:
    """Opens a model's engine before it is needed first, so that its start counts for no task; why it does not open is kept.

    Args:
        model: A wrapper of ours.

    Attributes:
        seconds: What opening it has taken.
    """

    def __init__(self, model: VllmWrapperBase) -> None:
        self._model = model
        self._dead: Exception | None = None
        self.seconds = 0.0

    def check(self) -> None:
        """Raise what `ensure` raised, if it did."""
        if self._dead is not None:
            raise self._dead

    def ensure(self) -> None:
        """Opens the engine, or says again why it does not open, which no later task will change.

        Raises:
            EngineError: vLLM does not open with these arguments.
            MissingPackageError: vLLM is not installed.
            ModelError: the model is not of the kind that is needed.
        """
        self.check()
        started = time.perf_counter()
        try:
            self._model.engine  # noqa: B018
        except (EngineError, MissingPackageError, ModelError) as error:
            self._dead = error
            raise
        finally:
            self.seconds += time.perf_counter() - started
