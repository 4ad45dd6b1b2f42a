"""Two-stage reranking: a first stage retrieves and keeps its predictions, a reranker reads the best of them.

A first stage's predictions and score are results of their own, found again by every run that needs them; so is the ceiling,
what a perfect reranker would reach with the same candidates. Tasks that bring their own candidate lists need no first stage.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from mteb_vllm.catalogue import TaskInfo
from mteb_vllm.config.schema import Count
from mteb_vllm.errors import FirstStageError, Mistake, MtebVllmError, PartialResultError
from mteb_vllm.pipelines import mteb_run
from mteb_vllm.pipelines.base import FirstStage, Pipeline, RunContext
from mteb_vllm.pipelines.rerank.candidates import DEPTH, Ceiling, ceiling_meta
from mteb_vllm.results.failures import in_one_line
from mteb_vllm.results.record import TaskOutcome
from mteb_vllm.tasks.estimates import Estimate, estimate_pairs
from mteb_vllm.tasks.loading import Unit, narrowed, unit_name, units
from mteb_vllm.tasks.selection import brings_candidates
from mteb_vllm.util.fingerprint import fingerprint
from mteb_vllm.util.plain import JsonObject

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask
    from mteb.models.model_meta import ModelMeta

    from mteb_vllm.progress import Progress
    from mteb_vllm.results.store import ResultsStore
    from mteb_vllm.wrappers import Wrapper

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Rerank(Pipeline):
    """Reranks what a first stage retrieved.

    Attributes:
        top_k: How many of the first stage's documents are reranked for each query.
        scoring: "cross_encoder", or "cosine" of an embedding model's embeddings.
        chunk_size: How many different pairs, or texts, are handed to the engine at once.
        first_stage: The configuration of the first stage.
    """

    reranks: ClassVar[bool] = True
    task_types: ClassVar[tuple[str, ...] | None] = (
        "Retrieval", "Reranking", "InstructionRetrieval", "InstructionReranking"
    )  # fmt: skip

    top_k: int = 100
    scoring: Literal["cross_encoder", "cosine"] = "cross_encoder"
    chunk_size: Count = 8192
    first_stage: dict[str, Any] = field(default_factory=dict)

    @property
    def model_kinds(self) -> tuple[str, ...]:
        """The kinds of model that this reranks with."""
        return ("encoder",) if self.scoring == "cosine" else ("cross_encoder",)

    def candidate_settings(self, stage: FirstStage, task_type: str, parts: Sequence[str]) -> JsonObject:
        """Return what a task's candidates depend on: part of every result that is made of them."""
        if brings_candidates(task_type):
            return {"candidates": "own"}
        settings = [stage.settings(part) for part in parts]
        return {
            "first_stage": fingerprint(settings[0] if len(settings) == 1 else {"parts": settings}),
            "top_k": self.top_k,
        }

    def check(self, max_tokens: int | None) -> list[Mistake]:
        """Return what is wrong with `top_k`."""
        if 1 <= self.top_k <= DEPTH:
            return []
        return [Mistake("pipeline.top_k", f"must be from 1 to {DEPTH}", value=f"{self.top_k}")]

    def settings(self, kind: str, tasks: Sequence[str]) -> JsonObject:
        """Return how pairs are scored, where the model is no cross-encoder."""
        return {} if kind == "cross_encoder" else {"scoring": "cosine"}

    def estimate(
        self, part: TaskInfo, splits: Sequence[str] | None, kind: str, max_tokens: int | None
    ) -> Estimate | None:
        """Return what the reranker is given for a task.

        An encoder that reranks embeds each text once, however many pairs it stands in: at most all of them.
        """
        if kind == "cross_encoder":
            return estimate_pairs(part, splits, top_k=self.top_k, max_tokens=max_tokens)
        return super().estimate(part, splits, kind, max_tokens)

    def run(self, context: RunContext) -> Iterator[TaskOutcome]:
        """Retrieve for every task, then rerank task by task; one task's failure costs no other anything.

        The first stage is through with all tasks before the reranker's engine opens: they need not fit into memory together.
        """
        model, stage = context.model, context.stage
        assert stage is not None
        failures = self.retrieve(context)
        second = mteb_run.EngineStart(model)

        def evaluate(task: AbsTask, wait: bool) -> TaskOutcome:
            error = failures.get(task.metadata.name)
            # What a first stage has done of a task can be reranked.
            if error is not None and not (isinstance(error, PartialResultError) and mteb_run.parts_of(task) == [task]):
                said = str(error) if isinstance(error, MtebVllmError) else in_one_line(error)
                raise FirstStageError(f"first stage: {said}") from error
            why = error.failed if isinstance(error, PartialResultError) else {}
            return self._rerank(
                model, task, context.store, context.progress, stage, second, reuse=context.reuse, wait=wait, why=why
            )

        yield from mteb_run.each_task(context.tasks, context.progress, evaluate)

    def retrieve(self, context: RunContext) -> dict[str, Exception]:
        """Run the first stage alone, for all tasks.

        Returns:
            what went wrong: task to error.
        """
        stage = context.stage
        assert stage is not None
        failures: dict[str, Exception] = {}
        first = mteb_run.EngineStart(stage.encoder) if stage.encoder is not None else None
        for task in context.tasks:
            name = task.metadata.name
            if brings_candidates(task.metadata.type):
                context.progress.line(f"{name} brings its own candidates: it needs no first stage")
                continue
            try:
                self._retrieve(context.model, task, context.store, context.progress, stage, first, context.reuse)
            except Exception as error:
                logger.exception("the first stage failed for %s", name)
                failures[name] = error
        return failures

    def _retrieve(
        self,
        model: Wrapper,
        task: AbsTask,
        store: ResultsStore,
        progress: Progress,
        stage: FirstStage,
        start: mteb_run.EngineStart | None,
        reuse: bool,
    ) -> None:
        parts = mteb_run.parts_of(task)
        model.count_also(self._candidates(stage, task))
        if reuse and mteb_run.known(store, task, model.mteb_model_meta) is not None:
            return  # nothing will be reranked
        computed = False
        for part in parts:
            searcher = stage.searcher(part)
            if reuse and mteb_run.known(store, part, searcher.mteb_model_meta, predictions=True) is not None:
                continue
            of = f" of {part.metadata.name}" if len(parts) > 1 else ""
            progress.start_task(task.metadata.name, f"first stage{of}")
            with store.claim(part, searcher.mteb_model_meta, on_wait=progress.waiting):
                if reuse and mteb_run.known(store, part, searcher.mteb_model_meta, predictions=True) is not None:
                    continue  # by another run, meanwhile
                computed = True
                depth = part._top_k  # type: ignore[attr-defined]
                try:
                    # Some tasks look at fewer documents than another run's top_k may ask for.
                    part._top_k = max(depth, DEPTH)  # type: ignore[attr-defined]
                    mteb_run.compute(searcher, part, store, reuse=reuse, start=start, predictions=True)
                finally:
                    part._top_k = depth  # type: ignore[attr-defined]
        score = _score(store, task, lambda part: stage.searcher(part).mteb_model_meta)
        shown = "" if score is None else f" {score:.5f}"
        how = "computed" if computed else "known already"
        progress.line(f"First stage: {task.metadata.name} {task.metadata.main_score}{shown} ({how})")

    def _rerank(
        self,
        model: Wrapper,
        task: AbsTask,
        store: ResultsStore,
        progress: Progress,
        stage: FirstStage,
        start: mteb_run.EngineStart,
        *,
        reuse: bool,
        wait: bool,
        why: Mapping[str, Exception],
    ) -> TaskOutcome:
        candidates = self._candidates(stage, task)
        model.count_also(candidates)
        own = brings_candidates(task.metadata.type)
        shallow: list[str] = []

        def prepare(part: AbsTask, broken: MutableMapping[Unit, Exception]) -> None:
            if not own:
                broken.update({unit: why[unit_name(unit)] for unit in units(part) if unit_name(unit) in why})
                if few := take_candidates(part, store, stage.searcher(part).mteb_model_meta, self.top_k, broken):
                    what = f"the first stage has fewer than {self.top_k} candidates for {few:,} queries"
                    shallow.append(f"{part.metadata.name}: {what}.")
            try:
                mteb_run.evaluate_loaded(Ceiling(part, candidates), part, store, reuse=reuse, broken=broken)
            except PartialResultError:
                pass  # of what cannot be evaluated there is none
            except Exception:
                logger.exception("the ceiling of %s cannot be had", part.metadata.name)

        outcome = mteb_run.evaluated(
            model, task, store, reuse=reuse, wait=wait, start=start, progress=progress, prepare=prepare
        )
        outcome.settings = (model.mteb_model_meta.experiment_kwargs or {})["settings"]
        outcome.candidates = "own" if own else "first stage"
        outcome.warnings += shallow
        if task.metadata.main_score != "p-MRR":  # which compares two orders: the best one is no maximum of it
            outcome.ceiling = _score(store, task, lambda part: ceiling_meta(candidates))
        if not own:
            metas = {part.metadata.name: stage.searcher(part).mteb_model_meta for part in mteb_run.parts_of(task)}
            outcome.first_stage = _score(store, task, lambda part: metas[part.metadata.name])
            outcome.predictions = [
                str(store.predictions_path(part, metas[part.metadata.name])) for part in mteb_run.parts_of(task)
            ]
        return outcome

    def _candidates(self, stage: FirstStage, task: AbsTask) -> JsonObject:
        names = [part.metadata.name for part in mteb_run.parts_of(task)]
        return self.candidate_settings(stage, task.metadata.type, names)


def take_candidates(
    task: AbsTask, store: ResultsStore, meta: ModelMeta, top_k: int, broken: Mapping[Unit, Exception] | None = None
) -> int:
    """Make a loaded task one of reranking what a first stage retrieved, as mteb's `convert_to_reranking` does.

    That goes on to change the task after its data are gone, and asks for splits and subsets that were not chosen.

    Args:
        task: The task.
        store: Where the first stage's predictions are.
        meta: The first stage's metadata.
        top_k: How many documents are reranked for each query.
        broken: Why subsets and splits cannot be evaluated, which are left out.

    Returns:
        how many queries have fewer candidates than that, and than there are documents.

    Raises:
        FirstStageError: if the predictions are gone, or do not have all queries.
    """
    good = [unit for unit in units(task) if unit not in (broken or {})]
    with narrowed(task, good):
        predictions = store.read_predictions(task, meta)
    if predictions is None:
        raise FirstStageError(f"the first stage's predictions for {task.metadata.name} are gone")
    data: Any = task.dataset
    few = 0
    for subset, split in good:
        part = data[subset][split]
        best = {
            query: sorted(scores, key=lambda document: scores[document], reverse=True)[:top_k]
            for query, scores in predictions[subset][split].items()
        }
        # mteb leaves out queries without relevance judgements.
        wanted = [query for query in part["queries"]["id"] if part["relevant_docs"].get(query)]
        if missing := [query for query in wanted if query not in best]:
            raise FirstStageError(
                f"the first stage has no predictions for {len(missing):,} of the {len(wanted):,} queries of "
                f"{subset}/{split} of {task.metadata.name} (as {missing[0]!r})"
            )
        enough = min(top_k, len(part["corpus"]))
        few += sum(len(best.get(query, [])) < enough for query in part["queries"]["id"])
        part["top_ranked"] = best
    return few


def _score(store: ResultsStore, task: AbsTask, meta_of: Callable[[AbsTask], ModelMeta]) -> float | None:
    """A main score, if it is known; an aggregate's, of its parts."""
    parts = mteb_run.parts_of(task)
    results = [result for part in parts if (result := store.known(part, meta_of(part))) is not None]
    if len(results) < len(parts):
        return None
    whole = task.combine_task_results(results) if parts[0] is not task else results[0]  # type: ignore[attr-defined]
    return float(whole.get_score())
