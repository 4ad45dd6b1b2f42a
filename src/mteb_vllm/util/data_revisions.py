"""Revisions of data sets, including those in a folder `org/name` of the working directory, which `datasets` prefers.

`datasets` caches such a folder by the patterns in its README and not by content, so it would return stale data for an edited
file or another working directory. Such a folder is therefore read into a fresh cache each time a task is loaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from mteb_vllm.util.digest import folder_digest

_LOCAL = "local-"


def local_folder(path: str) -> Path | None:
    """Return the folder in the working directory that takes the place of a data set of the Hub; None if there is none.

    Args:
        path: The data set's name on the Hub, `org/name`.
    """
    folder = Path(path)
    return folder if folder.is_dir() else None


def data_revision(path: str, pinned: str) -> str:
    """Return the revision of a data set: `local-<digest>` for a folder in the working directory, else the pinned commit.

    Args:
        path: The data set's name on the Hub.
        pinned: The commit that mteb pins.
    """
    folder = local_folder(path)
    return pinned if folder is None else f"{_LOCAL}{folder_digest(folder)[:12]}"


def is_local(revision: str) -> bool:
    """Whether a revision is that of a folder in the working directory."""
    return revision.startswith(_LOCAL)


def aggregate_revision(parts: Mapping[str, str], own: str) -> str:
    """Return the revision of an aggregate's data: its own, unless a part's data is in a folder of the working directory.

    Args:
        parts: Task name to the revision of its data.
        own: The revision that mteb gives the aggregate.
    """
    if not any(map(is_local, parts.values())):
        return own
    names = "\n".join(f"{name} {revision}" for name, revision in sorted(parts.items()))
    return f"{_LOCAL}{hashlib.sha256(names.encode()).hexdigest()[:12]}"
