"""Whether an engine's numbers are a reference's: the same tasks through both, compared text by text and score by score.

The reference is through with all tasks before the engine under test opens: they need not fit into memory together. Where they
differ, the reference is varied until it makes what the engine makes: what had to be changed is the hint.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

from mteb_vllm.config.schema import (
    Cosine,
    Count,
    InstructionConfig,
    Names,
    NotNegative,
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
    """The same model as its recipe and its files say, in sentence-transformers, whatever the run itself says.

    Attributes:
        engine: Its engine arguments.
        prompts: Its prompts.
        instruction: Its instruction template.
        score_template: What it reads pairs through.
    """

    is_reference: ClassVar[bool] = True

    engine: dict[str, Any] = field(default_factory=dict)
    prompts: TextsByKey = field(default_factory=lambda: {"from_model": True})
    instruction: InstructionConfig = field(default_factory=lambda: InstructionConfig(from_model=True))
    score_template: ScoreTemplateConfig = field(default_factory=lambda: ScoreTemplateConfig(from_model=True))

    def applied_to(self, config: RunConfig) -> RunConfig:
        """The run's configuration as it would be if all of it were the reference's."""
        return replace(
            config,
            engine=self.engine,
            prompts=self.prompts,
            instruction=self.instruction,
            score_template=self.score_template,
        )


@dataclass(frozen=True, kw_only=True)
class Stored(SentenceTransformers):
    """The scores of a run that there is, or of published results; where they differ, sentence-transformers is asked as well.

    Attributes:
        runs: A run's folder, or a folder of results in mteb's layout.
    """

    runs: Names


@dataclass(frozen=True, kw_only=True)
class Parity(Pipeline):
    """Compares the engine with a reference.

    Attributes:
        tolerance: By how much a main score may differ, either way; None: 0.0005, of rerankers 0.002.
        min_cosine: The smallest cosine that a text's two embeddings may have; of rerankers, the smallest correlation of the
            scores of pairs.
        length_tolerance: By how much the ratio of their lengths may differ from 1.
        top_k: How many documents of a ranking are compared.
        candidates: How many documents of BM25's a reranker reads for each query, where a task brings no candidates.
        max_texts: How many texts, or pairs, of a task are compared.
        worst: How many of the worst texts are shown.
        chunk_size: How many different texts are handed to the engine at once.
        reference: The configuration of the reference.
    """

    cached: ClassVar[bool] = False

    tolerance: NotNegative | None = None
    min_cosine: Cosine = 0.99
    length_tolerance: NotNegative = 0.01
    top_k: Count = 10
    candidates: Count = 20
    max_texts: PositiveInt = 10_000
    worst: Count = 5
    chunk_size: Count = 8192
    reference: dict[str, Any] = field(default_factory=dict)

    @property
    def model_kinds(self) -> tuple[str, ...]:
        """Every kind."""
        return ("encoder", "cross_encoder")

    def settings(self, kind: str, tasks: Sequence[str]) -> dict[str, Any]:
        """Return all fields."""
        return {"parity": asdict(self)}

    def types_for(self, kind: str) -> tuple[str, ...] | None:
        """Return the types of task: a reranker can be compared with its reference on what it can rerank."""
        return Rerank.task_types if kind == "cross_encoder" else None

    def run(self, context: RunContext) -> Iterator[TaskOutcome]:
        """Evaluate task by task, with the reference and then with the engine; one task's failure costs no other anything.

        `context.parity` is the verdict, so far as there is one. No stored result is read or written. Where
        stored scores are the reference, `context.reference` is asked only if these differ.

        Raises:
            ConfigError: if the stored scores cannot be had.
        """
        tasks, progress = context.tasks, context.progress
        from mteb_vllm.pipelines.parity.comparison import Comparison, Options

        runs = self.reference.get("runs") or []
        options = Options(
            tolerance=self.tolerance,
            min_cosine=self.min_cosine,
            length_tolerance=self.length_tolerance,
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
                for task in tasks:
                    comparison.theirs[task.metadata.name] = comparison.ask_reference(task)
                close_engines()
            for outcome in mteb_run.evaluate_tasks(tasks, progress, comparison.ask_engine):
                comparison.judge(outcome)
                context.parity = comparison.verdict()
                yield outcome
            comparison.look_for_causes({task.metadata.name: task for task in tasks})
            context.parity = comparison.verdict()
