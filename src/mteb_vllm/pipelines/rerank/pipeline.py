"""Two-stage reranking: a first stage retrieves candidates and stores its predictions, a reranker scores the top of them.

The first stage's predictions and score are stored as separate results and reused by every run that needs them. So is the
ceiling, the score of a perfect reranker on the same candidates. Tasks with their own candidate lists need no first stage.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from mteb_vllm.catalogue import TaskInfo
from mteb_vllm.config.schema import Count
from mteb_vllm.errors import FirstStageError, Mistake, MtebVllmError, PartialResultError
from mteb_vllm.pipelines import mteb_run
from mteb_vllm.pipelines.base import FirstStage, Pipeline, RunContext
from mteb_vllm.pipelines.rerank.candidates import DEPTH, Ceiling, ceiling_meta
from mteb_vllm.results.failures import one_line_message
from mteb_vllm.results.record import TaskOutcome
from mteb_vllm.tasks.estimates import Estimate, estimate_pairs
from mteb_vllm.tasks.loading import Unit, restrict_to, unit_name, units
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
    """Reranking of a first stage's candidates.

    Attributes:
        top_k: The number of candidates reranked per query.
        scoring: "cross_encoder", or "cosine" for an embedding model.
        chunk_size: The maximum number of distinct pairs, or texts, passed to the engine at once.
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
        """The kind of model that `scoring` needs."""
        return ("encoder",) if self.scoring == "cosine" else ("cross_encoder",)

    def candidate_settings(self, stage: FirstStage, task_type: str, parts: Sequence[str]) -> JsonObject:
        """Return the settings that a task's candidates depend on; they are part of the settings of the reranked result."""
        if brings_candidates(task_type):
            return {"candidates": "own"}
        settings = [stage.settings(part) for part in parts]
        return {
            "first_stage": fingerprint(settings[0] if len(settings) == 1 else {"parts": settings}),
            "top_k": self.top_k,
        }

    def check(self, max_tokens: int | None) -> list[Mistake]:
        """Return the error in `top_k`, if any."""
        if 1 <= self.top_k <= DEPTH:
            return []
        return [Mistake("pipeline.top_k", f"must be from 1 to {DEPTH}", value=f"{self.top_k}")]

    def settings(self, kind: str, tasks: Sequence[str]) -> JsonObject:
        """Return the scoring method; empty for a cross-encoder."""
        return {} if kind == "cross_encoder" else {"scoring": "cosine"}

    def estimate(
        self, part: TaskInfo, splits: Sequence[str] | None, kind: str, max_tokens: int | None
    ) -> Estimate | None:
        """Return the reranker's work for a task.

        For an encoder it is an upper bound, all texts of the task: each is embedded once, however many pairs contain it.
        """
        if kind == "cross_encoder":
            return estimate_pairs(part, splits, top_k=self.top_k, max_tokens=max_tokens)
        return super().estimate(part, splits, kind, max_tokens)

    def run(self, context: RunContext) -> Iterator[TaskOutcome]:
        """Retrieve for all tasks, then rerank task by task; a failure of one task does not affect the others.

        The first stage finishes all tasks before the reranker's engine opens, so they need not fit into memory together.
        """
        model, stage = context.model, context.stage
        assert stage is not None
        started = time.perf_counter()
        failures = self.retrieve(context)
        context.seconds_before["first_stage"] = time.perf_counter() - started
        second = mteb_run.EngineStart(model)

        def evaluate(task: AbsTask, wait: bool) -> TaskOutcome:
            error = failures.get(task.metadata.name)
            # Subsets and splits for which the first stage succeeded can be reranked.
            if error is not None and not (isinstance(error, PartialResultError) and mteb_run.parts_of(task) == [task]):
                message = str(error) if isinstance(error, MtebVllmError) else one_line_message(error)
                raise FirstStageError(f"the first stage failed: {message}") from error
            failed_units = error.failed if isinstance(error, PartialResultError) else {}
            return self._rerank(
                model,
                task,
                context.store,
                context.progress,
                stage,
                second,
                reuse=context.reuse,
                wait=wait,
                failed_units=failed_units,
            )

        yield from mteb_run.evaluate_tasks(context.tasks, context.progress, evaluate)

    def retrieve(self, context: RunContext) -> dict[str, Exception]:
        """Run only the first stage, for all tasks.

        Returns:
            task name to error, for the tasks that failed.
        """
        stage = context.stage
        assert stage is not None
        failures: dict[str, Exception] = {}
        first = mteb_run.EngineStart(stage.encoder) if stage.encoder is not None else None
        for task in context.tasks:
            name = task.metadata.name
            if brings_candidates(task.metadata.type):
                context.progress.line(f"{name} has its own candidates: no first stage needed")
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
        model.set_extra_settings(self._candidates(stage, task))
        if reuse and mteb_run.cached_result(store, task, model.mteb_model_meta) is not None:
            return  # the reranked result is cached
        computed = False
        for part in parts:
            searcher = stage.searcher(part)
            if reuse and mteb_run.cached_result(store, part, searcher.mteb_model_meta, predictions=True) is not None:
                continue
            of = f" of {part.metadata.name}" if len(parts) > 1 else ""
            progress.start_task(task.metadata.name, f"first stage{of}")
            with store.claim(part, searcher.mteb_model_meta, on_wait=progress.waiting):
                if (
                    reuse
                    and mteb_run.cached_result(store, part, searcher.mteb_model_meta, predictions=True) is not None
                ):
                    continue  # computed by another run in the meantime
                computed = True
                depth = part._top_k  # type: ignore[attr-defined]
                try:
                    # Some tasks retrieve fewer documents than the top_k of another run may need.
                    part._top_k = max(depth, DEPTH)  # type: ignore[attr-defined]
                    mteb_run.compute(searcher, part, store, reuse=reuse, start=start, predictions=True)
                finally:
                    part._top_k = depth  # type: ignore[attr-defined]
        score = _score(store, task, lambda part: stage.searcher(part).mteb_model_meta)
        shown = "" if score is None else f" {score:.5f}"
        how = "computed" if computed else "cached"
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
        failed_units: Mapping[str, Exception],
    ) -> TaskOutcome:
        candidates = self._candidates(stage, task)
        model.set_extra_settings(candidates)
        own = brings_candidates(task.metadata.type)
        warnings: list[str] = []

        def prepare(part: AbsTask, broken: MutableMapping[Unit, Exception]) -> None:
            if not own:
                named = {unit_name(unit): unit for unit in units(part)}
                broken.update({named[name]: error for name, error in failed_units.items() if name in named})
                if few := set_candidates(part, store, stage.searcher(part).mteb_model_meta, self.top_k, broken):
                    queries = f"{few:,} {'query' if few == 1 else 'queries'}"
                    what = f"the first stage retrieved fewer than {self.top_k} candidates for {queries}"
                    warnings.append(f"{part.metadata.name}: {what}.")
            try:
                mteb_run.evaluate_loaded(Ceiling(part, candidates), part, store, reuse=reuse, broken=broken)
            except PartialResultError:
                pass  # the units in `broken` have no ceiling
            except Exception:
                logger.exception("the ceiling of %s could not be computed", part.metadata.name)

        outcome = mteb_run.evaluate_task(
            model, task, store, reuse=reuse, wait=wait, start=start, progress=progress, prepare=prepare
        )
        outcome.settings = (model.mteb_model_meta.experiment_kwargs or {})["settings"]
        outcome.candidates = "own" if own else "first stage"
        outcome.warnings += warnings
        if (
            task.metadata.main_score != "p-MRR"
        ):  # it compares two rankings, so ranking by relevance does not maximise it
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


def set_candidates(
    task: AbsTask, store: ResultsStore, meta: ModelMeta, top_k: int, broken: Mapping[Unit, Exception] | None = None
) -> int:
    """Set a first stage's predictions as the candidates of a loaded task.

    Replaces mteb's `convert_to_reranking`, whose changes outlive the task's data and which needs the predictions of splits
    and subsets that were not selected.

    Args:
        task: The task.
        store: The store with the first stage's predictions.
        meta: The first stage's metadata.
        top_k: The number of candidates per query.
        broken: The errors of subsets and splits that cannot be evaluated; these are skipped.

    Returns:
        the number of queries that have fewer candidates than `top_k`, although there are enough documents.

    Raises:
        FirstStageError: if the predictions are missing, or lack some of the queries.
    """
    good = [unit for unit in units(task) if unit not in (broken or {})]
    with restrict_to(task, good):
        predictions = store.read_predictions(task, meta)
    if predictions is None:
        raise FirstStageError(f"the first stage's predictions for {task.metadata.name} are missing")
    data: Any = task.dataset
    few = 0
    for subset, split in good:
        part = data[subset][split]
        best = {
            query: sorted(scores, key=lambda document: scores[document], reverse=True)[:top_k]
            for query, scores in predictions[subset][split].items()
        }
        # mteb skips queries without relevance judgements.
        wanted = [query for query in part["queries"]["id"] if part["relevant_docs"].get(query)]
        if missing := [query for query in wanted if query not in best]:
            raise FirstStageError(
                f"the first stage has no predictions for {len(missing):,} of the {len(wanted):,} queries of "
                f"{subset}/{split} of {task.metadata.name} (such as {missing[0]!r})"
            )
        enough = min(top_k, len(part["corpus"]))
        few += sum(len(best.get(query, [])) < enough for query in part["queries"]["id"])
        part["top_ranked"] = best
    return few


def _score(store: ResultsStore, task: AbsTask, meta_of: Callable[[AbsTask], ModelMeta]) -> float | None:
    """Return a task's main score from its cached result, for an aggregate from those of its parts; None if one is missing."""
    parts = mteb_run.parts_of(task)
    results = [result for part in parts if (result := store.cached_result(part, meta_of(part))) is not None]
    if len(results) < len(parts):
        return None
    combined = task.combine_task_results(results) if parts[0] is not task else results[0]  # type: ignore[attr-defined]
    return float(combined.get_score())
