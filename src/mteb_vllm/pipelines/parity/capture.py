"""Catches what a model makes of texts while mteb evaluates it: vectors of texts, or scores of pairs.

At most so many of a task are kept, those with the lowest hashes: both sides of a comparison keep the same ones, in whatever
order and however often they are asked for them.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Captured:
    """What was caught of one task, by the keys of the texts or pairs, sorted.

    Attributes:
        keys: A hash for each.
        items: For each the task (an aggregate's part), the side, and the texts: one, or a query and a document.
        values: float32 array, shape (n, dim): embeddings; of pairs shape (n, 1): their scores.
    """

    keys: list[str]
    items: list[tuple[str, str, tuple[str, ...]]]
    values: npt.NDArray[np.float32]

    def save(self, folder: Path) -> None:
        """Writes it into an empty folder."""
        folder.mkdir(parents=True)
        np.save(folder / "values.npy", self.values)
        (folder / "items.json").write_text(json.dumps([self.keys, self.items]), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Captured:
        """Reads what `save` wrote."""
        keys, items = json.loads((folder / "items.json").read_text(encoding="utf-8"))
        return cls(keys, [(task, side, tuple(texts)) for task, side, texts in items], np.load(folder / "values.npy"))

    def common(self, other: Captured) -> tuple[Captured, Captured]:
        """Both, with only what both have, in the same order."""
        at = {key: row for row, key in enumerate(other.keys)}
        rows = [row for row, key in enumerate(self.keys) if key in at]
        return self.only(rows), other.only([at[self.keys[row]] for row in rows])

    def only(self, rows: Sequence[int]) -> Captured:
        """Only these rows."""
        return Captured([self.keys[row] for row in rows], [self.items[row] for row in rows], self.values[list(rows)])


@dataclass
class _Watched:
    """Texts of one call that may be kept: row, key, text."""

    task: str
    side: str
    rows: list[tuple[int, str, str]] = field(default_factory=list)


class Tap:
    """Listens to a wrapper; for each task a new one.

    Args:
        limit: How many texts, or pairs, are kept.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._kept: dict[str, tuple[tuple[str, str, tuple[str, ...]], npt.NDArray[np.float32]]] = {}
        self._watched: _Watched | None = None
        self._pairs: list[list[str]] = []
        self._task = ""

    def watch(self, task: str, side: str | None, texts: Iterable[str]) -> Iterator[str]:
        """Passes texts on that are about to be embedded, and notes those that shall be kept."""
        self._watched = watched = _Watched(task, side or "texts")
        lowest: list[tuple[int, int, str, str]] = []  # the highest hash first
        seen: set[str] = set()
        for row, text in enumerate(texts):
            key = _key(task, watched.side, text)
            order = -int(key, 16)
            if key not in seen and (len(lowest) < self.limit or order > lowest[0][0]):
                seen.add(key)
                put = (order, row, key, text)
                if len(lowest) < self.limit:
                    heapq.heappush(lowest, put)
                else:
                    seen.discard(heapq.heapreplace(lowest, put)[2])
            yield text
        watched.rows = [(row, key, text) for _, row, key, text in lowest]

    def take(self, embeddings: npt.NDArray[np.float32]) -> None:
        """Keeps what was made of the texts that were watched last.

        Args:
            embeddings: float32 array, shape (n_texts, dim).
        """
        watched, self._watched = self._watched, None
        assert watched is not None
        for row, key, text in watched.rows:
            self._kept[key] = ((watched.task, watched.side, (text,)), embeddings[row].copy())
        self._shrink()

    def watch_pairs(self, task: str, texts: Iterable[str]) -> Iterator[str]:
        """Passes the texts of one side of pairs on; queries first, then documents."""
        self._task = task
        own: dict[str, str] = {}
        side: list[str] = []
        if len(self._pairs) == 2:  # a call before this one has failed
            self._pairs.clear()
        self._pairs.append(side)
        for text in texts:
            side.append(own.setdefault(text, text))
            yield text

    def take_pairs(self, scores: npt.NDArray[np.float32]) -> None:
        """Keeps the scores of the pairs that were watched last.

        Args:
            scores: float32 array, shape (n_pairs,).
        """
        queries, documents = self._pairs
        self._pairs = []
        for query, document, score in zip(queries, documents, scores, strict=True):
            key = _key(self._task, "pair", query, document)
            self._kept[key] = ((self._task, "pair", (query, document)), np.array([score], dtype=np.float32))
            if len(self._kept) > 2 * self.limit:
                self._shrink()
        self._shrink()

    def captured(self) -> Captured | None:
        """What was kept; None where nothing was embedded or scored."""
        if not self._kept:
            return None
        keys = sorted(self._kept)
        return Captured(keys, [self._kept[key][0] for key in keys], np.stack([self._kept[key][1] for key in keys]))

    def _shrink(self) -> None:
        if len(self._kept) > self.limit:
            kept = heapq.nsmallest(self.limit, self._kept)
            self._kept = {key: self._kept[key] for key in kept}


def _key(*parts: str) -> str:
    return hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
