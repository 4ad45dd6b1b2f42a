"""What of throughput points is drawn, in pictures and on the page alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mteb_vllm.report.comparison import Comparison, Row
from mteb_vllm.report.measured import Throughput
from mteb_vllm.report.words import called, settings_text

# As many as there are colours.
MOST_CURVES = 7


@dataclass(frozen=True)
class Curve:
    """One point's throughput, drawn.

    Attributes:
        name: What tells it from the others; "" where it is alone.
        row: Where the point stands in the comparison.
        throughput: What it measured.
    """

    name: str
    row: int
    throughput: Throughput


def throughput_curves(comparison: Comparison) -> tuple[list[Curve], int]:
    """The curves that are drawn, in the points' order, and how many more there are: the fastest are, and the baseline."""
    found = [(at, row, said) for at, row in enumerate(comparison.rows) if (said := row.point.throughput) and said.steps]
    order = sorted(found, key=lambda one: (one[1].point.name != comparison.baseline, -(one[2].requests or 0.0)))
    kept = sorted(order[:MOST_CURVES], key=lambda one: one[0])
    names = names_among(comparison, [row for _, row, _ in kept])
    curves = [Curve(name, at, said) for (at, _, said), name in zip(kept, names, strict=True)]
    return curves, len(found) - len(curves)


def names_among(comparison: Comparison, rows: Sequence[Row]) -> list[str]:
    """What tells rows apart: settings by the last parts of their keys, where these are different ones; "" of a row alone."""
    if len(rows) < 2:
        return [""] * len(rows)
    differing = [at for at in range(len(comparison.columns)) if len({row.settings[at] for row in rows}) > 1]
    keys = [comparison.columns[at] for at in differing]
    ends = [key.rpartition(".")[2] for key in keys]
    keys = ends if len(set(ends)) == len(ends) else keys
    names = [settings_text(keys, [row.settings[at] for at in differing]) for row in rows]
    # Those that differ in nothing else are told apart by the points' names.
    return [
        name if name and names.count(name) == 1 else f"{called(row.point.name)}{f': {name}' if name else ''}"
        for name, row in zip(names, rows, strict=True)
    ]
