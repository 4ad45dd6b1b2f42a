"""Reads folders of results in mteb's layout, written by this program or others, without mteb."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mteb_vllm.catalogue import TaskInfo, mteb_catalogue
from mteb_vllm.report.points import Point, TaskScore
from mteb_vllm.report.run_records import describe_error, short_text
from mteb_vllm.results.digests import DamagedError, has_digest, read_verified
from mteb_vllm.results.failures import failure_from_damage
from mteb_vllm.results.lookup import CEILING, model_folder
from mteb_vllm.util.files import parse_json, read_file

_META = "model_meta.json"
_OF_RESULTS = {"task_name", "scores", "dataset_revision", "mteb_version", "evaluation_time", "mteb_dataset_name"}


def read_results(folder: Path) -> Iterator[Point]:
    """Yield a point, without a name, for each folder of results at or below a folder."""
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "predictions")
        # A folder with the name of a result file is reported as an unreadable result.
        files = [Path(root, name) for name in sorted((*names, *folders)) if name.endswith(".json") and name != _META]
        point = _point(Path(root), files) if files else None
        if point is not None:
            yield point


def _point(folder: Path, files: Sequence[Path]) -> Point | None:
    tasks: list[TaskScore] = []
    damaged: dict[Path, str] = {}
    others: dict[Path, str] = {}
    versions, seconds, incomplete = set(), [], []
    for file in files:
        content = b""
        try:
            content = read_file(file)
            result = _result(file, content)
            if result is None:
                continue
            task, complete = _task(result)
            seconds.append(None if result.get("evaluation_time") is None else _number(result["evaluation_time"]))
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            # The name, the folder or the remaining content tells whether an unreadable file was meant to be a result.
            meant = file.stem in mteb_catalogue().tasks or b'"task_name"' in content or _in_layout(folder)
            (damaged if meant else others)[file] = f"{file} is not a readable result ({describe_error(error)})"
            continue
        tasks.append(task)
        versions.add(str(result.get("mteb_version")))
        incomplete += [] if complete else [task.name]
    if not tasks and not damaged:
        return None
    facts, problem = _facts(folder)
    if facts["model"] == CEILING:
        return None  # the ceilings that reranking runs store: not a model's results
    failures = [failure_from_damage(why, file.stem) for file, why in sorted((damaged | others).items())]
    tasks += [TaskScore(failure.task or "", failed=True) for failure in failures]
    facts |= {"versions.mteb": short_text(", ".join(sorted(versions))), "incomplete": ", ".join(incomplete)}
    known = [one for one in seconds if one is not None]
    return Point(
        name="",
        folder=folder,
        source="results",
        facts={key: text for key, text in facts.items() if text},
        tasks=sorted(tasks, key=lambda task: task.name),
        seconds=sum(known) if known and len(known) == len(seconds) else None,
        failures=[*failures, *([failure_from_damage(problem)] if problem else [])],
    )


def _in_layout(folder: Path) -> bool:
    """Return whether a folder lies where mteb's layout has the results of a model."""
    return "__" in folder.parent.name or folder.parent.name == "experiments"


def _result(file: Path, content: bytes) -> dict[str, Any] | None:
    """Return the result in a file; None where the file holds something else.

    Raises:
        ValueError: if it is meant to be a result and is invalid, or was modified.
    """
    place = file.absolute()
    # Results in this program's store have a digest; others' have none.
    if len(place.parents) > 5 and place.parents[4].name == "results" and has_digest(place):
        try:
            content = read_verified(place.parents[5], place)
        except DamagedError as error:
            raise ValueError(str(error)) from error
    result = parse_json(content)
    if not isinstance(result, dict) or not result.keys() & _OF_RESULTS:
        if file.stem in mteb_catalogue().tasks:
            raise ValueError("it contains no scores")
        return None
    if "mteb_dataset_name" in result:
        raise ValueError("it is in the format used before mteb 1.11: load it with a current mteb, and save it again")
    if result["task_name"] != file.stem:
        raise ValueError(f"it contains the scores of {result['task_name']}")
    return result


def _facts(folder: Path) -> tuple[dict[str, str], str]:
    """Return the facts about a folder's results, and the problem with its `model_meta.json`, "" if there is none."""
    experiment = folder.name if folder.parent.name == "experiments" else ""
    of_model = folder.parent.parent if experiment else folder
    by_folders = "__" in of_model.parent.name
    meta: dict[str, Any] = {}
    problem = ""
    if os.path.lexists(file := folder / _META) or os.path.lexists(file := of_model / _META):
        try:
            found = parse_json(read_file(file))
            if not all(isinstance(found[key], str | None) for key in found.keys() & {"name", "revision"}):
                raise ValueError("the name and the revision must be strings")
            if by_folders and found.get("name") and model_folder(found["name"]) != of_model.parent.name:
                raise ValueError(f"it belongs to {found['name']}")
            if experiment and found.get("revision") not in (None, of_model.name):
                raise ValueError(f"it belongs to revision {found['revision']}")
            meta = found
        except (OSError, ValueError, AttributeError) as error:
            why = describe_error(error)
            problem = f"{file} cannot be read ({why}): the model's name and revision are taken from the folder names"
    model = of_model.parent.name.replace("__", "/", 1) if by_folders else folder.name
    revision = of_model.name if by_folders else ""
    facts = {
        "model": meta.get("name") or model,
        "revision": meta.get("revision") or revision,
        "source": "results",
        "experiment": experiment,
    }
    return facts, problem


def _task(result: Mapping[str, Any]) -> tuple[TaskScore, bool]:
    """Return a task's score, the mean over the splits and subsets that count, and whether all of them are present."""
    catalogue, name = mteb_catalogue(), result["task_name"]
    info: TaskInfo | None = catalogue.tasks.get(name)
    found = {
        (split, entry["hf_subset"]): _number(entry["main_score"])
        for split, entries in result["scores"].items()
        for entry in entries
    }
    # An aggregate has a single score, whatever the subsets of its parts.
    subsets = None if info is None else ["default"] if info.aggregate_of else info.subsets
    counted = None if info is None or subsets is None else [(split, one) for split in info.splits for one in subsets]
    scores = list(found.values()) if counted is None else [found[key] for key in counted if key in found]
    score = math.fsum(scores) / len(scores) if scores else math.nan
    task = TaskScore(
        name=name,
        type=info.type if info is not None else "",
        score=score if math.isfinite(score) else None,
    )
    return task, counted is None or len(scores) == len(counted)


def _number(value: Any) -> float:
    """Return a number from a result, which may be NaN.

    Raises:
        ValueError: if it is not a number, or too large for a score or a time.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > 1e9:
        raise ValueError(f"a score or a time is not a valid number: {short_text(value)}")
    return float(value)
