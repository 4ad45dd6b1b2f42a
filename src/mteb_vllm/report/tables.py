"""The tables of a comparison: on the terminal, in Markdown, and in CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rich.table import Table

from mteb_vllm.report.answer import answer
from mteb_vllm.report.columns import Column, has_many_tasks, table_columns
from mteb_vllm.report.comparison import Comparison, Row
from mteb_vllm.report.formatting import (
    count,
    markdown,
    score_cell,
    settings_text,
    shorten,
    signed,
    speed_effect,
    times,
)
from mteb_vllm.report.header import circumstances, command_heading, recommended_command, scope, title
from mteb_vllm.report.one_run import failure_lines
from mteb_vllm.results.failures import Failure
from mteb_vllm.util.console import Console
from mteb_vllm.util.escape import code, csv_cell, fenced, inline, one_line
from mteb_vllm.util.wrapping import cut

# Limits of the terminal and of Markdown; the CSV and the page have everything.
_MOST_ROWS = 50
_MOST_CONSTANTS = 8
_LONGEST_VALUE = 40
_LONGEST_NAME = 60
# Tasks and points of the tables by task.
_MOST_SCORES = (40, 12)
_MOST_DIFFERENCES = (60, 12)
_EFFECTS = ("setting", "value", "instead of", "pairs", "score", "from", "to", "speed", "from", "to")


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Show the title, the points in a table, best first, their scores by task, and the conclusions."""
    rows = comparison.ranked
    columns = available = _columns(comparison)
    wide = {column.header: _width(column, rows[:_MOST_ROWS]) for column in columns}
    while sum(wide[column.header] + 2 for column in columns) > console.width:
        # Columns of one kind go together.
        if not (least := max(column.left_out for column in columns)):
            break
        columns = [column for column in columns if column.left_out != least]
    table = Table(box=None, pad_edge=False)
    for column in columns:
        # Words may be wrapped, numbers may not.
        table.add_column(
            column.header, justify="left" if _has_words(column) else "right", no_wrap=not _has_words(column),
            overflow="fold" if _has_words(column) else "ellipsis",
        )  # fmt: skip
    names = _short_names(rows)
    for row in rows[:_MOST_ROWS]:
        cells = [(one_line(column.cell(row)), column.kind == "setting") for column in columns]
        table.add_row(
            names[row.point.name], *(cut(text, _LONGEST_VALUE) if setting else text for text, setting in cells[1:])
        )
    _print_head(console, comparison)
    console.print(table)
    hidden = [column for column in available if column not in columns]
    tasks = has_many_tasks(comparison) or any(column.kind == "task" for column in hidden)
    if tasks and _print_scores(console, comparison, rows):
        tasks, hidden = False, [column for column in hidden if column.kind != "task"]
    left_out = [count(len(rows) - _MOST_ROWS, "point")] if len(rows) > _MOST_ROWS else []
    left_out += [f"the columns {', '.join(column.header for column in hidden)}"] if hidden else []
    left_out += [f"the scores of {count(len(comparison.tasks), 'task')}"] if tasks else []
    if left_out:
        console.print_line(f"Only in report.csv: {'; '.join(left_out)}")
    console.print()
    for line in answer(comparison):
        console.print_line(line)
    if line := recommended_command(comparison):
        console.print_line(f"{command_heading(comparison)}: {line}")


def _print_head(console: Console, comparison: Comparison) -> None:
    """Show the title, the date, the device, the versions, and the other settings that all points share."""
    console.print()
    console.print_line(f"{title(comparison)} ({scope(comparison)})", style="bold")
    for label, text in circumstances(comparison):
        console.print_line(f"{label.capitalize()}: {text}")
    shared = [
        f"{key}={value}"
        for key, value in comparison.constants.items()
        if key != "device" and not key.startswith("versions.")
    ]
    if shared:
        more = f"; {len(shared) - _MOST_CONSTANTS} more settings in report.md" if len(shared) > _MOST_CONSTANTS else ""
        heading = "Identical in all points" if len(comparison.rows) > 1 else "Settings"
        console.print_line(f"{heading}: {', '.join(shared[:_MOST_CONSTANTS])}{more}")
    console.print()


def _print_scores(console: Console, comparison: Comparison, ranked: Sequence[Row]) -> bool:
    """Show the scores with the tasks as rows and the best points as columns; return False if there are too many tasks."""
    most_tasks, most_points = _MOST_SCORES
    if len(comparison.tasks) > most_tasks:
        return False
    room = console.width - max(map(len, comparison.tasks))
    points: list[Row] = []
    names = _short_names(ranked)
    for row in [row for row in ranked if row.point.tasks][:most_points]:
        room -= max(len(names[row.point.name]), len("0.00000")) + 2
        if room >= 0 or not points:
            points.append(row)
    table = Table(title="Scores by task, best points first", title_justify="left", box=None, pad_edge=False)
    table.add_column("task", overflow="fold")
    for row in points:
        table.add_column(names[row.point.name], justify="right", overflow="fold")
    for name in comparison.tasks:
        table.add_row(name, *(score_cell(row, [name], row.scores[name]) for row in points))
    console.print()
    console.print(table)
    return True


def comparison_markdown(comparison: Comparison) -> str:
    """Return the report: the points in a table, best first, conclusions, scores by task, effects, settings, failures."""
    rows, columns = comparison.ranked, _columns(comparison)
    cells = [[column.cell(row) for column in columns] for row in rows]
    lines = [f"# {inline(title(comparison))}", "", inline(scope(comparison))]
    measured = [f"- {label}: {inline(text)}" for label, text in circumstances(comparison)]
    lines += [*(["", *measured] if measured else []), "", *markdown([column.header for column in columns], cells), ""]
    if has_many_tasks(comparison):
        lines += _scores(comparison, rows)
    lines += ["## Conclusions", "", *(f"- {inline(line)}" for line in answer(comparison))]
    if line := recommended_command(comparison):
        lines += ["", f"{command_heading(comparison)}:", "", *fenced([line])]
    lines += [*_effects(comparison), *_differences(comparison, rows)]
    if comparison.constants:
        heading = "Identical in all points" if len(rows) > 1 else "Settings"
        lines += ["", f"## {heading}", ""]
        lines += [f"- {inline(key)}: {code(value)}" for key, value in comparison.constants.items()]
    lines += _failures(comparison)
    return "\n".join(lines) + "\n"


def comparison_csv(comparison: Comparison) -> str:
    """Return one line per point, best first, with all digits."""
    columns = [column for column in table_columns(comparison) if column.key]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(csv_cell(column.key) for column in columns)
    writer.writerows([csv_cell(column.value(row)) for column in columns] for row in comparison.ranked)
    return out.getvalue()


@dataclass(frozen=True)
class FailedPoints:
    """Points with the same failure, including its log.

    Attributes:
        failure: The failure.
        tasks: The tasks that failed; empty where no task was running.
        points: The names of the points.
    """

    failure: Failure
    tasks: list[str]
    points: list[str] = field(default_factory=list)


def failed_points(comparison: Comparison) -> list[FailedPoints]:
    """Return all failures; tasks and points with the same failure are grouped."""
    found: dict[tuple[Any, ...], FailedPoints] = {}
    for row in comparison.ranked:
        of_point: dict[tuple[Any, ...], list[Failure]] = {}
        for one in row.point.failures:
            of_point.setdefault((one.kind, one.message, one.advice, one.tried, tuple(one.log)), []).append(one)
        for key, some in of_point.items():
            tasks = [one.task for one in some if one.task]
            found.setdefault((key, *tasks), FailedPoints(some[0], tasks)).points.append(row.point.name)
    return list(found.values())


def _effects(comparison: Comparison) -> list[str]:
    """Return the section on the effects of settings."""
    rows = []
    for effect in comparison.known_effects:
        scores = (effect.score, *(effect.score_range or (None, None)))
        speeds = (effect.speed, *(effect.speed_range or (None, None)))
        numbers = [*map(signed, scores), speed_effect(effect), *map(times, speeds[1:])]
        rows.append([effect.column, effect.value, effect.against, str(effect.pairs), *numbers])
    return ["", "## Effects", "", *markdown(_EFFECTS, rows)] if rows else []


def _scores(comparison: Comparison, ranked: Sequence[Row]) -> list[str]:
    """Return the scores by task, with the tasks as rows and the best points as columns; for too many tasks a pointer."""
    most_tasks, most_points = _MOST_DIFFERENCES
    if len(comparison.tasks) > most_tasks:
        return [f"The scores of {len(comparison.tasks)} tasks are in report.csv.", ""]
    points = [row for row in ranked if row.point.tasks]
    shown = points[:most_points]
    rows = [[name, *(score_cell(row, [name], row.scores[name]) for row in shown)] for name in comparison.tasks]
    left_out = [f"The best {most_points} of {len(points):,} points; all scores are in report.csv.", ""]
    return ["## Scores by task", "", *(left_out if len(shown) < len(points) else []),
            *markdown(["task", *(row.point.name for row in shown)], rows), ""]  # fmt: skip


def _differences(comparison: Comparison, ranked: Sequence[Row]) -> list[str]:
    """Return the section on differences from the baseline, with the tasks as rows and the best points as columns."""
    most_tasks, most_points = _MOST_DIFFERENCES
    baseline = next(row for row in comparison.rows if row.point.name == comparison.baseline)
    others = [row for row in ranked if row is not baseline and row.point.tasks]
    if not others or len(comparison.tasks) > most_tasks:
        return []
    shown = others[:most_points]
    header = ["task", f"{comparison.baseline} (the baseline)", *(row.point.name for row in shown)]
    lines = []
    for name in comparison.comparable:
        against = baseline.scores[name]
        own = [row.scores[name] for row in shown]
        differences = [one - against if one is not None and against is not None else None for one in own]
        lines.append([name, score_cell(baseline, [name], against), *map(signed, differences)])
    legend = [f"- {inline(f'{row.point.name}: {settings_text(comparison.columns, row.settings)}')}" for row in shown]
    left_out = [f"The best {most_points} of {len(others):,} points; all scores are in report.csv.", ""]
    return ["", "## Differences from the baseline, by task", "", *(left_out if len(shown) < len(others) else []),
            *(legend if comparison.columns else []), "", *markdown(header, lines)]  # fmt: skip


def _failures(comparison: Comparison) -> list[str]:
    """Return the section on failures, with their logs."""
    lines: list[str] = []
    for one in failed_points(comparison):
        tasks = f" ({', '.join(one.tasks)})" if one.tasks else ""
        title = inline(f"{', '.join(one.points)}{tasks}")
        lines += [
            "",
            *([] if lines else ["## Failures", ""]),
            f"### {title}",
            "",
            *failure_lines(replace(one.failure, task=None)),
        ]
    return lines


def _columns(comparison: Comparison) -> list[Column]:
    """Return the columns of the terminal and of Markdown, without empty ones."""
    columns = [column for column in table_columns(comparison) if column.text]
    return [column for column in columns if any(map(column.cell, comparison.rows))]


def _short_names(rows: Sequence[Row]) -> dict[str, str]:
    """Return the names of points for a terminal: long ones are cut in the middle, unless two would be the same."""
    names = [row.point.name for row in rows]
    short = [shorten(name, _LONGEST_NAME) for name in names]
    return dict(zip(names, short if len(set(short)) == len(short) else names, strict=True))


def _width(column: Column, rows: Sequence[Row]) -> int:
    # The remarks, which have no header, are wrapped.
    most = _LONGEST_VALUE if column.header else 24
    return max([len(column.header), *(min(len(one_line(column.cell(row))), most) for row in rows)])


def _has_words(column: Column) -> bool:
    return column.kind in ("setting", "words")
