"""The table that a dry run prints: of the points of a sweep, or of the tasks of a single run."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from mteb_vllm.report.formatting import count
from mteb_vllm.sweep.planning import PlannedPoint, group_by_engine
from mteb_vllm.tasks.estimates import Estimate
from mteb_vllm.util.console import Console

_ESTIMATES = ("input (est.)", "tokens (est.)")


def print_plan(console: Console, points: Sequence[PlannedPoint], *, swept: bool) -> None:
    """Print the points of a sweep, or the tasks of a single run, as a table, with a summary."""
    header, rows = plan_table(points) if swept else task_table(points[0])
    title = f"Dry run: {count(len(points), 'point')}" if swept else "Dry run"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in header:
        right = column in ("point", "engine", *_ESTIMATES)
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print_table(table, optional=("fingerprint", *reversed(_ESTIMATES)))
    if not swept and points[0].fingerprint:
        console.print_line(f"Fingerprint {points[0].fingerprint}")
    for point in points:
        if point.failure is not None:
            at = f"Point {point.number}: " if swept else ""
            console.print_line(f"{at}{point.failure}", style="red")
    console.print_line(_summary(points, swept=swept))


def plan_table(points: Sequence[PlannedPoint]) -> tuple[list[str], list[list[str]]]:
    """Return a header, and one row per point: settings that differ, fingerprint, state with reason, engine, and work."""
    keys = list(points[0].differs) if points else []
    header = ["point", *keys, "fingerprint", "state", "engine", *_ESTIMATES]
    rows = []
    for point in points:
        rows.append(
            [
                str(point.number),
                *(point.differs[key] for key in keys),
                point.fingerprint,
                _state(point),
                "" if point.group is None else str(point.group),
                *_amounts(point.work),
            ]
        )
    return header, rows


def task_table(point: PlannedPoint) -> tuple[list[str], list[list[str]]]:
    """Return a header, and one row per task of a single run: state with reason, and work; several tasks have a total."""
    rows = [["", _state(point), "", ""]] if point.failure is not None else []
    for task in point.tasks:
        state = f"{task.state}: {task.reason}" if task.reason else task.state
        rows.append([task.name, state, *_amounts(task.work)])
    if len(point.tasks) > 1 and point.work:
        rows.append(["total", "", *_amounts(point.work)])
    return ["task", "state", *_ESTIMATES], rows


def _amounts(work: Sequence[Estimate]) -> list[str]:
    """Return the texts and pairs, and the tokens; empty if they are unknown."""
    texts = " + ".join(f"{one.texts:,} {one.unit}" for one in work)
    return [texts, f"{sum(one.tokens for one in work):,}" if work else ""]


def _state(point: PlannedPoint) -> str:
    if point.failure is not None:
        return "cannot be planned"
    pending_tasks = point.pending_tasks
    text: str = point.state
    if pending_tasks and len(pending_tasks) < len(point.tasks):
        text += f" ({len(pending_tasks)} of {len(point.tasks)} tasks: {', '.join(task.name for task in pending_tasks)})"
    reasons = dict.fromkeys(task.reason for task in point.tasks if task.reason and task.state == point.state)
    return f"{text}: {'; '.join(reasons)}" if reasons else text


def _summary(points: Sequence[PlannedPoint], *, swept: bool) -> str:
    """Return how much there is to run, the engines to open, and how the amounts were estimated."""
    to_run = [point for point in points if point.pending_tasks]
    if not to_run:
        return "Nothing to run."
    if swept:
        text = f"{len(to_run)} of {count(len(points), 'point')} to run"
    elif _scores_tasks(points[0]):
        text = f"{len(points[0].pending_tasks)} of {count(len(points[0].tasks), 'task')} to run"
    else:
        text = f"To run: {points[0].pending_tasks[0].name}"
    engines = [group for group in group_by_engine(points) if group.engine is not None]
    if engines:
        names = dict.fromkeys(group.engine.model.name for group in engines if group.engine is not None)
        text += f", {count(len(engines), 'engine')} to open ({', '.join(names)})"
    unknown = {task.name for point in points for task in point.pending_tasks if not task.work and task.same_as is None}
    if unknown:
        text += f"; size unknown for: {', '.join(sorted(unknown))}"
    if any(point.work and _scores_tasks(point) for point in to_run):
        text += ". The amounts are estimates, from statistics of the data sets"
    return f"{text}."


def _scores_tasks(point: PlannedPoint) -> bool:
    return point.plan is not None and point.plan.pipeline.scores_tasks
