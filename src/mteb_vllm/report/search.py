"""Reports a search: its best point, as YAML and as a command, against the default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mteb_vllm.results.objective import describe_objective
from mteb_vllm.results.record import RunRecord, mean
from mteb_vllm.util.console import Console
from mteb_vllm.util.disk import attempt
from mteb_vllm.util.files import write_atomically
from mteb_vllm.util.shell import command

_UNITS = {"texts_per_second": "texts/s"}

# Groups whose choice is repeated in the command that uses the best point.
_GROUPS = ("model", "prompts", "instruction", "score_template")

# The best engine arguments: a folder for --config-dir, with one file.
_FILE = Path("best", "engine", "mine.yaml")


def best_trial(records: Sequence[RunRecord], searched: Sequence[str]) -> RunRecord | None:
    """Return the point with the highest objective of those that a search chose; None if none has an objective."""
    trials = [
        (value, record) for record in records if _chosen(record, searched) and (value := _value(record)) is not None
    ]
    return max(trials, key=lambda trial: trial[0])[1] if trials else None


def print_search(
    console: Console, records: Sequence[RunRecord], searched: Sequence[str], choices: Mapping[str, Any], folder: Path
) -> None:
    """Show the best point against the default, and write its engine arguments as a file for `--config-dir`.

    Args:
        console: Where it is shown.
        records: The records of the search.
        searched: The searched keys.
        choices: Group to chosen file, of the default.
        folder: The search's folder.
    """
    best = best_trial(records, searched)
    trials = [record for record in records if _chosen(record, searched)]
    default = next((record for record in records if not _chosen(record, searched)), None)
    console.print_line("")
    if best is None:
        console.print_line(
            f"The search has found nothing: none of its {len(trials)} points has an objective.", style="red"
        )
        for reason in dict.fromkeys(record.objective.reason for record in trials if record.objective is not None):
            console.print_line(f"  {reason}", style="red")
        return
    without = sum(_value(record) is None for record in trials)
    left_out = f" ({without} failed or scored too low)" if without else ""
    console.print_line(f"Best of {len(trials)} points{left_out}: point {best.point}, {_figures(best)}.")
    if default is not None:
        console.print_line(f"Default: point {default.point}, {_figures(default)}.{_against(best, default)}")
        if (_value(default) or 0.0) >= (_value(best) or 0.0):
            console.print_line("The search has found nothing better than the default.")
    values = {key: value for key, value in _overrides(best).items() if key in searched}
    arguments = {} if "engine" in searched else {key: value for key, value in values.items() if _is_argument(key)}
    words = [f"{group}={choices[group]}" for group in _GROUPS if group in choices and group not in values]
    words += [f"{key}={value}" for key, value in values.items() if key not in arguments]
    if arguments:
        text = _engine_yaml(arguments, best, str(choices.get("engine", "auto")))
        file = folder / _FILE
        file.parent.mkdir(parents=True, exist_ok=True)
        with attempt(file):
            write_atomically(file, text)
        console.print_line(f"Its engine arguments, to be saved as conf/engine/mine.yaml (written to {file}):\n")
        console.print_line(text)
        words = ["--config-dir", str(folder / _FILE.parts[0]), *words, "engine=mine"]
    console.print_line(f"To use it: {command(*words)}")


def _chosen(record: RunRecord, searched: Sequence[str]) -> bool:
    """Whether the search chose this point: the default has none of the searched keys."""
    return any(key in searched for key in _overrides(record))


def _overrides(record: RunRecord) -> dict[str, str]:
    return dict(text.split("=", 1) for text in record.overrides if "=" in text)


def _value(record: RunRecord) -> float | None:
    return record.objective.value if record.objective is not None else None


def _figures(record: RunRecord) -> str:
    objective, score = record.objective, mean(record.scores.values())
    if objective is None or objective.value is None:
        return describe_objective(record)
    if objective.name == "mean":
        return f"mean score {objective.value:.5f}"
    words = f"{objective.value:,.1f} {_UNITS[objective.name]}"
    return words if score is None else f"{words}, mean score {score:.5f}"


def _against(best: RunRecord, default: RunRecord) -> str:
    value, against = _value(best), _value(default)
    if value is None or not against:
        return ""
    if best.objective is not None and best.objective.name == "mean":
        return f" The best is {value - against:+.5f}."
    return f" The best is {value / against:.2f} times as fast."


def _is_argument(key: str) -> bool:
    return key.lstrip("+").startswith("engine.")


def _engine_yaml(arguments: Mapping[str, str], best: RunRecord, chosen: str) -> str:
    """Return the file of an engine with the preset of the search's engine and the searched arguments.

    Args:
        arguments: The searched keys and their values, as overrides.
        best: The record that has the values.
        chosen: The file of the engine that the search varied.
    """
    engine: Mapping[str, Any] = best.config["engine"]
    content: dict[str, Any] = {}
    for key in arguments:
        names = key.lstrip("+").split(".")[1:]
        value: Any = engine
        for name in names:
            value = value[name]
        inner = content
        for name in names[:-1]:
            inner = inner.setdefault(name, {})
        inner[names[-1]] = value
    head = f"# {describe_objective(best)}, found by a search from engine={chosen}.\n"
    if chosen != "auto":
        return head + yaml.safe_dump({"defaults": [chosen, "_self_"], **content}, sort_keys=False)
    return head + yaml.safe_dump({"preset": engine["preset"], **content}, sort_keys=False)
