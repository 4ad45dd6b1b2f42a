"""Full and unwritable disks: recognised by what the system says, looked for beforehand, and told once at a run's end.

What was computed is worth more than what is written about it: a file that cannot be written ends nothing. It is noted here,
and the run's exit status and one line for each reason say so.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import tempfile
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

logger = logging.getLogger(__name__)

# A full disk, a quota, a file system that is read-only, a folder of somebody else's, a broken device.
_OF_THE_DISK = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG, errno.ENAMETOOLONG,
    errno.ESTALE,
}  # fmt: skip

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EIO}

# What a run writes at least before it begins, in bytes.
_LEAST = 4096

_Unwritten = list[tuple[Path, BaseException]]
_unwritten: ContextVar[_Unwritten | None] = ContextVar("unwritten", default=None)


def cause(error: BaseException) -> OSError | None:
    """Return the error of the disk's that another error is, or comes of; None where there is none."""
    one: BaseException | None = error
    while one is not None:
        if isinstance(one, OSError) and one.errno in _OF_THE_DISK:
            return one
        one = one.__cause__
    return None


def reason(error: BaseException) -> str:
    """Return in a few words why something cannot be written, as "no space left on device"."""
    found = cause(error) or error
    text = found.strerror if isinstance(found, OSError) and found.strerror else str(found) or type(found).__name__
    return text[:1].lower() + text[1:]


def locate(error: BaseException, folder: Path) -> None:
    """Put a folder into an error of the disk's that names no file, as one that comes of a write.

    Args:
        error: The error, or one that comes of it.
        folder: Where something was written; where it is not there, the nearest folder above it is named.
    """
    if (found := cause(error)) is not None and found.filename is None:
        place = folder.absolute()
        found.filename = str(next(one for one in (place, *place.parents) if one.exists()))


def why_not_writable(folder: Path) -> str | None:
    """Return why no folder and no small file can be made at a place; None where they can.

    A nameless file is written into the place, or into the nearest folder above it that exists: only the file system itself
    knows of quotas, of space that is kept for root, and of folders in which root cannot write either. Nothing of it stays.

    Args:
        folder: The place; need not exist.
    """
    place = folder.absolute()
    try:
        existing = next(place for place in (place, *place.parents) if os.path.lexists(place))
        if not existing.is_dir():
            return f"{existing} is not a folder"
        longest = os.pathconf(existing, "PC_NAME_MAX")
        if any(len(os.fsencode(name)) > longest for name in place.relative_to(existing).parts):
            return f"the name of a folder may have {longest} bytes"
    except OSError as error:
        return reason(error)
    try:
        with tempfile.TemporaryFile(dir=existing, buffering=0) as file:
            file.write(bytes(_LEAST))
    except OSError as error:
        return f"nothing can be written into {existing}: {reason(error)}"
    return None


@contextlib.contextmanager
def collect_unwritten() -> Iterator[_Unwritten]:
    """Collect the files that cannot be written, and why; inside of another collection, in that one."""
    if (outer := _unwritten.get()) is not None:
        yield outer
        return
    found: _Unwritten = []
    token = _unwritten.set(found)
    try:
        yield found
    finally:
        _unwritten.reset(token)


def note(path: Path, error: BaseException, *, optional: bool = False) -> None:
    """Note that a file cannot be written.

    Args:
        path: The file.
        error: Why.
        optional: Whether nobody misses it: then it counts only where the disk is full or broken.
    """
    logger.warning("%s cannot be written: %s", path, error)
    found, why = _unwritten.get(), cause(error)
    if found is not None and not (optional and (why is None or why.errno not in _FULL)):
        found.append((path, error))


@contextlib.contextmanager
def attempt(path: Path) -> Iterator[None]:
    """Write a file; that it cannot be written is noted, and ends nothing."""
    try:
        yield
    except OSError as error:
        note(path, error)
