"""Embedding evaluation: every text of every task through the encoder, scored by mteb, task by task."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

from mteb_vllm.errors import EngineError, MissingPackageError
from mteb_vllm.results import TaskOutcome

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask
    from mteb.results import TaskResult

    from mteb_vllm.progress import Progress
    from mteb_vllm.store import ResultsStore
    from mteb_vllm.wrappers import VllmEncoderWrapper

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Evaluates an embedding model.

    Attributes:
        window: How many different texts are handed to the engine at once.
    """

    model_kinds: ClassVar[tuple[str, ...]] = ("encoder",)

    window: int = 8192

    def run(
        self,
        model: VllmEncoderWrapper,
        tasks: Sequence[AbsTask],
        store: ResultsStore,
        progress: Progress,
        *,
        reuse: bool = True,
    ) -> Iterator[TaskOutcome]:
        """Evaluates task by task; one task's failure costs no other anything.

        Args:
            model: The encoder.
            tasks: mteb's tasks.
            store: Where results are kept, and read from if `reuse`.
            progress: Told what is done.
            reuse: Whether known results are used.
        """
        dead: str | None = None
        for task in tasks:
            progress.start_task(task.metadata.name)
            try:
                outcome = _known(model, task, store) if reuse else None
                if outcome is None and dead is None:
                    dead = _why_no_engine(model)
                if outcome is None:
                    outcome = _failed(task, dead) if dead is not None else _evaluate(model, task, store, reuse)
            except Exception as error:
                logger.exception("%s failed", task.metadata.name)
                outcome = _failed(task, reason(error))
            progress.end_task(outcome)
            yield outcome


def reason(error: BaseException) -> str:
    """An error in one line, without the words that say nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    kind = type(error).__name__
    offline = "OfflineModeIsEnabled" in kind or any(
        "HF_HUB_OFFLINE" in line or "offline mode" in line.lower() for line in lines
    )
    text = f"{kind}: {lines[0]}" if lines else kind
    return text + (" (HF_HUB_OFFLINE is set: fetch the data beforehand where there is a network)" if offline else "")


def _known(model: VllmEncoderWrapper, task: AbsTask, store: ResultsStore) -> TaskOutcome | None:
    assert model.mteb_model_meta is not None
    result = store.known(task, model.mteb_model_meta)
    return None if result is None else _outcome(task, result, "reused")


def _why_no_engine(model: VllmEncoderWrapper) -> str | None:
    """Opens the engine, so that its start counts for no task; why it does not open, which no later task will change."""
    try:
        model.engine  # noqa: B018
    except (EngineError, MissingPackageError) as error:
        return str(error)
    return None


def _evaluate(model: VllmEncoderWrapper, task: AbsTask, store: ResultsStore, reuse: bool) -> TaskOutcome:
    from mteb.abstasks.aggregated_task import AbsTaskAggregate

    meta = model.mteb_model_meta
    assert meta is not None
    before, started = copy.copy(model.stats), time.perf_counter()
    aggregate = isinstance(task, AbsTaskAggregate)
    parts: list[AbsTask] = list(task.metadata.tasks) if isinstance(task, AbsTaskAggregate) else [task]
    load = sum(_compute(model, part, store, reuse) for part in parts if not (reuse and store.known(part, meta)))
    if isinstance(task, AbsTaskAggregate):
        store.save_to_cache(task.combine_task_results([store.result(part, meta) for part in parts]), meta)
    # Read back, so that what is shown now is to the last digit what every later run will read: mteb rounds when it writes.
    outcome = _outcome(task, store.result(task, meta), "computed")
    encode = model.stats.seconds - before.seconds
    outcome.seconds = {"load": load, "encode": encode, "score": time.perf_counter() - started - load - encode}
    for name in ("texts", "computed", "tokens", "truncated"):
        setattr(outcome, name, getattr(model.stats, name) - getattr(before, name))
    names = {part.metadata.name: f"{part.metadata.name}: " if aggregate else "" for part in parts}
    outcome.prompts = {
        f"{names[of]}{side or 'texts'}": dict(said) for (of, side), said in model.applied.items() if of in names
    }
    return outcome


def _compute(model: VllmEncoderWrapper, task: AbsTask, store: ResultsStore, reuse: bool) -> float:
    """Lets mteb evaluate one task into the store; returns the seconds that its data took to load."""
    import mteb

    meta = model.mteb_model_meta
    assert meta is not None
    started = time.perf_counter()
    before = store.load_task_result(task.metadata.name, meta) if store.started(task, meta) else None
    try:
        task.load_data()
        check_candidates(task)
        loaded = time.perf_counter()
        answer = mteb.evaluate(
            cast("Any", model),  # the protocol's metadata is never None, that of mteb's own AbsEncoder may be
            task,
            cache=store,
            # Parts of a result are read only where they are of the same data: mteb itself asks that of whole ones only.
            overwrite_strategy="only-missing" if reuse and before is not None else "always",
            encode_kwargs={"batch_size": 512, "show_progress_bar": False},
            show_progress_bar=False,
            co2_tracker=False,
        )
    finally:
        task.unload_data()
    if answer.exceptions:
        raise RuntimeError(answer.exceptions[0].exception)
    if not reuse and before is not None:
        # Splits and subsets that were not asked for now stay as they are.
        store.save_to_cache(before.merge(answer.task_results[0]), meta)
    return loaded - started


def check_candidates(task: AbsTask) -> None:
    """Refuses a reranking task whose candidate lists got lost: mteb would silently score full retrieval instead.

    `datasets` lists only the config `default` of an offline cache, and mteb then drops the candidate lists without a word.

    Raises:
        LookupError: with the way out.
    """
    if task.metadata.type not in ("Reranking", "InstructionReranking"):
        return
    data: Any = getattr(task, "dataset", None) or {}
    for subset in task.hf_subsets:
        for split in task.eval_splits:
            part = data.get(subset, {}).get(split)
            if part is not None and not part.get("top_ranked"):
                raise LookupError(
                    f"the candidate lists (top_ranked) of {subset}/{split} are missing, as happens with an offline data-set "
                    "cache; put a copy of the data set into a folder "
                    f"{task.metadata.dataset['path']} of the working directory, or load it online"
                )


def _outcome(task: AbsTask, result: TaskResult, status: Any) -> TaskOutcome:
    scores: dict[str, dict[str, Any]] = {
        split: {str(entry["hf_subset"]): entry for entry in entries}
        for split, entries in result.to_dict()["scores"].items()
    }
    return TaskOutcome(
        name=task.metadata.name,
        type=str(task.metadata.type),
        status=status,
        metric=str(task.metadata.main_score),
        main_score=float(result.get_score()),
        scores=scores,
    )


def _failed(task: AbsTask, why: str) -> TaskOutcome:
    return TaskOutcome(
        name=task.metadata.name,
        type=str(task.metadata.type),
        status="failed",
        metric=str(task.metadata.main_score),
        reason=" ".join(why.split()),
    )
