"""A comparison as tables: on the terminal, as Markdown, and as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from mteb_vllm.report.answer import answer
from mteb_vllm.report.comparison import Comparison, Point, Row
from mteb_vllm.report.measured_columns import measured_columns
from mteb_vllm.report.sections import differences_section, effects_section, failures_section
from mteb_vllm.report.words import called, count, markdown, number, signed
from mteb_vllm.util.console import Console
from mteb_vllm.util.escape import code, csv_cell, inline

# More rows and columns than these nobody reads on a terminal or in Markdown; the CSV and the page hold all.
_MOST_ROWS = 50
_MOST_TASKS = 6
_MOST_CONSTANTS = 8
_LONGEST_VALUE = 40
_LONGEST_FAILURE = 200


@dataclass(frozen=True)
class _Column:
    """A column of a table.

    Attributes:
        header: Its header.
        cell: What it shows of a row.
        left_out: Where not all columns fit, those with the highest number go first; those with 0 stay.
        words: Whether it holds words; numbers stand at the right.
    """

    header: str
    cell: Callable[[Row], str]
    left_out: int = 0
    words: bool = False


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Shows what points share, a table of them, failures first and then the best, and the answer."""
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
            column.header, justify="left" if column.words else "right", no_wrap=not column.words,
            overflow="fold" if column.words else "ellipsis",
        )  # fmt: skip
    for row in rows[:_MOST_ROWS]:
        cells = [(column.cell(row), column.header in comparison.columns) for column in columns]
        table.add_row(*(_cut(text, _LONGEST_VALUE) if setting else text for text, setting in cells))
    console.print()
    if shared := list(comparison.constants.items()):
        more = f"; {len(shared) - _MOST_CONSTANTS} more in report.md" if len(shared) > _MOST_CONSTANTS else ""
        text = ", ".join(f"{key}={value}" for key, value in shared[:_MOST_CONSTANTS])
        console.print(f"In all points: {text}{more}", markup=False, highlight=False, soft_wrap=True)
    console.print(table)
    left_out = [f"{len(rows) - _MOST_ROWS:,} points"] if len(rows) > _MOST_ROWS else []
    if hidden := [header for header in wide if header not in {column.header for column in columns}]:
        left_out.append(f"the columns {', '.join(hidden)}")
    if _hides_tasks(comparison):
        left_out.append(f"the scores of {len(comparison.tasks)} tasks")
    if left_out:
        console.print(f"Not shown, but in report.csv: {'; '.join(left_out)}", markup=False, soft_wrap=True)
    console.print()
    for line in answer(comparison):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def comparison_markdown(comparison: Comparison) -> str:
    """The report: what points share, all of them in a table, the answer, effects, differences by task, failures."""
    rows, columns = _ranked(comparison), _columns(comparison)
    lines = [f"# {inline(_title(comparison))}", ""]
    lines += [f"- {inline(key)}: {code(value)}" for key, value in comparison.constants.items()]
    lines += ["", *markdown([column.header for column in columns], _cells(columns, rows)), ""]
    if _hides_tasks(comparison):
        lines += [f"The scores of {len(comparison.tasks)} tasks are in report.csv.", ""]
    lines += ["## Answer", "", *(f"- {inline(line)}" for line in answer(comparison))]
    lines += [*effects_section(comparison), *differences_section(comparison, rows), *failures_section(comparison)]
    return "\n".join(lines) + "\n"


def comparison_csv(comparison: Comparison) -> str:
    """One line a point, in the order in which the points were given, with all digits."""
    stages = ("first_stage", "gain", "ceiling") if comparison.reranked else ()
    kinds = list(comparison.rows[0].by_type)
    measured = [column for column in measured_columns(comparison) if column.key]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(map(csv_cell, [
        "point", "folder", "status", *comparison.columns, "mean", "difference", *(f"mean {_type(kind)}" for kind in kinds),
        *comparison.tasks, *stages, "texts_per_second", "tokens_per_second", "unit", "measured_on", "measured_in",
        *(column.key for column in measured), "computed", "stored", "engine_start_seconds", "seconds", "peak_memory_mb",
        "failures",
    ]))  # fmt: skip
    for row in comparison.rows:
        point, speed = row.point, row.speed
        worked: tuple[Any, ...] = (
            (speed.texts, speed.tokens, speed.unit, speed.computed, speed.of) if speed is not None else (None,) * 5
        )
        writer.writerow(map(csv_cell, [
            point.name, str(point.folder), "failed" if row.point.failed else "ok", *row.settings, row.mean, row.difference,
            *(row.by_type[kind] for kind in kinds), *(row.scores[name] for name in comparison.tasks),
            *(getattr(row, name) for name in stages), *worked, *(column.value(row) for column in measured),
            point.total("computed"), point.total("stored"), point.engine_seconds, point.seconds, point.peak_memory_mb,
            "; ".join(" ".join(str(failure).split()) for failure in point.failures),
        ]))  # fmt: skip
    return out.getvalue()


def shown_settings(comparison: Comparison) -> list[int]:
    """Which of the columns in which points differ a table needs: not those that the name of each point says already."""
    return [
        at
        for at, column in enumerate(comparison.columns)
        if not all(_named_by(row.point, column, row.settings[at]) for row in comparison.rows)
    ]


def speed_header(comparison: Comparison) -> str:
    """What speeds count. Where some points count texts and others pairs, each speed says it."""
    return f"{comparison.unit or 'texts or pairs'}/s"


def speed_text(comparison: Comparison, row: Row) -> str:
    """A point's speed under this header; "" where it is not known."""
    if row.speed is None:
        return ""
    return number(row.speed.texts) + (f" {row.speed.unit}" if comparison.unit is None else "")


def share_text(row: Row) -> str:
    """The share of the ceilings that a reranking point reaches; "" where it is not known."""
    return "" if row.share is None else f"{row.share:.1%}"


def _named_by(point: Point, column: str, value: str) -> bool:
    """Whether a point is called after what it is in this column, as results in mteb's layout are."""
    if point.source != "results":
        return False
    model = point.facts.get("model", "")
    rest = point.name.removeprefix(model)
    if column == "model":
        return point.name.startswith(value)
    if column == "revision":
        return not value or f"@{value}" in rest
    return column == "experiment" and (not value or rest.endswith(f"/{value}"))


def _columns(comparison: Comparison) -> list[_Column]:
    """The columns of the tables for readers, without those that are empty."""

    def setting(at: int) -> Callable[[Row], str]:
        return lambda row: row.settings[at]

    def score(name: str) -> Callable[[Row], str]:
        return lambda row: number(row.scores[name], 5)

    def of_type(kind: str) -> Callable[[Row], str]:
        return lambda row: number(row.by_type[kind], 5)

    named = [_Column(comparison.columns[at], setting(at), words=True) for at in shown_settings(comparison)]
    kinds = comparison.rows[0].by_type
    by_task = [] if _hides_tasks(comparison) or len(comparison.tasks) == 1 else comparison.tasks
    means = [_Column("reranked" if comparison.reranked else "mean", lambda row: number(row.mean, 5))]
    if comparison.reranked:
        means = [
            _Column("first stage", lambda row: number(row.first_stage, 5), 6),
            *means,
            _Column("gain", lambda row: signed(row.gain)),
            _Column("ceiling", lambda row: number(row.ceiling, 5), 6),
            _Column("share", share_text, 6),
        ]
    columns = [
        _Column("point", lambda row: row.point.name, words=True),
        *named,
        *means,
        _Column("difference", lambda row: signed(row.difference), 1),
        *(_Column(_type(kind), of_type(kind), 8) for kind in kinds if by_task == [] or len(kinds) < len(by_task)),
        *(_Column(name, score(name), 9) for name in by_task),
        _Column(speed_header(comparison), lambda row: speed_text(comparison, row)),
        _Column("tokens/s", lambda row: number(row.speed.tokens if row.speed is not None else None), 5),
        *(_Column(one.header, one.cell, one.left_out, one.words) for one in measured_columns(comparison) if one.header),
        _Column("engine start s", lambda row: number(row.point.engine_seconds, 1), 4),
        _Column("seconds", lambda row: number(row.point.seconds, 1), 2),
        _Column("peak MiB", lambda row: number(row.point.peak_memory_mb), 3),
        _Column("", _state, words=True),
    ]
    return [column for column in columns if any(map(column.cell, comparison.rows))]


def _cells(columns: Sequence[_Column], rows: Sequence[Row]) -> list[list[str]]:
    return [[column.cell(row) for column in columns] for row in rows]


def _ranked(comparison: Comparison) -> list[Row]:
    """Failures first, then what did not pass, the best, and the fastest."""

    def place(row: Row) -> tuple[bool, bool, float, float]:
        throughput, parity = row.point.throughput, row.point.parity
        mean = row.mean if row.mean is not None else -math.inf
        fast = (throughput.requests if throughput is not None else None) or 0.0
        return not row.point.failed, parity is None or parity.passed, -mean, -fast

    return sorted(comparison.rows, key=place)


def _state(row: Row) -> str:
    """What a reader must know of a point beside its numbers."""
    if row.point.failed:
        failures = row.point.failures
        whole = next((failure for failure in failures if failure.task is None), None)
        kinds = dict.fromkeys(failure.kind.replace("_", " ") for failure in failures)
        tasks = [task.name for task in row.point.tasks if task.failed]
        if whole is None and not tasks:
            whole = failures[0]  # what was killed in a task has no outcome of it
        said = str(whole) if whole is not None else f"{', '.join(tasks)} ({', '.join(kinds)})"
        return _cut(" ".join(f"failed: {said}".split()), _LONGEST_FAILURE)
    marks = ["as good as the best" if row.good else "", f"speed of {row.speed_of_other}" if row.speed_of_other else ""]
    return ", ".join(mark for mark in marks if mark)


def _type(kind: str) -> str:
    return kind or "unknown type"


def _title(comparison: Comparison) -> str:
    points = len(comparison.rows)
    shared = f", {count(len(comparison.shared), 'task')}" if comparison.tasks or comparison.scored else ""
    if points == 1:
        return f"One point{shared}"
    return f"{points:,} points{shared}, differences to {called(comparison.baseline)}"


def _hides_tasks(comparison: Comparison) -> bool:
    return len(comparison.tasks) > _MOST_TASKS


def _width(column: _Column, rows: Sequence[Row]) -> int:
    # What is said of a failure is folded.
    most = _LONGEST_VALUE if column.header else 24
    return max([len(column.header), *(min(len(column.cell(row)), most) for row in rows)])


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
