"""All embeddings under one root, and the bound on what they may take."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mteb_vllm.inference.embedding_cache.segments import PART
from mteb_vllm.inference.embedding_cache.space import Space
from mteb_vllm.results.locks import lock
from mteb_vllm.util.fingerprint import fingerprint

if TYPE_CHECKING:
    from mteb_vllm.engines.base import Engine

logger = logging.getLogger(__name__)

_FOLDER = "embeddings"

# Raised with every change of the format, or of what a key is made of.
_FORMAT = 2

# What stays free on the disk, for results.
_LEFT_FREE = 500_000_000

# What was used since then is in use.
_BEGAN = time.time()


class EmbeddingStore:
    """The embeddings under one root.

    Args:
        root: The folder that `embeddings` is in.
        max_bytes: What all files together may take; what was not used for longest gives way.
        always: Whether embeddings are also written where that takes long, measured by what computing them takes.

    Attributes:
        set_aside: Files that were not what was written, and have these names now.
    """

    def __init__(self, root: Path, max_bytes: int, *, always: bool = False) -> None:
        self.root, self.folder = root, root / _FOLDER
        self.max_bytes = max_bytes
        self.always = always
        self.set_aside: list[Path] = []
        self._spaces: dict[str, Space] = {}
        # Folder to when it changed last, and what its files take.
        self._sizes: dict[Path, tuple[int, int]] = {}

    def space(self, engine: Engine) -> Space:
        """The embeddings of an engine."""
        about = {
            "engine": engine.spec.settings(),
            "dimensions": engine.dim,
            "normalized": engine.resolved.get("normalized"),
            "format": _FORMAT,
        }
        return self.named(fingerprint(about), engine.dim)

    def named(self, name: str, dim: int) -> Space:
        """The embeddings under a name, of `dim` numbers each."""
        if name not in self._spaces:
            self._spaces[name] = Space(self, name, dim)
        return self._spaces[name]

    def record(self) -> dict[str, Any]:
        """What was read and written, for a run's record."""
        spaces = list(self._spaces.values())
        return {
            "folder": str(self.folder),
            "read": sum(space.read for space in spaces),
            "written": sum(space.written for space in spaces),
            "passed": sum(space.passed for space in spaces),
            "stopped": next((space.stopped for space in spaces if space.stopped), None),
        }

    @contextlib.contextmanager
    def room(self, n_bytes: int, keep: Path) -> Iterator[bool]:
        """Holds room for a file of `n_bytes` in the folder `keep`, which what was not used for longest gives way to.

        What was used of that folder since this process began stays: a corpus larger than the store would otherwise push
        itself out from its other end, and nothing of it would ever be found. False if there is not enough without it; then
        nothing gives way but what is over the bound already.
        """
        with lock(self.root, _FOLDER):
            used = self._used()
            if used + n_bytes > self.max_bytes:
                used = self._make_room(used, n_bytes, keep)
            enough = used + n_bytes <= self.max_bytes and shutil.disk_usage(self.root).free > n_bytes + _LEFT_FREE
            yield enough
            if enough and keep in self._sizes:  # what was written now need not be looked for
                self._sizes[keep] = (keep.stat().st_mtime_ns, self._sizes[keep][1] + n_bytes)

    def _make_room(self, used: int, n_bytes: int, keep: Path) -> int:
        files = sorted((stat.st_mtime, stat.st_size, path) for stat, path in self._files("*/*"))
        used = sum(size for _, size, _ in files)
        may_go = [file for file in files if file[2].parent != keep or file[0] < _BEGAN]
        fits = used + n_bytes - sum(size for _, size, _ in may_go) <= self.max_bytes
        for _, size, path in may_go:
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

    def put_aside(self, path: Path, why: Exception) -> None:
        """Renames a file that is not what was written; what it held is not known any more."""
        aside = path.with_name(f"{path.name}.broken")
        try:
            path.replace(aside)
        except FileNotFoundError:
            return  # another run was faster
        except OSError:
            aside = path
        self.set_aside.append(aside)
        logger.warning("%s cannot be read (%s); set aside as %s", path, why, aside.name)
