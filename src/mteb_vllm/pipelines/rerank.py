"""Two-stage reranking: a first stage retrieves and keeps its predictions, a reranker reads the best of them.

A first stage's predictions and score are results of their own, found again by every run that needs them; so is the ceiling,
what a perfect reranker would reach with the same candidates. Tasks that bring their own candidate lists need no first stage.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from mteb_vllm.errors import FirstStageError, MtebVllmError
from mteb_vllm.fingerprint import fingerprint
from mteb_vllm.first_stages import DEPTH, Ceiling, EncoderStage, FirstStage, ceiling_meta
from mteb_vllm.pipelines import mteb_run
from mteb_vllm.results import TaskOutcome
from mteb_vllm.tasks import brings_candidates

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

    from mteb_vllm.progress import Progress
    from mteb_vllm.store import ResultsStore
    from mteb_vllm.wrappers import VllmCrossEncoderWrapper, VllmEncoderReranker

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Rerank:
    """Reranks what a first stage retrieved.

    Attributes:
        top_k: How many of the first stage's documents are reranked for each query.
        scoring: "cross_encoder", or "cosine" of an embedding model's embeddings.
        window: How many different pairs, or texts, are handed to the engine at once.
        keep_engines: Whether a dense first stage's engine stays open beside the reranker's.
        first_stage: The configuration of the first stage.
    """

    task_types: ClassVar[tuple[str, ...] | None] = (
        "Retrieval", "Reranking", "InstructionRetrieval", "InstructionReranking"
    )  # fmt: skip

    top_k: int = 100
    scoring: Literal["cross_encoder", "cosine"] = "cross_encoder"
    window: int = 8192
    keep_engines: bool = False
    first_stage: dict[str, Any] = field(default_factory=dict)

    @property
    def model_kinds(self) -> tuple[str, ...]:
        """The kinds of model that this reranks with."""
        return ("encoder",) if self.scoring == "cosine" else ("cross_encoder",)

    def candidates(self, stage: FirstStage, task_type: str, parts: Sequence[str]) -> dict[str, Any]:
        """What a task's candidates depend on, as plain values: part of every result that is made of them.

        Args:
            stage: The first stage.
            task_type: The task's type.
            parts: Its name, or the names of an aggregate's parts.

        Raises:
            FirstStageError: if saved predictions cannot be read.
        """
        if brings_candidates(task_type):
            return {"candidates": "own"}
        settings = [stage.settings(part) for part in parts]
        return {
            "first_stage": fingerprint(settings[0] if len(settings) == 1 else {"parts": settings}),
            "top_k": self.top_k,
        }

    def run(
        self,
        model: VllmCrossEncoderWrapper | VllmEncoderReranker,
        tasks: Sequence[AbsTask],
        store: ResultsStore,
        progress: Progress,
        *,
        stage: FirstStage,
        reuse: bool = True,
    ) -> Iterator[TaskOutcome]:
        """Retrieves for every task, then reranks task by task; one task's failure costs no other anything.

        The first stage is through with all tasks before the reranker's engine opens: they need not fit into memory together.

        Args:
            model: The reranker.
            tasks: mteb's tasks.
            store: Where results and predictions are kept, and read from if `reuse`.
            progress: Told what is done.
            stage: The first stage.
            reuse: Whether known results are used.
        """
        failures: dict[str, str] = {}
        first = mteb_run.EngineStart(stage.encoder) if isinstance(stage, EncoderStage) else None
        for task in tasks:
            name = task.metadata.name
            if brings_candidates(task.metadata.type):
                progress.line(f"{name} brings its own candidates: it needs no first stage")
                continue
            try:
                self._retrieve(model, task, store, progress, stage, first, reuse)
            except Exception as error:
                logger.exception("the first stage failed for %s", name)
                said = str(error) if isinstance(error, MtebVllmError) else mteb_run.reason(error)
                failures[name] = f"first stage: {said}"
        second = mteb_run.EngineStart(model)

        def evaluate(task: AbsTask) -> TaskOutcome:
            if task.metadata.name in failures:
                raise FirstStageError(failures[task.metadata.name])
            return self._rerank(model, task, store, stage, second, reuse)

        yield from mteb_run.each_task(tasks, progress, evaluate)

    def _retrieve(
        self,
        model: Any,
        task: AbsTask,
        store: ResultsStore,
        progress: Progress,
        stage: FirstStage,
        start: mteb_run.EngineStart | None,
        reuse: bool,
    ) -> None:
        searcher = stage.searcher(task)
        found = mteb_run.known(searcher.mteb_model_meta, task, store, predictions=True) if reuse else None
        how = "known already"
        if found is None:
            model.count_also(self._candidates(stage, task))
            if reuse and mteb_run.known(model.mteb_model_meta, task, store) is not None:
                return  # nothing will be reranked
            progress.start_task(task.metadata.name, "first stage")
            if start is not None:
                start.ensure()
            mteb_run.compute(searcher, task, store, reuse=reuse, prepare=_deep_enough, predictions=True)
            found, how = store.result(task, searcher.mteb_model_meta), "computed"
        score = float(found.get_score())
        progress.line(f"First stage: {task.metadata.name} {task.metadata.main_score} {score:.5f} ({how})")

    def _rerank(
        self,
        model: Any,
        task: AbsTask,
        store: ResultsStore,
        stage: FirstStage,
        start: mteb_run.EngineStart,
        reuse: bool,
    ) -> TaskOutcome:
        candidates = self._candidates(stage, task)
        model.count_also(candidates)
        own = brings_candidates(task.metadata.type)

        def prepare(part: AbsTask) -> None:
            if not own:
                meta = stage.searcher(part).mteb_model_meta
                part.convert_to_reranking(store.predictions_path(part, meta), top_k=self.top_k)  # type: ignore[attr-defined]
            mteb_run.evaluate_loaded(Ceiling(part, candidates), part, store, reuse=reuse)

        result = mteb_run.known(model.mteb_model_meta, task, store) if reuse else None
        if result is not None:
            outcome = mteb_run.outcome_of(task, result, "reused")
        else:
            start.ensure()
            outcome = mteb_run.computed_outcome(model, task, store, reuse=reuse, prepare=prepare)
        outcome.candidates = "own" if own else "first stage"
        outcome.ceiling = _score(store, task, ceiling_meta(candidates))
        if not own:
            outcome.first_stage = _score(store, task, stage.searcher(task).mteb_model_meta)
        return outcome

    def _candidates(self, stage: FirstStage, task: AbsTask) -> dict[str, Any]:
        names = [part.metadata.name for part in mteb_run.parts_of(task)]
        return self.candidates(stage, task.metadata.type, names)


def _deep_enough(task: AbsTask) -> None:
    # Some tasks look at fewer documents than another run's top_k may ask for.
    task._top_k = max(task._top_k, DEPTH)  # type: ignore[attr-defined]


def _score(store: ResultsStore, task: AbsTask, meta: Any) -> float | None:
    """A main score, if it is known; an aggregate's, of its parts."""
    parts = mteb_run.parts_of(task)
    results = [result for part in parts if (result := store.known(part, meta)) is not None]
    if len(results) < len(parts):
        return None
    whole = task.combine_task_results(results) if parts[0] is not task else results[0]  # type: ignore[attr-defined]
    return float(whole.get_score())
