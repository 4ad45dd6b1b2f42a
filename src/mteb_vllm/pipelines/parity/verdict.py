"""Whether an engine's results are the reference's: task by task, with reasons in words."""

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

# A difference in the last digit that mteb keeps is none.
_ROUNDING = 1e-9
_SHOWN = 200


# Split to subset to main score.
MainScores = Mapping[str, Mapping[str, float | None]]


@dataclass
class Side:
    """What one side made of a task.

    Attributes:
        scores: Its main scores.
        captured: Embeddings, or scores of pairs, of the same texts on both sides.
        rankings: Of tasks of retrieval: what it retrieved, by part, subset and split.
        similarities: Of tasks of similarity: the cosines of the pairs, likewise.
        failed: Why there is nothing of this.
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
        allowed: Up to what they may differ.
        k: How many documents of a ranking count.
        worst: How many texts are shown.
    """
    verdict = TaskVerdict(task)
    sides = {"engine": engine, "reference": reference}
    verdict.reasons = [f"the {who} failed: {side.failed}" for who, side in sides.items() if side.failed]
    if verdict.reasons:
        return verdict
    verdict.splits = [
        _compared(split, subset, metric, one, other, allowed.score)
        for split, subset, one, other in _both(engine.scores, reference.scores)
    ]
    several = len(verdict.splits) > 1
    reasons = [_reason(split, several, allowed.score) for split in verdict.splits if not split.passed]
    missing = [
        f"{split}, {subset}"
        for split, subsets in engine.scores.items()
        for subset in subsets
        if subset not in reference.scores.get(split, {})
    ]
    if missing and verdict.splits:
        reasons.append(f"the reference has no score of {'; '.join(missing)}")
    if not verdict.splits:
        reasons.append("the two sides have no split and subset in common")
    reasons += _judge_captured(verdict, engine, reference, allowed, worst)
    verdict.ranking = _mean_ranking(engine.rankings, reference.rankings, k)
    mine = [value for key in sorted(engine.similarities) for value in engine.similarities[key]]
    theirs = [value for key in sorted(reference.similarities) for value in reference.similarities[key]]
    verdict.similarities = similarity_agreement(mine, theirs) if mine and theirs else None
    verdict.reasons, verdict.passed = reasons, not reasons
    return verdict


def _judge_captured(verdict: TaskVerdict, engine: Side, reference: Side, allowed: Tolerances, worst: int) -> list[str]:
    """Compare vectors or scores of pairs; return what is wrong with them."""
    if engine.captured is None or reference.captured is None:
        return []
    mine, theirs = engine.captured.common(reference.captured)
    if not mine.keys:
        return ["the two sides have embedded no text in common"]
    if mine.values.shape != theirs.values.shape:
        what = f"the engine's embeddings have {mine.values.shape[1]} numbers, the reference's {theirs.values.shape[1]}"
        return [f"{what} (engine.pooler_config.dimensions)"]
    if is_pairs(mine):
        verdict.pair_scores = scores = score_agreement(mine.values[:, 0], theirs.values[:, 0])
        # Few candidates can have the same main score in whatever order.
        if scores.pearson is None or scores.pearson >= allowed.cosine:
            return []
        what = f"the pairs' scores correlate with the reference's by {scores.pearson:.5f}, less than {allowed.cosine:g}"
        return [f"{what}: the largest difference is {scores.max:.3g}"]
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
            f"{below:,} of {found.texts:,} texts have a cosine below {allowed.cosine:g}: the worst {found.min:.5f}"
        )
    low, high = found.length
    assert low is not None and high is not None  # only a record that was read back has no infinity
    if not (1 - allowed.length <= low and high <= 1 + allowed.length):
        reasons.append(
            f"the embeddings' lengths are {low:.5g} to {high:.5g} times the reference's, "
            f"and may differ from them by {allowed.length:.3g}"
        )
    return reasons


def is_pairs(captured: Captured) -> bool:
    """Whether scores of pairs were caught, and not embeddings of texts."""
    return len(captured.items[0][2]) == 2


def sample_rows(mine: Captured, theirs: Captured, worst: int, ordinary: int) -> list[int]:
    """The rows that differ most, and some at even distances among the others.

    Args:
        mine: One side.
        theirs: The other, of the same texts in the same order.
        worst: How many of the former.
        ordinary: How many of the latter.
    """
    apart = np.abs(mine.values - theirs.values)[:, 0] if is_pairs(mine) else deviations(mine.values, theirs.values)
    order = np.argsort(-apart, kind="stable").tolist()
    rest = order[worst:]
    step = max(len(rest) // max(ordinary, 1), 1)
    return [*order[:worst], *rest[::step][:ordinary]]


def _both(one: MainScores, other: MainScores) -> Iterator[tuple[str, str, float | None, float | None]]:
    for split, subsets in one.items():
        for subset, score in subsets.items():
            if subset in other.get(split, {}):
                yield split, subset, score, other[split][subset]


def _compared(
    split: str, subset: str, metric: str, one: float | None, other: float | None, tolerance: float
) -> SplitVerdict:
    if one is None or other is None or not (math.isfinite(one) and math.isfinite(other)):
        return SplitVerdict(split, subset, metric, other, one, None, passed=False)
    difference = one - other
    return SplitVerdict(split, subset, metric, other, one, difference, passed=abs(difference) <= tolerance + _ROUNDING)


def _reason(verdict: SplitVerdict, several: bool, tolerance: float) -> str:
    where = f" ({verdict.split}, {verdict.subset})" if several else ""
    if verdict.difference is None:
        return f"the main score{where} is not a number on one side"
    return f"main score{where} {verdict.difference:+.5f} from the reference's, tolerance {tolerance:g}"


def _mean_ranking(one: Mapping[str, Rankings], other: Mapping[str, Rankings], k: int) -> RankingAgreement | None:
    """Agreement over all subsets and splits, weighted by their queries."""
    every = (ranking_agreement(one[key], other[key], k) for key in sorted(one.keys() & other.keys()))
    found = [agreement for agreement in every if agreement is not None]
    if not found:
        return None
    overlaps = [(agreement.overlap, agreement.queries) for agreement in found]
    taus = [(agreement.kendall, agreement.queries) for agreement in found if agreement.kendall is not None]
    queries = sum(agreement.queries for agreement in found)
    return RankingAgreement(k, _weighted(overlaps), _weighted(taus) if taus else None, queries)


def _weighted(values: Sequence[tuple[float, int]]) -> float:
    """Return the mean of values, each with its weight."""
    return math.fsum(value * weight for value, weight in values) / sum(weight for _, weight in values)
