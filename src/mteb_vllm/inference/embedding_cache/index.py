"""Map keys to segments and rows, in arrays with 24 bytes per key."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mteb_vllm.inference.embedding_cache.segments import Keys, Numbers


@dataclass(frozen=True)
class _Sorted:
    """The keys of some segments, sorted by their first 64 bits."""

    names: list[str]
    first: npt.NDArray[np.uint64]
    second: npt.NDArray[np.uint64]
    segments: npt.NDArray[np.int32]
    rows: npt.NDArray[np.int32]

    @classmethod
    def from_keys(cls, name: str, keys: Keys) -> _Sorted:
        order = np.argsort(keys[:, 0], kind="stable")
        numbers = np.zeros(len(keys), dtype=np.int32)
        return cls([name], keys[order, 0], keys[order, 1], numbers, order.astype(np.int32))

    @classmethod
    def merge(cls, one: _Sorted, other: _Sorted, live: Collection[str]) -> _Sorted:
        """Merge two parts, without the segments that no longer exist."""
        names = [*one.names, *other.names]
        segments = np.concatenate([one.segments, other.segments + np.int32(len(one.names))])
        kept = np.array([name in live for name in names])[segments]
        first = np.concatenate([one.first, other.first])[kept]
        second, rows = np.concatenate([one.second, other.second]), np.concatenate([one.rows, other.rows])
        order = np.argsort(first, kind="stable")
        return cls(names, first[order], second[kept][order], segments[kept][order], rows[kept][order])

    def __len__(self) -> int:
        return len(self.rows)

    def search(self, wanted: Keys) -> tuple[Numbers, Numbers]:
        """Return which of the wanted keys were found, and their positions.

        Of two keys with the same first 64 bits only the first one is found; the other embedding is computed again.
        """
        if not len(self):
            none = np.zeros(0, dtype=np.int64)
            return none, none
        places = np.minimum(np.searchsorted(self.first, wanted[:, 0]), len(self) - 1)
        found = np.flatnonzero((self.first[places] == wanted[:, 0]) & (self.second[places] == wanted[:, 1]))
        return found, places[found]


class Index:
    """The keys of all segments of a space."""

    def __init__(self) -> None:
        self._parts: list[_Sorted] = []

    def __len__(self) -> int:
        """Return the number of keys; a key in two segments counts twice."""
        return sum(map(len, self._parts))

    def add(self, name: str, keys: Keys, live: Collection[str]) -> None:
        """Add a segment.

        Args:
            name: Its name.
            keys: uint64 array, shape (n, 2).
            live: The names of all existing segments.
        """
        self._parts.append(_Sorted.from_keys(name, keys))
        # Each part stays at least twice as long as the next one, which bounds both searches and merges.
        while len(self._parts) > 1 and len(self._parts[-2]) < 2 * len(self._parts[-1]):
            last, one = self._parts.pop(), self._parts.pop()
            self._parts.append(_Sorted.merge(one, last, live))

    def search(self, wanted: Keys) -> Iterator[tuple[str, Numbers, Numbers]]:
        """Find keys, the newest part last; a key in several segments is found several times.

        Args:
            wanted: uint64 array, shape (n, 2).

        Yields:
            a segment's name, the indices of the wanted keys in it, and their rows in the segment.
        """
        for part in self._parts:
            at, places = part.search(wanted)
            order = np.argsort(part.segments[places], kind="stable")
            at, places = at[order], places[order]
            edges = np.flatnonzero(np.diff(part.segments[places])) + 1
            for some, where in zip(np.split(at, edges), np.split(places, edges), strict=True):
                if len(some):
                    yield part.names[int(part.segments[where[0]])], some, part.rows[where].astype(np.int64)
