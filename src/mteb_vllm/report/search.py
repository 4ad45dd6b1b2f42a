"""Reports a search: its best point against the default, as YAML and as a command."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mteb_vllm.results.measurements import Unit
from mteb_vllm.results.objective import describe_objective
from mteb_vllm.results.record import RunRecord, mean
from mteb_vllm.results.search import Search, objective_value
from mteb_vllm.util.console import Console
from mteb_vllm.util.disk import attempt
from mteb_vllm.util.files import write_atomically
from mteb_vllm.util.shell import command

# Groups that an experiment may choose, which the command for the best point repeats.
_GROUPS = ("model", "prompts", "instruction", "score_template", "tasks", "pipeline")

# Settings of the search itself, which are not part of the best point.
_OF_SEARCH = ("experiment", "report", "results")

# A folder for --config-dir.
_FOLDER = "best"


def print_search(console: Console, search: Search, choices: Mapping[str, Any], folder: Path) -> None:
    """Show the best point against the default, and write its engine arguments as a file for `--config-dir`.

    Args:
        console: Where it is shown.
        search: The search.
        choices: Group to chosen file, of the default point.
        folder: The search's folder.
    """
    best, without = search.best, [record for record in search.trials if objective_value(record) is None]
    console.print_line("")
    for record in without:
        objective = record.objective
        why = objective.reason if objective is not None else ""
        console.print_line(f"No objective: {_name(search, record)}: {why}", style="yellow")
    for record in search.trials:
        if how := search.refused.get(record.point):
            what = f"its scores differ by more than report.score_tolerance={search.tolerance:g}: {how}"
            console.print_line(f"Refused: {_name(search, record)}: {what}", style="yellow")
    if best is None:
        n_trials = len(search.trials)
        console.print_line(f"The search found nothing: each of the chosen points ({n_trials}) failed or was refused.")
        return
    console.print_line(f"Best of {len(search.trials)} points: {_name(search, best)}, {_figures(best)}")
    if search.default is not None:
        console.print_line(f"Default: point {search.default.point}, {_figures(search.default)}")
    for line in _comparison(search, best):
        console.print_line(line)
    chosen = _searched(search, best)
    name = "mine" if choices.get("engine") != "mine" else "mine_tuned"  # a file must not extend itself
    file = folder / _FOLDER / "engine" / f"{name}.yaml"
    if text := _engine_yaml(chosen, best, str(chosen.get("engine", choices.get("engine")))):
        with attempt(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, text)
        console.print_line(f"Its engine arguments ({file}), ready to be saved as conf/engine/{name}.yaml:\n")
        console.print_line(text)
    words = list(_words(search, best, choices, engine=name if text else None))
    console.print_line(f"To use it: {command(*(['--config-dir', str(folder / _FOLDER)] if text else []), *words)}")


def _comparison(search: Search, best: RunRecord) -> Iterator[str]:
    """Yield how the best point compares with the default, by their measurements in turn after the search."""
    value, default = objective_value(best), search.default and objective_value(search.default)
    if value is None or not default:
        return
    if value <= default:
        yield "The search found nothing better than the default."
    elif best.objective is not None and best.objective.name == "mean":
        yield f"The best is {value - default:+.5f} better in mean score."
    elif (measured := _measured_pairs(search)) is None:
        yield f"The best was {value / default:.2f} times as fast, in a single measurement of each."
    else:
        of_default, of_best = measured
        ratios = [new / old for old, new in zip(of_default, of_best, strict=True)]
        verdict = f"{sum(ratios) / len(ratios):.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f})"
        if min(of_best) <= max(of_default):
            verdict = "no measurable difference"
        figures = f"default {_list(of_default)}, best {_list(of_best)} {_unit(best)}/s"
        yield f"Both measured again, in turn: {figures}: {verdict}."


def _measured_pairs(search: Search) -> tuple[list[float], list[float]] | None:
    """Return the values of the default and of the best point that were measured in turn; None if one is missing."""
    found = [(objective_value(default), objective_value(best)) for default, best in search.pairs]
    both = [(old, new) for old, new in found if old is not None and new is not None]
    return ([old for old, _ in both], [new for _, new in both]) if both and len(both) == len(found) else None


def _list(values: Sequence[float]) -> str:
    return " and ".join(f"{value:,.1f}" for value in values)


def _name(search: Search, record: RunRecord) -> str:
    """Return a point's number and the values that the search has chosen for it."""
    chosen = " ".join(f"{key}={value}" for key, value in _searched(search, record).items())
    return f"point {record.point} ({chosen})"


def _figures(record: RunRecord) -> str:
    objective, score = record.objective, mean(record.scores.values())
    if objective is None or objective.value is None:
        return describe_objective(record)
    if objective.name == "mean":
        return f"mean score {objective.value:.5f}"
    words = f"{objective.value:,.1f} {_unit(record)}/s"
    return words if score is None else f"{words}, mean score {score:.5f}"


def _unit(record: RunRecord) -> Unit:
    return record.throughput.unit if record.throughput is not None else record.tasks[0].unit


def _searched(search: Search, record: RunRecord) -> dict[str, str]:
    """Return the searched keys and their values in a point."""
    return {key: value for key, value in _overrides(record) if key in search.searched}


def _overrides(record: RunRecord) -> Iterator[tuple[str, str]]:
    for text in record.overrides:
        key, _, value = text.partition("=")
        yield key, value


def _words(search: Search, best: RunRecord, choices: Mapping[str, Any], engine: str | None) -> Iterator[str]:
    """Yield the overrides of the best point, those that the search has chosen last.

    Args:
        search: The search.
        best: The record of its best point.
        choices: Group to chosen file, of the default point.
        engine: The file of its engine, which replaces all searched engine arguments; None if there is none.
    """
    overrides = dict(_overrides(best))
    if "experiment" in overrides:  # it would search again
        yield from (
            f"{group}={choices[group]}"
            for group in _GROUPS
            if choices.get(group) not in (None, "auto") and group not in overrides
        )
    for key, value in sorted(overrides.items(), key=lambda item: item[0] in search.searched):
        name, _, _ = key.lstrip("+~").partition(".")
        if name not in _OF_SEARCH and not (engine is not None and name == "engine"):
            yield f"{key}={value}" if value or not key.startswith("~") else key
    if engine is not None:
        yield f"engine={engine}"


def _engine_yaml(chosen: Mapping[str, str], best: RunRecord, extends: str) -> str:
    """Return the file of the best point's engine; "" if the search did not choose any of its arguments.

    Args:
        chosen: The searched keys and their values.
        best: The record of the best point.
        extends: The engine file whose arguments the search varied.
    """
    content: dict[str, Any] = {}
    for key, _ in _overrides(best):
        head, *names = key.lstrip("+~").split(".")
        if head != "engine" or not names:
            continue
        value, inner = best.config["engine"], content
        for name in names:
            value = value[name]
        for name in names[:-1]:
            inner = inner.setdefault(name, {})
        inner[names[-1]] = value
    if not any(key.lstrip("+").partition(".")[0] == "engine" for key in chosen):
        return ""
    head = f"# Found by a search: {describe_objective(best)}.\n"
    return head + yaml.safe_dump({"defaults": [extends, "_self_"], **content}, sort_keys=False)
