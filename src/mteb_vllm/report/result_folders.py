"""Reads folders of results in mteb's layout, written by this program or others, without mteb."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mteb_vllm.catalogue import TaskInfo, mteb_catalogue
from mteb_vllm.report.points import NO_SCORE, NOT_A_NUMBER, Point, TaskScore
from mteb_vllm.report.run_records import describe_error, short_text
from mteb_vllm.results.digests import DamagedError, has_digest, read_verified
from mteb_vllm.results.failures import failure_from_damage
from mteb_vllm.results.lookup import CEILING, model_folder
from mteb_vllm.results.record import describe_subsets
from mteb_vllm.util.escape import one_line
from mteb_vllm.util.files import parse_json, read_file, walk

_META = "model_meta.json"
# Usual names of the folders of revisions.
_REVISION = re.compile(r"[0-9a-f]{7,64}|local-[0-9a-f]+|v?\d+(\.\d+)*|main|master|external|no_revision_available")
# The name and the folder that mteb gives to a model whose name it does not know.
_UNKNOWN_MODEL = ("no_model_name/available", "no_model_name_available")
_UNKNOWN_FOLDERS = ("no_model_name__available", "no_model_name_available")
# The folder of a model whose name is a path that begins with "/", "./" or "../".
_PATH = re.compile(r"\.{0,2}__")
_OF_RESULTS = {"task_name", "scores", "dataset_revision", "mteb_version", "evaluation_time", "mteb_dataset_name"}


def read_results(folder: Path, top: Path | None = None) -> Iterator[Point]:
    """Yield a point, without a name, for each folder of results at or below a folder.

    Points whose model cannot be named lack the fact "model"; see `name_models`.

    Args:
        folder: The folder.
        top: The folder, at or above it, that was requested; None: the same one.
    """
    for root, folders, names in walk(folder):
        folders[:] = sorted(name for name in folders if not is_hidden(name) and name != "predictions")
        # A folder with the name of a result file is reported as an unreadable result.
        files = [root / name for name in sorted((*names, *folders)) if name.endswith(".json") and name != _META]
        point = _point(root, files, top or folder) if files else None
        if point is not None:
            yield point


def name_models(points: Iterable[Point]) -> list[Point]:
    """Return points of results with the names of their models.

    Where neither a file nor a folder of mteb's names the model, its name is the shortest end of the path that no other model
    has.
    """
    found = list(points)
    paths = {point.folder: _unnamed_path(point.folder) for point in found if "model" not in point.facts}
    taken = {point.facts["model"] for point in found if "model" in point.facts}
    names: dict[Path, str] = {}
    for more in range(max((len(path.parts) for path in paths.values()), default=0)):
        names = {path: _end(path, more) for path in paths.values()}
        if len(set(names.values())) == len(names) and not taken & set(names.values()):
            break
    return [
        replace(point, facts={"model": names[path]} | point.facts) if (path := paths.get(point.folder)) else point
        for point in found
    ]


def _unnamed_path(folder: Path) -> Path:
    """Return the path that names a model: its folder in mteb's layout where that says that the name is unknown."""
    return next((place for place in folder.parents if place.name in _UNKNOWN_FOLDERS), folder)


def _end(path: Path, more: int) -> str:
    """Return the last part of a path, for an unknown name with the one above it, and a number of further ones."""
    return one_line("/".join(path.parts[-1 - more - (path.name in _UNKNOWN_FOLDERS) :]))


def is_hidden(name: str) -> bool:
    """Whether a folder's name is that of a hidden one, and not of a model whose name is a relative path."""
    return name.startswith(".") and not _PATH.match(name)


def _point(folder: Path, files: Sequence[Path], top: Path) -> Point | None:
    tasks: list[TaskScore] = []
    damaged: dict[Path, str] = {}
    others: dict[Path, str] = {}
    versions: set[str] = set()
    seconds: list[float | None] = []
    incomplete: list[str] = []
    for file in files:
        content = b""
        try:
            content = read_file(file)
            result = _result(file, content)
            if result is None:
                continue
            task, complete = _task(result)
            taken = _number(result.get("evaluation_time"))
            seconds.append(taken if math.isfinite(taken) else None)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            # The name, the folder or the remaining content tells whether an unreadable file was meant to be a result.
            meant = file.stem in mteb_catalogue().tasks or b'"task_name"' in content or _in_layout(folder)
            why = one_line(f"{file} is not a readable result ({describe_error(error)})")
            (damaged if meant else others)[file] = why
            continue
        tasks.append(task)
        versions |= {one_line(short_text(version))} if (version := result.get("mteb_version")) else set()
        incomplete += [] if complete or task.score is None else [task.name]
    if not tasks and not damaged:
        return None
    facts, problem = _facts(folder, top)
    if facts["model"] == CEILING:
        return None  # the ceilings that reranking runs store: not a model's results
    failures = [failure_from_damage(why, one_line(file.stem)) for file, why in sorted((damaged | others).items())]
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
        failures=failures,
        warnings=[problem] if problem else [],
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
        raise ValueError(f"it contains the scores of {short_text(result['task_name'])}")
    return result


def _is_revision(folder: Path, top: Path) -> bool:
    """Return whether a folder is that of a revision in mteb's layout, so that the folder above it is that of the model.

    Organisation and model are separated by "__" in the model's folder. Where there is no organisation, the folder has a usual
    name of revisions, or lies as deep as in mteb's layout: two levels below `results` or the folder that was requested.
    """
    model = folder.parent
    if not model.name:
        return False
    return (
        "__" in model.name
        or model.name in _UNKNOWN_FOLDERS
        or _REVISION.fullmatch(folder.name) is not None
        or model.parent.name == "results"
        or top in model.parents
    )


def _facts(folder: Path, top: Path) -> tuple[dict[str, str], str]:
    """Return the facts about a folder's results, and the problem with its `model_meta.json`, "" if there is none.

    The model is "" where neither that file nor a folder's name tells it.
    """
    experiment, of_model = "", folder
    if folder.parent.name == "experiments" and _is_revision(folder.parent.parent, top):
        experiment, of_model = folder.name, folder.parent.parent
    model = revision = ""
    if _is_revision(of_model, top):
        model, revision = _model_name(of_model.parent.name), of_model.name
    meta: dict[str, str] = {}
    problem = ""
    if os.path.lexists(file := folder / _META) or os.path.lexists(file := of_model / _META):
        try:
            meta = _meta(file, of_model, experiment)
        except (OSError, ValueError) as error:
            why = describe_error(error)
            problem = one_line(f"{file} cannot be used ({why}): the model is named after its folder.")
    facts = {
        "model": one_line(meta.get("name") or model),
        "revision": one_line(meta.get("revision") or revision),
        "source": "results",
        "experiment": one_line(experiment),
    }
    return facts, problem


def _meta(file: Path, of_model: Path, experiment: str) -> dict[str, str]:
    """Return the name and the revision in a `model_meta.json`, without those that it does not have.

    Args:
        file: The file.
        of_model: The folder of the revision.
        experiment: The name of the experiment, if it is about one.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is damaged, or that of another model.
    """
    found = parse_json(read_file(file))
    if not isinstance(found, dict):
        raise ValueError("it is not a JSON object")
    if not all(isinstance(found.get(key), str | None) for key in ("name", "revision")):
        raise ValueError("the name and the revision must be strings")
    if found.get("name") in _UNKNOWN_MODEL:
        found["name"] = None
    above = of_model.parent.name
    if "__" in above and (name := found.get("name")) and above not in (model_folder(name), _folder_of_mteb(name)):
        raise ValueError(f"it belongs to {short_text(name)}")
    if experiment and found.get("revision") not in (None, of_model.name):
        raise ValueError(f"it belongs to revision {short_text(found['revision'])}")
    return {key: found[key] for key in ("name", "revision") if found.get(key)}


def _folder_of_mteb(name: str) -> str:
    return name.replace("/", "__").replace(" ", "_")


def _model_name(folder: str) -> str:
    """Return the model's name for its folder's; "" where mteb did not know it."""
    if folder in _UNKNOWN_FOLDERS:
        return ""
    return folder.replace("__", "/", -1 if _PATH.match(folder) else 1)


def _task(result: Mapping[str, Any]) -> tuple[TaskScore, bool]:
    """Return a task's score, the mean over the splits and subsets that count, and whether all of them are present.

    Raises:
        ValueError: if it does not have the form of a result.
    """
    catalogue, name = mteb_catalogue(), result["task_name"]
    info: TaskInfo | None = catalogue.tasks.get(name)
    found = _main_scores(result)
    # An aggregate has a single score, whatever the subsets of its parts.
    subsets = None if info is None else ["default"] if info.aggregate_of else info.subsets
    counted = None if info is None or subsets is None else [(split, one) for split in info.splits for one in subsets]
    chosen = list(found) if counted is None else [key for key in counted if key in found]
    scores = [found[key] for key in chosen]
    score = math.fsum(scores) / len(scores) if scores else None
    known = score is not None and math.isfinite(score)
    task = TaskScore(
        name=one_line(name),
        type=info.type if info is not None else "",
        score=score if known else None,
        subsets=describe_subsets(chosen),
        without="" if known else NO_SCORE if score is None else NOT_A_NUMBER,
    )
    return task, counted is None or len(scores) == len(counted)


def _main_scores(result: Mapping[str, object]) -> dict[tuple[str, str], float]:
    """Return the main scores of a result by split and subset; NaN for those that are not numbers."""
    scores = result.get("scores")
    if not isinstance(scores, dict):
        raise ValueError("its scores are missing or are not a JSON object")
    found = {}
    for split, entries in scores.items():
        if not isinstance(entries, list):
            raise ValueError(f"the scores of split {short_text(split)} are not a list")
        for entry in entries:
            if not isinstance(entry, dict) or not isinstance(entry.get("hf_subset"), str) or "main_score" not in entry:
                raise ValueError(f"an entry of split {short_text(split)} has no subset or no main score")
            found[split, entry["hf_subset"]] = _number(entry["main_score"])
    return found


def _number(value: object) -> float:
    """Return a number from a result: NaN for null, NaN and infinities.

    Raises:
        ValueError: if it is none of these, or too large for a score or a time.
    """
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > 1e9:
        raise ValueError(f"a score or a time is not a valid number: {short_text(value)}")
    return float(value)
