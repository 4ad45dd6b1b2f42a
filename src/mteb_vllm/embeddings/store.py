"""All embeddings under one root, and the bound on what they may take."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mteb_vllm.embeddings.segments import PART
from mteb_vllm.embeddings.space import Space
from mteb_vllm.fingerprint import fingerprint
from mteb_vllm.locks import lock

if TYPE_CHECKING:
    from mteb_vllm.engine import Engine

logger = logging.getLogger(__name__)

_FOLDER = "embeddings"

# Raised with every change of the format, or of what a key is made of.
_FORMAT = 1

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
            "stopped": next((space.stopped for space in spaces if space.stopped), None),
        }

    @contextlib.contextmanager
    def room(self, n_bytes: int, keep: Path) -> Iterator[bool]:
        """Holds room for `n_bytes`, which what was not used for longest has given way to; false if there is not enough.

        What was used of the folder `keep` since this process began stays: a corpus larger than the store would otherwise
        push itself out from its other end, and nothing of it would ever be found.
        """
        with lock(self.root, _FOLDER):
            for left in self.folder.glob(f"*/*{PART}"):  # by a writer that was killed: only one writes at a time
                left.unlink(missing_ok=True)
            files = sorted(self._files(), key=lambda file: file[0])
            used = sum(size for _, size, _ in files)
            if n_bytes <= self.max_bytes:
                for when, size, path in files:
                    if used + n_bytes <= self.max_bytes:
                        break
                    if path.parent == keep and when >= _BEGAN:
                        continue
                    path.unlink(missing_ok=True)
                    used -= size
            yield used + n_bytes <= self.max_bytes

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """When each file was used last, its bytes, and its path."""
        for path in self.folder.glob("*/*"):
            with contextlib.suppress(FileNotFoundError):
                stat = path.stat()
                yield stat.st_mtime, stat.st_size, path

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
