"""Reads the record of a run for a comparison."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mteb_vllm.report.points import CACHED, NOT_A_NUMBER, Point, TaskScore
from mteb_vllm.results.failures import failure_from_damage
from mteb_vllm.results.record import RunRecord, TaskOutcome, read_record
from mteb_vllm.util.escape import one_line
from mteb_vllm.util.fingerprint import fingerprint

# A file that Hydra writes into the folder of a sweep.
_SWEEP = "multirun.yaml"

# Packages of a record on which neither scores nor speeds depend: the program's own changes of method are in the fingerprint.
INDEPENDENT = ("mteb-vllm", "python")

# Longer values are cut in tables, and distinguished by a hash.
_LONGEST = 100


@dataclass(frozen=True)
class FoundRun:
    """A run that was found in a folder.

    Attributes:
        point: The run, without a name.
        number: Its number in a sweep; None for a single run.
    """

    point: Point
    number: int | None


def read_run(folder: Path) -> FoundRun:
    """Read `run.json` in a folder; a record that is missing, unreadable or modified becomes a failed run."""
    path = folder / "run.json"
    number = int(folder.name) if folder.name.isdecimal() else None
    try:
        record = read_record(path, scores=False)
        found = FoundRun(_point(folder, record), record.point)
        if None not in (number, found.number) and number != found.number:
            raise ValueError(f"it is the record of point {found.number}, not of point {number}")
        if found.number is None and number is not None and (folder.parent / _SWEEP).exists():
            raise ValueError("it is the record of a single run, not of a point of this sweep")
        return found
    except FileNotFoundError:
        why = f"{folder} contains no run.json: the run has not finished or was killed, or the file was deleted"
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        why = f"{path} is not a readable record ({describe_error(error)})"
    return FoundRun(Point("", folder, failures=[failure_from_damage(one_line(why))]), number)


def describe_error(error: Exception) -> str:
    """Return in one short line why a file or its content was rejected."""
    if hasattr(error, "errors"):  # a ValidationError of pydantic
        first = error.errors()[0]
        text = f"{'.'.join(map(str, first['loc'][1:]))}: {first['msg']}"
    elif isinstance(error, json.JSONDecodeError):
        text = f"it is not valid JSON: {error}" if error.doc.strip() else "it is empty"
    elif isinstance(error, UnicodeDecodeError):
        text = "it is not valid JSON: not a text in UTF-8"
    elif isinstance(error, KeyError):
        text = f"{short_text(error.args[0])} is missing"
    elif isinstance(error, (LookupError, TypeError, AttributeError)):
        text = "a value has an unexpected type"
    elif isinstance(error, OSError) and error.strerror:
        text = error.strerror
    else:
        text = str(error)
    text = one_line(text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def short_text(value: Any) -> str:
    """Return a setting's value as it would be typed, in one short line."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 20]}... ({fingerprint({'value': text})[:8]})"


def _point(folder: Path, record: RunRecord) -> Point:
    settings, engine = record.settings, record.engine
    opened = engine.identity if engine is not None else ""
    tasks = [_task(task) for task in record.tasks]
    # Without an engine at work, peak memory is that of Python and of mteb's data.
    at_work = record.throughput is not None or not tasks or any(not task.cached for task in tasks)
    return Point(
        name="",
        folder=folder,
        overrides=dict(_override(text) for text in record.overrides),
        arguments=_arguments(record),
        facts={key: text for key, text in _facts(record) if text},
        engine=opened or (fingerprint(settings["engine"]) if settings.get("engine") else ""),
        tasks=tasks,
        engine_seconds=engine.seconds if engine is not None and engine.opened else None,
        seconds=record.seconds,
        peak_memory_mb=_peak_memory(record) if at_work else None,
        failures=[one for one in (record.failure, *(task.failure for task in record.tasks)) if one is not None],
        throughput=record.throughput,
        parity=record.parity,
        started=record.started,
    )


def _arguments(record: RunRecord) -> tuple[str, ...] | None:
    """Return the arguments of a run's command, without the settings of reports: these concern the whole sweep or search.

    Returns:
        None for a point of a search that an experiment defines, since the experiment would search again.
    """
    if record.objective is not None and record.point is not None and record.config.get("experiment"):
        return None
    overrides = (text for text in record.overrides if not text.lstrip("+~").startswith("report."))
    return (*record.search_path, *overrides)


def _override(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    return key.lstrip("+~"), "(removed)" if key.startswith("~") else value


def _task(task: TaskOutcome) -> TaskScore:
    # The work for a cached result is in another run's record: only its score counts here.
    work = task.to_measured(None)
    return TaskScore(
        name=task.name,
        type=task.type,
        score=task.main_score,
        subsets=task.subsets,
        failed=task.status == "failed",
        # A score that is not finite is stored as null.
        without=NOT_A_NUMBER if task.main_score is None and task.status != "failed" else "",
        first_stage=task.first_stage,
        ceiling=task.ceiling,
        unit=task.measured.unit if task.measured is not None else task.unit,
        computed=work.computed,
        stored=work.stored,
        tokens=work.tokens,
        seconds=work.seconds,
        cached=task.status == CACHED,
    )


def _peak_memory(record: RunRecord) -> float | None:
    # Of a throughput run, the peak while the engine was timed, before the roofline was measured.
    timed = record.throughput.memory_mb if record.throughput is not None else None
    memory = timed or record.peak_memory_mb
    return memory.total or None if memory is not None else None


def _args(record: RunRecord, kind: str = "args") -> Mapping[str, Any]:
    found: Mapping[str, Any] = (record.settings.get("engine") or {}).get(kind) or {}
    return found


def _facts(record: RunRecord) -> Iterator[tuple[str, str]]:
    """Return all settings of a run, under the keys by which a user would set them where there are any."""
    settings, config, hardware, opened = record.settings, record.config, record.hardware, record.engine
    engine = settings.get("engine") or {}
    args = _args(record)
    yield "model", short_text(engine.get("model") or config["model"].get("name") or "")
    yield "revision", short_text(engine.get("revision") or "")
    yield "weights", short_text(engine.get("weights") or "")[:12]
    yield "engine.backend", short_text(engine.get("backend") or (opened.backend if opened is not None else ""))
    for key, value in args.items():
        yield f"engine.{key}", short_text(value)
    if record.throughput is not None and opened is not None:
        yield "engine.replicas", short_text(opened.replicas)  # scores do not depend on it
        yield "engine.ray_address", short_text(opened.ray_address or "")
    for key, value in _args(record, "env").items():
        yield f"engine.env.{key}", short_text(value)
    for key, value in _args(record, "shell").items():
        yield f"shell.{key}", short_text(value)
    for key, value in (opened.resolved if opened is not None else {}).items():
        if value != args.get(key):
            yield f"resolved.{key}", short_text(value)
    yield "scoring", short_text(settings.get("scoring") or "")
    yield from _prompts(record)
    if (stage := record.first_stage) is not None:
        yield "pipeline/first_stage", f"{stage.kind} ({stage.model})" if stage.model else stage.kind
        yield "pipeline.first_stage.settings", str(settings.get("first_stage") or "")
        yield "pipeline.top_k", short_text(config["pipeline"]["top_k"])
    tasks = config["tasks"]
    yield "tasks", _tasks(tasks)
    for key in ("languages", "splits", "subsets"):
        yield f"tasks.{key}", ", ".join(tasks.get(key) or ())
    pipeline = (config["pipeline"].get("_target_") or "").removeprefix("mteb_vllm.pipelines.").partition(".")[0]
    yield "pipeline", pipeline
    if record.throughput is not None:
        yield "pipeline.lengths", str(record.throughput.lengths)
    if record.parity is not None:
        yield "pipeline.reference", record.parity.reference.says
    yield "device", short_text(engine.get("device") or hardware.device)
    yield "gpus", short_text(hardware.gpus) if hardware.gpus else ""
    yield "cores", short_text(hardware.cores) if hardware.cores else ""
    yield "memory", f"{hardware.memory_mb / 1024:.0f} GiB" if hardware.memory_mb else ""
    for key, value in _versions(record).items():
        yield f"versions.{key}", value or ""
    yield "platform", hardware.platform
    yield "git", record.git or ""


def _versions(record: RunRecord) -> dict[str, str | None]:
    """Return the versions of the packages that the results depend on, as far as they are known, and of this program."""
    of_engine: Mapping[str, str] = (record.settings.get("engine") or {}).get("versions") or {}
    if not of_engine:
        return record.versions
    return {key: record.versions.get(key) for key in INDEPENDENT} | dict(of_engine)


def _prompts(record: RunRecord) -> Iterator[tuple[str, str]]:
    """Return the prompts, instructions and templates of a run's texts or pairs."""
    settings = record.settings
    if prompts := settings.get("prompts"):
        values = prompts["prompts"] | ({"default": prompts["default"]} if prompts.get("default") else {})
        yield "prompts", _texts(values)
        documents = ", documents too" if prompts.get("apply_to_documents") else ""
        yield "instruction", short_text(prompts["template"]) + documents if prompts.get("template") else ""
    if settings.get("instructions"):
        yield "instructions", _texts(settings["instructions"])
    if settings.get("prompts") or settings.get("instructions"):
        yield "prompts.source", short_text(record.prompts.get("source") or "")
    if template := settings.get("score_template"):
        text, file = template.get("template"), (record.config.get("score_template") or {}).get("file")
        name = (
            f"{Path(file).stem + ' ' if file else ''}{fingerprint({'text': text})[:8]}" if text else "the model's own"
        )
        rest = {key: value for key, value in template.items() if key != "template" and value}
        yield "score_template", ", ".join([name, *([_texts(rest)] if rest else [])])


def _texts(values: Mapping[str, Any]) -> str:
    return short_text(
        ", ".join(f"{key}={json.dumps(text, ensure_ascii=False)}" for key, text in values.items()) or "none"
    )


def _tasks(config: Mapping[str, Any]) -> str:
    if config.get("names"):
        return short_text(", ".join(sorted(config["names"])))
    if config.get("benchmark"):
        return str(config["benchmark"])
    return f"types={short_text(config['types'])}" if config.get("types") else ""
