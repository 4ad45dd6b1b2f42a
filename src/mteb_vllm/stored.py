"""What a results store holds, read without mteb: what a dry run says of a point before anything is loaded.

Beside the results lie the settings that their hashes stand for, so that a result under other settings can say why it is not
this run's:

    <root>/settings/<hash>.json

and, for each way in which a task's texts are read, where its result is: a prompt that does not concern a task makes it no
other result.

    <root>/settings/same/<hash>.json

and what computing it took, so that a report over a resumed sweep still knows its speeds.

    <root>/settings/measured/<hash>/<Task>.json
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mteb_vllm.catalogue import TaskInfo
from mteb_vllm.files import name_problem, write_atomically
from mteb_vllm.fingerprint import fingerprint
from mteb_vllm.models import folder_digest

# What of a run's settings no configuration says: where only this differs, an earlier result is the same one, gone stale.
_SURROUNDINGS = re.compile(r"(^|\.)(versions\..*|device|method|weights|shell\..*|revision)$")


def keep_settings(root: Path, settings: Mapping[str, Any]) -> None:
    """Writes down what a hash of settings stands for."""
    path = root / "settings" / f"{fingerprint(settings)}.json"
    if not path.exists():
        write_atomically(path, json.dumps(settings, indent=1, sort_keys=True) + "\n")


def result_path(root: Path, settings: Mapping[str, Any], task: str, fingerprint: str) -> Path:
    """Return where the result of a task is, in mteb's layout.

    Args:
        root: The folder that `results` is in.
        settings: The settings; the model's name and revision count.
        task: The task.
        fingerprint: The settings' hash.

    Raises:
        ValueError: if a name would lead to another place.
    """
    folder, revision = model_folder(str(settings["engine"]["model"])), str(settings["engine"]["revision"])
    for name in (folder, revision, f"{task}.json"):
        if (problem := name_problem(name)) is not None:
            raise ValueError(f"{name!r} {problem}")
    return root / "results" / folder / revision / "experiments" / f"settings_{fingerprint}" / f"{task}.json"


def model_folder(name: str) -> str:
    """Return the name of the folder that a model's results are in, as mteb makes it."""
    return (name if "/" in name else f"local/{name}").replace("/", "__").replace(" ", "_")


def predictions_path(root: Path, settings: Mapping[str, Any], task: str, fingerprint: str) -> Path:
    """Where the predictions of a first stage are; for the arguments see `result_path`."""
    result = result_path(root, settings, task, fingerprint)
    return root / "predictions" / result.parent.relative_to(root / "results") / f"{task}_predictions.json"


def keep_same(root: Path, read_as: str, result: Path) -> None:
    """Notes where the result is of all runs that read a task in the same way."""
    write_atomically(_same(root, read_as), json.dumps({"result": str(result.relative_to(root))}) + "\n")


def same_result(root: Path, read_as: str) -> Path | None:
    """Where the result may be of a run that has read a task in the same way; None where there was none."""
    try:
        found: dict[str, str] = json.loads(_same(root, read_as).read_text(encoding="utf-8"))
        return root / found["result"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _same(root: Path, read_as: str) -> Path:
    return root / "settings" / "same" / f"{read_as}.json"


def keep_measured(root: Path, result: Path, figures: Mapping[str, Any]) -> None:
    """Notes what computing a result took.

    Args:
        root: The results' root.
        result: Where the result is.
        figures: `TaskOutcome.figures`, and what the start of the engine took.
    """
    with contextlib.suppress(OSError):  # the result itself is kept
        write_atomically(_measured(root, result), json.dumps(figures) + "\n")


def measured(root: Path, result: Path) -> dict[str, Any] | None:
    """What computing a result took; None where nobody noted it."""
    try:
        found: dict[str, Any] = json.loads(_measured(root, result).read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else None
    except (OSError, ValueError):
        return None


def copy_measured(root: Path, source: Path, target: Path) -> None:
    """Notes for one result what is noted for another, whose copy it is."""
    if (figures := measured(root, source)) is not None:
        keep_measured(root, target, figures)


def _measured(root: Path, result: Path) -> Path:
    return root / "settings" / "measured" / result.parent.name.removeprefix("settings_") / result.name


Found = Literal["whole", "part", "other data", "unreadable", "nothing"]


def look(path: Path, task: TaskInfo, splits: Sequence[str] | None = None) -> Found:
    """What is there of a task's result; "whole" is what `ResultsStore.known` takes for one.

    Args:
        path: Where it is.
        task: The task, with the subsets that count.
        splits: The splits that count; None: the task's own.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["dataset_revision"] != _revision(task):
            return "other data"
        scores = {
            (split, entry["hf_subset"]): entry["main_score"]
            for split, entries in found["scores"].items()
            for entry in entries
        }
    except FileNotFoundError:
        return "nothing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "unreadable"
    wanted = [split for split in task.splits if not splits or split in splits]
    values = [scores.get((split, subset)) for split in wanted for subset in task.subsets]
    return "whole" if all(value is not None and math.isfinite(value) for value in values) else "part"


@dataclass(frozen=True)
class Earlier:
    """Settings under which something was computed before."""

    fingerprint: str
    settings: dict[str, Any]


class Stale:
    """Finds results that are this run's but for what no configuration says: versions, the machine, weights, data.

    Args:
        root: The results' root.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def why(self, settings: Mapping[str, Any], task: TaskInfo) -> str | None:
        """Why the newest such result of a task is stale, as "vllm 0.26.0 -> 0.32.0"; None where there is none."""
        found = [
            (path.stat().st_mtime, earlier.settings)
            for earlier in self._all.get(_chosen(settings), [])
            if (path := result_path(self._root, earlier.settings, task.name, earlier.fingerprint)).exists()
        ]
        if not found:
            return None
        _, before = max(found, key=lambda one: one[0])
        return ", ".join(_differences(before, settings)[:3])

    @functools.cached_property
    def _all(self) -> dict[str, list[Earlier]]:
        found: dict[str, list[Earlier]] = {}
        for path in (self._root / "settings").glob("*.json"):
            try:
                settings = json.loads(path.read_text(encoding="utf-8"))
                found.setdefault(_chosen(settings), []).append(Earlier(path.stem, settings))
            except (OSError, ValueError, AttributeError):
                continue  # it only explains
        return found


def _chosen(settings: Mapping[str, Any]) -> str:
    """The hash of what a configuration says."""
    return fingerprint({key: value for key, value in _leaves(settings) if not _SURROUNDINGS.search(key)})


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    old, new = dict(_leaves(before)), dict(_leaves(now))
    return [
        f"{key.rpartition('.')[2]} {old.get(key)} -> {new.get(key)}"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    ]


def _leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _revision(task: TaskInfo) -> str:
    # As tasks.load has it: a folder of the working directory stands in for the Hub's data.
    folder = Path(task.dataset_path)
    return f"local-{folder_digest(folder)[:12]}" if folder.is_dir() else task.dataset_revision
