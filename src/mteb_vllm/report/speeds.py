"""Speeds of the points' engines, over texts that can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mteb_vllm.report.points import Point


@dataclass(frozen=True)
class Speed:
    """The speed of a point's engine on the tasks that all points share, counting computed texts only.

    Texts differ in length from task to task, so speeds are comparable over the same tasks only. A task is measured in a
    point that computed at least half of its distinct texts; a cached result measures nothing. A point has its own speed
    if all shared tasks are measured in it; where points share no task, if all of its own are.

    Attributes:
        texts: Texts (or pairs) per second.
        tokens: Tokens per second.
        unit: "texts" or "pairs".
        computed: The number of texts that it was measured on.
        of: The name of the point that it was measured in: the point itself, or the first other point with the same engine
            and its own speed; where points share no task, with the same tasks as well.
    """

    texts: float
    tokens: float
    unit: str
    computed: int
    of: str


def _unit(point: Point) -> str:
    # A failed task whose pairs were never counted says texts.
    return "pairs" if any(task.unit == "pairs" for task in point.tasks) else "texts"


def common_unit(points: Sequence[Point]) -> str | None:
    """Return the unit of the points' speeds; None where they have different units."""
    counting = [point for point in points if any(task.computed is not None for task in point.tasks)]
    units = {_unit(point) for point in counting}
    if not units:
        return "pairs" if "pairs" in map(_unit, points) else "texts"
    return units.pop() if len(units) == 1 else None


def measured_speeds(points: Sequence[Point], shared: Sequence[str]) -> list[Speed | None]:
    """Return the speed of each point's engine; None where no point measured it, and for a point that was cached.

    A point that failed before its first score has no speed either: its engine may never have opened.

    Args:
        points: The points.
        shared: The tasks that all of them have: only these are compared.
    """
    own = [_own_speed(point, shared) for point in points]
    # Where points share no task, another point's speed counts only if it is over the same tasks.
    keys = [(point.engine, frozenset(() if shared else (task.name for task in point.tasks))) for point in points]
    of_engine: dict[tuple[str, frozenset[str]], Speed] = {}
    for key, speed in zip(keys, own, strict=True):
        if speed is not None and key[0]:
            of_engine.setdefault(key, speed)
    return [
        speed or (of_engine.get(key) if _was_at_work(point) else None)
        for point, key, speed in zip(points, keys, own, strict=True)
    ]


def _was_at_work(point: Point) -> bool:
    scored = point.parity is not None or any(task.score is not None for task in point.tasks)
    return scored and not point.for_speed and not point.cached


def parity_speeds(points: Sequence[Point], speeds: Sequence[Speed | None]) -> list[Speed | None]:
    """Return the speeds of parity points: that of the first throughput point with the same engine, else their own.

    Args:
        points: The points.
        speeds: Their speeds, from `measured_speeds`.

    Returns:
        a speed for each point, of which only the tokens per second are comparable: a throughput point has other texts. None
        for points of other pipelines.
    """
    measured: dict[str, Speed] = {}
    for point in points:
        record = point.throughput
        if point.engine and record is not None and (saturated := record.saturated) is not None:
            speed = Speed(saturated.requests_per_second, saturated.tokens_per_second, record.unit, 0, point.name)
            measured.setdefault(point.engine, speed)
    return [
        measured.get(point.engine, speed) if point.parity is not None else None
        for point, speed in zip(points, speeds, strict=True)
    ]


def _own_speed(point: Point, shared: Sequence[str]) -> Speed | None:
    """Return the speed that a point measured itself, over the shared tasks or else its own; None if one is not measured."""
    of_tasks = {task.name: task for task in point.tasks}
    texts, tokens, seconds = 0, 0, 0.0
    for name in shared or of_tasks:
        task = of_tasks.get(name)
        if task is None or task.cached or not task.computed or not task.seconds or task.computed < (task.stored or 0):
            return None
        texts, tokens, seconds = texts + task.computed, tokens + (task.tokens or 0), seconds + task.seconds
    return Speed(texts / seconds, tokens / seconds, _unit(point), texts, point.name) if texts else None
