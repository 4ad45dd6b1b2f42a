"""A set of runs, compared: what differed, what each point scored and took, and the answer. No input, no output."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

from mteb_vllm.config.schema import ReportConfig
from mteb_vllm.report.points import Point, TaskScore
from mteb_vllm.report.settings import differing_settings, shared_settings
from mteb_vllm.report.speeds import Speed, common_unit, parity_speeds, speeds_of
from mteb_vllm.results.failures import FATAL
from mteb_vllm.results.record import mean

__all__ = ["Comparison", "Effect", "Point", "Row", "Speed", "TaskScore", "compare"]


@dataclass(frozen=True)
class Row:
    """One point of a comparison.

    Attributes:
        point: The point.
        settings: Its value in each column in which the points differ, in the columns' order.
        scores: Task to main score; None where it failed or was not part of it.
        mean: The mean over the tasks that all points share the names of; None if one of its scores is not there.
        by_type: Task type to the mean over the tasks of this type, in the same way; more than one type only.
        difference: `mean` minus the baseline's.
        gain: Reranking: mean of what reranking adds to the first stage; `None` where it is not known for all tasks.
        first_stage: Reranking: the mean of the first stage's scores; likewise.
        ceiling: Reranking: the mean of the ceilings; likewise.
        share: Reranking: the mean of the shares of the ceilings that are reached; likewise.
        speed: How fast its engine worked on the shared tasks; None where neither the point nor another one of the same engine
            measured all of them.
        good: Whether its mean is within epsilon of the best; of points that were run for their scores.
        on_front: Whether no other point is both better (or as good) and faster (or as fast); likewise.
        ratio: Throughput: its requests/s as a multiple of the baseline's; None where one of them is not known.
        parity_speed: Parity: how fast its engine works, by the first throughput point on the same engine or else by itself.
    """

    point: Point
    settings: tuple[str, ...]
    scores: dict[str, float | None]
    mean: float | None
    by_type: dict[str, float | None]
    difference: float | None
    gain: float | None
    first_stage: float | None
    ceiling: float | None
    share: float | None
    speed: Speed | None
    good: bool
    on_front: bool
    ratio: float | None = None
    parity_speed: Speed | None = None

    @property
    def speed_of_other(self) -> str:
        """The name of the point that its speed was measured in; "" where that is the point itself."""
        return self.speed.of if self.speed is not None and self.speed.of != self.point.name else ""


@dataclass(frozen=True)
class Effect:
    """What one value of a setting changes against a reference value, all else equal.

    Attributes:
        column: The setting.
        value: The value.
        against: The reference: the baseline's value.
        pairs: How many pairs of points differ in this setting alone, the one with `value`, the other with `against`.
        score_pairs: How many of them both have a mean.
        speed_pairs: How many of them both measured their own speed, in the same unit and by the same pipeline.
        score: The mean difference of the means of `score_pairs`; None where there are none.
        score_range: Its smallest and largest.
        speed: The geometric mean of the ratios of the texts/s of `speed_pairs`, of throughput points of their requests/s;
            None where there are none.
        speed_range: Its smallest and largest.
    """

    column: str
    value: str
    against: str
    pairs: int
    score_pairs: int
    speed_pairs: int
    score: float | None = None
    score_range: tuple[float, float] | None = None
    speed: float | None = None
    speed_range: tuple[float, float] | None = None


@dataclass(frozen=True)
class Comparison:
    """A set of runs, compared.

    Attributes:
        columns: In what the points differ, as "engine.dtype".
        constants: What they all share: key to value, what a reader asks for first standing first.
        tasks: All tasks, by name, in the order in which they first stand in a point.
        types: Task to type.
        shared: The tasks that means and speeds are over: those that every point has (failed ones included), points that
            failed as a whole aside.
        rows: The points, in the order that they were given in.
        baseline: The name of the point that differences are against.
        epsilon: How far below the best score a point is still good.
        best: The row with the best mean; None where there are no means.
        answer: The fastest of the good rows; None where no speeds are known or they are not comparable.
        effects: What each setting changes.
        reranked: Whether there are figures of reranking.
        unit: What speeds count, "texts" or "pairs"; None where some points count texts and others pairs.
        fastest: The throughput point with the most requests/s; None where there is none, or some read texts and others pairs.
        passed: Of the parity points that passed, the one with the most tokens/s; None where there is none with a speed.
    """

    columns: list[str]
    constants: dict[str, str]
    tasks: list[str]
    types: dict[str, str]
    shared: list[str]
    rows: list[Row]
    baseline: str
    epsilon: float
    best: Row | None
    answer: Row | None
    effects: list[Effect]
    reranked: bool
    unit: str | None
    fastest: Row | None = None
    passed: Row | None = None

    @property
    def scored(self) -> bool:
        """Whether scores are what it is about: those of points that were run for them, or there is nothing else."""
        points = [row.point for row in self.rows]
        return any(point.for_scores and point.tasks for point in points) or all(point.for_scores for point in points)


def compare(
    points: Sequence[Point], *, baseline: str | None = None, epsilon: float = ReportConfig.epsilon
) -> Comparison:
    """Compare points.

    Args:
        points: One or more, with different names.
        baseline: The name of the point that differences are against; None: the first.
        epsilon: How far below the best score a point is still good, on the scale of main scores.

    Raises:
        ValueError: if no point has the baseline's name, or there are no points.
    """
    names = [point.name for point in points]
    if not names or baseline not in (None, *names):
        raise ValueError(f"no point is called {baseline}; there are {', '.join(names)}" if names else "no points")
    reference = names.index(baseline) if baseline is not None else 0
    tasks = [task for point in points for task in point.tasks]
    types = {task.name: task.type for task in reversed(tasks)}
    order = list(dict.fromkeys(task.name for task in tasks))
    shared = _shared(points, order)
    by_type: dict[str, list[str]] = {}
    for name in shared:
        by_type.setdefault(types[name], []).append(name)
    differing = differing_settings(points)
    settings = list(zip(*differing.values(), strict=True)) or [()] * len(points)
    scores = [dict.fromkeys(order) | {task.name: task.score for task in point.tasks} for point in points]
    means = [mean(one[name] for name in shared) for one in scores]
    ranked = [one if point.for_scores else None for point, one in zip(points, means, strict=True)]
    best = max((one for one in ranked if one is not None), default=None)
    speeds = speeds_of(points, shared)
    of_parity = parity_speeds(points, speeds)
    # A speed in pairs and one in texts are not one faster than the other.
    unit = common_unit(points)
    places = [
        (one, speed.texts) if one is not None and speed is not None and unit is not None else None
        for one, speed in zip(ranked, speeds, strict=True)
    ]
    front = _front(place for place in places if place is not None)
    rows = []
    for at, point in enumerate(points):
        own, against = means[at], means[reference]
        of_tasks = {task.name: task for task in point.tasks}
        stages = [of_tasks.get(name, TaskScore(name)) for name in shared]
        rows.append(
            Row(
                point=point,
                settings=settings[at],
                scores=scores[at],
                mean=own,
                by_type={kind: mean(scores[at][name] for name in some) for kind, some in by_type.items()}
                if len(by_type) > 1
                else {},
                difference=own - against if own is not None and against is not None else None,
                gain=mean(_gain(task) for task in stages),
                first_stage=mean(task.first_stage for task in stages),
                ceiling=mean(task.ceiling for task in stages),
                share=mean(_share(task) for task in stages),
                speed=speeds[at],
                # The slack is for sums in another order.
                good=(score := ranked[at]) is not None and best is not None and score >= best - epsilon - 1e-12,
                on_front=places[at] in front,
                ratio=_ratio(point, points[reference]) if len(points) > 1 else None,
                parity_speed=of_parity[at],
            )
        )
    fast = [row for row, place in zip(rows, places, strict=True) if row.good and place is not None]
    return Comparison(
        columns=list(differing),
        constants=shared_settings(points, differing),
        tasks=order,
        types={name: types[name] for name in order},
        shared=shared,
        rows=rows,
        baseline=names[reference],
        epsilon=epsilon,
        best=next((row for row, score in zip(rows, ranked, strict=True) if score is not None and score == best), None),
        answer=max(fast, key=lambda row: (row.speed.texts if row.speed else 0.0, row.mean or 0.0), default=None),
        effects=_effects(list(differing), rows, rows[reference]),
        reranked=any(task.first_stage is not None or task.ceiling is not None for task in tasks),
        unit=unit,
        fastest=_fastest(rows),
        passed=max(
            (row for row in rows if row.point.parity is not None and row.point.parity.passed and row.parity_speed),
            key=lambda row: row.parity_speed.tokens if row.parity_speed else 0.0,
            default=None,
        ),
    )


def _ratio(point: Point, baseline: Point) -> float | None:
    own, against = point.throughput, baseline.throughput
    if (
        own is None
        or against is None
        or own.unit != against.unit
        or own.requests_per_second is None
        or not against.requests_per_second
    ):
        return None
    return own.requests_per_second / against.requests_per_second


def _fastest(rows: Sequence[Row]) -> Row | None:
    measured = [
        (said.unit, said.requests_per_second, row)
        for row in rows
        if (said := row.point.throughput) and said.requests_per_second
    ]
    if len({unit for unit, _, _ in measured}) != 1:
        return None
    return max(measured, key=lambda one: one[1])[2]


def _shared(points: Sequence[Point], order: Sequence[str]) -> list[str]:
    # Of a point that failed as a whole nobody knows what else it was to do.
    told = [point for point in points if point.tasks]
    of_points = [{task.name for task in point.tasks} for point in [one for one in told if not _cut_short(one)] or told]
    return [name for name in order if all(name in names for names in of_points)]


def _cut_short(point: Point) -> bool:
    """Return whether tasks may be missing because the point failed as a whole."""
    names = {task.name for task in point.tasks}
    return any(
        failure.task is None or (failure.kind in FATAL and failure.task not in names) for failure in point.failures
    )


def _gain(task: TaskScore) -> float | None:
    return None if task.score is None or task.first_stage is None else task.score - task.first_stage


def _share(task: TaskScore) -> float | None:
    return task.score / task.ceiling if task.score is not None and task.ceiling else None


def _front(places: Iterable[tuple[float, float]]) -> set[tuple[float, float]]:
    """Return those of (score, speed) that no other is better than in one and at least as good as in the other."""
    front, fastest = set(), 0.0
    for place in sorted(set(places), reverse=True):
        if place[1] > fastest:
            front.add(place)
            fastest = place[1]
    return front


def _effects(columns: Sequence[str], rows: Sequence[Row], baseline: Row) -> list[Effect]:
    """Return the effects that pairs of points tell of, column by column; none for a value that is in no pair."""
    # Of a point whose record cannot be read, no setting is known.
    known = [row for row in rows if row.point.overrides or row.point.facts]
    found = []
    for at, column in enumerate(columns):
        against = baseline.settings[at]
        alike: dict[tuple[str, ...], dict[str, list[Row]]] = {}
        for row in known:
            others = row.settings[:at] + row.settings[at + 1 :]
            alike.setdefault(others, {}).setdefault(row.settings[at], []).append(row)
        pairs: dict[str, list[tuple[Row, Row]]] = {row.settings[at]: [] for row in known if row.settings[at] != against}
        for group in alike.values():
            for value in group.keys() - {against}:
                pairs[value] += product(group[value], group.get(against, []))
        found += [_effect(column, value, against, some) for value, some in pairs.items() if some]
    return found


def _rate(row: Row) -> tuple[float, str] | None:
    """Return how fast a point was itself, and what of; None where it does not say."""
    if (said := row.point.throughput) is not None:
        return (said.requests_per_second, f"requests of {said.unit}") if said.requests_per_second else None
    return (row.speed.texts, row.speed.unit) if row.speed is not None and row.speed.of == row.point.name else None


def _effect(column: str, value: str, against: str, pairs: Sequence[tuple[Row, Row]]) -> Effect:
    scores = [one.mean - other.mean for one, other in pairs if one.mean is not None and other.mean is not None]
    rates = [(_rate(one), _rate(other)) for one, other in pairs]
    speeds = [one[0] / other[0] for one, other in rates if one is not None and other is not None and one[1] == other[1]]
    return Effect(
        column,
        value,
        against,
        len(pairs),
        len(scores),
        len(speeds),
        math.fsum(scores) / len(scores) if scores else None,
        (min(scores), max(scores)) if scores else None,
        math.exp(math.fsum(map(math.log, speeds)) / len(speeds)) if speeds else None,
        (min(speeds), max(speeds)) if speeds else None,
    )
