"""Reports a search: its best point against the default, as YAML and as a command."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from mteb_vllm.config.schema import compose_run
from mteb_vllm.report.formatting import count
from mteb_vllm.results.measurements import Unit
from mteb_vllm.results.objective import describe_objective
from mteb_vllm.results.record import RunRecord, mean
from mteb_vllm.results.search import Search, objective_value
from mteb_vllm.util.console import Console
from mteb_vllm.util.disk import attempt
from mteb_vllm.util.files import write_atomically
from mteb_vllm.util.masking import mask_values
from mteb_vllm.util.shell import command, hydra_value

# Groups that an experiment may choose, which the command for the best point repeats.
_GROUPS = (
    "model", "engine", "prompts", "instruction", "score_template", "tasks", "pipeline", "pipeline/first_stage",
)  # fmt: skip

# Settings of the search itself, which are not part of the best point.
_OF_SEARCH = ("experiment", "report", "results")

_CONFIG_DIR = "--config-dir"

# The best engine arguments: one file in a folder for --config-dir.
_FILE = Path("best", "engine", "mine.yaml")


def print_search(
    console: Console, search: Search, choices: Mapping[str, Any], search_path: Sequence[str], folder: Path
) -> None:
    """Show the best point against the default, and write its engine arguments as a file for `--config-dir`.

    Args:
        console: Where it is shown.
        search: The search.
        choices: Group to chosen file, of the default point.
        search_path: The arguments of the command that add folders of configuration files.
        folder: The search's folder.
    """
    best, without = search.best, [record for record in search.trials if objective_value(record) is None]
    console.print_line("")
    for record in without:
        objective = record.objective
        why = objective.reason if objective is not None else ""
        console.print_line(f"No objective: {_name(search, record)}: {why}", style="yellow")
    for record in search.trials:
        if how := search.rejected.get(record.point):
            what = f"its scores differ by more than report.score_tolerance={search.tolerance:g}: {how}"
            console.print_line(f"Rejected: {_name(search, record)}: {what}", style="yellow")
    if best is None:
        n_trials = len(search.trials)
        console.print_line(f"The search found nothing: each of the chosen points ({n_trials}) failed or was rejected.")
        return
    console.print_line(f"Best of {count(len(search.trials), 'point')}: {_name(search, best)}, {_figures(best)}")
    if search.default is not None:
        console.print_line(f"Default: point {search.default.point}, {_figures(search.default)}")
    for line in _comparison(search, best):
        console.print_line(line)
    file = folder / _FILE
    if text := _engine_yaml(search, best):
        with attempt(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, text)
        console.print_line(f"The engine arguments of point {best.point}, also in {file}:\n")
        console.print_line(text)
    path = _with_folder(search_path, file.parents[1]) if text else list(search_path)
    words = [*path, *_words(search, best, choices, engine=bool(text))]
    if not _reproduces(words, best):
        # The experiment sets other values, too: it is run once, without its search.
        words = [*search_path, *_without_search(best, choices)]
    console.print_line(f"To use it: {command(*words)}")


def _with_folder(search_path: Sequence[str], folder: Path) -> list[str]:
    """Return the arguments that add folders of configuration files, with another folder."""
    if _CONFIG_DIR not in search_path:
        return [_CONFIG_DIR, str(folder), *search_path]
    others, found = list(search_path[:2]), list(search_path[2:])
    added = hydra_value(f"file://{folder.absolute()}")
    before = found[0].rstrip().removesuffix("]").rstrip() if found else "hydra.searchpath=["
    return [*others, f"{before}{'' if before.endswith('[') else ','}{added}]"]


def _reproduces(words: Sequence[str], best: RunRecord) -> bool:
    """Return whether a command runs the configuration of a search's best point, apart from what concerns only the search."""
    config_dir = words[1] if words and words[0] == _CONFIG_DIR else None
    try:
        config = asdict(compose_run(words[2:] if config_dir else words, config_dir))
    except Exception:  # a choice of the experiment's that does not exist outside of it
        return False
    return _compared(config) == _compared(best.config)


def _compared(config: Mapping[str, object]) -> dict[str, dict[str, object]]:
    """Return the part of a configuration that results depend on, without unset fields."""
    return {
        section: {key: value for key, value in values.items() if value not in (None, {}, [])}
        for section, values in config.items()
        if section not in _OF_SEARCH and isinstance(values, Mapping)
    }


def _without_search(best: RunRecord, choices: Mapping[str, Any]) -> list[str]:
    """Return the overrides that run a point's experiment once: those of the point, without those of reports and results."""
    words = [
        text
        for text in best.overrides
        if text.lstrip("+~").partition("=")[0].partition(".")[0] not in ("report", "results")
    ]
    words.append("hydra.mode=RUN")
    # Two settings that are errors without a sweep.
    if best.config["report"]["score_tolerance"] is not None:
        words.append("report.score_tolerance=null")
    if choices.get("hydra/launcher") == "slurm":
        words.append("hydra/launcher=basic")
    return words


def _comparison(search: Search, best: RunRecord) -> Iterator[str]:
    """Yield how the best point compares with the default, by their measurements in turn after the search."""
    value, default = objective_value(best), search.default and objective_value(search.default)
    if value is None or not default:
        return
    if value <= default:
        yield "The search found nothing better than the default."
    elif best.objective is not None and best.objective.name == "mean":
        yield f"The mean score of the best is higher by {value - default:.5f}."
    elif (measured := _measured_pairs(search)) is None:
        yield f"The best was {value / default:.2f} times as fast, in a single measurement of each."
    else:
        of_default, of_best = measured
        ratios = [new / old for old, new in zip(of_default, of_best, strict=True)]
        mean_ratio = sum(ratios) / len(ratios)
        verdict = f"The best is {mean_ratio:.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f})."
        if min(of_best) <= max(of_default):
            verdict = "There is no measurable difference."
        yield (
            f"Both were measured again, in turn: default {_list(of_default)}, best {_list(of_best)} {_unit(best)}/s. "
            f"{verdict}"
        )


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


def _words(search: Search, best: RunRecord, choices: Mapping[str, Any], *, engine: bool) -> Iterator[str]:
    """Yield the overrides of the best point, those that the search has chosen last.

    Args:
        search: The search.
        best: The record of its best point.
        choices: Group to chosen file, of the default point.
        engine: Whether its engine arguments are in a file.
    """
    overrides = dict(_overrides(best))
    if "experiment" in overrides:  # it would search again
        yield from (
            f"{group}={choices[group]}"
            for group in _GROUPS
            if choices.get(group) not in (None, "auto")
            and group not in overrides
            and not (engine and group == "engine")
        )
    for key, value in sorted(overrides.items(), key=lambda item: item[0] in search.searched):
        name, _, _ = key.lstrip("+~").partition(".")
        if name not in _OF_SEARCH and not (engine and name == "engine"):
            yield f"{key}={value}" if value or not key.startswith("~") else key
    if engine:
        yield f"engine={_FILE.stem}"


def _engine_yaml(search: Search, best: RunRecord) -> str:
    """Return the file of the best point's engine; "" if the search did not choose any of its arguments."""
    if not any(key.lstrip("+").partition(".")[0] == "engine" for key in search.searched):
        return ""
    values = {key: value for key, value in best.config["engine"].items() if value not in (None, {}, [])}
    text = yaml.safe_dump(mask_values(values), sort_keys=False)
    return f"# Found by a search: {describe_objective(best)}.\n{text}"
