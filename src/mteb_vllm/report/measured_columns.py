"""The columns of what throughput and parity points measured, for every table of a comparison."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mteb_vllm.report.comparison import Comparison, Row
from mteb_vllm.report.measured import Parity, Throughput
from mteb_vllm.report.words import number, rate, signed, times


@dataclass(frozen=True)
class MeasuredColumn:
    """A column of one figure.

    Attributes:
        key: Its header in report.csv.
        header: Its header for readers; "" where report.csv alone has it.
        value: A row's value, with all digits; None where it is not known.
        shown: How a value that is known is shown.
        left_out: Where not all columns fit, those with the highest number go first; those with 0 stay.
        words: Whether it holds words.
    """

    key: str
    header: str
    value: Callable[[Row], Any]
    shown: Callable[[Any], str] = str
    left_out: int = 0
    words: bool = False

    def cell(self, row: Row) -> str:
        """What it shows of a row."""
        value = self.value(row)
        return "" if value is None else self.shown(value)


def measured_columns(comparison: Comparison) -> list[MeasuredColumn]:
    """The columns that this comparison has: none where all points were run for their scores."""
    columns: list[MeasuredColumn] = []
    if any(row.point.throughput for row in comparison.rows):
        # Beside scores there are tokens/s of tasks as well.
        tokens = "tokens/s" if all(row.speed is None for row in comparison.rows) else "tokens/s at once"
        columns += [
            MeasuredColumn("saturated_requests_per_second", "requests/s", _of_throughput("requests"), rate),
            MeasuredColumn("saturated_tokens_per_second", tokens, _of_throughput("tokens"), number, 5),
            MeasuredColumn("speed_ratio", "to baseline", lambda row: row.ratio, times, 1),
            MeasuredColumn("p50_ms_at_batch_1", "p50 at batch 1, ms", _p50, lambda value: number(value, 1), 1),
            MeasuredColumn("roof_share", "share of roof", _of_throughput("share"), "{:.1%}".format, 2),
            MeasuredColumn("roof_tokens_per_second", "", _of_throughput("roof")),
            MeasuredColumn("saturated_spread", "spread", _of_throughput("spread"), "{:.1%}".format, 3),
            MeasuredColumn("device_memory_mb", "device MiB", _of_throughput("device_mb"), number, 6),
            MeasuredColumn("requests_are", "", _of_throughput("unit")),
        ]
    if any(row.point.parity for row in comparison.rows):
        columns += [
            MeasuredColumn("parity", "parity", _of_parity("passed"), _verdict, words=True),
            MeasuredColumn("worst_score_difference", "worst difference", _of_parity("difference"), signed),
            MeasuredColumn("worst_score_difference_in", "", _of_parity("task")),
            MeasuredColumn("worst_cosine", "lowest cosine", _of_parity("cosine"), "{:.6f}".format, 1),
            MeasuredColumn("parity_tokens_per_second", "", lambda row: row.parity_speed and row.parity_speed.tokens),
            MeasuredColumn("parity_tokens_measured_in", "", lambda row: row.parity_speed and row.parity_speed.of),
            MeasuredColumn("hint", "first hint", _of_parity("hint"), left_out=4, words=True),
        ]
        if any(row.parity_speed and row.parity_speed.of != row.point.name for row in comparison.rows):
            columns.append(MeasuredColumn("", "throughput on this engine, tokens/s", _borrowed, number, 5))
    return columns


def _of_throughput(name: str) -> Callable[[Row], Any]:
    def value(row: Row) -> Any:
        said: Throughput | None = row.point.throughput
        return None if said is None else getattr(said, name)

    return value


def _of_parity(name: str) -> Callable[[Row], Any]:
    def value(row: Row) -> Any:
        said: Parity | None = row.point.parity
        return None if said is None else getattr(said, name)

    return value


def _verdict(passed: bool) -> str:
    return "passed" if passed else "not passed"


def _p50(row: Row) -> float | None:
    return row.point.throughput.p50(1) if row.point.throughput is not None else None


def _borrowed(row: Row) -> float | None:
    speed = row.parity_speed
    return speed.tokens if speed is not None and speed.of != row.point.name else None
