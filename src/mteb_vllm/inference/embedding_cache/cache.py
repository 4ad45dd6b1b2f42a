"""All embeddings under one root: the bound on what they may take, and those of one engine, looked up and added."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

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
    pack_keys,
    segment_size,
    write_segment,
)
from mteb_vllm.results.locks import lock
from mteb_vllm.results.measurements import CacheRecord

logger = logging.getLogger(__name__)

_FOLDER = "embeddings"

# Raised with every change of the format, or of what a key is made of.
_FORMAT = 3

# What stays free on the disk, for results.
_MIN_FREE = 500_000_000

# What was used since then is in use.
_PROCESS_START = time.time()


class EmbeddingCache:
    """The embeddings under one root.

    Args:
        root: The folder that `embeddings` is in.
        max_bytes: What all files together may take; the least recently used are evicted.

    Attributes:
        quarantined: Files that were not what was written, and have these names now.
    """

    def __init__(self, root: Path, max_bytes: int) -> None:
        self.root, self.folder = root, root / _FOLDER
        self.max_bytes = max_bytes
        self.quarantined: list[Path] = []
        self._spaces: dict[str, Space] = {}
        # Folder to when it changed last, and what its files take.
        self._sizes: dict[Path, tuple[int, int]] = {}

    def space(self, engine: str, dim: int) -> Space:
        """Return the embeddings of an engine.

        Args:
            engine: The hash of everything that its embeddings depend on but the text.
            dim: The length of an embedding.
        """
        if engine not in self._spaces:
            self._spaces[engine] = Space(self, engine, dim)
        return self._spaces[engine]

    def record(self) -> CacheRecord:
        """Return what was read and written."""
        spaces = list(self._spaces.values())
        return CacheRecord(
            folder=str(self.folder),
            read=sum(space.read for space in spaces),
            written=sum(space.written for space in spaces),
            passed=sum(space.passed for space in spaces),
            stopped=next((space.stopped for space in spaces if space.stopped), None),
        )

    @contextlib.contextmanager
    def reserve(self, n_bytes: int, keep: Path) -> Iterator[bool]:
        """Hold room for a file of `n_bytes` in the folder `keep`; the least recently used files are evicted.

        What was used of that folder since this process began stays: a corpus larger than the store would otherwise push
        itself out from its other end, and nothing of it would ever be found. False if there is not enough without it; then
        nothing is evicted but what is over the bound already.
        """
        with lock(self.root, _FOLDER):
            used = self._used_bytes()
            if used + n_bytes > self.max_bytes:
                used = self._evict(used, n_bytes, keep)
            enough = used + n_bytes <= self.max_bytes and shutil.disk_usage(self.root).free > n_bytes + _MIN_FREE
            yield enough
            if enough and keep in self._sizes:  # what was written now need not be looked for
                self._sizes[keep] = (keep.stat().st_mtime_ns, self._sizes[keep][1] + n_bytes)

    def _evict(self, used: int, n_bytes: int, keep: Path) -> int:
        files = sorted((stat.st_mtime, stat.st_size, path) for stat, path in self._files("*/*"))
        used = sum(size for _, size, _ in files)
        evictable = [file for file in files if file[2].parent != keep or file[0] < _PROCESS_START]
        fits = used + n_bytes - sum(size for _, size, _ in evictable) <= self.max_bytes
        for _, size, path in evictable:
            if used + (n_bytes if fits else 0) <= self.max_bytes:
                break
            path.unlink(missing_ok=True)
            used -= size
        self._sizes.clear()
        return used

    def _used(self) -> int:
        """What all files take; folders that have not changed since are not looked through again."""
        total = 0
        for folder in self.folder.iterdir() if self.folder.is_dir() else ():
            changed = folder.stat().st_mtime_ns
            if self._sizes.get(folder, (None, 0))[0] != changed:
                for left in folder.glob(f"*{PART}"):  # by a writer that was killed: only one writes at a time
                    left.unlink(missing_ok=True)
                size = sum(stat.st_size for stat, _ in self._files(f"{folder.name}/*"))
                self._sizes[folder] = (folder.stat().st_mtime_ns, size)
            total += self._sizes[folder][1]
        return total

    def _files(self, pattern: str) -> Iterator[tuple[os.stat_result, Path]]:
        for path in self.folder.glob(pattern):
            with contextlib.suppress(FileNotFoundError):
                yield path.stat(), path

    def quarantine(self, path: Path, why: Exception) -> None:
        """Renames a file that is not what was written; what it held is not known any more."""
        aside = path.with_name(f"{path.name}.broken")
        try:
            path.replace(aside)
        except FileNotFoundError:
            return  # another run was faster
        except OSError:
            aside = path
        self.quarantined.append(aside)
        logger.warning("%s cannot be read (%s); set aside as %s", path, why, aside.name)


class Space:
    """The embeddings of one engine.

    Args:
        cache: Where they are.
        name: The hash of what the engine is.
        dim: The length of an embedding.

    Attributes:
        folder: Where its segments are.
        read: How many embeddings were found here.
        written: How many were written.
        passed: How many were computed and not written.
        stopped: Why no more are written; None where they are.
    """

    def __init__(self, cache: EmbeddingCache, name: str, dim: int) -> None:
        self._cache, self._name, self._dim = cache, f"{name}-{_FORMAT}", dim
        self.folder = cache.folder / self._name
        self._segments: dict[str, Segment] = {}
        self._index = Index()
        self._used: set[str] = set()
        self._seen: int | None = None
        self.read = self.written = self.passed = 0
        self.stopped: str | None = None

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
            with self._quarantine_if_broken(name):
                self._register(name)

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
        for name, at, there in self._index.search(pack_keys(keys)):
            fresh = ~found[at]
            if name not in self._segments or not fresh.any():
                continue
            at, there = at[fresh], there[fresh]
            with self._quarantine_if_broken(name):
                segment = self._segments[name]
                segment.read(there, out, targets[at])
                found[at], truncated[at] = True, segment.truncated[there]
                self._mark_used(name)
        self.read += int(found.sum())
        return found, truncated

    def add(self, keys: Sequence[bytes], vectors: Vectors, truncated: Flags) -> None:
        """Write a segment if there is room; what stands in the way is no error.

        Args:
            keys: Of the texts, each once.
            vectors: float32 array, shape (len(keys), dim).
            truncated: bool array, shape (len(keys),): whether the text was cut.
        """
        before = self.written
        if self.stopped is None:
            try:
                with self._cache.reserve(segment_size(len(keys), self._dim), keep=self.folder) as enough:
                    if enough:
                        self._write(keys, vectors, truncated)
                    else:
                        self._stop_writing(f"there is no room (embedding_cache.max_bytes is {self._cache.max_bytes:,})")
            except (OSError, BrokenError) as error:  # a full disk, or a folder that is not to be written to
                self._stop_writing(f"{type(error).__name__}: {error}")
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
        self._register(name)
        self.written += len(keys)

    def _stop_writing(self, why: str) -> None:
        self.stopped = why
        logger.info("no more embeddings are kept: %s", why)

    def _register(self, name: str) -> None:
        """Makes a segment one of those that are searched."""
        keys, self._segments[name] = open_segment(self._path(name), self._dim)
        self._index.add(name, keys, self._segments.keys())

    @contextlib.contextmanager
    def _quarantine_if_broken(self, name: str) -> Iterator[None]:
        """Does something with a segment; what cannot be read counts as not known, and a broken file is renamed."""
        try:
            yield
            return
        except FileNotFoundError:
            pass  # it has been evicted
        except BrokenError as error:
            self._cache.quarantine(self._path(name), error)
        except OSError as error:  # a trouble of the machine's says nothing of the file
            logger.warning("%s cannot be read now: %s", self._path(name), error)
        self._segments.pop(name, None)

    def _mark_used(self, name: str) -> None:
        """Notes that a segment is in use, once."""
        if name not in self._used:
            self._used.add(name)
            with contextlib.suppress(OSError):  # another user's file: it counts as old
                os.utime(self._path(name))

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}{SUFFIX}"
