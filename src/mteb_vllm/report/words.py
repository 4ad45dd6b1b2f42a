"""Points and figures as words, and rows as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from mteb_vllm.util.escape import inline

if TYPE_CHECKING:
    from mteb_vllm.report.comparison import Comparison, Row

# More names in a row nobody reads.
MOST_NAMES = 8


def settings_text(columns: Sequence[str], values: Sequence[str]) -> str:
    """A point's settings as one would type them; those that it does not have are left out."""
    return ", ".join(f"{column}={value}" for column, value in zip(columns, values, strict=True) if value)


def called(name: str) -> str:
    """A point's name as it stands in a sentence."""
    return f"point {name}" if name.isdigit() else name


def named(comparison: Comparison, row: Row) -> str:
    """A point's name and settings as they stand in a sentence."""
    settings = settings_text(comparison.columns, row.settings)
    return f"{called(row.point.name)}{f' ({settings})' if settings else ''}"


def names(some: Sequence[str]) -> str:
    """Names in a row, the first ones where there are many."""
    more = f" and {len(some) - MOST_NAMES} more" if len(some) > MOST_NAMES else ""
    return f"{', '.join(some[:MOST_NAMES])}{more}"


def count(n: int, word: str) -> str:
    """A number of things."""
    return f"{n:,} {word}{'' if n == 1 else 's'}"


def signed(value: float | None) -> str:
    """A difference of scores; "" for None."""
    return "" if value is None else f"{round(value, 5) + 0.0:+.5f}"  # never -0.00000


def times(value: float | None) -> str:
    """A ratio; "" for None."""
    return "" if value is None else f"x{value:.2f}"


def number(value: float | None, digits: int = 0) -> str:
    """A figure; "" for None."""
    return "" if value is None else f"{value:,.{digits}f}"


def rate(value: float | None) -> str:
    """How many a second, with a decimal where they are few; "" for None."""
    return number(value, 1 if value is not None and value < 100 else 0)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table in Markdown; nothing in a cell breaks it."""

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(inline(cell) for cell in cells) + " |"

    return [line(header), line("---" for _ in header), *(line(row) for row in rows)]
