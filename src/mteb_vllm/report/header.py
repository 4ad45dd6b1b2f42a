"""The head of a report: title, scope, date, device, versions, and the command of the recommended configuration."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mteb_vllm.report.comparison import Comparison, Row
from mteb_vllm.report.formatting import count, point_name
from mteb_vllm.results.record import RunRecord
from mteb_vllm.util.shell import command

# The most models and tasks that a title names.
_MOST_IN_TITLE = 3
# The packages that a report's head names, in this order; all others are among the shared settings.
_PACKAGES = ("mteb-vllm", "mteb", "vllm", "sentence-transformers", "transformers", "torch", "python")


def title(comparison: Comparison) -> str:
    """Return a title that names the models and the tasks, e.g. "org/model on STS12, STS13"."""
    points = [row.point for row in comparison.rows]
    models = dict.fromkeys(point.facts.get("model", "") for point in points if point.facts.get("model"))
    selections = {point.facts.get("tasks", "") for point in points if point.tasks}
    benchmark = selections.pop() if len(selections) == 1 else ""
    pipelines = {point.facts.get("pipeline") or "evaluate" for point in points if point.has_results}
    return _title(list(models), comparison.tasks, benchmark, pipelines.pop() if len(pipelines) == 1 else "")


def run_title(record: RunRecord) -> str:
    """Return the title of one run's report, as `title` does."""
    model = record.settings.get("engine", {}).get("model")
    tasks, selected = [task.name for task in record.tasks], record.config.get("tasks", {})
    pipeline = "throughput" if record.throughput is not None else "parity" if record.parity is not None else ""
    return _title([str(model)] if model else [], tasks, selected.get("benchmark") or "", pipeline)


def _title(models: Sequence[str], tasks: Sequence[str], benchmark: str, pipeline: str) -> str:
    what = _listed(models, "model") or "Unknown model"
    if pipeline in ("throughput", "parity"):
        what += f": {pipeline}"
    if not tasks:
        return what
    # The names of tasks that were selected one by one are joined by commas.
    named = (
        len(tasks) > _MOST_IN_TITLE and benchmark and not any(name in re.split(r",\s*", benchmark) for name in tasks)
    )
    return f"{what} on {benchmark} ({count(len(tasks), 'task')})" if named else f"{what} on {_listed(tasks, 'task')}"


def _listed(names: Sequence[str], noun: str) -> str:
    if len(names) <= _MOST_IN_TITLE:
        return ", ".join(names)
    shown = names[: _MOST_IN_TITLE - 1]
    return f"{', '.join(shown)} and {count(len(names) - len(shown), f'other {noun}')}"


def scope(comparison: Comparison) -> str:
    """Return how many points and tasks there are, and which point differences are relative to."""
    points, shared = len(comparison.rows), len(comparison.shared)
    parts = [count(points, "point")]
    if comparison.tasks or comparison.scored:
        total, of_all = len(comparison.tasks), "comparable" if comparison.unequal else "in all points"
        parts.append(
            count(total, "task") if shared == total else f"{count(total, 'task')}, {shared or 'none'} of them {of_all}"
        )
    if points > 1:
        parts.append(f"differences relative to {point_name(comparison.baseline)}")
    return ", ".join(parts)


def circumstances(comparison: Comparison) -> list[tuple[str, str]]:
    """Return the date, the devices and the versions of a comparison, as label and text; without those that are unknown."""
    points = [row.point for row in comparison.rows]
    dates = sorted(_date(point.started) for point in points if point.started)
    date = dates[0] if dates and dates[0] == dates[-1] else " to ".join([*dates[:1], *dates[-1:]])
    facts = [point.facts for point in points]
    devices = dict.fromkeys(one["device"] for one in facts if one.get("device"))
    versions = {package: [one.get(f"versions.{package}", "") for one in facts] for package in _PACKAGES}
    return _lines(date, list(devices), {package: sorted({*found} - {""}) for package, found in versions.items()})


def run_circumstances(record: RunRecord) -> list[tuple[str, str]]:
    """Return the date, the device and the versions of one run, as `circumstances` does."""
    engine = record.settings.get("engine", {})
    versions = {**record.versions, **(engine.get("versions") or {})}
    found = {package: [version] for package in _PACKAGES if (version := versions.get(package))}
    date = f"{_date(record.started)}, {record.seconds:,.1f} s" if record.started else ""
    return _lines(date, list(filter(None, [str(engine.get("device") or record.hardware.device)])), found)


def _lines(date: str, devices: Sequence[str], versions: dict[str, list[str]]) -> list[tuple[str, str]]:
    shown = ", ".join(f"{package} {' / '.join(found)}" for package, found in versions.items() if found)
    return [
        (label, text) for label, text in (("date", date), ("device", "; ".join(devices)), ("versions", shown)) if text
    ]


def _date(started: str) -> str:
    """Return an ISO time without its seconds, e.g. "2026-11-24 10:00 +00:00"."""
    found = re.fullmatch(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d)[\d:.]*([+-]\d\d:\d\d|Z)?", started)
    return " ".join(filter(None, found.groups())) if found else started


def command_heading(comparison: Comparison) -> str:
    """Return the heading of the command that `recommended_command` returns."""
    several = len(comparison.rows) > 1
    return "Command for the recommended configuration" if several else "Command that repeats this run"


def recommended_command(comparison: Comparison) -> str:
    """Return the command that runs the recommended configuration, quoted for a shell; "" where it is unknown."""
    row: Row | None = comparison.recommended
    return command(*row.point.arguments) if row is not None and row.point.arguments is not None else ""
