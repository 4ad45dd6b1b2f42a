"""How fast the engines of points worked, over texts that can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mteb_vllm.report.points import Point


@dataclass(frozen=True)
class Speed:
    """How fast a point's engine worked on the tasks that all points share: by what it computed, not by what a store held.

    Texts differ in length from task to task, so that speeds are comparable over the same tasks only. A task is measured in a
    point where at least half of its different texts were computed; a result that was reused counts with what the run that
    computed it noted. A point has a speed of its own where all shared tasks are measured in it; where points share no task,
    where all of its own are.

    Attributes:
        texts: Texts (or pairs) a second.
        tokens: Tokens a second.
        unit: "texts" or "pairs".
        computed: How many texts that was measured on.
        of: The name of the point that it was measured in: the point's own, or the first other one of the same engine that
            has a speed of its own; where points share no task, of the same engine and tasks.
    """

    texts: float
    tokens: float
    unit: str
    computed: int
    of: str


def _unit(point: Point) -> str:
    # A task whose pairs nobody has seen, as one that failed, says texts.
    return "pairs" if any(task.unit == "pairs" for task in point.tasks) else "texts"


def common_unit(points: Sequence[Point]) -> str | None:
    """Return what the points count; None where they count different things."""
    counting = [point for point in points if any(task.computed is not None for task in point.tasks)]
    units = {_unit(point) for point in counting}
    if not units:
        return "pairs" if "pairs" in map(_unit, points) else "texts"
    return units.pop() if len(units) == 1 else None


def speeds_of(points: Sequence[Point], shared: Sequence[str]) -> list[Speed | None]:
    """Return how fast each point's engine worked.

    Args:
        points: The points.
        shared: The tasks that all of them have: only these are compared.
    """
    own = [_own_speed(point, shared) for point in points]
    # Where points share no task, a speed is only that of another point if it is over the same tasks.
    alike = [(point.engine, frozenset(() if shared else (task.name for task in point.tasks))) for point in points]
    of_engine: dict[tuple[str, frozenset[str]], Speed] = {}
    for key, speed in zip(alike, own, strict=True):
        if speed is not None and key[0]:
            of_engine.setdefault(key, speed)
    return [
        speed or (of_engine.get(key) if not point.for_speed else None)
        for point, key, speed in zip(points, alike, own, strict=True)
    ]


def parity_speeds(points: Sequence[Point], speeds: Sequence[Speed | None]) -> list[Speed | None]:
    """Return how fast the engines of parity points work: as the first throughput point on the engine says, else as they say.

    Args:
        points: The points.
        speeds: Their speeds, of `speeds_of`.

    Returns:
        a speed for each point, of which only the tokens a second are comparable: a throughput point's texts are others. None
        for points of other pipelines.
    """
    measured: dict[str, Speed] = {}
    for point in points:
        said = point.throughput
        if point.engine and said is not None and (saturated := said.saturated) is not None:
            speed = Speed(saturated.requests_per_second, saturated.tokens_per_second, said.unit, 0, point.name)
            measured.setdefault(point.engine, speed)
    return [
        measured.get(point.engine, speed) if point.parity is not None else None
        for point, speed in zip(points, speeds, strict=True)
    ]


def _own_speed(point: Point, shared: Sequence[str]) -> Speed | None:
    """Return what a point measured itself, over the shared tasks or else all its own; None if one is not measured."""
    of_tasks = {task.name: task for task in point.tasks}
    texts, tokens, seconds = 0, 0, 0.0
    for name in shared or of_tasks:
        task = of_tasks.get(name)
        if task is None or not task.computed or not task.seconds or task.computed < (task.stored or 0):
            return None
        texts, tokens, seconds = texts + task.computed, tokens + (task.tokens or 0), seconds + task.seconds
    return Speed(texts / seconds, tokens / seconds, _unit(point), texts, point.name) if texts else None
