"""What would explain a deviation, found by trying: a reference varied, one thing at a time, towards the engine under test.

A variant is a hint if it explains the deviation, and not if it only lessens it: what is left of the largest deviation is a
tenth at most, and small in itself. Two changes together are tried where no single one explains it. What a smaller dtype
rounds away differs from kernel to kernel, so no variant can meet it: there the reference's own deviation in that dtype is
compared with the one that was observed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mteb_vllm.results.parity import Hint

# What is left of a deviation, as a share of it, where a variant explains it.
LEFT = 0.1
# Between the deviation of a dtype and the observed one, where the dtype explains it.
LIKE = 4.0


@dataclass(frozen=True)
class Change:
    """One thing that is varied.

    Attributes:
        cause: What kind of thing it is: "pooling", "truncation", ...
        part: Which part of the reference it replaces: changes of different parts can be combined.
        value: What it is replaced by.
        words: "with CLS pooling".
        way: What a user would change.
    """

    cause: str
    part: str
    value: object
    words: str
    way: str


@dataclass(frozen=True)
class Measured:
    """How far a variant is from the engine under test.

    Attributes:
        deviation: The largest deviation: what is compared between variants.
        worst: What it is called by: the worst cosine, or the largest difference.
        median: The median cosine or difference.
        says: The same in words.
    """

    deviation: float
    worst: float
    median: float
    says: str


def explain(
    changes: Sequence[Change],
    measure: Callable[[Mapping[str, object]], Measured | None],
    *,
    floor: float,
    enough: float,
    together: int = 1,
) -> list[Hint]:
    """The changes that explain a deviation, best first.

    Args:
        changes: What may be varied.
        measure: Varies the reference by (part to value) and measures; None where that cannot be.
        floor: A deviation up to which there is nothing to explain.
        enough: How small a deviation must be to count as explained.
        together: How many changes are made at once, 1 or 2.
    """
    as_is = measure({})
    if as_is is None or as_is.deviation <= floor:
        return []
    limit = min(LEFT * as_is.deviation, enough)
    found = []
    for chosen in itertools.combinations(changes, together):
        if len({change.part for change in chosen}) < together:
            continue
        left = measure({change.part: change.value for change in chosen})
        if left is not None and left.deviation <= limit:
            found.append((left.deviation, _hint(chosen, left, as_is)))
    return [hint for _, hint in sorted(found, key=lambda item: item[0])]


def _hint(changes: Sequence[Change], left: Measured, as_is: Measured) -> Hint:
    words = " and ".join(change.words for change in changes)
    ways = "; ".join(dict.fromkeys(change.way for change in changes))
    cause = " and ".join(change.cause for change in changes)
    return Hint(cause, f"{words} {left.says}; as configured {as_is.says}. See {ways}.", left.worst, left.median)


def like(own: Measured, observed: Measured) -> bool:
    """Whether a deviation is of the size of another."""
    if own.deviation <= 0:
        return False
    return 1 / LIKE <= observed.deviation / own.deviation <= LIKE
