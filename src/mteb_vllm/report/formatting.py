"""Formats names, numbers, settings and tables for all reports."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from mteb_vllm.util.escape import inline

if TYPE_CHECKING:
    from mteb_vllm.report.comparison import Comparison, Effect, Row

# The most names that are listed in a sentence.
MOST_NAMES = 8
# Shown in place of a figure that was not measured, since the results were cached.
CACHED_CELL = "cached"
NO_SPEED_DIFFERENCE = "no measurable difference"
BUSY_MACHINE = (
    "impossible: the machine was probably busy while its peak FLOP/s were measured, so the roofline is too low. "
    "Measure again on an idle machine"
)


def settings_text(columns: Sequence[str], values: Sequence[str]) -> str:
    """Return a point's settings as they would be typed, without those that it does not have."""
    return ", ".join(f"{column}={value}" for column, value in zip(columns, values, strict=True) if value)


def point_name(name: str) -> str:
    """Return a point's name for a sentence."""
    return f"point {name}" if name.isdigit() else name


def describe_point(comparison: Comparison, row: Row) -> str:
    """Return a point's name and settings for a sentence."""
    settings = settings_text(comparison.columns, row.settings)
    return f"{point_name(row.point.name)}{f' ({settings})' if settings else ''}"


def distinct_names(comparison: Comparison, rows: Sequence[Row]) -> list[str]:
    """Return names that distinguish rows: their differing settings, by short keys if these are unique; "" for one row."""
    if len(rows) < 2:
        return [""] * len(rows)
    differing = [at for at in range(len(comparison.columns)) if len({row.settings[at] for row in rows}) > 1]
    keys = [comparison.columns[at] for at in differing]
    ends = [key.rpartition(".")[2] for key in keys]
    keys = ends if len(set(ends)) == len(ends) else keys
    names = [settings_text(keys, [row.settings[at] for at in differing]) for row in rows]
    # Rows with equal settings get the points' names.
    return [
        name if name and names.count(name) == 1 else f"{point_name(row.point.name)}{f': {name}' if name else ''}"
        for name, row in zip(names, rows, strict=True)
    ]


def shorten(name: str, limit: int) -> str:
    """Return a name cut in the middle to at most `limit` characters: its ends distinguish it."""
    half = (limit - 3) // 2
    return name if len(name) <= limit else f"{name[:half]}...{name[-half:]}"


def join_names(some: Sequence[str]) -> str:
    """Return a list of names for a sentence: the first ones, and how many more there are."""
    more = f" and {len(some) - MOST_NAMES} more" if len(some) > MOST_NAMES else ""
    return f"{', '.join(some[:MOST_NAMES])}{more}"


def count(n: int, word: str) -> str:
    """Return a number and a noun, e.g. "2 points"."""
    return f"{n:,} {word}{'' if n == 1 else 's'}"


def score(value: float | None) -> str:
    """Return a main score; "" for None."""
    return number(value, 5)


def score_cell(row: Row, tasks: Sequence[str], value: float | None) -> str:
    """Return a main score of a task, or a mean over tasks; where a task has none, why; "" for failed and missing tasks."""
    missing = next(filter(None, (row.without.get(name) for name in tasks if row.scores[name] is None)), "")
    return score(value) if value is not None else missing


def percent(value: float) -> str:
    """Return a share in percent."""
    return f"{value:.1%}"


def signed(value: float | None) -> str:
    """Return a difference of scores; "" for None."""
    return "" if value is None else f"{round(value, 5) + 0.0:+.5f}"  # never -0.00000


def times(value: float | None) -> str:
    """Return a ratio; "" for None."""
    return "" if value is None else f"x{value:.2f}"


def speed_effect(effect: Effect) -> str:
    """Return the effect on speed: a ratio, or that there is no measurable difference; "" where there are no speeds."""
    return times(effect.speed) if effect.speed is None or effect.speed_differs else NO_SPEED_DIFFERENCE


def mfu(value: float) -> str:
    """Return a model FLOPs utilisation in percent; one above 100 % is marked as invalid."""
    return f"{percent(value)} (invalid)" if value > 1 else percent(value)


def number(value: float | None, digits: int = 0) -> str:
    """Return a number with a fixed number of decimals; "" for None."""
    return "" if value is None else f"{value:,.{digits}f}"


def rate(value: float | None) -> str:
    """Return a rate per second, with a decimal below 100; "" for None."""
    return number(value, 1 if value is not None and value < 100 else 0)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table in Markdown; cells are escaped."""

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(inline(cell) for cell in cells) + " |"

    return [line(header), line("---" for _ in header), *(line(row) for row in rows)]
