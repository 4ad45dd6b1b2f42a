"""The part of a `RunRecord` about the comparison with a reference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from mteb_vllm.results.measurements import Amount, Count, EngineRecord, Score


@dataclass
class SplitVerdict:
    """A main score of the engine and of the reference.

    Attributes:
        split: The split.
        subset: The subset.
        metric: The name of the main score.
        reference: The reference's score; None if it is not a number.
        engine: The engine's score; None if it is not a number.
        difference: The engine's score minus the reference's; None if either is not a number.
        passed: Whether the difference is within the tolerance.
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
    """Cosine similarities of the two embeddings of each text, and ratios of their lengths.

    Attributes:
        texts: Number of texts compared.
        min: The lowest cosine similarity.
        p001: The 0.001 quantile of the cosine similarities.
        p01: The 0.01 quantile.
        p10: The 0.1 quantile.
        p50: The median.
        length: The smallest and the largest ratio of the engine's vector length to the reference's; None for infinity.
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
    """Differences between the two scores of each pair.

    Attributes:
        pairs: Number of pairs compared.
        max: The largest absolute difference.
        p99: The 0.99 quantile of the absolute differences.
        p50: The median.
        pearson: The correlation of the engine's and the reference's scores; None if one side's scores are all equal.
    """

    pairs: Count
    max: Amount
    p99: Amount
    p50: Amount
    pearson: Score | None


@dataclass
class SimilarityAgreement:
    """The correlation of the engine's and the reference's similarities of the same pairs of texts."""

    pearson: Score
    spearman: Score
    pairs: Count


@dataclass
class RankingAgreement:
    """Agreement between the engine's and the reference's rankings.

    Attributes:
        k: Number of top documents compared.
        overlap: The share of the top k that both rankings contain, averaged over queries.
        kendall: Kendall's tau-b, averaged over queries; None if it is undefined for all.
        queries: Number of queries.
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
        side: The side of the task that it belongs to, e.g. "query"; "texts" in tasks with a single side.
        cosine: The cosine similarity of its two embeddings.
    """

    text: str
    side: str
    cosine: Score


@dataclass
class TaskVerdict:
    """The comparison for one task.

    Attributes:
        task: The task.
        passed: Whether it passed.
        reasons: Why it did not pass.
        splits: The main scores.
        cosine: The agreement of embeddings; None if none were compared.
        worst: The texts that differ most.
        pair_scores: The agreement of pair scores; None if none were compared.
        ranking: The agreement of rankings, for retrieval tasks.
        similarities: The agreement of similarities, for STS tasks.
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
    """The tolerances of a comparison.

    Attributes:
        score: Largest absolute difference of a main score.
        cosine: Lowest cosine similarity of a text's two embeddings; for rerankers, lowest correlation of the pair scores.
        length: Largest deviation from 1 of the ratio of the vector lengths.
    """

    score: float
    cosine: float
    length: float


@dataclass(frozen=True)
class Hint:
    """A possible cause of a difference, supported by a measurement.

    Attributes:
        cause: The cause.
        says: The measurement in one sentence.
        worst: The lowest remaining cosine similarity, or largest remaining difference of pair scores; None for infinity.
        median: The median of the same.
    """

    cause: str
    says: str
    worst: Score | None
    median: Score | None

    def __str__(self) -> str:
        return f"{self.cause}: {self.says}"


@dataclass
class ReferenceRecord:
    """The reference of a comparison.

    Attributes:
        kind: "engine", or "stored" for existing scores.
        says: A description of it.
        backend: The reference engine's backend; None for stored scores.
        dtype: Its dtype.
        engine: The record of its engine; None for stored scores, or if it was not opened.
    """

    kind: Literal["engine", "stored"]
    says: str
    backend: str | None = None
    dtype: str | None = None
    engine: EngineRecord | None = None


class Worst(NamedTuple):
    """The difference of a main score and its task; None and "" if there is none."""

    difference: float | None
    task: str


@dataclass
class ParityRecord:
    """The comparison of an engine with a reference.

    Attributes:
        passed: Whether all tasks passed.
        reference: The reference.
        tolerances: The tolerances.
        tasks: The verdict on each task.
        hints: Causes of the differences, the best explanation first.
        notes: Other findings about causes.
    """

    passed: bool
    reference: ReferenceRecord
    tolerances: Tolerances
    tasks: list[TaskVerdict] = field(default_factory=list)
    hints: list[Hint] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def worst(self) -> Worst:
        """The main-score difference with the largest absolute value."""
        found = [
            Worst(split.difference, task.task)
            for task in self.tasks
            for split in task.splits
            if split.difference is not None
        ]
        return max(found, key=lambda one: abs(one.difference or 0.0), default=Worst(None, ""))

    @property
    def lowest_cosine(self) -> float | None:
        """The lowest cosine similarity of a text's two embeddings; None if none were compared."""
        return min((task.cosine.min for task in self.tasks if task.cosine is not None), default=None)

    @property
    def reasons(self) -> Iterator[str]:
        """The reasons why tasks did not pass, each prefixed with its task."""
        return (f"{task.task}: {reason}" for task in self.tasks for reason in task.reasons)
