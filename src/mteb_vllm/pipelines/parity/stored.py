"""Read the scores of earlier runs, or published ones, as a reference."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mteb_vllm.errors import ConfigError, Mistake
from mteb_vllm.pipelines.parity.verdict import MainScores
from mteb_vllm.report.loading import read_runs
from mteb_vllm.report.points import Point
from mteb_vllm.results.record import read_record
from mteb_vllm.util.files import read_json

_KEY = "pipeline.reference.runs"


def stored_scores(runs: Sequence[str], tasks: Sequence[str]) -> tuple[Point, dict[str, MainScores]]:
    """Return the run, or the folder of results, that is the reference, and its main scores by task.

    Args:
        runs: A run's folder, or a folder of results in mteb's layout.
        tasks: The names of the tasks.

    Raises:
        ConfigError: if none, or more than one, has results of these tasks.
    """
    try:
        every = read_runs(list(runs))
    except ConfigError as error:
        raise ConfigError([replace(mistake, key=_KEY) for mistake in error.mistakes]) from error
    points = [point for point in every if any(task.name in tasks for task in point.tasks)]
    wrong = functools.partial(Mistake, _KEY, value=",".join(map(str, runs)))
    if not points:
        damaged = [failure.message for point in every for failure in point.failures if failure.kind == "damaged"]
        raise ConfigError([wrong(f"contains no results for {', '.join(tasks)}", " ".join(damaged))])
    if len(points) > 1:
        there = ", ".join(str(point.folder) for point in points[:5])
        raise ConfigError(
            [wrong("contains several runs, but the reference must be a single one", f"Choose one: {there}")]
        )
    (point,) = points
    read = _run_scores if point.source == "run" else _result_scores
    try:
        return point, {task: scores for task in tasks if (scores := read(point, task))}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError([wrong(f"the results in {point.folder} cannot be read ({error})")]) from error


def _run_scores(point: Point, task: str) -> MainScores:
    for outcome in read_record(point.folder / "run.json").tasks:
        if outcome.name == task:
            return {split: _main_scores(subsets) for split, subsets in outcome.scores.items()}
    return {}


def _result_scores(point: Point, task: str) -> MainScores:
    file = point.folder / f"{task}.json"
    if not file.exists():
        return {}
    scores = read_json(file)["scores"]
    return {
        split: _main_scores({str(entry["hf_subset"]): entry for entry in entries}) for split, entries in scores.items()
    }


def _main_scores(subsets: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    return {subset: entry.get("main_score") for subset, entry in subsets.items()}
