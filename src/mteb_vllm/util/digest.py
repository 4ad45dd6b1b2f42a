"""The digest of files, as used for local models and data sets."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from mteb_vllm.util.files import cache_dir, read_with_checksum, write_with_checksum

# A file that changed this recently may change again within the same tick of its file system's clock.
_SETTLED_NS = 2_000_000_000


def folder_digest(folder: Path, counts: Callable[[str], bool] = lambda name: True) -> str:
    """Return the SHA-256 over the names and contents of a folder's files.

    Digests of files are cached by path, size, inode, mtime and ctime (which programs cannot set), so that large weights are
    read only once.

    Args:
        folder: The folder. Links in it are followed; hidden files and folders are ignored.
        counts: Whether to include a file of this name.

    Raises:
        OSError: if a file cannot be read, e.g. because it is a broken link; it names the file.
    """
    return _digest(folder.resolve(), sorted(_files(folder.resolve(), counts)))


def file_digest(file: Path) -> str:
    """Return the SHA-256 over the name and the content of a file, which is cached as in `folder_digest`.

    Raises:
        OSError: if it cannot be read.
    """
    return _digest(file.parent.resolve(), [file.parent.resolve() / file.name])


def _digest(folder: Path, files: Iterable[Path]) -> str:
    memory_file = cache_dir() / "digests.json"
    try:
        memory = dict(json.loads(read_with_checksum(memory_file)))
    except (OSError, ValueError, TypeError):  # missing or damaged: compute all digests again
        memory = {}
    whole, known = hashlib.sha256(), dict(memory)
    for file in files:
        status = file.stat()
        key = f"{file}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}:{status.st_ino}"
        digest = known.get(key)
        if not isinstance(digest, str):
            with file.open("rb") as content:
                # hashlib.file_digest needs Python 3.11.
                one = hashlib.sha256()
                while block := content.read(1 << 20):
                    one.update(block)
            digest = one.hexdigest()
            if time.time_ns() - status.st_ctime_ns > _SETTLED_NS:
                known[key] = digest
        whole.update(f"{file.relative_to(folder).as_posix()} {digest}\n".encode())
    if known != memory:
        with contextlib.suppress(OSError):  # with a read-only home, digests are computed each time
            write_with_checksum(memory_file, json.dumps(known).encode())
    return whole.hexdigest()


def _files(folder: Path, counts: Callable[[str], bool]) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise error

    for root, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        here = Path(root)
        if any(here.samefile(above) for above in here.parents if above.is_relative_to(folder)):
            folders[:] = []  # a link to a folder above itself
            continue
        # Checkpoints and logs of training do not affect the results of the model next to them.
        folders[:] = [name for name in folders if not name.startswith((".", "checkpoint-")) and name != "runs"]
        yield from (here / name for name in names if not name.startswith(".") and counts(name))
