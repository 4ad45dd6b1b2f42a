"""All embeddings under one root, within a limit on their size; look up and add the embeddings of one engine."""

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

# Incremented with every change of the file format or of the keys.
_FORMAT = 3

# Bytes to leave free on the disk, for results.
_MIN_FREE = 500_000_000

# Segments used since then are in use.
_PROCESS_START = time.time()


class EmbeddingCache:
    """The embeddings under one root.

    Args:
        root: The folder that contains `embeddings`.
        max_bytes: The limit on the total size of the files; the least recently used ones are evicted.

    Attributes:
        quarantined: The new names of damaged files.
    """

    def __init__(self, root: Path, max_bytes: int) -> None:
        self.root, self.folder = root, root / _FOLDER
        self.max_bytes = max_bytes
        self.quarantined: list[Path] = []
        self._spaces: dict[str, Space] = {}
        # Maps a folder to its last modification time and the size of its files.
        self._sizes: dict[Path, tuple[int, int]] = {}

    def space(self, engine: str, dim: int) -> Space:
        """Return the embeddings of an engine.

        Args:
            engine: The hash of everything but the text that its embeddings depend on.
            dim: The length of an embedding.
        """
        if engine not in self._spaces:
            self._spaces[engine] = Space(self, engine, dim)
        return self._spaces[engine]

    def record(self) -> CacheRecord:
        """Return the counts of embeddings read and written."""
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
        """Reserve space for a file of `n_bytes` in the folder `keep`, by evicting the least recently used files.

        Files of that folder that were used since this process started are not evicted: otherwise a corpus larger than the
        cache would evict its own beginning, and would never be found again. Yields False if the space does not suffice; then
        only files beyond the limit are evicted.
        """
        with lock(self.root, _FOLDER):
            used = self._used_bytes()
            if used + n_bytes > self.max_bytes:
                used = self._evict(used, n_bytes, keep)
            enough = used + n_bytes <= self.max_bytes and shutil.disk_usage(self.root).free > n_bytes + _MIN_FREE
            yield enough
            if enough and keep in self._sizes:  # saves scanning the folder for the file just written
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

    def _used_bytes(self) -> int:
        """Return the total size of all files; folders that have not changed are not scanned again."""
        total = 0
        for folder in self.folder.iterdir() if self.folder.is_dir() else ():
            changed = folder.stat().st_mtime_ns
            if self._sizes.get(folder, (None, 0))[0] != changed:
                for part in folder.glob(f"*{PART}"):  # left by a killed writer, as only one writes at a time
                    part.unlink(missing_ok=True)
                size = sum(stat.st_size for stat, _ in self._files(f"{folder.name}/*"))
                self._sizes[folder] = (folder.stat().st_mtime_ns, size)
            total += self._sizes[folder][1]
        return total

    def _files(self, pattern: str) -> Iterator[tuple[os.stat_result, Path]]:
        for path in self.folder.glob(pattern):
            with contextlib.suppress(FileNotFoundError):
                yield path.stat(), path

    def quarantine(self, path: Path, why: Exception) -> None:
        """Rename a damaged file, so that it is not read again."""
        renamed = path.with_name(f"{path.name}.broken")
        try:
            path.replace(renamed)
        except FileNotFoundError:
            return  # another run was faster
        except OSError:
            renamed = path
        self.quarantined.append(renamed)
        logger.warning("%s cannot be read (%s); renamed to %s", path, why, renamed.name)


class Space:
    """The embeddings of one engine.

    Args:
        cache: The cache.
        name: The hash of the engine.
        dim: The length of an embedding.

    Attributes:
        folder: The folder of its segments.
        read: Number of embeddings read.
        written: Number of embeddings written.
        passed: Number of embeddings that were computed but not written.
        stopped: The reason why no more are written; None while they are.
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
        """Return the number of embeddings."""
        return len(self._index)

    def key(self, text: str) -> bytes:
        """Return the key of an input text: 128 bits of BLAKE2b, keyed by the engine."""
        return hashlib.blake2b(text.encode(), digest_size=16, key=self._name.encode()).digest()

    def refresh(self) -> None:
        """Load segments that others have written since the last call, and drop those that were evicted."""
        try:
            changed = self.folder.stat().st_mtime_ns
        except OSError:
            changed = None
        if changed == self._seen:
            return
        self._seen = changed
        present = {path.stem for path in self.folder.glob(f"*{SUFFIX}")}
        for name in self._segments.keys() - present:
            del self._segments[name]
        for name in sorted(present - self._segments.keys()):
            with self._quarantine_if_broken(name):
                self._register(name)

    def look_up(self, keys: Sequence[bytes], out: Vectors, rows: Sequence[int]) -> tuple[Flags, Flags]:
        """Look up embeddings, and copy those that are found into an array.

        Args:
            keys: The keys to look up.
            out: float32 array, shape (any, dim), to copy the embeddings into.
            rows: The row of `out` for each key.

        Returns:
            found: bool array, shape (len(keys),): whether the key was found.
            truncated: bool array, shape (len(keys),): whether the text of a found key was truncated.
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
        """Write a segment if possible; otherwise set `stopped`, without raising an error.

        Args:
            keys: The keys of the texts, each once.
            vectors: float32 array, shape (len(keys), dim).
            truncated: bool array, shape (len(keys),): whether the text was truncated.
        """
        before = self.written
        if self.stopped is None:
            try:
                with self._cache.reserve(segment_size(len(keys), self._dim), keep=self.folder) as enough:
                    if enough:
                        self._write(keys, vectors, truncated)
                    else:
                        self._stop_writing(
                            f"the cache is full (embedding_cache.max_bytes is {self._cache.max_bytes:,})"
                        )
            except (OSError, BrokenError) as error:  # a full disk, or a read-only folder
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
        logger.info("no more embeddings are written to the cache: %s", why)

    def _register(self, name: str) -> None:
        """Open a segment, and add its keys to the index."""
        keys, self._segments[name] = open_segment(self._path(name), self._dim)
        self._index.add(name, keys, self._segments.keys())

    @contextlib.contextmanager
    def _quarantine_if_broken(self, name: str) -> Iterator[None]:
        """Drop a segment that cannot be read inside the block, and quarantine its file if that is damaged."""
        try:
            yield
            return
        except FileNotFoundError:
            pass  # evicted
        except BrokenError as error:
            self._cache.quarantine(self._path(name), error)
        except OSError as error:  # such as too many open files, which does not mean that the file is damaged
            logger.warning("%s cannot be read now: %s", self._path(name), error)
        self._segments.pop(name, None)

    def _mark_used(self, name: str) -> None:
        """Update the modification time of a segment's file, once per process, so that it is evicted later."""
        if name not in self._used:
            self._used.add(name)
            with contextlib.suppress(OSError):  # another user's file
                os.utime(self._path(name))

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}{SUFFIX}"
