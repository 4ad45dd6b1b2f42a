"""Finds runs and results in folders for a comparison."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mteb_vllm.errors import ConfigError, Mistake
from mteb_vllm.report.points import Point
from mteb_vllm.report.result_folders import is_hidden, name_models, read_results
from mteb_vllm.report.run_records import FoundRun, read_run
from mteb_vllm.results.failures import failure_from_damage
from mteb_vllm.util.escape import one_line
from mteb_vllm.util.files import expand_user, leads_back, walk

# The other folders of a `results.dir` than those of runs and sweeps.
_OWN_FOLDERS = frozenset({"results", "predictions", "embeddings", "settings", "failures", "reports", "slurm"})

# Revisions that are hashes are shortened.
_HASH = re.compile(r"[0-9a-f]{9,}")

_LAYOUT = (
    "A run's folder contains run.json; results in mteb's layout are <org>__<model>/<revision>/<Task>.json. "
    "A sweep's folder is outputs/sweeps/<date>/<time>."
)


def read_runs(paths: Sequence[str | Path]) -> list[Point]:
    """Read runs, sweeps, and folders of results in mteb's layout.

    Points are in the order of the paths; within a path, sweeps and single runs are ordered by start time, the points of a
    sweep by number. The results in a run's `results.dir` are those of its runs, and are not read again.

    Args:
        paths: Folders at or above runs or results, files `run.json`, or patterns for these (`outputs/sweeps/*`).

    Raises:
        ConfigError: if one of the paths holds no run and no result.
    """
    found: dict[Path, Point] = {}
    seen: set[str] = set()
    mistakes = []
    for path in paths:
        try:
            places = _places(path)
        except (OSError, ValueError) as error:
            mistakes.append(Mistake("runs", f"cannot be read: {error}", _LAYOUT, value=f"{path}"))
            continue
        points = _read(places)
        if not points:
            what = "contains neither runs nor results" if places else "there is no such file or folder"
            mistakes.append(Mistake("runs", what, _LAYOUT, value=f"{path}"))
        for point in points:
            # The same folder may be reached by its own path and by links.
            if (real := os.path.realpath(point.folder)) not in seen:
                seen.add(real)
                found[point.folder] = point
    if mistakes or not found:
        raise ConfigError(mistakes or [Mistake("runs", "no runs are specified", _LAYOUT)])
    found |= {point.folder: point for point in name_models(one for one in found.values() if one.source == "results")}
    names = _run_names(found.values()) | _result_names(found.values())
    return [replace(point, name=names[folder]) for folder, point in found.items()]


def _places(path: str | Path) -> list[Path]:
    """Return the files and folders that a path or a pattern names, including dangling links.

    Raises:
        OSError: if a name is too long.
        ValueError: if it is not a valid path or pattern.
    """
    # Path.resolve raises RuntimeError for a loop of links.
    place = Path(os.path.realpath(expand_user(path)))
    if os.path.lexists(place):
        return [place]
    # Folders that exist are taken literally, whatever characters their names hold; the rest is a pattern.
    there = next(folder for folder in place.parents if os.path.lexists(folder))
    return sorted(there.glob(str(place.relative_to(there))))


def _read(places: Iterable[Path]) -> list[Point]:
    runs: list[FoundRun] = []
    results: list[Point] = []
    for place in places:
        folder = place.parent if place.name == "run.json" else place
        folders, unreadable = _run_folders(folder)
        runs += [*map(read_run, folders), *unreadable]
        above = {parent for run in folders for parent in run.parents}
        for below in _without_runs(folder, folder, set(folders), above):
            results += read_results(below, folder)
    return [*_in_order(runs), *results]


def _without_runs(folder: Path, top: Path, runs: set[Path], above: set[Path]) -> Iterator[Path]:
    """Yield the largest folders without runs at or below a folder, except the results of runs in the same `results.dir`.

    Args:
        folder: The folder.
        top: The folder, at or above it, that was requested: links back into it are not followed.
        runs: The folders of all runs.
        above: All folders above these.
    """
    if folder in runs:
        return
    if folder not in above:
        yield folder
        return
    found = sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))
    children = [path for path in found if not (path.is_symlink() and leads_back(path, [top]))]
    own = _OWN_FOLDERS if {"runs", "sweeps"} & {path.name for path in children} else frozenset()
    for child in children:
        if child.name not in own:
            yield from _without_runs(child, top, runs, above)


def _run_folders(folder: Path) -> tuple[list[Path], list[FoundRun]]:
    """Return the folders of runs at or below a folder; folders that cannot be listed come back as failed runs.

    A run's folder holds `run.json`, or the configuration that Hydra wrote before the run could write one.
    """
    found: list[Path] = []
    unreadable: list[FoundRun] = []

    def note(error: OSError) -> None:
        if not isinstance(error, NotADirectoryError):
            failed = Point(
                "",
                Path(error.filename),
                failures=[failure_from_damage(one_line(f"{error.filename}: {error.strerror}"))],
            )
            unreadable.append(FoundRun(failed, None))

    for root, folders, files in walk(folder, onerror=note):
        if "run.json" in (*files, *folders) or ".hydra" in folders:
            found.append(root)
            folders.clear()
        folders[:] = [name for name in folders if not is_hidden(name)]
    return found, unreadable


def _in_order(runs: Sequence[FoundRun]) -> list[Point]:
    began: dict[Path, str] = {}
    for run in runs:
        if started := run.point.started:
            began[_group(run)] = min(started, began.get(_group(run), started))

    def place(run: FoundRun) -> tuple[str, str, int]:
        return began.get(_group(run), "~"), str(_group(run)), run.number or 0

    return [run.point for run in sorted(runs, key=place)]


def _group(run: FoundRun) -> Path:
    """Return a sweep's folder, or the run's own."""
    return run.point.folder if run.number is None else run.point.folder.parent


def _run_names(points: Iterable[Point]) -> dict[Path, str]:
    """Return the names of runs."""
    return _distinct_ends([point.folder for point in points if point.source == "run"])


def _distinct_ends(folders: Sequence[Path]) -> dict[Path, str]:
    """Return the shortest ends of the folders' paths that are all different."""
    for parts in range(1, max((len(folder.parts) for folder in folders), default=0) + 1):
        names = {folder: _path_end(folder, parts) for folder in folders}
        if len(set(names.values())) == len(folders):
            return names
    return {}


def _path_end(folder: Path, parts: int) -> str:
    return one_line("/".join(folder.parts[-parts:]))


def _result_names(points: Iterable[Point]) -> dict[Path, str]:
    """Return the models' names, with revision and experiment where they are needed to distinguish points."""
    models: dict[str, list[Point]] = {}
    for point in points:
        if point.source == "results":
            models.setdefault(point.facts["model"], []).append(point)
    found: dict[Path, str] = {}
    for some in models.values():
        for parts in (("model",), ("model", "revision"), ("model", "experiment"), ("model", "revision", "experiment")):
            names = {point.folder: _result_name(point.facts, parts) for point in some}
            if len(set(names.values())) == len(some):
                break
        else:
            ends = _distinct_ends([point.folder for point in some])
            names = {point.folder: f"{point.facts['model']} in {ends[point.folder]}" for point in some}
        found |= names
    return found


def _result_name(facts: Mapping[str, str], parts: Sequence[str]) -> str:
    revision = facts.get("revision", "")
    texts = {"model": facts["model"], "revision": f"@{revision[:8] if _HASH.fullmatch(revision) else revision}"}
    experiment = facts.get("experiment")
    texts["experiment"] = f"/{experiment}" if experiment else ""
    return "".join(texts[part] for part in parts)
