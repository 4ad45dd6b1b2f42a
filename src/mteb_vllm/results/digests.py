"""Digests of stored files, verified before the files are used.

Each result and file of predictions has a digest file next to it, `<file>.sha256`: the SHA-256 of the file's path in the store
(model, revision, settings, task) and of its content, so neither a modified nor a moved file matches. Notes, small JSON files
that a run can do without, contain their own digest.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
from pathlib import Path
from typing import Any

from mteb_vllm.util import disk
from mteb_vllm.util.files import clear_path, read_file, read_json, write_atomically
from mteb_vllm.util.masking import mask

# Errors that reading the same file raises again (None: not a regular file); any other one is no sign of damage.
_PERMANENT_ERRORS = (errno.EACCES, errno.EISDIR, errno.ELOOP, errno.ENOTDIR, errno.EPERM, None)


class DamagedError(ValueError):
    """A stored file differs from the one that was written."""


def read_verified(root: Path, path: Path) -> bytes:
    """Return the content of a file, verified against its digest file.

    Args:
        root: The root of the results store.
        path: The file.

    Raises:
        FileNotFoundError: if there is no such file.
        DamagedError: if the content does not match the digest, or the file can never be read.
        OSError: if it cannot be read at the moment.
    """
    # Read the file before its digest, because writers write the digest first.
    content = _read(path)
    try:
        digests = _read(_digest_path(path)).split()
    except (FileNotFoundError, DamagedError):
        digests = []
    if _digest(root, path, content).encode() not in digests:
        raise DamagedError(f"it does not match its checksum {_digest_path(path).name}")
    return content


def has_digest(path: Path) -> bool:
    """Whether a file has a digest file."""
    return _digest_path(path).exists()


def write_digest(root: Path, path: Path, content: bytes, scratch: Path) -> None:
    """Write the digest of a file's new content, before the file itself is replaced by rename.

    The digest of the current content stays valid until then, so that a process killed in between does no damage.

    Args:
        root: The root of the results store.
        path: The file.
        content: Its new content.
        scratch: A folder of `locks.staging`, from which the digest is moved into place.

    Raises:
        OSError: if it cannot be written.
    """
    digests = [_digest(root, path, content)]
    with contextlib.suppress(OSError, DamagedError):  # then no current content has to stay valid
        digests.append(_digest(root, path, read_verified(root, path)))
    target, written = _digest_path(path), scratch / _digest_path(path).name
    try:
        clear_path(target, root)
        write_atomically(written, "\n".join(dict.fromkeys(digests)) + "\n")
        written.replace(target)
    except OSError as error:
        error.filename, error.filename2 = str(target), None
        raise


def write_note(root: Path, path: Path, value: Any) -> None:
    """Write a note; failure to do so is only logged."""
    value = json.loads(mask(json.dumps(value)))  # mask before computing the digest
    try:
        clear_path(path, root)
        write_atomically(
            path, json.dumps({"note": value, "sha256": _digest_of_note(root, path, value)}, indent=1) + "\n"
        )
    except OSError as error:
        disk.note(path, error, optional=True)


def read_note(root: Path, path: Path) -> Any:
    """Return the value of a note; None if there is none or it is damaged."""
    try:
        found = read_json(path)
        if found["sha256"] == _digest_of_note(root, path, found["note"]):
            return found["note"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        pass
    return None


def _read(path: Path) -> bytes:
    try:
        return read_file(path)
    except OSError as error:
        if error.errno in _PERMANENT_ERRORS:
            raise DamagedError(str(error)) from error
        raise


def _digest_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _digest(root: Path, path: Path, content: bytes) -> str:
    return hashlib.sha256(f"{path.relative_to(root).as_posix()}\n".encode() + content).hexdigest()


def _digest_of_note(root: Path, path: Path, value: Any) -> str:
    return _digest(root, path, json.dumps(value, sort_keys=True).encode())
