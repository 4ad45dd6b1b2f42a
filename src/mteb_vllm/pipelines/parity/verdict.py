"""Judge task by task whether an engine's results agree with the reference's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mteb_vllm.pipelines.parity.agreement import (
    Rankings,
    cosines,
    deviations,
    ranking_agreement,
    score_agreement,
    similarity_agreement,
    vector_agreement,
)
from mteb_vllm.pipelines.parity.capture import Captured
from mteb_vllm.results.parity import DifferingText, RankingAgreement, SplitVerdict, TaskVerdict, Tolerances

# Added to the tolerance of main scores, against floating-point error.
_ROUNDING = 1e-9
# Characters of a text shown in a verdict.
_SHOWN = 200


# Split to subset to main score.
MainScores = Mapping[str, Mapping[str, float | None]]


@dataclass
class Side:
    """One side's results for a task.

    Attributes:
        scores: The main scores.
        captured: The embeddings, or scores of pairs, of the same texts on both sides.
        rankings: For retrieval tasks: the rankings, by part, subset and split.
        similarities: For similarity tasks: the cosine similarities of the pairs, by part, subset and split.
        failed: The error message, if the side failed.
    """

    scores: MainScores = field(default_factory=dict)
    captured: Captured | None = None
    rankings: dict[str, Rankings] = field(default_factory=dict)
    similarities: dict[str, list[float]] = field(default_factory=dict)
    failed: str | None = None


def judge(
    task: str, metric: str, engine: Side, reference: Side, allowed: Tolerances, *, k: int, worst: int
) -> TaskVerdict:
    """Return the verdict on one task.

    Args:
        task: Its name.
        metric: The name of its main score.
        engine: The engine under test.
        reference: The reference.
        allowed: The tolerances.
        k: The number of top documents per ranking that are compared.
        worst: The number of texts with the lowest cosine similarity to list.
    """
    verdict = TaskVerdict(task)
    sides = {"engine": engine, "reference": reference}
    verdict.reasons = [f"the {who} failed: {side.failed}" for who, side in sides.items() if side.failed]
    if verdict.reasons:
        return verdict
    verdict.splits = [
        _compare_scores(split, subset, metric, one, other, allowed.score)
        for split, subset, one, other in _common_scores(engine.scores, reference.scores)
    ]
    several = len(verdict.splits) > 1
    reasons = [_score_reason(split, several, allowed.score) for split in verdict.splits if not split.passed]
    missing = [
        f"{split}, {subset}"
        for split, subsets in engine.scores.items()
        for subset in subsets
        if subset not in reference.scores.get(split, {})
    ]
    if missing and verdict.splits:
        reasons.append(f"the reference has no score for {'; '.join(missing)}")
    if not verdict.splits:
        reasons.append("the two sides have no split or subset in common")
    reasons += _judge_captured(verdict, engine, reference, allowed, worst)
    verdict.ranking = _mean_ranking(engine.rankings, reference.rankings, k)
    mine = [value for key in sorted(engine.similarities) for value in engine.similarities[key]]
    theirs = [value for key in sorted(reference.similarities) for value in reference.similarities[key]]
    verdict.similarities = similarity_agreement(mine, theirs) if mine and theirs else None
    verdict.reasons, verdict.passed = reasons, not reasons
    return verdict


def _judge_captured(verdict: TaskVerdict, engine: Side, reference: Side, allowed: Tolerances, worst: int) -> list[str]:
    """Compare embeddings or scores of pairs, add them to the verdict, and return the reasons for a failure."""
    if engine.captured is None or reference.captured is None:
        return []
    mine, theirs = engine.captured.common(reference.captured)
    if not mine.keys:
        return ["the two sides have no text in common"]
    if mine.values.shape != theirs.values.shape:
        what = (
            f"the engine's embeddings have dimension {mine.values.shape[1]}, the reference's {theirs.values.shape[1]}"
        )
        return [f"{what} (engine.pooler_config.dimensions)"]
    if is_pairs(mine):
        verdict.pair_scores = scores = score_agreement(mine.values[:, 0], theirs.values[:, 0])
        # Checked besides the main score, which may not depend on the order of a few candidates.
        if scores.pearson is None or scores.pearson >= allowed.cosine:
            return []
        what = f"the correlation of the pairs' scores is {scores.pearson:.5f}, below {allowed.cosine:g}"
        return [f"{what}; the largest difference is {scores.max:.3g}"]
    verdict.cosine = found = vector_agreement(mine.values, theirs.values)
    each = cosines(mine.values, theirs.values)
    verdict.worst = [
        DifferingText(mine.items[row][2][0][:_SHOWN], mine.items[row][1], float(each[row]))
        for row in np.argsort(each, kind="stable")[:worst]
    ]
    reasons = []
    if not found.min >= allowed.cosine:
        below = int((each < allowed.cosine).sum())
        reasons.append(
            f"{below:,} of {found.texts:,} texts have a cosine similarity below {allowed.cosine:g}; the lowest is "
            f"{found.min:.5f}"
        )
    low, high = found.length
    assert low is not None and high is not None  # infinity becomes None only when a record is stored
    if not (1 - allowed.length <= low and high <= 1 + allowed.length):
        reasons.append(
            f"the embeddings' norms are {low:.5g} to {high:.5g} times the reference's, "
            f"but the tolerance is {allowed.length:.3g}"
        )
    return reasons


def is_pairs(captured: Captured) -> bool:
    """Whether scores of pairs were recorded, not embeddings of texts."""
    return len(captured.items[0][2]) == 2


def sample_rows(mine: Captured, theirs: Captured, worst: int, ordinary: int) -> list[int]:
    """Return the rows that differ most, and some evenly spaced among the others.

    Args:
        mine: One side.
        theirs: The other side, with the same texts in the same order.
        worst: The number of rows that differ most.
        ordinary: The number of other rows.
    """
    differences = (
        np.abs(mine.values - theirs.values)[:, 0] if is_pairs(mine) else deviations(mine.values, theirs.values)
    )
    order = np.argsort(-differences, kind="stable").tolist()
    rest = order[worst:]
    step = max(len(rest) // max(ordinary, 1), 1)
    return [*order[:worst], *rest[::step][:ordinary]]


def _common_scores(one: MainScores, other: MainScores) -> Iterator[tuple[str, str, float | None, float | None]]:
    """Yield split, subset and both scores wherever both sides have one."""
    for split, subsets in one.items():
        for subset, score in subsets.items():
            if subset in other.get(split, {}):
                yield split, subset, score, other[split][subset]


def _compare_scores(
    split: str, subset: str, metric: str, one: float | None, other: float | None, tolerance: float
) -> SplitVerdict:
    if one is None or other is None or not (math.isfinite(one) and math.isfinite(other)):
        return SplitVerdict(split, subset, metric, other, one, None, passed=False)
    difference = one - other
    return SplitVerdict(split, subset, metric, other, one, difference, passed=abs(difference) <= tolerance + _ROUNDING)


def _score_reason(verdict: SplitVerdict, several: bool, tolerance: float) -> str:
    where = f" ({verdict.split}, {verdict.subset})" if several else ""
    if verdict.difference is None:
        return f"the main score{where} is not a number on one side"
    return f"the main score{where} differs from the reference's by {verdict.difference:+.5f}, tolerance {tolerance:g}"


def _mean_ranking(one: Mapping[str, Rankings], other: Mapping[str, Rankings], k: int) -> RankingAgreement | None:
    """Return the agreement over all subsets and splits, weighted by their numbers of queries."""
    every = (ranking_agreement(one[key], other[key], k) for key in sorted(one.keys() & other.keys()))
    found = [agreement for agreement in every if agreement is not None]
    if not found:
        return None
    overlaps = [(agreement.overlap, agreement.queries) for agreement in found]
    taus = [(agreement.kendall, agreement.queries) for agreement in found if agreement.kendall is not None]
    queries = sum(agreement.queries for agreement in found)
    return RankingAgreement(k, _weighted(overlaps), _weighted(taus) if taus else None, queries)


def _weighted(values: Sequence[tuple[float, int]]) -> float:
    """Return the weighted mean of (value, weight) pairs."""
    return math.fsum(value * weight for value, weight in values) / sum(weight for _, weight in values)
