"""Data sets in a folder `org/name` of the working directory, which `datasets` takes before it asks the Hub.

`datasets` caches what it reads from such a folder by the patterns in its README, not by the content of its files: an edited
file, and another working directory, are given what was cached for the first one. So such a folder is read anew, into a
cache of its own, each time that a task loads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from mteb_vllm.util.digest import folder_digest

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
