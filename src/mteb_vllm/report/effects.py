"""What a setting changes, all else equal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mteb_vllm.report.comparison import Row


@dataclass(frozen=True)
class Effect:
    """What one value of a setting changes against a reference value, all else equal.

    Attributes:
        column: The setting.
        value: The value.
        against: The reference: the baseline's value.
        pairs: How many pairs of points differ in this setting alone, the one with `value`, the other with `against`.
        score_pairs: How many of them both have a mean.
        speed_pairs: How many of them both measured their own speed, in the same unit and by the same pipeline.
        score: The mean difference of the means of `score_pairs`; None where there are none.
        score_range: Its smallest and largest.
        speed: The geometric mean of the ratios of the texts/s of `speed_pairs`, of throughput points of their requests/s;
            None where there are none.
        speed_range: Its smallest and largest.
    """

    column: str
    value: str
    against: str
    pairs: int
    score_pairs: int
    speed_pairs: int
    score: float | None = None
    score_range: tuple[float, float] | None = None
    speed: float | None = None
    speed_range: tuple[float, float] | None = None


def effects(columns: Sequence[str], rows: Sequence[Row], baseline: Row) -> list[Effect]:
    """The effects that pairs of points tell of, column by column; none for a value that is in no pair."""
    # Of a point whose record cannot be read, no setting is known.
    known = [row for row in rows if row.point.overrides or row.point.facts]
    found = []
    for at, column in enumerate(columns):
        against = baseline.settings[at]
        alike: dict[tuple[str, ...], dict[str, list[Row]]] = {}
        for row in known:
            others = row.settings[:at] + row.settings[at + 1 :]
            alike.setdefault(others, {}).setdefault(row.settings[at], []).append(row)
        pairs: dict[str, list[tuple[Row, Row]]] = {row.settings[at]: [] for row in known if row.settings[at] != against}
        for group in alike.values():
            for value in group.keys() - {against}:
                pairs[value] += product(group[value], group.get(against, []))
        found += [_effect(column, value, against, some) for value, some in pairs.items() if some]
    return found


def _rate(row: Row) -> tuple[float, str] | None:
    """How fast a point was itself, and what of; None where it does not say."""
    if (said := row.point.throughput) is not None:
        return (said.requests, f"requests of {said.unit}") if said.requests else None
    return (row.speed.texts, row.speed.unit) if row.speed is not None and row.speed.of == row.point.name else None


def _effect(column: str, value: str, against: str, pairs: Sequence[tuple[Row, Row]]) -> Effect:
    scores = [one.mean - other.mean for one, other in pairs if one.mean is not None and other.mean is not None]
    rates = [(_rate(one), _rate(other)) for one, other in pairs]
    speeds = [one[0] / other[0] for one, other in rates if one is not None and other is not None and one[1] == other[1]]
    return Effect(
        column,
        value,
        against,
        len(pairs),
        len(scores),
        len(speeds),
        math.fsum(scores) / len(scores) if scores else None,
        (min(scores), max(scores)) if scores else None,
        math.exp(math.fsum(map(math.log, speeds)) / len(speeds)) if speeds else None,
        (min(speeds), max(speeds)) if speeds else None,
    )
