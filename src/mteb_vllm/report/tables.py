"""A comparison as tables: on the terminal, as Markdown, and as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rich.table import Table

from mteb_vllm.report.answer import answer
from mteb_vllm.report.columns import Column, cut, has_many_tasks, table_columns
from mteb_vllm.report.comparison import Comparison, Row
from mteb_vllm.report.formatting import count, markdown, point_name, score, settings_text, signed, times
from mteb_vllm.report.one_run import failure_lines
from mteb_vllm.results.failures import Failure
from mteb_vllm.util.console import Console
from mteb_vllm.util.escape import code, csv_cell, inline

# More rows and columns than these nobody reads on a terminal or in Markdown; the CSV and the page hold all.
_MOST_ROWS = 50
_MOST_CONSTANTS = 8
_LONGEST_VALUE = 40
# More tasks and points than these nobody reads in Markdown.
_MOST_DIFFERENCES = (60, 12)
_EFFECTS = ("setting", "value", "instead of", "pairs", "score", "from", "to", "speed", "from", "to")


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Show what points share, a table of them, failures first and then the best, and the answer."""
    rows = _ranked(comparison)
    columns = _columns(comparison)
    wide = {column.header: _width(column, rows[:_MOST_ROWS]) for column in columns}
    while sum(wide[column.header] + 2 for column in columns) > console.width:
        # Columns of one kind go together.
        if not (least := max(column.left_out for column in columns)):
            break
        columns = [column for column in columns if column.left_out != least]
    table = Table(title=_title(comparison), title_justify="left", box=None, pad_edge=False)
    for column in columns:
        # Words can be read in two lines, and numbers cannot.
        table.add_column(
            column.header, justify="left" if _has_words(column) else "right", no_wrap=not _has_words(column),
            overflow="fold" if _has_words(column) else "ellipsis",
        )  # fmt: skip
    for row in rows[:_MOST_ROWS]:
        cells = [(column.cell(row), column.kind == "setting") for column in columns]
        table.add_row(*(cut(text, _LONGEST_VALUE) if setting else text for text, setting in cells))
    console.print()
    if shared := list(comparison.constants.items()):
        more = f"; {len(shared) - _MOST_CONSTANTS} more in report.md" if len(shared) > _MOST_CONSTANTS else ""
        text = ", ".join(f"{key}={value}" for key, value in shared[:_MOST_CONSTANTS])
        console.print_line(f"In all points: {text}{more}")
    console.print(table)
    left_out = [f"{len(rows) - _MOST_ROWS:,} points"] if len(rows) > _MOST_ROWS else []
    if hidden := [header for header in wide if header not in {column.header for column in columns}]:
        left_out.append(f"the columns {', '.join(hidden)}")
    if has_many_tasks(comparison):
        left_out.append(f"the scores of {len(comparison.tasks)} tasks")
    if left_out:
        console.print_line(f"Not shown, but in report.csv: {'; '.join(left_out)}")
    console.print()
    for line in answer(comparison):
        console.print_line(line)


def comparison_markdown(comparison: Comparison) -> str:
    """Return the report: what points share, all of them in a table, the answer, effects, differences by task, failures."""
    rows, columns = _ranked(comparison), _columns(comparison)
    cells = [[column.cell(row) for column in columns] for row in rows]
    lines = [f"# {inline(_title(comparison))}", ""]
    lines += [f"- {inline(key)}: {code(value)}" for key, value in comparison.constants.items()]
    lines += ["", *markdown([column.header for column in columns], cells), ""]
    if has_many_tasks(comparison):
        lines += [f"The scores of {len(comparison.tasks)} tasks are in report.csv.", ""]
    lines += ["## Answer", "", *(f"- {inline(line)}" for line in answer(comparison))]
    lines += [*_effects(comparison), *_differences(comparison, rows), *_failures(comparison)]
    return "\n".join(lines) + "\n"


def comparison_csv(comparison: Comparison) -> str:
    """Return one line a point, in the order in which the points were given, with all digits."""
    columns = [column for column in table_columns(comparison) if column.key]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(csv_cell(column.key) for column in columns)
    writer.writerows([csv_cell(column.value(row)) for column in columns] for row in comparison.rows)
    return out.getvalue()


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
    """Return all failures; tasks and points that failed in the same way stand together."""
    found: dict[tuple[Any, ...], FailedPoints] = {}
    for row in comparison.rows:
        of_point: dict[tuple[Any, ...], list[Failure]] = {}
        for one in row.point.failures:
            of_point.setdefault((one.kind, one.message, one.advice, one.tried, tuple(one.log)), []).append(one)
        for key, some in of_point.items():
            tasks = [one.task for one in some if one.task]
            found.setdefault((key, *tasks), FailedPoints(some[0], tasks)).points.append(row.point.name)
    return list(found.values())


def _effects(comparison: Comparison) -> list[str]:
    """Return the section on what each setting changes."""
    rows = []
    for effect in comparison.effects:
        scores = (effect.score, *(effect.score_range or (None, None)))
        speeds = (effect.speed, *(effect.speed_range or (None, None)))
        numbers = [*map(signed, scores), *map(times, speeds)]
        rows.append([effect.column, effect.value, effect.against, str(effect.pairs), *numbers])
    return ["", "## Effects", "", *markdown(_EFFECTS, rows)] if rows else []


def _differences(comparison: Comparison, ranked: Sequence[Row]) -> list[str]:
    """Return the section on differences to the baseline: the tasks as rows, the best points as columns."""
    most_tasks, most_points = _MOST_DIFFERENCES
    baseline = next(row for row in comparison.rows if row.point.name == comparison.baseline)
    others = [row for row in ranked if row is not baseline and row.point.tasks]
    if not others or len(comparison.tasks) > most_tasks:
        return []
    shown = sorted(others, key=lambda row: row.point.failed)[:most_points]
    header = ["task", f"{comparison.baseline} (the baseline)", *(row.point.name for row in shown)]
    lines = []
    for name in comparison.tasks:
        against = baseline.scores[name]
        own = [row.scores[name] for row in shown]
        differences = [one - against if one is not None and against is not None else None for one in own]
        lines.append([name, score(against), *map(signed, differences)])
    legend = [f"- {inline(f'{row.point.name}: {settings_text(comparison.columns, row.settings)}')}" for row in shown]
    left_out = [f"Of {len(others):,} points the best {most_points}; all scores are in report.csv.", ""]
    return ["", "## Differences to the baseline, by task", "", *(left_out if len(shown) < len(others) else []),
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
    """Return the columns of the terminal and of Markdown, without those that are empty."""
    columns = [column for column in table_columns(comparison) if column.text]
    return [column for column in columns if any(map(column.cell, comparison.rows))]


def _ranked(comparison: Comparison) -> list[Row]:
    """Return failures first, then what did not pass, the best, and the fastest."""

    def place(row: Row) -> tuple[bool, bool, float, float]:
        throughput, parity = row.point.throughput, row.point.parity
        mean = row.mean if row.mean is not None else -math.inf
        fast = (throughput.requests_per_second if throughput is not None else None) or 0.0
        return not row.point.failed, parity is None or parity.passed, -mean, -fast

    return sorted(comparison.rows, key=place)


def _title(comparison: Comparison) -> str:
    points = len(comparison.rows)
    shared = f", {count(len(comparison.shared), 'task')}" if comparison.tasks or comparison.scored else ""
    if points == 1:
        return f"One point{shared}"
    return f"{points:,} points{shared}, differences to {point_name(comparison.baseline)}"


def _width(column: Column, rows: Sequence[Row]) -> int:
    # What is said of a failure is folded.
    most = _LONGEST_VALUE if column.header else 24
    return max([len(column.header), *(min(len(column.cell(row)), most) for row in rows)])


def _has_words(column: Column) -> bool:
    return column.kind in ("setting", "words")
