"""Failures of points; those that are alike stand together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mteb_vllm.report.comparison import Comparison
from mteb_vllm.results.failures import Failure


@dataclass(frozen=True)
class FailedPoints:
    """Points that failed in the same way, to the last line of the log.

    Attributes:
        failure: How.
        tasks: In which tasks; none where no task was at work.
        points: Their names.
    """

    failure: Failure
    tasks: list[str]
    points: list[str] = field(default_factory=list)


def failed_points(comparison: Comparison) -> list[FailedPoints]:
    """All failures; tasks and points that failed in the same way stand together."""
    found: dict[tuple[Any, ...], FailedPoints] = {}
    for row in comparison.rows:
        of_point: dict[tuple[Any, ...], list[Failure]] = {}
        for one in row.point.failures:
            of_point.setdefault((one.kind, one.message, one.advice, one.tried, tuple(one.log)), []).append(one)
        for key, some in of_point.items():
            tasks = [one.task for one in some if one.task]
            found.setdefault((key, *tasks), FailedPoints(some[0], tasks)).points.append(row.point.name)
    return list(found.values())
