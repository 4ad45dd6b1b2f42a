"""Record a model's embeddings of texts, or its scores of pairs, while mteb evaluates it.

The number kept per task is limited. Texts with the lowest hashes are kept, so both sides of a comparison keep the same ones,
independent of the order and number of calls.
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
    """The recorded texts or pairs of one task, sorted by key.

    Attributes:
        keys: The hash of each text or pair.
        items: For each the task (or part of an aggregate), the side, and its texts: one, or a query and a document.
        values: float32 array: embeddings, shape (n, dim), or the scores of pairs, shape (n, 1).
    """

    keys: list[str]
    items: list[tuple[str, str, tuple[str, ...]]]
    values: npt.NDArray[np.float32]

    def save(self, folder: Path) -> None:
        """Write it into a new folder."""
        folder.mkdir(parents=True)
        np.save(folder / "values.npy", self.values)
        (folder / "items.json").write_text(json.dumps([self.keys, self.items]), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Captured:
        """Read it from a folder written by `save`."""
        keys, items = json.loads((folder / "items.json").read_text(encoding="utf-8"))
        return cls(keys, [(task, side, tuple(texts)) for task, side, texts in items], np.load(folder / "values.npy"))

    def common(self, other: Captured) -> tuple[Captured, Captured]:
        """Return both sides restricted to their common texts, in the same order."""
        at = {key: row for row, key in enumerate(other.keys)}
        rows = [row for row, key in enumerate(self.keys) if key in at]
        return self.only(rows), other.only([at[self.keys[row]] for row in rows])

    def only(self, rows: Sequence[int]) -> Captured:
        """Return only these rows."""
        return Captured([self.keys[row] for row in rows], [self.items[row] for row in rows], self.values[list(rows)])


@dataclass
class _Pending:
    """The texts of one call that may be kept, as (row, key, text), while their embeddings are computed."""

    task: str
    side: str
    rows: list[tuple[int, str, str]] = field(default_factory=list)


class Recorder:
    """Records the embeddings or scores that a wrapper computes for one task.

    Args:
        limit: The maximum number of texts, or pairs, to keep.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._kept: dict[str, tuple[tuple[str, str, tuple[str, ...]], npt.NDArray[np.float32]]] = {}
        self._pending: _Pending | None = None
        self._pairs: list[list[str]] = []
        self._task = ""

    def watch(self, task: str, side: str | None, texts: Iterable[str]) -> Iterator[str]:
        """Yield texts that are about to be embedded, and remember those that may be kept."""
        self._pending = pending = _Pending(task, side or "texts")
        lowest: list[tuple[int, int, str, str]] = []  # a heap with the highest hash first
        seen: set[str] = set()
        for row, text in enumerate(texts):
            key = _key(task, pending.side, text)
            order = -int(key, 16)
            if key not in seen and (len(lowest) < self.limit or order > lowest[0][0]):
                seen.add(key)
                put = (order, row, key, text)
                if len(lowest) < self.limit:
                    heapq.heappush(lowest, put)
                else:
                    seen.discard(heapq.heapreplace(lowest, put)[2])
            yield text
        pending.rows = [(row, key, text) for _, row, key, text in lowest]

    def take(self, embeddings: npt.NDArray[np.float32]) -> None:
        """Keep the embeddings of the texts passed to the last `watch`.

        Args:
            embeddings: float32 array, shape (n_texts, dim).
        """
        pending, self._pending = self._pending, None
        assert pending is not None
        for row, key, text in pending.rows:
            self._kept[key] = ((pending.task, pending.side, (text,)), embeddings[row].copy())
        self._shrink()

    def watch_pairs(self, task: str, texts: Iterable[str]) -> Iterator[str]:
        """Yield the texts of one side of pairs and remember them; called for the queries, then for the documents."""
        self._task = task
        interned: dict[str, str] = {}
        side: list[str] = []
        if len(self._pairs) == 2:  # left over from a call that failed
            self._pairs.clear()
        self._pairs.append(side)
        for text in texts:
            side.append(interned.setdefault(text, text))
            yield text

    def take_pairs(self, scores: npt.NDArray[np.float32]) -> None:
        """Keep the scores of the pairs passed to the last two `watch_pairs`.

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
        """Return the recorded texts or pairs; None if nothing was embedded or scored."""
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
