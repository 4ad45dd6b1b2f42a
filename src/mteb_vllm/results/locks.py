"""Locks by which several runs share one results store, on the operating system's file locks (filelock).

The system lets go of a lock when its holder dies, however it dies: a stale one is taken over at once. Lock files go with
their locks; those of killed runs are cleared away.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from mteb_vllm.errors import LockError
from mteb_vllm.util.files import clear_path

_STAGING = ".writing-"
# Folders of notes, which are written in place, and after how many seconds a file that is still being written is abandoned.
_NOTES = ("settings", "failures")
_ABANDONED = 3600


class BusyError(Exception):
    """Somebody else holds the lock."""


@contextmanager
def lock(root: Path, name: str, *, wait: bool = True, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Holds a lock of a results store.

    Args:
        root: The store's root.
        name: What is locked.
        wait: Whether to wait for whoever holds it.
        on_wait: Called before a wait.

    Raises:
        BusyError: if somebody else holds it and `wait` is false.
        LockError: if the lock's file cannot be written.
    """
    path = root / ".locks" / f"{re.sub(r'[^A-Za-z0-9._-]', '_', name)}.lock"
    held = FileLock(path)
    try:
        clear_path(path, root)
        held.acquire(blocking=False)
    except Timeout:
        if not wait:
            raise BusyError(name) from None
        if on_wait is not None:
            on_wait()
        held.acquire()
    except OSError as error:
        raise LockError(f"the results store {root} cannot be locked: {error}") from error
    try:
        yield
    finally:
        with suppress(OSError):  # a lock file that stays is harmless
            # Whoever has opened the file meanwhile finds it gone once he holds it, and starts over: filelock looks.
            path.unlink()
        held.release()


@contextmanager
def staging(root: Path) -> Iterator[Path]:
    """A folder on the store's file system where files are written before they appear in it by rename."""
    import uuid

    folder = root / f"{_STAGING}{uuid.uuid4().hex[:12]}"
    with lock(root, folder.name):
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def clear(root: Path) -> None:
    """Remove what killed runs have left: folders and notes that they were writing, and lock files that nobody holds."""
    left = [path.name for path in root.glob(f"{_STAGING}*")]
    left += [path.stem for path in (root / ".locks").glob("*.lock")]
    for name in dict.fromkeys(left):
        try:
            with lock(root, name, wait=False):
                if name.startswith(_STAGING):
                    shutil.rmtree(root / name, ignore_errors=True)
        except (BusyError, OSError):  # in use, or not ours to remove
            pass
    for folder in _NOTES:
        for path in (root / folder).rglob(".*.tmp"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _ABANDONED:
                    path.unlink()
