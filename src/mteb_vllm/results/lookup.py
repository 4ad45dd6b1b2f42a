"""Look-ups in a results store without importing mteb, as a dry run needs them.

Results are verified before use (see `digests`). The store also holds the settings behind each hash, to explain why a result
under other settings does not apply:

    <root>/settings/<hash>.json

for each input fingerprint of a task, the path of its result, because prompts that do not concern the task do not change it:

    <root>/settings/same/<hash>.json

and the cost of computing each result, so that a report on a resumed sweep still has its speeds:

    <root>/settings/measured/<hash>/<Task>.json
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from mteb_vllm.catalogue import TaskInfo, mteb_catalogue
from mteb_vllm.results.counters import Measured
from mteb_vllm.results.digests import DamagedError, has_digest, read_note, read_verified, write_note
from mteb_vllm.util import disk
from mteb_vllm.util.data_revisions import aggregate_revision, data_revision
from mteb_vllm.util.files import clear_path, name_problem, parse_json, read_json, write_atomically
from mteb_vllm.util.fingerprint import fingerprint

# Settings that come from the environment rather than from the configuration: a result that differs only in these is stale.
_ENVIRONMENT = re.compile(r"(^|\.)(versions\..*|device|method|weights|shell\..*|revision)$")
# The model name under which the results of a perfect reranker are stored.
CEILING = "mteb-vllm/ceiling"


def save_settings(root: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings behind their hash; failure to do so is only logged."""
    path = root / "settings" / f"{fingerprint(settings)}.json"
    if _settings(path) is None:
        try:
            clear_path(path, root)
            write_atomically(path, json.dumps(settings, indent=1, sort_keys=True) + "\n")
        except OSError as error:
            disk.note(path, error, optional=True)


def _settings(path: Path) -> dict[str, Any] | None:
    """Return the settings in a file; None if they do not match the hash in its name."""
    try:
        found: dict[str, Any] = read_json(path)
        return found if fingerprint(found) == path.stem else None
    except (OSError, ValueError, RecursionError):
        return None


def result_path(root: Path, settings: Mapping[str, Any], task: str, fingerprint: str) -> Path:
    """Return the path of a task's result, in mteb's layout.

    Args:
        root: The folder that contains `results`.
        settings: The settings, of which the model's name and revision are used.
        task: The task.
        fingerprint: The settings' hash.

    Raises:
        ValueError: if a name is not usable as the name of one file or folder.
    """
    folder, revision = model_folder(str(settings["engine"]["model"])), str(settings["engine"]["revision"])
    for name in (folder, revision, f"{task}.json"):
        if (problem := name_problem(name)) is not None:
            raise ValueError(f"{name!r} {problem}")
    return root / "results" / folder / revision / "experiments" / f"settings_{fingerprint}" / f"{task}.json"


def model_folder(name: str) -> str:
    """Return the name of a model's results folder, as mteb derives it."""
    return (name if "/" in name else f"local/{name}").replace("/", "__").replace(" ", "_")


def predictions_path(root: Path, settings: Mapping[str, Any], task: str, fingerprint: str) -> Path:
    """Return the path of a first stage's predictions; see `result_path` for the arguments."""
    result = result_path(root, settings, task, fingerprint)
    return root / "predictions" / result.parent.relative_to(root / "results") / f"{task}_predictions.json"


def is_intact(root: Path, path: Path) -> bool:
    """Whether a file of predictions matches its digest; an unchanged file is read only once per process."""
    try:
        status = path.stat()
    except OSError:
        return False
    return _intact(root, path, (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))


def predictions_changed(path: Path) -> bool:
    """Whether a file of predictions in a results store does not match its digest; False if it has none."""
    places = path.absolute().parents
    inside = len(places) > 5 and places[4].name == "predictions"
    return inside and has_digest(path) and not is_intact(places[5], path.absolute())


@functools.lru_cache(maxsize=1024)
def _intact(root: Path, path: Path, stamp: tuple[int, ...]) -> bool:
    try:
        read_verified(root, path)
        return True
    except (OSError, DamagedError):
        return False


def save_shared_result(root: Path, input_fingerprint: str, result: Path) -> None:
    """Record the path of the result for an input fingerprint."""
    write_note(root, _same(root, input_fingerprint), str(result.relative_to(root)))


def shared_result(root: Path, input_fingerprint: str) -> Path | None:
    """Return the path at which a result for an input fingerprint was stored; None if there was none."""
    found = read_note(root, _same(root, input_fingerprint))
    return None if found is None else root / found


def _same(root: Path, input_fingerprint: str) -> Path:
    return root / "settings" / "same" / f"{input_fingerprint}.json"


def save_measured(root: Path, result: Path, measured: Measured) -> None:
    """Record the work of computing a result.

    Args:
        root: The results' root.
        result: The path of the result.
        measured: The cost, and the counts of its texts.
    """
    write_note(root, _measured(root, result), asdict(measured))


def read_measured(root: Path, result: Path) -> Measured | None:
    """Return the work of computing a result; None if it was not recorded, or by an incompatible version."""
    try:
        return Measured(**read_note(root, _measured(root, result)))
    except TypeError:
        return None


def copy_measured(root: Path, source: Path, target: Path) -> None:
    """Copy the recorded work of one result to a copy of that result."""
    if (measured := read_measured(root, source)) is not None:
        save_measured(root, target, measured)


def _measured(root: Path, result: Path) -> Path:
    return root / "settings" / "measured" / result.parent.name.removeprefix("settings_") / result.name


ResultStatus = Literal["complete", "partial", "other data", "unreadable", "missing"]


def result_status(root: Path, path: Path, task: TaskInfo, splits: Sequence[str] | None = None) -> ResultStatus:
    """Return the status of a task's result; "complete" agrees with `ResultsStore.cached_result`.

    Args:
        root: The results' root.
        path: The path of the result.
        task: The task, with the requested subsets.
        splits: The requested splits; None for all of the task's.
    """
    try:
        found = parse_json(read_verified(root, path))
    except FileNotFoundError:
        return "missing"
    except (OSError, DamagedError):
        return "unreadable"
    if found["dataset_revision"] != _revision(task):
        return "other data"
    wanted = [split for split in task.splits if not splits or split in splits]
    return (
        "complete"
        if is_complete(found["scores"], wanted, task.subsets, aggregate=bool(task.aggregate_of))
        else "partial"
    )


def is_complete(
    scores: Mapping[str, Iterable[Mapping[str, Any]]],
    splits: Iterable[str],
    subsets: Collection[str],
    *,
    aggregate: bool,
) -> bool:
    """Whether a result has a finite main score for each split and subset.

    Args:
        scores: Split to the scores of its subsets, as in mteb's results.
        splits: The requested splits.
        subsets: The requested subsets.
        aggregate: Whether the task is an aggregate, which has a single score regardless of its parts' subsets.
    """
    found = {(split, entry["hf_subset"]): entry["main_score"] for split, entries in scores.items() for entry in entries}
    wanted = [(split, subset) for split in splits for subset in (("default",) if aggregate else subsets)]
    return all(isinstance(found.get(key), (int, float)) and math.isfinite(found[key]) for key in wanted)


@dataclass(frozen=True)
class EarlierSettings:
    """Settings of an earlier run."""

    fingerprint: str
    settings: dict[str, Any]


class StaleResults:
    """Results of the same configuration that are outdated: the versions, machine, weights or data have changed since.

    Args:
        root: The results' root.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def reason(self, settings: Mapping[str, Any], task: TaskInfo) -> str | None:
        """Return why the newest such result of a task is stale, e.g. "vllm 0.26.0 -> 0.32.0"; None if there is none."""
        found = [
            (path.stat().st_mtime, earlier.settings)
            for earlier in self._all.get(_configuration_hash(settings), [])
            if (path := result_path(self._root, earlier.settings, task.name, earlier.fingerprint)).exists()
        ]
        if not found:
            return None
        _, before = max(found, key=lambda one: one[0])
        return ", ".join(_differences(before, settings)[:3])

    @functools.cached_property
    def _all(self) -> dict[str, list[EarlierSettings]]:
        found: dict[str, list[EarlierSettings]] = {}
        for path in (self._root / "settings").glob("*.json"):
            if (settings := _settings(path)) is not None:  # damaged ones are skipped: they only serve as explanation
                found.setdefault(_configuration_hash(settings), []).append(EarlierSettings(path.stem, settings))
        return found


def _configuration_hash(settings: Mapping[str, Any]) -> str:
    """Return the hash of the settings that come from the configuration."""
    return fingerprint({key: value for key, value in _leaves(settings) if not _ENVIRONMENT.search(key)})


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
    # As in `tasks.loading`: a folder in the working directory takes the place of the Hub's data.
    if not task.aggregate_of:
        return data_revision(task.dataset_path, task.dataset_revision)
    parts = (mteb_catalogue().tasks[name] for name in task.aggregate_of)
    revisions = {part.name: data_revision(part.dataset_path, part.dataset_revision) for part in parts}
    return aggregate_revision(revisions, task.dataset_revision)
