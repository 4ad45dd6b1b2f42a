"""The table that a dry run prints: of the points of a sweep, or of the tasks of a single run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.table import Table

from mteb_vllm.report.formatting import count
from mteb_vllm.sweep.planning import PlannedPoint, engines_to_open
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
    """Return the state of a point, the tasks to compute unless that is all of them, and the reasons."""
    if point.failure is not None:
        return "cannot be planned"
    pending = point.pending_tasks
    shared = [task for task in pending if task.same_as is not None]
    own = [task for task in pending if task.same_as is None]
    if not own:  # the reason of all of them names the other point
        own, shared = shared, []
    text: str = point.state
    if 0 < len(own) < len(point.tasks):
        text += f" ({len(own)} of {len(point.tasks)} tasks: {', '.join(task.name for task in own)})"
    reasons: dict[str, list[str]] = {}
    for task in point.tasks:
        if task.reason and task.state == point.state and task not in shared:
            reasons.setdefault(task.reason, []).append(task.name)
    # Reasons that are not those of all tasks are shown with their tasks, which failures name themselves.
    named = [
        reason if len(names) >= len(own) or point.state == "failed before" else f"{reason} ({', '.join(names)})"
        for reason, names in reasons.items()
    ]
    text += f": {'; '.join(named)}" if named else ""
    for number, n_shared in Counter(task.same_as for task in shared).items():
        text += f"; {count(n_shared, 'task')} computed in point {number}"
    return text


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
    if engines := engines_to_open(points):
        text += f", {count(len(engines), 'engine')} to open"
        if references := sum(is_reference for _, is_reference in engines):
            text += f", {references} of them for the reference"
        text += f" ({', '.join(dict.fromkeys(spec.model.name for spec, _ in engines))})"
    unknown = {task.name for point in points for task in point.pending_tasks if not task.work and task.same_as is None}
    if unknown:
        text += f"; size unknown for: {', '.join(sorted(unknown))}"
    if any(point.work and _scores_tasks(point) for point in to_run):
        text += ". The amounts are estimates, from statistics of the data sets"
    return f"{text}."


def _scores_tasks(point: PlannedPoint) -> bool:
    return point.plan is not None and point.plan.pipeline.scores_tasks
