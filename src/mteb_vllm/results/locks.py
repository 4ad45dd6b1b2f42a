"""Locks that let several runs share one results store, built on the operating system's file locks (filelock).

The operating system releases a lock when its holder dies, so no lock is ever stale. Lock files are removed when the lock is
released; those of killed runs are removed by `clear`.
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
# Folders of notes, whose temporary files lie next to them, and the age in seconds after which one counts as abandoned.
_NOTES = ("settings", "failures")
_ABANDONED = 3600


class BusyError(Exception):
    """Another process holds the lock."""


def lock_path(root: Path, name: str) -> Path:
    """Return the file of a lock; for the arguments see `lock`."""
    return root / ".locks" / f"{re.sub(r'[^A-Za-z0-9._-]', '_', name)}.lock"


@contextmanager
def lock(root: Path, name: str, *, wait: bool = True, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold a lock of a results store.

    Args:
        root: The store's root.
        name: The name of the lock.
        wait: Whether to wait if the lock is held.
        on_wait: Called before waiting.

    Raises:
        BusyError: if the lock is held and `wait` is false.
        LockError: if the lock file cannot be written.
    """
    path = lock_path(root, name)
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
        with suppress(OSError):  # a leftover lock file is harmless
            # A process that has opened the file in the meantime finds it deleted and retries: filelock checks for this.
            path.unlink()
        held.release()


@contextmanager
def staging(root: Path) -> Iterator[Path]:
    """Create a temporary folder on the store's file system, from which files are moved into the store by rename."""
    import uuid

    folder = root / f"{_STAGING}{uuid.uuid4().hex[:12]}"
    with lock(root, folder.name):
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def clear(root: Path) -> None:
    """Remove leftovers of killed runs: staging folders, temporary files of notes, and lock files that are not held."""
    left = [path.name for path in root.glob(f"{_STAGING}*")]
    left += [path.stem for path in (root / ".locks").glob("*.lock")]
    for name in dict.fromkeys(left):
        try:
            with lock(root, name, wait=False):
                if name.startswith(_STAGING):
                    shutil.rmtree(root / name, ignore_errors=True)
        except (BusyError, OSError):  # in use, or not removable by this user
            pass
    for folder in _NOTES:
        for path in (root / folder).rglob(".*.tmp"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _ABANDONED:
                    path.unlink()
