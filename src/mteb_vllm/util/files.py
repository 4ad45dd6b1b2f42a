"""Files that are never seen half-written, and files that are verified when they are read back."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import re
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mteb_vllm.util.masking import mask

_SEAL = re.compile(rb'\{\n  "sha256": "([0-9a-f]{64})",')

logger = logging.getLogger(__name__)

# Bytes that the usual file systems take for the name of one file or folder.
_LONGEST_NAME = 255


def name_problem(name: str) -> str | None:
    """Return why a text cannot be the name of one file or folder, or None where it can."""
    if name in ("", ".", ".."):
        return "is no name of a folder"
    if "/" in name or os.sep in name:
        return "leads to another folder"
    if not name.isprintable():
        return "holds a character that cannot be printed"
    if (length := len(os.fsencode(name))) > _LONGEST_NAME:
        return f"is too long for the name of a folder: {length} bytes, and {_LONGEST_NAME} are possible"
    return None


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file that appears whole, by rename, or not at all; secrets in a text are masked.

    Raises:
        OSError: if the folder cannot be written to.
    """
    try:
        _write_atomically(path, content)
    except OSError as error:
        # A write that fails does not say of which file, and the temporary one's name says nothing.
        error.filename, error.filename2 = str(path), None
        raise


def _write_atomically(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(mask(content).encode(errors="backslashreplace") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only their owner reads; results are for everyone whom the umask lets.
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_file(path: Path) -> bytes:
    """Return the content of a regular file.

    Raises:
        OSError: if it cannot be read, or is a folder, a FIFO, a socket or a device, which could block forever.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(f"{path} is not a regular file")
        return file.read()


def parse_json(content: str | bytes) -> Any:
    """Return what a JSON text holds; NaN and infinities are numbers.

    Raises:
        ValueError: if it is not JSON in UTF-8, or is nested too deeply.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path) -> Any:
    """Return what a file of JSON holds.

    Raises:
        OSError: as `read_file`.
        ValueError: as `parse_json`.
    """
    return parse_json(read_file(path))


def write_with_checksum(path: Path, content: bytes) -> None:
    """Write a file behind a line with the SHA-256 of its name and content, atomically.

    Raises:
        OSError: if the folder cannot be written to.
    """
    write_atomically(path, _checksum(path, content) + b"\n" + content)


def read_with_checksum(path: Path) -> bytes:
    """Return the content of a file that `write_with_checksum` has written.

    Raises:
        OSError: as `read_file`.
        ValueError: if it does not match its checksum, or was written under another name.
    """
    checksum, _, content = read_file(path).partition(b"\n")
    if checksum != _checksum(path, content):
        raise ValueError("it does not match its checksum")
    return content


def _checksum(path: Path, content: bytes) -> bytes:
    digest = hashlib.sha256(f"{path.name}\n".encode())
    digest.update(content)
    return digest.hexdigest().encode()


def dump_sealed(content: Mapping[str, object]) -> str:
    """Return JSON whose first key, `sha256`, is the checksum of the rest; values that JSON does not know become strings."""
    text = mask(json.dumps(content, indent=2, default=str)) + "\n"  # before its checksum
    return f'{{\n  "sha256": "{hashlib.sha256(text.encode()).hexdigest()}",{text[1:]}'


def check_seal(text: bytes) -> bool:
    """Return whether a text is sealed by `dump_sealed`; False for one that has no such first key.

    Raises:
        ValueError: if it does not match its checksum.
    """
    sealed = _SEAL.match(text)
    if sealed is None:
        return False
    if hashlib.sha256(b"{" + text[sealed.end() :]).hexdigest().encode() != sealed[1]:
        raise ValueError("it does not match its checksum: it was changed after it was written")
    return True


def expand_user(path: str | Path) -> Path:
    """Return the path with `~` and `~name` expanded, unchanged where there is no such user."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser raises RuntimeError for an unknown user


def clear_path(path: Path, root: Path) -> None:
    """Make the folder of a file below `root`, and quarantine what is in the way.

    In the way are a folder in the file's place, and a file in that of a folder. Links stay: where they point may be there
    again later.

    Raises:
        OSError: if that cannot be done.
    """
    for one in (path, *(parent for parent in path.parents if root in parent.parents)):
        in_the_way = one.is_dir() if one == path else one.is_file()
        if in_the_way and not one.is_symlink():
            logger.warning("%s is in the way; quarantined as %s", one, quarantine(one).name)
    path.parent.mkdir(parents=True, exist_ok=True)


def quarantine(path: Path) -> Path:
    """Rename a damaged file or folder to the first free name of `<name>.broken`, `<name>.broken-2`, …, and return that.

    Raises:
        FileNotFoundError: if it is gone.
        OSError: if it cannot be renamed.
    """
    names = itertools.chain([".broken"], (f".broken-{at}" for at in itertools.count(2)))
    aside = next(free for name in names if not os.path.lexists(free := path.with_name(path.name + name)))
    return path.rename(aside)


def cache_dir() -> Path:
    """`$MTEB_VLLM_CACHE`, else `$XDG_CACHE_HOME/mteb-vllm`, else `~/.cache/mteb-vllm`."""
    shared = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "mteb-vllm")
    return expand_user(os.environ.get("MTEB_VLLM_CACHE") or shared)
