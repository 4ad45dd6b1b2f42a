"""What a results store holds, read without mteb: what a dry run says of a point before anything is loaded.

A result is verified before it is used (`digests`). Beside the results lie the settings that their hashes stand for, so that a
result under other settings can say why it is not this run's:

    <root>/settings/<hash>.json

and, for each way in which a task's texts are read, where its result is: a prompt that does not concern a task makes it no
other result.

    <root>/settings/same/<hash>.json

and what computing it took, so that a report over a resumed sweep still knows its speeds.

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

# What of a run's settings no configuration says: where only this differs, an earlier result is the same one, gone stale.
_SURROUNDINGS = re.compile(r"(^|\.)(versions\..*|device|method|weights|shell\..*|revision)$")
# The name under which the results of a perfect reranker are kept.
CEILING = "mteb-vllm/ceiling"


def save_settings(root: Path, settings: Mapping[str, Any]) -> None:
    """Write down what a hash of settings stands for; where that is not possible, only the log says so."""
    path = root / "settings" / f"{fingerprint(settings)}.json"
    if _settings(path) is None:
        try:
            clear_path(path, root)
            write_atomically(path, json.dumps(settings, indent=1, sort_keys=True) + "\n")
        except OSError as error:
            disk.note(path, error, optional=True)


def _settings(path: Path) -> dict[str, Any] | None:
    """Return the settings in a file; None where they are not those that its name is the hash of."""
    try:
        found: dict[str, Any] = read_json(path)
        return found if fingerprint(found) == path.stem else None
    except (OSError, ValueError, RecursionError):
        return None


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


def is_intact(root: Path, path: Path) -> bool:
    """Whether a file of predictions is what was written there; it is not read again while it stays the same."""
    try:
        status = path.stat()
    except OSError:
        return False
    return _intact(root, path, (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))


def predictions_changed(path: Path) -> bool:
    """Whether a file of predictions in a results store is not what was written there; False where it has no digest."""
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
    """Notes where the result is of all runs that read a task in the same way."""
    write_note(root, _same(root, input_fingerprint), str(result.relative_to(root)))


def shared_result(root: Path, input_fingerprint: str) -> Path | None:
    """Where the result may be of a run that has read a task in the same way; None where there was none."""
    found = read_note(root, _same(root, input_fingerprint))
    return None if found is None else root / found


def _same(root: Path, input_fingerprint: str) -> Path:
    return root / "settings" / "same" / f"{input_fingerprint}.json"


def save_measured(root: Path, result: Path, measured: Measured) -> None:
    """Note what computing a result took.

    Args:
        root: The results' root.
        result: Where the result is.
        measured: What it took.
    """
    write_note(root, _measured(root, result), asdict(measured))


def read_measured(root: Path, result: Path) -> Measured | None:
    """Return what computing a result took; None where nobody noted it, or another version of this program did."""
    try:
        return Measured(**read_note(root, _measured(root, result)))
    except TypeError:
        return None


def copy_measured(root: Path, source: Path, target: Path) -> None:
    """Notes for one result what is noted for another, whose copy it is."""
    if (measured := read_measured(root, source)) is not None:
        save_measured(root, target, measured)


def _measured(root: Path, result: Path) -> Path:
    return root / "settings" / "measured" / result.parent.name.removeprefix("settings_") / result.name


ResultStatus = Literal["complete", "partial", "other data", "unreadable", "missing"]


def result_status(root: Path, path: Path, task: TaskInfo, splits: Sequence[str] | None = None) -> ResultStatus:
    """What is there of a task's result; "complete" is what `ResultsStore.cached_result` takes for one.

    Args:
        root: The results' root.
        path: Where it is.
        task: The task, with the subsets that count.
        splits: The splits that count; None: the task's own.
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
        "complete" if is_complete(found["scores"], wanted, task.subsets, aggregate=bool(task.aggregate_of)) else "partial"
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
        splits: The splits that count.
        subsets: The subsets that count.
        aggregate: Whether the task is an aggregate, which has one score of its own, whatever the subsets of its parts are.
    """
    found = {(split, entry["hf_subset"]): entry["main_score"] for split, entries in scores.items() for entry in entries}
    wanted = [(split, subset) for split in splits for subset in (("default",) if aggregate else subsets)]
    return all(isinstance(found.get(key), (int, float)) and math.isfinite(found[key]) for key in wanted)


@dataclass(frozen=True)
class Earlier:
    """Settings under which something was computed before."""

    fingerprint: str
    settings: dict[str, Any]


class StaleResults:
    """Finds results that are this run's but for what no configuration says: versions, the machine, weights, data.

    Args:
        root: The results' root.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def reason(self, settings: Mapping[str, Any], task: TaskInfo) -> str | None:
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
            if (settings := _settings(path)) is not None:  # it only explains
                found.setdefault(_chosen(settings), []).append(Earlier(path.stem, settings))
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
    if not task.aggregate_of:
        return data_revision(task.dataset_path, task.dataset_revision)
    parts = (mteb_catalogue().tasks[name] for name in task.aggregate_of)
    revisions = {part.name: data_revision(part.dataset_path, part.dataset_revision) for part in parts}
    return aggregate_revision(revisions, task.dataset_revision)
