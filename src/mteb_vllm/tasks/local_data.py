"""Data sets in a folder `org/name` of the working directory, which `datasets` takes before it asks the Hub.

`datasets` caches what it reads from such a folder by the patterns in its README, not by the content of its files: an edited
file, and another working directory, are given what was cached for the first one. So such a folder is read anew, into a
cache of its own, each time that a task loads.
"""

from __future__ import annotations

import contextlib
import hashlib
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from mteb_vllm.engines.timing import replaced
from mteb_vllm.models.files import folder_digest

_LOCAL = "local-"


def local_folder(path: str) -> Path | None:
    """Return the folder of the working directory that stands in for a data set of the Hub, None if there is none.

    Args:
        path: The data set's name on the Hub, `org/name`.
    """
    folder = Path(path)
    return folder if folder.is_dir() else None


def data_revision(path: str, pinned: str) -> str:
    """Return the revision of a data set as it is read here: `local-<digest>` of a folder, else the one that mteb pins.

    Args:
        path: The data set's name on the Hub.
        pinned: The commit that mteb pins.
    """
    folder = local_folder(path)
    return pinned if folder is None else f"{_LOCAL}{folder_digest(folder)[:12]}"


def is_local(revision: str) -> bool:
    """Return whether a revision is that of a folder of the working directory."""
    return revision.startswith(_LOCAL)


def aggregate_revision(parts: Mapping[str, str], own: str) -> str:
    """Return the revision of an aggregate's data: its own, unless a part's data lie in a folder of the working directory.

    Args:
        parts: Task name to the revision of its data.
        own: The revision that mteb gives the aggregate.
    """
    if not any(map(is_local, parts.values())):
        return own
    names = "\n".join(f"{name} {revision}" for name, revision in sorted(parts.items()))
    return f"{_LOCAL}{hashlib.sha256(names.encode()).hexdigest()[:12]}"


@contextlib.contextmanager
def cached_in(folder: Path) -> Iterator[None]:
    """Let `datasets` cache what it loads in a folder that nothing else is in, instead of the user's cache."""
    import datasets

    downloads = folder / datasets.config.DOWNLOADED_DATASETS_DIR
    with replaced(
        datasets.config,
        HF_DATASETS_CACHE=folder,
        DOWNLOADED_DATASETS_PATH=str(downloads),
        EXTRACTED_DATASETS_PATH=str(downloads / datasets.config.EXTRACTED_DATASETS_DIR),
    ):
        yield


def download_command(path: str, revision: str) -> str:
    """Return the command that fetches a data set of the Hub into the folder where it is looked for."""
    return shlex.join(
        ["hf", "download", path, "--repo-type", "dataset", "--revision", revision, "--local-dir", path]
    )  # fmt: skip
