"""What a comparison with a reference found out, as a run's record holds it: see `RunRecord.parity`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from mteb_vllm.results.measurements import Amount, Count, EngineRecord, Score


@dataclass
class SplitVerdict:
    """A main score on both sides.

    Attributes:
        split: The split.
        subset: The subset.
        metric: The name of the main score.
        reference: The reference's; None where it is not a number.
        engine: The engine's; likewise.
        difference: The engine's less the reference's; None where one of them is not a number.
        passed: Whether it is within the tolerance.
    """

    split: str
    subset: str
    metric: str
    reference: Score | None
    engine: Score | None
    difference: Score | None
    passed: bool


@dataclass
class VectorAgreement:
    """The cosines of texts' two embeddings, and the ratios of their lengths.

    Attributes:
        texts: How many texts were compared.
        min: The lowest cosine.
        p001: The 0.001 quantile of the cosines.
        p01: The 0.01 quantile.
        p10: The 0.1 quantile.
        p50: The median.
        length: The smallest and the largest ratio of the engine's length to the reference's; None for infinity.
    """

    texts: Count
    min: Score
    p001: Score
    p01: Score
    p10: Score
    p50: Score
    length: tuple[Amount | None, Amount | None]


@dataclass
class ScoreAgreement:
    """The differences of pairs' scores.

    Attributes:
        pairs: How many pairs were compared.
        max: The largest absolute difference.
        p99: The 0.99 quantile of the absolute differences.
        p50: The median.
        pearson: The correlation of the two sides; None where one side's scores are all equal.
    """

    pairs: Count
    max: Amount
    p99: Amount
    p50: Amount
    pearson: Score | None


@dataclass
class SimilarityAgreement:
    """The correlation of two sides' similarities of the same pairs of texts."""

    pearson: Score
    spearman: Score
    pairs: Count


@dataclass
class RankingAgreement:
    """How alike two sides' rankings are.

    Attributes:
        k: How many documents of a ranking count.
        overlap: The share of the first k that both have, the mean over queries.
        kendall: Kendall's tau-b, the mean over queries; None where it is defined for none.
        queries: How many queries there are.
    """

    k: Count
    overlap: Score
    kendall: Score | None
    queries: Count


@dataclass
class DifferingText:
    """A text whose two embeddings differ.

    Attributes:
        text: Its beginning.
        side: The task's side that it belongs to.
        cosine: The cosine of its two embeddings.
    """

    text: str
    side: str
    cosine: Score


@dataclass
class TaskVerdict:
    """Whether one task passed.

    Attributes:
        task: The task.
        passed: Whether it did.
        reasons: Why not.
        splits: Its main scores.
        cosine: Its embeddings; None where none were compared.
        worst: The texts that differ most.
        pair_scores: The scores of its pairs; None where none were compared.
        ranking: Its rankings, of a task of retrieval.
        similarities: Its similarities, of a task of similarity.
    """

    task: str
    passed: bool = False
    reasons: list[str] = field(default_factory=list)
    splits: list[SplitVerdict] = field(default_factory=list)
    cosine: VectorAgreement | None = None
    worst: list[DifferingText] = field(default_factory=list)
    pair_scores: ScoreAgreement | None = None
    ranking: RankingAgreement | None = None
    similarities: SimilarityAgreement | None = None


@dataclass(frozen=True)
class Tolerances:
    """Up to what the two sides may differ.

    Attributes:
        score: The difference of a main score, either way.
        cosine: The smallest cosine of a text's two embeddings; of rerankers, the smallest correlation of the pairs' scores.
        length: The difference from 1 of the ratio of their lengths.
    """

    score: float
    cosine: float
    length: float


@dataclass(frozen=True)
class Hint:
    """A cause of a difference that was measured.

    Attributes:
        cause: The cause.
        says: What was measured, in one sentence.
        worst: The worst cosine, or the largest difference of a pair's scores, that is left; None for infinity.
        median: The median one.
    """

    cause: str
    says: str
    worst: Score | None
    median: Score | None

    def __str__(self) -> str:
        return f"{self.cause}: {self.says}"


@dataclass
class ReferenceRecord:
    """What an engine was compared with.

    Attributes:
        kind: "engine", or "stored" for scores that there were.
        says: The same in words.
        backend: The reference engine's; None for stored scores.
        dtype: Its dtype.
        engine: How it was opened; None for stored scores, and where it was not.
    """

    kind: Literal["engine", "stored"]
    says: str
    backend: str | None = None
    dtype: str | None = None
    engine: EngineRecord | None = None


class Worst(NamedTuple):
    """The difference of a main score, and the task that it is of; None and "" where there is none."""

    difference: float | None
    task: str


@dataclass
class ParityRecord:
    """Whether an engine's results are a reference's.

    Attributes:
        passed: Whether all tasks passed.
        reference: What it was compared with.
        tolerances: How far the two may differ.
        tasks: The verdict on each task.
        hints: Causes of the differences, the best explanation first.
        notes: What else was found out about causes.
    """

    passed: bool
    reference: ReferenceRecord
    tolerances: Tolerances
    tasks: list[TaskVerdict] = field(default_factory=list)
    hints: list[Hint] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def worst(self) -> Worst:
        """The difference of a main score whose absolute value is the largest."""
        found = [
            Worst(split.difference, task.task)
            for task in self.tasks
            for split in task.splits
            if split.difference is not None
        ]
        return max(found, key=lambda one: abs(one.difference or 0.0), default=Worst(None, ""))

    @property
    def lowest_cosine(self) -> float | None:
        """The lowest cosine of a text's two embeddings; None where none were compared."""
        return min((task.cosine.min for task in self.tasks if task.cosine is not None), default=None)

    @property
    def reasons(self) -> Iterator[str]:
        """Why tasks did not pass."""
        return (f"{task.task}: {reason}" for task in self.tasks for reason in task.reasons)
