"""The embeddings of one engine: looked up, and added."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mteb_vllm.inference.embedding_cache.index import Index
from mteb_vllm.inference.embedding_cache.segments import (
    PART,
    SUFFIX,
    BrokenError,
    Flags,
    Numbers,
    Segment,
    Vectors,
    open_segment,
    packed,
    size_of,
    write_segment,
)

if TYPE_CHECKING:
    from mteb_vllm.inference.embedding_cache.store import EmbeddingStore

logger = logging.getLogger(__name__)

# Writing pays while it takes at most this share of the time that computing takes, which this many seconds tell.
_WORTH, _TELLING = 0.03, 1.0


class Space:
    """The embeddings of one engine.

    Args:
        store: Where they are.
        name: The hash of what the engine is.
        dim: The length of an embedding.

    Attributes:
        folder: Where its segments are.
        read: How many embeddings were found here.
        written: How many were written.
        passed: How many were computed and not written.
        stopped: Why no more are written; None where they are.
    """

    def __init__(self, store: EmbeddingStore, name: str, dim: int) -> None:
        self._store, self._name, self._dim = store, name, dim
        self.folder = store.folder / name
        self._segments: dict[str, Segment] = {}
        self._index = Index()
        self._used: set[str] = set()
        self._seen: int | None = None
        self.read = self.written = self.passed = 0
        self.stopped: str | None = None
        self._writing = self._computing = 0.0

    def __len__(self) -> int:
        """How many embeddings it has."""
        return len(self._index)

    def key(self, text: str) -> bytes:
        """The key of a text as the engine is given it: 128 bits of BLAKE2b, keyed by the engine."""
        return hashlib.blake2b(text.encode(), digest_size=16, key=self._name.encode()).digest()

    def refresh(self) -> None:
        """Takes note of what others have written, or taken away, since the last time."""
        try:
            changed = self.folder.stat().st_mtime_ns
        except OSError:
            changed = None
        if changed == self._seen:
            return
        self._seen = changed
        there = {path.stem for path in self.folder.glob(f"*{SUFFIX}")}
        for name in self._segments.keys() - there:
            del self._segments[name]
        for name in sorted(there - self._segments.keys()):
            with self._or_set_aside(name):
                self._take(name)

    def look_up(self, keys: Sequence[bytes], out: Vectors, rows: Sequence[int]) -> tuple[Flags, Flags]:
        """Fills in the embeddings that are known.

        Args:
            keys: What is looked for.
            out: float32 array, shape (any, dim); an embedding that is found goes into it.
            rows: For each key its row of `out`.

        Returns:
            found: bool array, shape (len(keys),); and truncated, likewise: whether the text of a found one was cut.
        """
        found, truncated = np.zeros(len(keys), dtype=np.bool_), np.zeros(len(keys), dtype=np.bool_)
        targets: Numbers = np.asarray(rows, dtype=np.int64)
        for name, at, there in self._index.search(packed(keys)):
            fresh = ~found[at]
            if name not in self._segments or not fresh.any():
                continue
            at, there = at[fresh], there[fresh]
            with self._or_set_aside(name):
                segment = self._segments[name]
                segment.read(there, out, targets[at])
                found[at], truncated[at] = True, segment.truncated[there]
                self._touch(name)
        self.read += int(found.sum())
        return found, truncated

    def add(self, keys: Sequence[bytes], vectors: Vectors, truncated: Flags, seconds: float) -> None:
        """Writes a segment, if that is worth its time and there is room; what stands in the way is no error.

        Args:
            keys: Of the texts, each once.
            vectors: float32 array, shape (len(keys), dim).
            truncated: bool array, shape (len(keys),): whether the text was cut.
            seconds: What computing them took.
        """
        self._computing += seconds
        before = self.written
        quick = self._computing > _TELLING and self._writing > _WORTH * self._computing
        if self.stopped is None and (self._store.always or not quick):
            try:
                with self._store.room(size_of(len(keys), self._dim), keep=self.folder) as enough:
                    started = time.perf_counter()  # without the wait for other writers
                    if enough:
                        self._write(keys, vectors, truncated)
                        self._writing += time.perf_counter() - started
                    else:
                        self._stop(f"there is no room (store.max_bytes is {self._store.max_bytes:,})")
            except (OSError, BrokenError) as error:  # a full disk, or a folder that is not to be written to
                self._stop(f"{type(error).__name__}: {error}")
        self.passed += len(keys) - (self.written - before)

    def _write(self, keys: Sequence[bytes], vectors: Vectors, truncated: Flags) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        name = uuid.uuid4().hex[:16]
        part = self.folder / f"{name}{PART}"
        try:
            write_segment(part, keys, vectors, truncated)
            part.replace(self._path(name))
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        self._take(name)
        self.written += len(keys)

    def _stop(self, why: str) -> None:
        self.stopped = why
        logger.info("no more embeddings are kept: %s", why)

    def _take(self, name: str) -> None:
        """Makes a segment one of those that are searched."""
        keys, self._segments[name] = open_segment(self._path(name), self._dim)
        self._index.add(name, keys, self._segments.keys())

    @contextlib.contextmanager
    def _or_set_aside(self, name: str) -> Iterator[None]:
        """Does something with a segment; what cannot be read counts as not known, and a broken file is renamed."""
        try:
            yield
            return
        except FileNotFoundError:
            pass  # it has given way to others
        except BrokenError as error:
            self._store.put_aside(self._path(name), error)
        except OSError as error:  # a trouble of the machine's says nothing of the file
            logger.warning("%s cannot be read now: %s", self._path(name), error)
        self._segments.pop(name, None)

    def _touch(self, name: str) -> None:
        """Notes that a segment is in use, once."""
        if name not in self._used:
            self._used.add(name)
            with contextlib.suppress(OSError):  # another user's file: it counts as old
                os.utime(self._path(name))

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}{SUFFIX}"
