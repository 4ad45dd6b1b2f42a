"""The columns of a comparison: the one list from which terminal, Markdown, CSV and page take their tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mteb_vllm.report.comparison import Comparison, Point, Row
from mteb_vllm.report.formatting import (
    CACHED_CELL,
    mfu,
    number,
    percent,
    point_name,
    rate,
    score,
    score_cell,
    settings_text,
    signed,
    times,
)
from mteb_vllm.util.escape import one_line
from mteb_vllm.util.wrapping import cut

# Up to this many tasks have columns everywhere. More have a separate table on the terminal and in Markdown, and are
# behind a checkbox on the page.
FEW_TASKS = 6
# Up to this many settings have columns everywhere. Of more, those that are rarely changed share a column.
_FEW_SETTINGS = 4
_LONGEST_FAILURE = 200


@dataclass(frozen=True)
class Column:
    """A column of the tables of a comparison.

    Attributes:
        name: The name of its values; "" where the unit is enough.
        unit: Their unit, e.g. "MiB"; "" where there is none, or the name has it.
        value: Returns its value for a row, with all digits; None where it is unknown.
        format: Formats a value.
        kind: "setting" in which points differ, "words", "figure", "mean" for the figure that points are ranked by, "type" for
            the mean over the tasks of a type, or "task".
        key: Its header in report.csv; "" where it is not in it.
        text: Whether the terminal and Markdown have it.
        page: Whether the page has it.
        page_header: Its header on the page, which has room for a longer one; "" where it is the same.
        left_out: Where a terminal is too narrow, columns with the highest number are left out first; those with 0 stay.
        row_unit: Returns the unit of a row's value, where rows have different ones.
        measured: Whether its values are measurements of an engine at work: a cached point has "cached" in their place.
        tasks: The tasks whose scores its values are, or are means over: one that has none says why.
    """

    name: str
    unit: str
    value: Callable[[Row], Any]
    format: Callable[[Any], str] = str
    kind: Literal["setting", "words", "figure", "mean", "type", "task"] = "figure"
    key: str = ""
    text: bool = True
    page: bool = True
    page_header: str = ""
    left_out: int = 0
    row_unit: Callable[[Row], str] | None = None
    measured: bool = False
    tasks: Sequence[str] = ()

    @property
    def header(self) -> str:
        """Its header on the terminal and in Markdown."""
        return f"{self.name} ({self.unit})" if self.name and self.unit else self.name or self.unit

    def cell(self, row: Row) -> str:
        """Return the text of its cell in a row."""
        value = self.value(row)
        if value is None:
            return CACHED_CELL if self.measured and row.point.cached else score_cell(row, self.tasks, None)
        return self.format(value) if self.row_unit is None else f"{self.format(value)} {self.row_unit(row)}"


def table_columns(comparison: Comparison) -> list[Column]:
    """Return the columns of a comparison in their order: settings, scores, speeds, technical details."""
    several = len(comparison.rows) > 1
    return [
        Column("point", "", lambda row: row.point.name, kind="words", key="point", page=False),
        _csv("folder", lambda row: one_line(str(row.point.folder))),
        _csv("status", lambda row: "failed" if row.point.failed else "ok"),
        *_settings(comparison),
        *_means(comparison),
        *_tasks(comparison),
        Column(
            "difference", "", lambda row: row.difference, signed, key="difference", text=several, page=several, left_out=3
        ),
        *_types(comparison),
        *_ceilings(comparison),
        *_speeds(comparison),
        *_throughput(comparison),
        *_parity(comparison),
        Column("speed from point", "", lambda row: row.speed_of_other, kind="words", text=False),
        Column("Pareto front", "", lambda row: "yes" if row.on_front else "", kind="words", text=False, page=several),
        Column("computed", "", lambda row: row.point.total("computed"), number, key="computed", text=False),
        Column("from the cache", "", lambda row: row.point.total("stored"), _unless_zero, key="stored", text=False),
        _csv("cached_results", lambda row: sum(task.cached for task in row.point.tasks)),
        Column("wall time", "s", lambda row: row.point.seconds, _tenths, key="wall_time_seconds", left_out=10),
        Column(
            "engine start", "s", lambda row: row.point.engine_seconds, _tenths,
            key="engine_start_seconds", left_out=11, measured=True,
        ),
        Column(
            "peak memory", "MiB", lambda row: row.point.peak_memory_mb, number,
            key="peak_memory_mb", left_out=12, measured=True,
        ),
        Column("", "", lambda row: _remarks(comparison, row), kind="words", page=False),
        _csv("failures", lambda row: "; ".join(" ".join(str(failure).split()) for failure in row.point.failures)),
        _csv("notes", _notes),
    ]  # fmt: skip


def speed_unit(comparison: Comparison) -> str:
    """Return the unit of speeds. Where some points count texts and others pairs, each cell has its own."""
    return f"{comparison.unit or 'texts or pairs'}/s"


def has_many_tasks(comparison: Comparison) -> bool:
    """Return whether the tasks have a separate table on the terminal and in Markdown."""
    return len(comparison.tasks) > FEW_TASKS


def hides_tasks(comparison: Comparison) -> bool:
    """Return whether the page hides the columns of tasks behind a checkbox: many tasks, of which there are means."""
    return has_many_tasks(comparison) and any(row.mean is not None for row in comparison.rows)


def _field(path: str) -> Callable[[Row], Any]:
    """Return a function that reads a field of a row by its dotted path; None where a part of the path is None."""
    names = path.split(".")

    def value(row: Row) -> Any:
        found: Any = row
        for name in names:
            found = getattr(found, name) if found is not None else None
        return found

    return value


def _csv(key: str, value: Callable[[Row], Any]) -> Column:
    """Return a column of report.csv alone."""
    return Column("", "", value, key=key, text=False, page=False)


def _settings(comparison: Comparison) -> list[Column]:
    rare = _rarely_changed(comparison)

    def column(at: int, name: str) -> Column:
        # A table for readers does not repeat settings that are part of every point's name.
        shown = at not in rare and not all(_named_by(row.point, name, row.settings[at]) for row in comparison.rows)
        return Column(name, "", lambda row: row.settings[at], kind="setting", key=name, text=shown, page=shown)

    def others(row: Row) -> str:
        changed = [at for at, usual in rare.items() if row.settings[at] not in ("", usual)]
        return settings_text([comparison.columns[at] for at in changed], [row.settings[at] for at in changed])

    columns = [column(at, name) for at, name in enumerate(comparison.columns)]
    return [*columns, *([Column("other settings", "", others, kind="setting")] if rare else [])]


def _rarely_changed(comparison: Comparison) -> dict[int, str]:
    """Return the settings that share a column, where there are many: index to the value that most points have.

    These are the settings that most points leave at the same value, as in a comparison of runs that were not one sweep. The
    model always has its own column.
    """
    if len(comparison.columns) <= _FEW_SETTINGS:
        return {}
    found = {}
    for at, name in enumerate(comparison.columns):
        (usual, points), *_ = Counter(row.settings[at] for row in comparison.rows).most_common(1)
        if name != "model" and points > len(comparison.rows) / 2:
            found[at] = usual
    return found if len(found) > 1 else {}


def _named_by(point: Point, column: str, value: str) -> bool:
    """Return whether a point's name contains its value in a column, as those of results in mteb's layout do."""
    if point.source != "results":
        return False
    model = point.facts.get("model", "")
    rest = point.name.removeprefix(model)
    if column == "model":
        return point.name.startswith(value)
    if column == "revision":
        return not value or f"@{value}" in rest
    return column == "experiment" and (not value or rest.endswith(f"/{value}"))


def _means(comparison: Comparison) -> list[Column]:
    shared = comparison.shared
    if not comparison.reranked:
        mean = Column(
            "mean", "", lambda row: row.mean, score, "mean", key="mean", page_header="mean score", tasks=shared
        )
        return [mean]
    return [
        Column("first stage", "", lambda row: row.first_stage, score, key="first_stage", left_out=6),
        Column("reranked", "", lambda row: row.mean, score, "mean", key="mean", tasks=shared),
        Column("gain", "", lambda row: row.gain, signed, key="gain"),
    ]


def _ceilings(comparison: Comparison) -> list[Column]:
    if not comparison.reranked:
        return []
    return [
        Column("ceiling", "", lambda row: row.ceiling, score, key="ceiling", left_out=6),
        Column("share of ceiling", "", lambda row: row.share, percent, key="share", left_out=6),
        Column("share of possible gain", "", lambda row: row.gain_share, percent, key="gain_share", left_out=6),
    ]


def _types(comparison: Comparison) -> list[Column]:
    kinds = comparison.rows[0].by_type
    # Where each type has one task, the tasks' columns have the same scores.
    fewer = len(kinds) < len(comparison.tasks)
    text = fewer or has_many_tasks(comparison)

    def column(kind: str) -> Column:
        name = kind or "unknown type"
        return Column(
            name, "", lambda row: row.by_type[kind], score, "type",
            key=f"mean {name}", text=text, page=fewer, left_out=8,
            tasks=[task for task in comparison.shared if comparison.types[task] == kind],
        )  # fmt: skip

    return [column(kind) for kind in kinds]


def _tasks(comparison: Comparison) -> list[Column]:
    # The score of the only task is the mean, if all points have it.
    several = len(comparison.tasks) > 1 or comparison.shared != comparison.tasks
    text = several and not has_many_tasks(comparison)

    def column(name: str) -> Column:
        return Column(
            name, "", lambda row: row.scores[name], score, "task",
            key=name, text=text, page=several, left_out=2, tasks=[name],
        )  # fmt: skip

    return [column(name) for name in comparison.tasks]


def _speeds(comparison: Comparison) -> list[Column]:
    return [
        Column(
            "", speed_unit(comparison), _field("speed.texts"), number, key="texts_per_second",
            row_unit=_unit if comparison.unit is None else None, measured=True,
        ),
        Column("", "tokens/s", _field("speed.tokens"), number, key="tokens_per_second", left_out=7, measured=True),
        _csv("unit", _field("speed.unit")),
        _csv("measured_on", _field("speed.computed")),
        _csv("measured_in", _field("speed.of")),
    ]  # fmt: skip


def _throughput(comparison: Comparison) -> list[Column]:
    if not any(row.point.throughput for row in comparison.rows):
        return []
    # Where there are scores, tokens/s are those of the tasks.
    tasks = any(row.speed is not None or row.point.cached for row in comparison.rows)
    tokens = "offline tokens/s" if tasks else "tokens/s"

    def p50(row: Row) -> float | None:
        return row.point.throughput.p50(1) if row.point.throughput is not None else None

    return [
        Column(
            "", "requests/s", _field("point.throughput.requests_per_second"), rate, key="saturated_requests_per_second"
        ),
        Column(
            "",
            tokens,
            _field("point.throughput.tokens_per_second"),
            number,
            key="saturated_tokens_per_second",
            left_out=7,
        ),
        Column("vs. baseline", "", lambda row: row.ratio, times, key="speed_ratio", left_out=1),
        Column("p50 at batch 1", "ms", p50, _tenths, key="p50_ms_at_batch_1", left_out=1),
        Column("MFU", "", _field("point.throughput.roofline.mfu"), mfu, key="mfu", left_out=4),
        _csv("roofline_tokens_per_second", _field("point.throughput.roofline.tokens_per_second")),
        Column("spread", "", _field("point.throughput.spread"), percent, key="saturated_spread", left_out=5),
        Column(
            "device memory",
            "MiB",
            _field("point.throughput.memory_mb.device"),
            number,
            key="device_memory_mb",
            left_out=8,
        ),
        _csv("requests_are", _field("point.throughput.unit")),
    ]


def _parity(comparison: Comparison) -> list[Column]:
    if not any(row.point.parity for row in comparison.rows):
        return []

    def hint(row: Row) -> str | None:
        return str(next(iter(row.point.parity.hints), "")) if row.point.parity is not None else None

    def borrowed(row: Row) -> float | None:
        speed = row.parity_speed
        return speed.tokens if speed is not None and speed.of != row.point.name else None

    return [
        Column("parity", "", _field("point.parity.passed"), _verdict, "words", key="parity"),
        Column("worst difference", "", _field("point.parity.worst.difference"), signed, key="worst_score_difference"),
        _csv("worst_score_difference_in", _field("point.parity.worst.task")),
        Column(
            "lowest cosine", "", _field("point.parity.lowest_cosine"), "{:.6f}".format, key="worst_cosine", left_out=1
        ),
        _csv("parity_tokens_per_second", _field("parity_speed.tokens")),
        _csv("parity_tokens_measured_in", _field("parity_speed.of")),
        Column("first hint", "", hint, kind="words", key="hint", left_out=4),
        Column("throughput on this engine", "tokens/s", borrowed, number, left_out=5),
    ]


def _unit(row: Row) -> str:
    return row.speed.unit if row.speed is not None else ""


def _tenths(value: float) -> str:
    return number(value, 1)


def _unless_zero(value: int) -> str:
    return number(value) if value else ""


def _verdict(passed: bool) -> str:
    return "passed" if passed else "not passed"


def _remarks(comparison: Comparison, row: Row) -> str:
    """Return the remarks on a point: its failure, or its rank, and the origin of its figures."""
    borrowed = f"speed of {point_name(row.speed_of_other)}" if row.speed_of_other else ""
    if row.point.failed:
        failures = row.point.failures
        of_run = next((failure for failure in failures if failure.task is None), None)
        kinds = dict.fromkeys(failure.label for failure in failures)
        tasks = [task.name for task in row.point.tasks if task.failed]
        if of_run is None and not tasks:
            of_run = failures[0]  # a run that was killed in a task has no outcome of the task
        text = str(of_run) if of_run is not None else f"{', '.join(tasks)} ({', '.join(kinds)})"
        failed = cut(" ".join(f"failed: {text}".split()), _LONGEST_FAILURE)
        return "; ".join(filter(None, (failed, borrowed)))
    cached = sum(task.cached for task in row.point.tasks)
    marks = [
        _rank(comparison, row),
        borrowed,
        f"{cached} of {len(row.point.tasks)} tasks cached" if cached and not row.point.cached else "",
    ]
    return "; ".join(mark for mark in marks if mark)


def _notes(row: Row) -> str:
    return "; ".join([*row.point.warnings, *(f"{task}: {why}" for task, why in row.without.items())])


def _rank(comparison: Comparison, row: Row) -> str:
    """Return whether a point is the best of several, or within the margin of it."""
    if not row.good or len(comparison.rows) < 2:
        return ""
    return "best" if row is comparison.best else f"within {comparison.epsilon:g} of the best"
