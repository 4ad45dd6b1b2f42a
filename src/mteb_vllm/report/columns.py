"""The columns of a comparison: the one list from which terminal, Markdown, CSV and page make their tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from mteb_vllm.report.comparison import Comparison, Point, Row
from mteb_vllm.report.formatting import number, percent, rate, score, signed, times

# So many tasks have columns that one can take in at once: of more, the terminal and Markdown show none, and the page shows
# them behind a checkbox.
FEW_TASKS = 6
_LONGEST_FAILURE = 200


@dataclass(frozen=True)
class Column:
    """A column of the tables of a comparison.

    Attributes:
        name: What it shows; "" where the unit says it.
        unit: What its values count, as "MiB"; "" where they count nothing, or the name says it.
        value: The field of a row that it shows, with all digits; None where it is not known.
        format: How a value that is known is shown.
        kind: "setting" in which points differ, "words", "figure", "mean" for the figure that points are ranked by, "type" for
            the mean over the tasks of a type, or "task".
        key: Its header in report.csv; "" where it is not in it.
        text: Whether the terminal and Markdown have it.
        page: Whether the page has it.
        page_header: Its header on the page, which has room for a longer one; "" where it is the same.
        left_out: Where not all columns fit on a terminal, those with the highest number go first; those with 0 stay.
        row_unit: What the value of a row counts, where rows count different things.
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

    @property
    def header(self) -> str:
        """Its header on the terminal and in Markdown."""
        return " ".join(part for part in (self.name, self.unit) if part)

    def cell(self, row: Row) -> str:
        """Return what it shows of a row."""
        value = self.value(row)
        if value is None:
            return ""
        return self.format(value) if self.row_unit is None else f"{self.format(value)} {self.row_unit(row)}"


def table_columns(comparison: Comparison) -> list[Column]:
    """Return the columns of a comparison, in their order; each table takes those that are meant for it."""
    several = len(comparison.rows) > 1
    return [
        Column("point", "", lambda row: row.point.name, kind="words", key="point", page=False),
        _csv("folder", lambda row: str(row.point.folder)),
        _csv("status", lambda row: "failed" if row.point.failed else "ok"),
        *_settings(comparison),
        *_means(comparison),
        Column("difference", "", lambda row: row.difference, signed, key="difference", page=several, left_out=1),
        *_types(comparison),
        *_tasks(comparison),
        *_speeds(comparison),
        *_throughput(comparison),
        *_parity(comparison),
        Column("speed from point", "", lambda row: row.speed_of_other, kind="words", text=False),
        Column("Pareto front", "", lambda row: "yes" if row.on_front else "", kind="words", text=False, page=several),
        Column("computed", "", lambda row: row.point.total("computed"), number, key="computed", text=False),
        Column("from the cache", "", lambda row: row.point.total("stored"), _unless_zero, key="stored", text=False),
        Column(
            "engine start", "s", lambda row: row.point.engine_seconds, _tenths,
            key="engine_start_seconds", page_header="engine start, s", left_out=4,
        ),
        Column("", "seconds", lambda row: row.point.seconds, _tenths, key="seconds", left_out=2),
        Column("peak", "MiB", lambda row: row.point.peak_memory_mb, number, key="peak_memory_mb", left_out=3),
        Column("", "", _state, kind="words", page=False),
        _csv("failures", lambda row: "; ".join(" ".join(str(failure).split()) for failure in row.point.failures)),
    ]  # fmt: skip


def speed_unit(comparison: Comparison) -> str:
    """Return the unit of speeds. Where some points count texts and others pairs, each speed says which."""
    return f"{comparison.unit or 'texts or pairs'}/s"


def has_many_tasks(comparison: Comparison) -> bool:
    """Return whether there are more tasks than one can take in at once."""
    return len(comparison.tasks) > FEW_TASKS


def cut(text: str, limit: int) -> str:
    """Return a text with at most so many characters."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _field(path: str) -> Callable[[Row], Any]:
    """Return what reads a field of a row by its dotted path; it reads None where a part of the path is None."""
    names = path.split(".")

    def value(row: Row) -> Any:
        found: Any = row
        for name in names:
            found = getattr(found, name) if found is not None else None
        return found

    return value


def _csv(key: str, value: Callable[[Row], Any]) -> Column:
    """Return a column that report.csv alone has."""
    return Column("", "", value, key=key, text=False, page=False)


def _settings(comparison: Comparison) -> list[Column]:
    def column(at: int, name: str) -> Column:
        # A table for readers does not repeat what the name of each point says already.
        shown = not all(_named_by(row.point, name, row.settings[at]) for row in comparison.rows)
        return Column(name, "", lambda row: row.settings[at], kind="setting", key=name, text=shown, page=shown)

    return [column(at, name) for at, name in enumerate(comparison.columns)]


def _named_by(point: Point, column: str, value: str) -> bool:
    """Return whether a point is called after what it is in this column, as results in mteb's layout are."""
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
    if not comparison.reranked:
        return [Column("mean", "", lambda row: row.mean, score, "mean", key="mean", page_header="mean score")]
    return [
        Column("first stage", "", lambda row: row.first_stage, score, key="first_stage", left_out=6),
        Column("reranked", "", lambda row: row.mean, score, "mean", key="mean"),
        Column("gain", "", lambda row: row.gain, signed, key="gain"),
        Column("ceiling", "", lambda row: row.ceiling, score, key="ceiling", left_out=6),
        Column(
            "share", "", lambda row: row.share, percent, key="share", page_header="share of ceiling", left_out=6
        ),
    ]  # fmt: skip


def _types(comparison: Comparison) -> list[Column]:
    kinds = comparison.rows[0].by_type
    # Where each type has one task, the tasks say it already.
    fewer = len(kinds) < len(comparison.tasks)
    text = fewer or has_many_tasks(comparison)

    def column(kind: str) -> Column:
        name = kind or "unknown type"
        return Column(
            name, "", lambda row: row.by_type[kind], score, "type",
            key=f"mean {name}", text=text, page=fewer, left_out=8,
        )  # fmt: skip

    return [column(kind) for kind in kinds]


def _tasks(comparison: Comparison) -> list[Column]:
    # The score of the only task is the mean.
    several = len(comparison.tasks) > 1
    text = several and not has_many_tasks(comparison)

    def column(name: str) -> Column:
        return Column(
            name, "", lambda row: row.scores[name], score, "task", key=name, text=text, page=several, left_out=9
        )

    return [column(name) for name in comparison.tasks]


def _speeds(comparison: Comparison) -> list[Column]:
    return [
        Column(
            "", speed_unit(comparison), _field("speed.texts"), number, key="texts_per_second",
            row_unit=_unit if comparison.unit is None else None,
        ),
        Column("", "tokens/s", _field("speed.tokens"), number, key="tokens_per_second", left_out=5),
        _csv("unit", _field("speed.unit")),
        _csv("measured_on", _field("speed.computed")),
        _csv("measured_in", _field("speed.of")),
    ]  # fmt: skip


def _throughput(comparison: Comparison) -> list[Column]:
    if not any(row.point.throughput for row in comparison.rows):
        return []
    # Beside scores there are tokens/s of tasks as well.
    tokens = "tokens/s" if all(row.speed is None for row in comparison.rows) else "tokens/s at once"

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
            left_out=5,
        ),
        Column("to baseline", "", lambda row: row.ratio, times, key="speed_ratio", left_out=1),
        Column("p50 at batch 1,", "ms", p50, _tenths, key="p50_ms_at_batch_1", left_out=1),
        Column("MFU", "", _field("point.throughput.roofline.mfu"), percent, key="mfu", left_out=2),
        _csv("roofline_tokens_per_second", _field("point.throughput.roofline.tokens_per_second")),
        Column("spread", "", _field("point.throughput.spread"), percent, key="saturated_spread", left_out=3),
        Column(
            "device", "MiB", _field("point.throughput.memory_mb.device"), number, key="device_memory_mb", left_out=6
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
        Column("throughput on this engine,", "tokens/s", borrowed, number, left_out=5),
    ]


def _unit(row: Row) -> str:
    return row.speed.unit if row.speed is not None else ""


def _tenths(value: float) -> str:
    return number(value, 1)


def _unless_zero(value: int) -> str:
    return number(value) if value else ""


def _verdict(passed: bool) -> str:
    return "passed" if passed else "not passed"


def _state(row: Row) -> str:
    """Return what a reader must know of a point beside its numbers."""
    if row.point.failed:
        failures = row.point.failures
        whole = next((failure for failure in failures if failure.task is None), None)
        kinds = dict.fromkeys(failure.kind.replace("_", " ") for failure in failures)
        tasks = [task.name for task in row.point.tasks if task.failed]
        if whole is None and not tasks:
            whole = failures[0]  # what was killed in a task has no outcome of it
        said = str(whole) if whole is not None else f"{', '.join(tasks)} ({', '.join(kinds)})"
        return cut(" ".join(f"failed: {said}".split()), _LONGEST_FAILURE)
    marks = ["as good as the best" if row.good else "", f"speed of {row.speed_of_other}" if row.speed_of_other else ""]
    return ", ".join(mark for mark in marks if mark)
