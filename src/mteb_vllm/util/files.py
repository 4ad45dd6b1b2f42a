"""Atomic file writes, and files whose checksums are verified on reading."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mteb_vllm.util.masking import mask

_SEAL = re.compile(rb'\{\n  "sha256": "([0-9a-f]{64})",')

logger = logging.getLogger(__name__)

# Maximum number of bytes in the name of a file or folder on common file systems.
_LONGEST_NAME = 255


def name_problem(name: str) -> str | None:
    """Return why a text cannot be the name of a file or folder, or None if it can."""
    if name in ("", ".", ".."):
        return "is not a valid folder name"
    if "/" in name or os.sep in name:
        return "contains a path separator"
    if not name.isprintable():
        return "contains an unprintable character"
    if (length := len(os.fsencode(name))) > _LONGEST_NAME:
        return f"is too long for a folder name: {length} bytes (the limit is {_LONGEST_NAME})"
    return None


def _umask() -> int:
    found = os.umask(0)
    os.umask(found)
    return found


# Read once, while there is one thread: reading it sets it for a moment.
_UMASK = _umask()


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file atomically, by rename; in text, secrets are masked.

    Raises:
        OSError: if the folder is not writable.
    """
    try:
        _write_atomically(path, content)
    except OSError as error:
        # A failed write does not name the file, or names the temporary one.
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
        # mkstemp makes files readable only by their owner; results get the permissions that the umask allows.
        Path(temporary).chmod(0o666 & ~_UMASK)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_file(path: Path) -> bytes:
    """Return the content of a regular file.

    Raises:
        OSError: if it cannot be read, or is a folder, a FIFO, a socket or a device, which might block forever.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(f"{path} is not a regular file")
        return file.read()


def parse_json(content: str | bytes) -> Any:
    """Return the value of a JSON text, in which NaN and infinities are allowed.

    Raises:
        ValueError: if it is not JSON in UTF-8, or is nested too deeply.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path) -> Any:
    """Return the value in a JSON file.

    Raises:
        OSError: as `read_file`.
        ValueError: as `parse_json`.
    """
    return parse_json(read_file(path))


def write_with_checksum(path: Path, content: bytes) -> None:
    """Write a file atomically, prefixed with a line that holds the SHA-256 of its name and content.

    Raises:
        OSError: if the folder is not writable.
    """
    write_atomically(path, _checksum(path, content) + b"\n" + content)


def read_with_checksum(path: Path) -> bytes:
    """Return the content of a file written by `write_with_checksum`.

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
    """Return JSON whose first key, `sha256`, is the checksum of the rest; values of unknown types become strings."""
    text = mask(json.dumps(content, indent=2, default=str)) + "\n"  # mask before computing the checksum
    return f'{{\n  "sha256": "{hashlib.sha256(text.encode()).hexdigest()}",{text[1:]}'


def check_seal(text: bytes) -> bool:
    """Whether a text was sealed by `dump_sealed`; False if it has no such first key.

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
    """Return the path with `~` and `~name` expanded, or unchanged if there is no such user."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser raises RuntimeError for an unknown user


def shown_path(path: str | Path) -> Path:
    """Return a path as messages show it: relative to the working directory if it is below it."""
    path = Path(path)
    with contextlib.suppress(OSError, ValueError):  # no working directory any more; a path outside of it
        return path.relative_to(Path.cwd())
    return path


def walk(
    folder: Path, onerror: Callable[[OSError], object] | None = None
) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Yield the folders at and below a folder as `os.walk` does, also those that links lead to.

    A folder comes once: a link to one that is found anyway, or to one above, is not followed.

    Args:
        folder: The folder.
        onerror: Gets the error of each folder that cannot be listed.
    """
    tops = [os.path.realpath(folder)]
    starts = [folder]
    while starts:
        for root, folders, files in os.walk(starts.pop(0), onerror=onerror):
            yield Path(root), folders, files
            for name in sorted(folders):  # those that the caller has kept
                link = Path(root, name)
                if link.is_symlink() and not leads_back(link, tops):
                    tops.append(os.path.realpath(link))
                    starts.append(link)


def leads_back(link: Path, tops: Iterable[str | Path]) -> bool:
    """Whether a link leads to a folder in or above one of the given real paths."""
    target = os.path.realpath(link)
    return any(os.path.commonpath((target, top)) in (target, str(top)) for top in tops)


def clear_path(path: Path, root: Path) -> None:
    """Create the folder of a file below `root`, and quarantine anything in the way.

    A folder in place of the file, or a file in place of one of its folders, is in the way. Links are kept, because their
    target may be only temporarily unavailable.

    Raises:
        OSError: if the folder cannot be created.
    """
    for one in (path, *(parent for parent in path.parents if root in parent.parents)):
        in_the_way = one.is_dir() if one == path else one.is_file()
        if in_the_way and not one.is_symlink():
            logger.warning("%s is in the way; quarantined as %s", one, quarantine(one).name)
    path.parent.mkdir(parents=True, exist_ok=True)


def quarantine(path: Path) -> Path:
    """Rename a damaged file or folder to the first free name of `<name>.broken`, `<name>.broken-2`, …, and return it.

    Raises:
        FileNotFoundError: if it no longer exists.
        OSError: if it cannot be renamed.
    """
    names = itertools.chain([".broken"], (f".broken-{at}" for at in itertools.count(2)))
    aside = next(free for name in names if not os.path.lexists(free := path.with_name(path.name + name)))
    return path.rename(aside)


def cache_dir() -> Path:
    """Return `$MTEB_VLLM_CACHE`, else `$XDG_CACHE_HOME/mteb-vllm`, else `~/.cache/mteb-vllm`."""
    shared = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "mteb-vllm")
    return expand_user(os.environ.get("MTEB_VLLM_CACHE") or shared)
