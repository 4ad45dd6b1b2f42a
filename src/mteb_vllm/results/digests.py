"""Stored files that are verified before they are used.

A result and a file of predictions have a digest beside them, `<file>.sha256`: the SHA-256 of the file's place in the store
(model, revision, settings, task) and of its content. Neither a changed file nor one that belongs elsewhere matches it. Notes,
small JSON files that a run can do without, hold theirs themselves.
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

# Errors that the same file will give again (None: what is no regular file); any other one says nothing about the file.
_LASTING = (errno.EACCES, errno.EISDIR, errno.ELOOP, errno.ENOTDIR, errno.EPERM, None)


class DamagedError(ValueError):
    """A stored file is not what was written there."""


def read_verified(root: Path, path: Path) -> bytes:
    """Return the content of a file that has a digest beside it.

    Args:
        root: The root of the results store.
        path: The file.

    Raises:
        FileNotFoundError: if there is no such file.
        DamagedError: if it is not what was written there, or can never be read.
        OSError: if it cannot be read now.
    """
    # The file before its digest: a writer writes them in the other order.
    content = _read(path)
    try:
        digests = _read(_beside(path)).split()
    except (FileNotFoundError, DamagedError):
        digests = []
    if _digest(root, path, content).encode() not in digests:
        raise DamagedError(f"it does not match its digest {_beside(path).name}")
    return content


def has_digest(path: Path) -> bool:
    """Whether a file has a digest beside it."""
    return _beside(path).exists()


def write_digest(root: Path, path: Path, content: bytes, scratch: Path) -> None:
    """Write the digest of a file's content, before the file itself appears by rename.

    The digest of the content that is there until then stays valid, so that a process that is killed in between harms nothing.

    Args:
        root: The root of the results store.
        path: The file.
        content: Its content.
        scratch: A folder of `locks.staging`, where the digest is written before it appears by rename.

    Raises:
        OSError: if it cannot be written.
    """
    digests = [_digest(root, path, content)]
    with contextlib.suppress(OSError, DamagedError):  # then there is nothing that has to stay valid
        digests.append(_digest(root, path, read_verified(root, path)))
    target, written = _beside(path), scratch / _beside(path).name
    try:
        clear_path(target, root)
        write_atomically(written, "\n".join(dict.fromkeys(digests)) + "\n")
        written.replace(target)
    except OSError as error:
        error.filename, error.filename2 = str(target), None
        raise


def write_note(root: Path, path: Path, value: Any) -> None:
    """Write a note; where that is not possible, the log says so, and nothing else happens."""
    value = json.loads(mask(json.dumps(value)))  # before its digest
    try:
        clear_path(path, root)
        write_atomically(
            path, json.dumps({"note": value, "sha256": _digest_of_note(root, path, value)}, indent=1) + "\n"
        )
    except OSError as error:
        disk.note(path, error, optional=True)


def read_note(root: Path, path: Path) -> Any:
    """Return the value of a note; None where there is none, or not what was written."""
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
        if error.errno in _LASTING:
            raise DamagedError(str(error)) from error
        raise


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _digest(root: Path, path: Path, content: bytes) -> str:
    return hashlib.sha256(f"{path.relative_to(root).as_posix()}\n".encode() + content).hexdigest()


def _digest_of_note(root: Path, path: Path, value: Any) -> str:
    return _digest(root, path, json.dumps(value, sort_keys=True).encode())
