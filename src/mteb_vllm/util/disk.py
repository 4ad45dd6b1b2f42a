"""Full and unwritable disks: recognised from error codes, checked for in advance, and reported at the end of a run.

A file that cannot be written does not end a run, because the computed results are worth more than the files about them. The
error is collected here, and reported by the exit status and one line per reason.
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

# A full disk, a quota, a read-only file system, missing permissions, a broken device.
_DISK_ERRORS = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG, errno.ENAMETOOLONG,
    errno.ESTALE,
}  # fmt: skip

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EIO}

# Number of bytes to write when testing whether a folder is writable.
_TEST_BYTES = 4096

_Unwritten = list[tuple[Path, BaseException]]
_unwritten: ContextVar[_Unwritten | None] = ContextVar("unwritten", default=None)


def cause(error: BaseException) -> OSError | None:
    """Return the disk error that is, or caused, another error; None if there is none."""
    one: BaseException | None = error
    while one is not None:
        if isinstance(one, OSError) and one.errno in _DISK_ERRORS:
            return one
        one = one.__cause__
    return None


def reason(error: BaseException) -> str:
    """Return the reason of a write error in a few words, e.g. "no space left on device"."""
    found = cause(error) or error
    text = found.strerror if isinstance(found, OSError) and found.strerror else str(found) or type(found).__name__
    return text[:1].lower() + text[1:]


def locate(error: BaseException, folder: Path) -> None:
    """Add a folder to a disk error that does not name a file, as is the case for failed writes.

    Args:
        error: The disk error, or one caused by it.
        folder: The folder that was written to; if it does not exist, its nearest existing parent is used.
    """
    if (found := cause(error)) is not None and found.filename is None:
        place = folder.absolute()
        found.filename = str(next(one for one in (place, *place.parents) if one.exists()))


def why_not_writable(folder: Path) -> str | None:
    """Return why a folder cannot be created or written to; None if it can.

    Writes a temporary file into the folder, or into its nearest existing parent. Only an actual write reveals quotas, space
    reserved for root, and folders that even root cannot write to.

    Args:
        folder: The folder; it need not exist.
    """
    place = folder.absolute()
    try:
        existing = next(place for place in (place, *place.parents) if os.path.lexists(place))
        if not existing.is_dir():
            return f"{existing} is not a folder"
        longest = os.pathconf(existing, "PC_NAME_MAX")
        if any(len(os.fsencode(name)) > longest for name in place.relative_to(existing).parts):
            return f"a folder name may have at most {longest} bytes"
    except OSError as error:
        return reason(error)
    try:
        with tempfile.TemporaryFile(dir=existing, buffering=0) as file:
            file.write(bytes(_TEST_BYTES))
    except OSError as error:
        return f"{existing} is not writable: {reason(error)}"
    return None


@contextlib.contextmanager
def collect_unwritten() -> Iterator[_Unwritten]:
    """Collect files that cannot be written, with the errors. A nested call shares the outer collection."""
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
    """Log and collect a write error.

    Args:
        path: The file.
        error: The error.
        optional: Whether the file is dispensable, so that the error is only collected if the disk is full or broken.
    """
    logger.warning("%s cannot be written: %s", path, error)
    found, why = _unwritten.get(), cause(error)
    if found is not None and not (optional and (why is None or why.errno not in _FULL)):
        found.append((path, error))


@contextlib.contextmanager
def attempt(path: Path) -> Iterator[None]:
    """Collect, instead of raising, an error in writing a file inside the block."""
    try:
        yield
    except OSError as error:
        note(path, error)
