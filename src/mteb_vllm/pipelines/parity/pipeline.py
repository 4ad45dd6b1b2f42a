"""`pipeline=parity`: run the same tasks through an engine and a reference, and compare embeddings and scores.

The reference finishes all tasks before the engine under test opens, so they need not fit into memory together. Where the two
differ, the reference is varied until it reproduces the engine; the change that does so is reported as a hint.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

from mteb_vllm.config.schema import (
    Cosine,
    Count,
    InstructionConfig,
    NotNegative,
    Paths,
    PositiveInt,
    RunConfig,
    ScoreTemplateConfig,
    TextsByKey,
)
from mteb_vllm.engines.base import close_engines
from mteb_vllm.pipelines import mteb_run
from mteb_vllm.pipelines.base import Pipeline, RunContext
from mteb_vllm.pipelines.rerank.pipeline import Rerank
from mteb_vllm.results.record import TaskOutcome


@dataclass(frozen=True, kw_only=True)
class SentenceTransformers:
    """The same model in sentence-transformers, configured by its recipe and its files, independent of the run's settings.

    Attributes:
        engine: Its engine arguments.
        prompts: Its prompts.
        instruction: Its instruction template.
        score_template: Its template for query-document pairs.
    """

    is_reference: ClassVar[bool] = True

    engine: dict[str, Any] = field(default_factory=dict)
    prompts: TextsByKey = field(default_factory=lambda: {"from_model": True})
    instruction: InstructionConfig = field(default_factory=lambda: InstructionConfig(from_model=True))
    score_template: ScoreTemplateConfig = field(default_factory=lambda: ScoreTemplateConfig(from_model=True))

    def applied_to(self, config: RunConfig) -> RunConfig:
        """Return the run's configuration with the reference's settings in place of its own."""
        return replace(
            config,
            engine=self.engine,
            prompts=self.prompts,
            instruction=self.instruction,
            score_template=self.score_template,
        )


@dataclass(frozen=True, kw_only=True)
class Stored(SentenceTransformers):
    """The scores of an earlier run or of published results; where they differ, sentence-transformers is run as a third side.

    Attributes:
        runs: A run's folder, or a folder with results in mteb's layout.
    """

    runs: Paths


@dataclass(frozen=True, kw_only=True)
class Parity(Pipeline):
    """Comparison of the engine with a reference.

    Attributes:
        tolerance: The maximum absolute difference of main scores; None: 0.0005 for encoders, 0.002 for rerankers.
        min_cosine: The minimum cosine similarity of a text's two embeddings; for rerankers, the minimum Pearson correlation
            of the pairs' scores.
        norm_tolerance: The maximum deviation from 1 of the ratio of the two embeddings' norms.
        top_k: The number of top documents per query whose rankings are compared.
        candidates: The number of BM25 candidates per query for a reranker, in tasks without their own candidates.
        max_texts: The maximum number of texts, or pairs, compared per task.
        worst: The number of texts with the lowest cosine similarity to list per task.
        chunk_size: The maximum number of distinct texts or pairs passed to the engine at once.
        reference: The configuration of the reference.
    """

    cached: ClassVar[bool] = False

    tolerance: NotNegative | None = None
    min_cosine: Cosine = 0.99
    norm_tolerance: NotNegative = 0.01
    top_k: Count = 10
    candidates: Count = 20
    max_texts: PositiveInt = 10_000
    worst: Count = 5
    chunk_size: Count = 8192
    reference: dict[str, Any] = field(default_factory=dict)

    @property
    def model_kinds(self) -> tuple[str, ...]:
        """All kinds."""
        return ("encoder", "cross_encoder")

    @property
    def runs_reference(self) -> bool:
        """Whether the reference is not given by stored scores, where it is run only for tasks whose scores differ."""
        return not self.reference.get("runs")

    def settings(self, kind: str, tasks: Sequence[str]) -> dict[str, Any]:
        """Return all fields."""
        return {"parity": asdict(self)}

    def types_for(self, kind: str) -> tuple[str, ...] | None:
        """Return the supported task types: for a reranker, those that it can rerank."""
        return Rerank.task_types if kind == "cross_encoder" else None

    def run(self, context: RunContext) -> Iterator[TaskOutcome]:
        """Run all tasks with the reference, then with the engine; a failure of one task does not affect the others.

        `context.parity` is updated after each task. No result is read from the store or written to it. If stored scores are
        the reference, `context.reference` is run only for tasks whose scores differ.

        Raises:
            ConfigError: if the stored scores cannot be read.
        """
        tasks, progress = context.tasks, context.progress
        from mteb_vllm.pipelines.parity.comparison import Comparison, Options

        runs = self.reference.get("runs") or []
        options = Options(
            tolerance=self.tolerance,
            min_cosine=self.min_cosine,
            norm_tolerance=self.norm_tolerance,
            top_k=self.top_k,
            candidates=self.candidates,
            max_texts=self.max_texts,
            worst=self.worst,
            runs=[runs] if isinstance(runs, str) else runs,
        )
        with context.store.staging() as scratch:
            comparison = Comparison(
                options, scratch, context.model, context.reference, progress, [task.metadata.name for task in tasks]
            )
            context.parity = comparison.verdict()
            if comparison.stored is None:
                started = time.perf_counter()
                for task in tasks:
                    comparison.reference_sides[task.metadata.name] = comparison.run_reference(task)
                close_engines()
                context.seconds_before["reference"] = time.perf_counter() - started
            for outcome in mteb_run.evaluate_tasks(tasks, progress, comparison.run_engine):
                comparison.judge(outcome)
                context.parity = comparison.verdict()
                yield outcome
            comparison.search_causes({task.metadata.name: task for task in tasks})
            context.parity = comparison.verdict()
