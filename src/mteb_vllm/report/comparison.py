"""Compares runs: settings that differ, scores, speeds, effects of settings, and the best points. Does no I/O."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

from mteb_vllm.config.schema import ReportConfig
from mteb_vllm.report.points import Point, TaskScore, gain_share
from mteb_vllm.report.settings import differing_settings, shared_settings
from mteb_vllm.report.speeds import Speed, common_unit, measured_speeds, parity_speeds
from mteb_vllm.results.record import mean

__all__ = ["Comparison", "Effect", "Point", "Row", "Speed", "TaskScore", "compare", "same_speed"]


# Facts on which speeds depend, but not scores; and settings on which these facts may depend.
_HARDWARE = ("cores", "gpus")
_SIZES = (
    "device", "engine.tensor_parallel_size", "engine.pipeline_parallel_size", "engine.data_parallel_size", "engine.replicas",
    "engine.ray_address",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One point of a comparison.

    Attributes:
        point: The point.
        settings: Its value for each setting in which the points differ, in the order of `Comparison.columns`.
        scores: Task to main score; None where the task failed or is not one of the point's.
        mean: The mean over the shared tasks; None if one of their scores is missing.
        by_type: Task type to the mean over the shared tasks of this type, in the same way; empty if there is only one type.
        difference: `mean` minus the baseline's.
        gain: Reranking: the mean gain over the first stage; None where it is unknown for a task.
        first_stage: Reranking: the mean of the first stage's scores; likewise.
        ceiling: Reranking: the mean of the ceilings; likewise.
        share: Reranking: the mean share of the ceiling; likewise.
        gain_share: Reranking: the gain as a share of the possible gain, by the means of all shared tasks; None also where
            the ceiling leaves no room. Of means, since a task with little room would dominate a mean of shares.
        speed: The speed of its engine on the shared tasks; None where neither the point nor another one with the same engine
            measured all of them.
        good: Whether its mean is within epsilon of the best. False for points that were not run for their scores.
        on_front: Whether no other point is both better (or as good) and faster (or as fast); likewise.
        ratio: Throughput: its requests/s as a multiple of the baseline's; None where one of them is unknown.
        parity_speed: Parity: the speed of its engine, from the first throughput point with the same engine or its own.
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
    gain_share: float | None = None

    @property
    def without(self) -> dict[str, str]:
        """Why tasks that did not fail have no score: task to `NOT_A_NUMBER` or `NO_SCORE`."""
        return {task.name: task.without for task in self.point.tasks if task.without}

    @property
    def speed_of_other(self) -> str:
        """The name of the other point that its speed was measured in; "" where it is the point's own."""
        return self.speed.of if self.speed is not None and self.speed.of != self.point.name else ""


@dataclass(frozen=True)
class Effect:
    """The effect of one value of a setting against the baseline's value, all else equal.

    Attributes:
        column: The setting.
        value: The value.
        against: The baseline's value.
        pairs: The number of pairs of points that differ in this setting alone, one with `value`, the other with `against`.
        score_pairs: The number of these pairs in which both points have a mean.
        speed_pairs: The number in which both points measured their own speed, in the same unit, by the same pipeline, and on
            the same cores and GPUs.
        score: The mean difference of the means over `score_pairs`; None where there are none.
        score_range: The smallest and the largest difference.
        speed: The geometric mean of the ratios of texts/s (throughput points: requests/s) over `speed_pairs`; None where
            there are none.
        speed_range: The smallest and the largest ratio.
        speed_spread: The largest spread of the repeats of these points; None where nothing was repeated.
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
    speed_spread: float | None = None

    @property
    def speed_differs(self) -> bool:
        """Whether the speeds differ measurably: all pairs agree on it, and by more than the spread of the repeats."""
        if self.speed is None or self.speed_range is None or f"{self.speed:.2f}" == "1.00":
            return False
        return not _within_noise(self.speed_range, self.speed_spread)


@dataclass(frozen=True)
class Comparison:
    """A comparison of runs.

    Attributes:
        columns: The settings in which the points differ, e.g. "engine.dtype".
        constants: The settings that they share: key to value, the most important first.
        tasks: The names of all tasks, in the order in which they first occur.
        types: Task to type.
        shared: The tasks that means and speeds are over: those of every point, failed tasks included, except `unequal`.
            Points that failed as a whole do not count.
        unequal: The tasks whose scores are of different splits or subsets, and so are not compared.
        rows: The points, in the order in which they were given; see `ranked`.
        baseline: The name of the point that differences are against.
        epsilon: The distance below the best mean within which a point is still good.
        best: The row with the best mean; None where there are no means.
        answer: The fastest of the good rows; None where no speeds are known or they are not comparable.
        effects: The effects of settings.
        reranked: Whether there are figures of reranking.
        unit: The unit of speeds, "texts" or "pairs"; None where some points count texts and others pairs.
        fastest: The throughput point with the most requests/s; None where there is none, or where some requests are texts and
            others pairs.
        passed: Of the parity points that passed, the one with the most tokens/s; None where there is none with a speed.
    """

    columns: list[str]
    constants: dict[str, str]
    tasks: list[str]
    types: dict[str, str]
    shared: list[str]
    unequal: list[str]
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
    def comparable(self) -> list[str]:
        """The tasks whose scores can be compared, in the same order."""
        return [name for name in self.tasks if name not in self.unequal]

    @property
    def known_effects(self) -> list[Effect]:
        """The effects of settings on a score or a speed, without those of which neither is known."""
        return [effect for effect in self.effects if effect.score is not None or effect.speed is not None]

    @property
    def scored(self) -> bool:
        """Whether it is about scores: some points with tasks were run for their scores, or all points were."""
        points = [row.point for row in self.rows]
        return any(point.for_scores and point.tasks for point in points) or all(point.for_scores for point in points)

    @property
    def ranked(self) -> list[Row]:
        """The rows as every table has them: best first, failed ones last.

        Points that were run for their scores rank by mean and then by speed, parity points by verdict and then by their worst
        difference, throughput points by requests/s.
        """
        return sorted(self.rows, key=_rank)

    @property
    def recommended(self) -> Row | None:
        """The configuration to use: the fastest as good as the best, else the best, else by parity, else by throughput."""
        return self.answer or self.best or self.passed or self.fastest


def compare(
    points: Sequence[Point], *, baseline: str | None = None, epsilon: float = ReportConfig.epsilon
) -> Comparison:
    """Compare points.

    Args:
        points: One or more, with unique names.
        baseline: The name of the point that differences are against; None: the first.
        epsilon: The distance below the best mean within which a point is still good, on the scale of main scores.

    Raises:
        ValueError: if there are no points, or none has the baseline's name.
    """
    names = [point.name for point in points]
    if not names or baseline not in (None, *names):
        raise ValueError(f"no point is called {baseline}; available: {', '.join(names)}" if names else "no points")
    reference = names.index(baseline) if baseline is not None else 0
    tasks = [task for point in points for task in point.tasks]
    types = {task.name: task.type for task in reversed(tasks)}
    order = list(dict.fromkeys(task.name for task in tasks))
    unequal = _unequal(points, order)
    shared = [name for name in _shared(points, order) if name not in unequal]
    by_type: dict[str, list[str]] = {}
    for name in shared:
        by_type.setdefault(types[name], []).append(name)
    differing = differing_settings(points)
    settings = list(zip(*differing.values(), strict=True)) or [()] * len(points)
    scores = [dict.fromkeys(order) | {task.name: task.score for task in point.tasks} for point in points]
    means = [mean(one[name] for name in shared) for one in scores]
    ranked = [one if point.for_scores else None for point, one in zip(points, means, strict=True)]
    best = max((one for one in ranked if one is not None), default=None)
    speeds = measured_speeds(points, shared)
    of_parity = parity_speeds(points, speeds)
    # Speeds in pairs and in texts are not comparable.
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
        first_stage, ceiling = mean(task.first_stage for task in stages), mean(task.ceiling for task in stages)
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
                first_stage=first_stage,
                ceiling=ceiling,
                share=mean(_share(task) for task in stages),
                gain_share=gain_share(first_stage, own, ceiling),
                speed=speeds[at],
                # The slack allows for sums in another order.
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
        unequal=unequal,
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
        (record.unit, record.requests_per_second, row)
        for row in rows
        if (record := row.point.throughput) and record.requests_per_second
    ]
    if len({unit for unit, _, _ in measured}) != 1:
        return None
    return max(measured, key=lambda one: one[1])[2]


def _shared(points: Sequence[Point], order: Sequence[str]) -> list[str]:
    # The record of a point that failed as a whole may lack some of its tasks.
    begun = [point for point in points if point.tasks]
    of_points = [{task.name for task in point.tasks} for point in [one for one in begun if not one.cut_short] or begun]
    return [name for name in order if all(name in names for names in of_points)]


def _unequal(points: Sequence[Point], order: Sequence[str]) -> list[str]:
    subsets: dict[str, set[str]] = {}
    for task in (task for point in points for task in point.tasks if task.score is not None and task.subsets):
        subsets.setdefault(task.name, set()).add(task.subsets)
    return [name for name in order if len(subsets.get(name, ())) > 1]


def _gain(task: TaskScore) -> float | None:
    return None if task.score is None or task.first_stage is None else task.score - task.first_stage


def _share(task: TaskScore) -> float | None:
    return task.score / task.ceiling if task.score is not None and task.ceiling else None


def _front(places: Iterable[tuple[float, float]]) -> set[tuple[float, float]]:
    """Return the Pareto front of pairs (score, speed): those that no other beats in one and equals or beats in the other."""
    front, fastest = set(), 0.0
    for place in sorted(set(places), reverse=True):
        if place[1] > fastest:
            front.add(place)
            fastest = place[1]
    return front


def _effects(columns: Sequence[str], rows: Sequence[Row], baseline: Row) -> list[Effect]:
    """Return the effects, setting by setting; none for a value that occurs in no pair of points."""
    # An unreadable record has no settings.
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
    """Return the speed that a point measured itself, and its unit; None where there is none."""
    if (record := row.point.throughput) is not None:
        return (record.requests_per_second, f"requests of {record.unit}") if record.requests_per_second else None
    return (row.speed.texts, row.speed.unit) if row.speed is not None and row.speed.of == row.point.name else None


def _effect(column: str, value: str, against: str, pairs: Sequence[tuple[Row, Row]]) -> Effect:
    hardware = column in (*_HARDWARE, *_SIZES)
    scores = [one.mean - other.mean for one, other in pairs if one.mean is not None and other.mean is not None]
    rates = [(_rate(one), _rate(other)) for one, other in pairs]
    timed = [
        (pair, one[0] / other[0])
        for pair, (one, other) in zip(pairs, rates, strict=True)
        if one is not None and other is not None and one[1] == other[1] and (hardware or same_hardware(*pair))
    ]
    speeds = [ratio for _, ratio in timed]
    spreads = [_spread(row) for pair, _ in timed for row in pair]
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
        max((spread for spread in spreads if spread is not None), default=None),
    )


def same_hardware(one: Row, other: Row) -> bool:
    """Return whether two points had as many cores and the same GPUs, so that their speeds can be compared."""
    return all(one.point.facts.get(key) == other.point.facts.get(key) for key in _HARDWARE)


def _spread(row: Row) -> float | None:
    """Return the spread of a throughput point's repeats, as a share of their median; None where nothing was repeated."""
    saturated = row.point.throughput.saturated if row.point.throughput is not None else None
    return saturated.spread if saturated is not None and saturated.repeats > 1 else None


def _within_noise(ratios: tuple[float, float], spread: float | None) -> bool:
    """Return whether ratios of speeds cover 1, or are no further from 1 than the spread of the repeats."""
    low, high = ratios
    return low <= 1 <= high or max(1 - low, 1 - 1 / high) <= (spread or 0.0)


def same_speed(one: Row, other: Row) -> bool:
    """Return whether two throughput points do not differ measurably: within the larger spread of their repeats."""
    first, second = _rate(one), _rate(other)
    if first is None or second is None or first[1] != second[1]:
        return False
    ratio = first[0] / second[0]
    return _within_noise((ratio, ratio), max(_spread(one) or 0.0, _spread(other) or 0.0))


def _rank(row: Row) -> tuple[bool, int, bool, bool, float, float]:
    point, verdict = row.point, row.point.parity
    if verdict is not None:
        worst = verdict.worst.difference
        kind, figure = 1, None if worst is None else -abs(worst)
    elif point.for_speed:
        kind, figure = 2, point.throughput.requests_per_second if point.throughput is not None else None
    else:
        kind, figure = 0, row.mean
    passed = verdict is None or verdict.passed
    if figure is None:  # with scores of tasks that others lack, or with nothing
        return point.failed or not point.tasks, kind, True, not passed, 0.0, 0.0
    return False, kind, False, not passed, -figure, -(row.speed.texts if row.speed is not None else 0.0)
