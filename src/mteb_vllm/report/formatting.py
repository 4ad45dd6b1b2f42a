"""Points and figures in words, and rows as Markdown: how everything in a report is written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from mteb_vllm.util.escape import inline

if TYPE_CHECKING:
    from mteb_vllm.report.comparison import Comparison, Row

# More names in a row nobody reads.
MOST_NAMES = 8


def settings_text(columns: Sequence[str], values: Sequence[str]) -> str:
    """Return a point's settings as one would type them; those that it does not have are left out."""
    return ", ".join(f"{column}={value}" for column, value in zip(columns, values, strict=True) if value)


def point_name(name: str) -> str:
    """Return a point's name as it stands in a sentence."""
    return f"point {name}" if name.isdigit() else name


def describe_point(comparison: Comparison, row: Row) -> str:
    """Return a point's name and settings as they stand in a sentence."""
    settings = settings_text(comparison.columns, row.settings)
    return f"{point_name(row.point.name)}{f' ({settings})' if settings else ''}"


def distinct_names(comparison: Comparison, rows: Sequence[Row]) -> list[str]:
    """Return what tells rows apart: settings by the last parts of their keys where these differ; "" of a row alone."""
    if len(rows) < 2:
        return [""] * len(rows)
    differing = [at for at in range(len(comparison.columns)) if len({row.settings[at] for row in rows}) > 1]
    keys = [comparison.columns[at] for at in differing]
    ends = [key.rpartition(".")[2] for key in keys]
    keys = ends if len(set(ends)) == len(ends) else keys
    names = [settings_text(keys, [row.settings[at] for at in differing]) for row in rows]
    # Those that differ in nothing else are told apart by the points' names.
    return [
        name if name and names.count(name) == 1 else f"{point_name(row.point.name)}{f': {name}' if name else ''}"
        for name, row in zip(names, rows, strict=True)
    ]


def join_names(some: Sequence[str]) -> str:
    """Return names in a row, the first ones where there are many."""
    more = f" and {len(some) - MOST_NAMES} more" if len(some) > MOST_NAMES else ""
    return f"{', '.join(some[:MOST_NAMES])}{more}"


def count(n: int, word: str) -> str:
    """Return a number of things."""
    return f"{n:,} {word}{'' if n == 1 else 's'}"


def score(value: float | None) -> str:
    """Return a main score; "" for None."""
    return number(value, 5)


def percent(value: float) -> str:
    """Return a share."""
    return f"{value:.1%}"


def signed(value: float | None) -> str:
    """Return a difference of scores; "" for None."""
    return "" if value is None else f"{round(value, 5) + 0.0:+.5f}"  # never -0.00000


def times(value: float | None) -> str:
    """Return a ratio; "" for None."""
    return "" if value is None else f"x{value:.2f}"


def number(value: float | None, digits: int = 0) -> str:
    """Return a figure; "" for None."""
    return "" if value is None else f"{value:,.{digits}f}"


def rate(value: float | None) -> str:
    """Return how many a second, with a decimal where they are few; "" for None."""
    return number(value, 1 if value is not None and value < 100 else 0)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a table in Markdown; nothing in a cell breaks it."""

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(inline(cell) for cell in cells) + " |"

    return [line(header), line("---" for _ in header), *(line(row) for row in rows)]
