"""Results in mteb's own layout, of whomever, read without mteb."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mteb_vllm.catalogue import TaskInfo, mteb_catalogue
from mteb_vllm.failures import Failure
from mteb_vllm.report.points import Point, TaskScore
from mteb_vllm.report.run_records import shown
from mteb_vllm.searches import CEILING

_META = "model_meta.json"


def read_results(folder: Path) -> Iterator[Point]:
    """A point for each folder of results at or below a folder, still without a name."""
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "predictions")
        files = [Path(root, name) for name in sorted(names) if name.endswith(".json") and name != _META]
        point = _point(Path(root), files) if files else None
        if point is not None:
            yield point


def _point(folder: Path, files: Sequence[Path]) -> Point | None:
    tasks: list[TaskScore] = []
    failures: list[Failure] = []
    versions, seconds, incomplete = set(), [], []
    for file in files:
        data = file.read_bytes()
        if b'"mteb_dataset_name"' in data:
            why = f"{file} is in the form that mteb's results had before 1.11: load it with mteb once, and save it"
            failures.append(Failure("error", why, file.stem))
            tasks.append(TaskScore(file.stem, failed=True))
            continue
        if b'"task_name"' not in data:
            continue
        try:
            result = json.loads(data)
            task, whole = _task(result)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            why = f"{file} is no result of mteb's ({type(error).__name__}: {error})"
            failures.append(Failure("error", why, file.stem))
            tasks.append(TaskScore(file.stem, failed=True))
            continue
        tasks.append(task)
        versions.add(str(result.get("mteb_version")))
        seconds.append(result.get("evaluation_time"))
        incomplete += [] if whole else [task.name]
    if not tasks:
        return None
    facts = _facts(folder)
    if facts["model"] == CEILING:
        return None  # of ours, beside reranking runs: no model
    facts |= {"versions.mteb": shown(", ".join(sorted(versions))), "incomplete": ", ".join(incomplete)}
    return Point(
        name="",
        folder=folder,
        source="results",
        facts={key: text for key, text in facts.items() if text},
        tasks=tasks,
        seconds=sum(seconds) if seconds and None not in seconds else None,
        failures=failures,
    )


def _facts(folder: Path) -> dict[str, str]:
    experiment = folder.name if folder.parent.name == "experiments" else ""
    of_model = folder.parent.parent if experiment else folder
    meta: Mapping[str, Any] = {}
    if (file := folder / _META).exists() or (file := of_model / _META).exists():
        try:
            meta = json.loads(file.read_bytes())
        except ValueError:
            meta = {}
    by_folders = "__" in of_model.parent.name
    model = of_model.parent.name.replace("__", "/", 1) if by_folders else folder.name
    revision = of_model.name if by_folders else ""
    return {
        "model": str(meta.get("name") or model),
        "revision": str(meta.get("revision") or revision),
        "source": "results",
        "experiment": experiment,
    }


def _task(result: Mapping[str, Any]) -> tuple[TaskScore, bool]:
    """A task's score, the mean over the splits and subsets that count; and whether all of them are there."""
    catalogue, name = mteb_catalogue(), result["task_name"]
    info: TaskInfo | None = catalogue.tasks.get(name)
    found = {
        (split, entry["hf_subset"]): entry["main_score"]
        for split, entries in result["scores"].items()
        for entry in entries
    }
    # An aggregate has one score of its own, whatever the subsets of its parts are.
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
