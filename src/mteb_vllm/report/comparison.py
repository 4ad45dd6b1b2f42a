"""A set of runs, compared: what differed, what each point scored and took, and the answer. No input, no output."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mteb_vllm.failures import Failure
from mteb_vllm.report.columns import columns, constants
from mteb_vllm.report.effects import Effect, effects
from mteb_vllm.report.one_run import mean

__all__ = ["EPSILON", "Comparison", "Effect", "Point", "Row", "Speed", "TaskScore", "compare"]

# How far below the best score a point still counts as good, where nobody says: main scores are shares, from 0 to 1.
EPSILON = 0.001


@dataclass(frozen=True)
class TaskScore:
    """One task of a point.

    Attributes:
        name: The task.
        type: Its type; "" where nobody knows the task.
        metric: The name of its main score; likewise.
        score: The main score, the mean over splits and subsets; None if it failed.
        failed: Whether it failed.
        first_stage: Of a reranking run, the first stage's main score; None where there is none or it is not known.
        ceiling: Of a reranking run, what a perfect reranker would reach; likewise.
        unit: What `texts` and `computed` count: texts, or pairs.
        texts: Texts that were asked for. This and what follows is None where nobody knows.
        computed: Those of them that the engine computed, each different one once.
        stored: Those of the different ones that came from the embedding store.
        tokens: Tokens that the engine was given.
        seconds: Wall time of the engine's work on them, without the store's.
    """

    name: str
    type: str = ""
    metric: str = ""
    score: float | None = None
    failed: bool = False
    first_stage: float | None = None
    ceiling: float | None = None
    unit: str = "texts"
    texts: int | None = None
    computed: int | None = None
    stored: int | None = None
    tokens: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Point:
    """One run, as it is compared.

    Attributes:
        name: Its number in a sweep, or what its folder is called; different ones in a comparison.
        folder: Where it was found.
        source: "run" is this program's, "results" a folder of results in mteb's layout, of whomever.
        overrides: What made it, by the command line: key to value.
        facts: Everything that it ran with, flat, by dotted keys: "model", "revision", "engine.dtype", "device",
            "versions.vllm", ...; values as they are shown.
        engine: The fingerprint of its engine; "" where there is none.
        tasks: Its tasks.
        engine_seconds: What the start of its engine took; None where none was opened or nobody knows.
        seconds: Wall time of the whole.
        peak_memory_mb: Of the process and its engine's processes, in MiB.
        failures: What went wrong, with logs.
        report: The folder's own report, if there is one.
    """

    name: str
    folder: Path
    source: Literal["run", "results"] = "run"
    overrides: dict[str, str] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    engine: str = ""
    tasks: list[TaskScore] = field(default_factory=list)
    engine_seconds: float | None = None
    seconds: float | None = None
    peak_memory_mb: float | None = None
    failures: list[Failure] = field(default_factory=list)
    report: Path | None = None

    def total(self, figure: str) -> int | None:
        """The sum of a figure over its tasks, as `computed`, as far as it is known; None where it is known of none."""
        known = [value for task in self.tasks if (value := getattr(task, figure)) is not None]
        return sum(known) if known else None


@dataclass(frozen=True)
class Speed:
    """How fast a point's engine worked, by what it computed; what came from a store counts for nothing.

    Attributes:
        texts: Texts (or pairs) a second.
        tokens: Tokens a second.
        unit: "texts" or "pairs".
        computed: How many texts that was measured on.
        of: The name of the point that it was measured in: the point's own, or another of the same engine where the point
            itself computed too little (less than half of what it asked for) to tell.
    """

    texts: float
    tokens: float
    unit: str
    computed: int
    of: str


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
        speed: How fast its engine worked; None where nothing tells.
        good: Whether its mean is within epsilon of the best.
        on_front: Whether no other point is both better (or as good) and faster (or as fast).
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
    speed: Speed | None
    good: bool
    on_front: bool


@dataclass(frozen=True)
class Comparison:
    """A set of runs, compared.

    Attributes:
        columns: In what the points differ, as "engine.dtype".
        constants: What they all share: key to value, what a reader asks for first standing first.
        tasks: All tasks, by name, in the order in which they first stand in a point.
        types: Task to type.
        shared: The tasks that the means are over: those that every point has (failed ones included).
        rows: The points, in the order that they were given in.
        baseline: The name of the point that differences are against.
        epsilon: How far below the best score a point is still good.
        best: The row with the best mean; None where there are no means.
        answer: The fastest of the good rows; None where no speeds are known.
        effects: What each setting changes.
        reranked: Whether there are figures of reranking.
        unit: "texts" or "pairs".
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
    unit: str


def compare(points: Sequence[Point], *, baseline: str | None = None, epsilon: float = EPSILON) -> Comparison:
    """Compares points.

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
    differing = columns(points)
    settings = list(zip(*differing.values(), strict=True)) or [()] * len(points)
    scores = [dict.fromkeys(order) | {task.name: task.score for task in point.tasks} for point in points]
    means = [mean(one[name] for name in shared) for one in scores]
    best = max((one for one in means if one is not None), default=None)
    speeds = _speeds(points)
    # A speed in pairs and one in texts are not one faster than the other.
    units = {speed.unit for speed in speeds if speed is not None}
    places = [
        (one, speed.texts) if one is not None and speed is not None and len(units) == 1 else None
        for one, speed in zip(means, speeds, strict=True)
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
                speed=speeds[at],
                # The slack is for sums in another order.
                good=own is not None and best is not None and own >= best - epsilon - 1e-12,
                on_front=places[at] in front,
            )
        )
    fast = [row for row, place in zip(rows, places, strict=True) if row.good and place is not None]
    return Comparison(
        columns=list(differing),
        constants=constants(points, list(differing)),
        tasks=order,
        types={name: types[name] for name in order},
        shared=shared,
        rows=rows,
        baseline=names[reference],
        epsilon=epsilon,
        best=next((row for row in rows if row.mean is not None and row.mean == best), None),
        answer=max(fast, key=lambda row: (row.speed.texts if row.speed else 0.0, row.mean or 0.0), default=None),
        effects=effects(list(differing), rows, rows[reference]),
        reranked=any(task.first_stage is not None or task.ceiling is not None for task in tasks),
        unit="pairs" if any(task.unit == "pairs" for task in tasks) else "texts",
    )


def _shared(points: Sequence[Point], order: Sequence[str]) -> list[str]:
    # A point that failed before its first task says nothing of what it was to do.
    of_points = [{task.name for task in point.tasks} for point in points if point.tasks]
    return [name for name in order if all(name in names for names in of_points)]


def _gain(task: TaskScore) -> float | None:
    return None if task.score is None or task.first_stage is None else task.score - task.first_stage


def _speeds(points: Sequence[Point]) -> list[Speed | None]:
    own = [_own_speed(point) for point in points]
    of_engine: dict[str, Speed] = {}
    for point, speed in zip(points, own, strict=True):
        if speed is not None and point.engine:
            of_engine.setdefault(point.engine, speed)
    return [speed or of_engine.get(point.engine) for point, speed in zip(points, own, strict=True)]


def _own_speed(point: Point) -> Speed | None:
    """What a point measured itself; None where it computed too little to tell."""
    measured = [(task, task.computed, task.seconds) for task in point.tasks if task.computed and task.seconds]
    computed = sum(count for _, count, _ in measured)
    stored = sum(task.stored or 0 for task in point.tasks)
    scored = [task for task in point.tasks if task.score is not None]
    told = sum(task.computed is not None for task in scored)
    if not computed or computed < stored or 2 * told < len(scored):
        return None
    seconds = sum(seconds for _, _, seconds in measured)
    tokens = sum(task.tokens or 0 for task, _, _ in measured)
    return Speed(computed / seconds, tokens / seconds, measured[0][0].unit, computed, point.name)


def _front(places: Iterable[tuple[float, float]]) -> set[tuple[float, float]]:
    """Of (score, speed), those that no other is better than in one and at least as good as in the other."""
    front, fastest = set(), 0.0
    for place in sorted(set(places), reverse=True):
        if place[1] > fastest:
            front.add(place)
            fastest = place[1]
    return front
