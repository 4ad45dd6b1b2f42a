"""Find the cause of a deviation by varying the reference, one setting at a time, towards the engine under test.

A variant explains the deviation, and becomes a hint, only if at most a tenth of the largest deviation remains, and that is
small in absolute terms. If no single change explains it, pairs of changes are tried. Rounding in a smaller dtype differs
between kernels, so no variant can reproduce it exactly; instead, the deviation of the reference in that dtype from its own
values is compared with the observed one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mteb_vllm.results.parity import Hint

# The largest fraction of a deviation that may remain with a variant that explains it.
MAX_REMAINDER = 0.1
# The largest ratio, either way, of the deviation due to a dtype and the observed one, if the dtype explains it.
MAX_RATIO = 4.0


@dataclass(frozen=True)
class Change:
    """A change to one setting of the reference.

    Attributes:
        cause: The kind of setting: "pooling", "truncation", ...
        part: The part of the reference that it replaces; changes to different parts can be combined.
        value: The new value.
        words: The change in words, such as "with CLS pooling".
        way: The configuration key that a user would change.
    """

    cause: str
    part: str
    value: object
    words: str
    way: str


@dataclass(frozen=True)
class Measured:
    """The distance between two sides' values.

    Attributes:
        deviation: The largest deviation, by which variants are compared.
        worst: The lowest cosine, or the largest difference of scores.
        median: The median cosine or difference.
        words: The worst value as a clause, such as "the lowest cosine similarity is 0.99".
    """

    deviation: float
    worst: float
    median: float
    words: str


def explain(
    changes: Sequence[Change],
    measure: Callable[[Mapping[str, object]], Measured | None],
    *,
    floor: float,
    enough: float,
    together: int = 1,
) -> list[Hint]:
    """Return the changes that explain a deviation, best first.

    Args:
        changes: The possible changes.
        measure: Maps changes (part to value) to the distance between that variant and the engine under test; None if the
            reference cannot be varied so.
        floor: Up to this deviation there is nothing to explain.
        enough: The largest deviation that counts as explained.
        together: The number of simultaneous changes, 1 or 2.
    """
    as_is = measure({})
    if as_is is None or as_is.deviation <= floor:
        return []
    limit = min(MAX_REMAINDER * as_is.deviation, enough)
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
    text = f"{words}, the reference matches: {left.words}. As configured, {as_is.words}. See {ways}."
    return Hint(cause, text, left.worst, left.median)


def is_similar(own: Measured, observed: Measured) -> bool:
    """Whether two deviations are of similar size, within a factor of `MAX_RATIO`."""
    if own.deviation <= 0:
        return False
    return 1 / MAX_RATIO <= observed.deviation / own.deviation <= MAX_RATIO
