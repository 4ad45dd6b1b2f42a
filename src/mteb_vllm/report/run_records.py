"""A run's record, read for a comparison."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

from mteb_vllm.report.points import MEASURING, Point, TaskScore, read_parity, read_throughput
from mteb_vllm.results.failures import Failure, Kind, of_damage
from mteb_vllm.util.files import check_seal, parse_json, read_file
from mteb_vllm.util.fingerprint import fingerprint
from mteb_vllm.util.phase import Phase

# Longer values are cut where they are shown, and told apart by a hash.
_LONGEST = 100

_FAILURE_FIELDS = {field.name for field in fields(Failure)}


@dataclass(frozen=True)
class FoundRun:
    """A run where it was found.

    Attributes:
        point: The run, still without a name.
        number: Its number in a sweep; None of a single run.
        started: When, in ISO format; "" where nobody knows.
    """

    point: Point
    number: int | None
    started: str


def read_run(folder: Path) -> FoundRun:
    """Read `run.json` in a folder; one that cannot be read, or is not what was written, is a run that failed."""
    path = folder / "run.json"
    number = int(folder.name) if folder.name.isdecimal() else None
    try:
        text = read_file(path)
        sealed = check_seal(text)
        record = parse_json(_without_scores(text))
        if "sha256" in record and not sealed:
            raise ValueError("it was changed after it was written")
        found = FoundRun(_point(folder, record), record["point"], record["started"])
        _checker().validate_python([found])
        if None not in (number, found.number) and number != found.number:
            raise ValueError(f"it is the record of point {found.number}")
        return found
    except FileNotFoundError:
        why = f"{folder} holds no run.json: the run has not ended, or was killed, or the file is gone"
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        why = f"{path} is no record that can be read ({describe_error(error)})"
    return FoundRun(Point("", folder, failures=[of_damage(why)]), number, "")


def describe_error(error: Exception) -> str:
    """Return what is wrong with a file's content, in one short line."""
    if hasattr(error, "errors"):  # pydantic's
        first = error.errors()[0]
        text = f"{'.'.join(map(str, first['loc'][1:]))}: {first['msg']}"
    elif isinstance(error, (LookupError, TypeError, AttributeError)):
        text = f"{type(error).__name__}: {error}"
    else:
        text = str(error)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


@functools.cache
def _checker() -> Any:
    """Return what checks the types and ranges of all that was read of runs."""
    from pydantic import ConfigDict, TypeAdapter

    # Dataclasses check nothing themselves.
    config = ConfigDict(strict=True, allow_inf_nan=False, revalidate_instances="always")
    return TypeAdapter(list[FoundRun], config=config)


def short_text(value: Any) -> str:
    """Return a setting's value as one would type it, in one short line."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 20]}... ({fingerprint({'value': text})[:8]})"


def _without_scores(text: bytes) -> bytes:
    """Return a record without the scores of each split and subset, which are nine tenths of it.

    They are cut out by the indentation that `write_record` gives them: no string of JSON holds a line break. Where they stand
    in another way, they stay.
    """
    start, end = b'\n      "scores": {\n', b"\n      }"
    parts, at = [], 0
    while (opened := text.find(start, at)) >= 0 and (closed := text.find(end, opened)) >= 0:
        parts.append(text[at : opened + len(start)])
        at = closed
    return b"".join([*parts, text[at:]])


def _point(folder: Path, record: Mapping[str, Any]) -> Point:
    engine, settings = record["engine"], record["settings"]
    tasks = [_task(task) for task in record["tasks"]]
    failures = [record["failure"], *(task["failure"] for task in record["tasks"])]
    return Point(
        name="",
        folder=folder,
        overrides=dict(_override(text) for text in record["overrides"]),
        facts={key: text for key, text in _facts(record) if text},
        engine=engine.get("fingerprint") or (fingerprint(settings["engine"]) if settings.get("engine") else ""),
        tasks=tasks,
        engine_seconds=_engine_seconds(record),
        seconds=record["seconds"],
        peak_memory_mb=_peak_memory(record),
        failures=[_failure(one) for one in failures if one],
        throughput=read_throughput(record.get("throughput") or {}),
        parity=read_parity(record.get("parity") or {}),
    )


def _override(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    return key.lstrip("+~"), "(removed)" if key.startswith("~") else value


def _failure(said: Mapping[str, Any]) -> Failure:
    known = {key: value for key, value in said.items() if key in _FAILURE_FIELDS}
    if not isinstance(known.get("phase"), str) or known["phase"] not in set(Phase):
        known["phase"] = None  # of another version of this program
    return Failure(**known | {"kind": said["kind"] if said["kind"] in get_args(Kind) else "error"})


def _task(said: Mapping[str, Any]) -> TaskScore:
    figures = said.get("measured") or said
    seconds = figures.get("seconds")
    sides = said.get("prompts") or ()
    return TaskScore(
        name=said["name"],
        type=said["type"],
        score=said["main_score"],
        failed=said["status"] == "failed",
        first_stage=said.get("first_stage"),
        ceiling=said.get("ceiling"),
        unit=figures.get("unit") or ("pairs" if any(side.endswith("pair") for side in sides) else "texts"),
        computed=figures.get("computed"),
        stored=figures.get("stored"),
        tokens=figures.get("tokens"),
        seconds=seconds.get("encode") if isinstance(seconds, dict) else seconds,
        reused=said["status"] == "reused",
    )


def _engine_seconds(record: Mapping[str, Any]) -> float | None:
    """Return what the start of the engine took; of a run that had none, of the runs that computed its results."""
    if engine := record["engine"]:
        return engine.get("seconds") if engine.get("opened") else None
    noted = [(task.get("measured") or {}).get("engine_seconds") for task in record["tasks"]]
    return max((seconds for seconds in noted if seconds is not None), default=None)


def _peak_memory(record: Mapping[str, Any]) -> float | None:
    # Where an engine is timed, not what the roof has taken afterwards.
    said = (record.get("throughput") or {}).get("memory_mb") or record.get("peak_memory_mb") or {}
    return sum(said.get(key, 0.0) for key in ("process", "engine_processes")) or None


def _args(record: Mapping[str, Any], kind: str = "args") -> Mapping[str, Any]:
    found: Mapping[str, Any] = (record["settings"].get("engine") or {}).get(kind) or {}
    return found


def _facts(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Return all that a run ran with, under the keys that a user would set it by where there are any."""
    settings, config, hardware = record["settings"], record["config"], record.get("hardware") or {}
    engine = settings.get("engine") or {}
    args = _args(record)
    yield "model", engine.get("model") or short_text(config["model"].get("name") or "")
    yield "revision", engine.get("revision") or ""
    yield "weights", (engine.get("weights") or "")[:12]
    yield "engine.backend", engine.get("backend") or record["engine"].get("backend") or ""
    for key, value in args.items():
        yield f"engine.{key}", short_text(value)
    for key, value in _args(record, "env").items():
        yield f"engine.env.{key}", short_text(value)
    for key, value in _args(record, "shell").items():
        yield f"shell.{key}", short_text(value)
    for key, value in (record["engine"].get("resolved") or {}).items():
        if value != args.get(key):
            yield f"resolved.{key}", short_text(value)
    yield "scoring", settings.get("scoring") or ""
    yield from _read_as(record)
    if (stage := record.get("first_stage") or {}).get("kind"):
        model = ((stage.get("settings") or {}).get("engine") or {}).get("model") if stage["kind"] == "dense" else None
        yield "pipeline/first_stage", f"{stage['kind']} ({model})" if model else stage["kind"]
        yield "pipeline.first_stage.settings", str(settings.get("first_stage") or "")
        yield "pipeline.top_k", short_text(config["pipeline"]["top_k"])
    tasks = config["tasks"]
    yield "tasks", _tasks(tasks)
    for key in ("splits", "subsets"):
        yield f"tasks.{key}", ", ".join(tasks.get(key) or ())
    pipeline = (config["pipeline"].get("_target_") or "").removeprefix("mteb_vllm.pipelines.").partition(".")[0]
    yield "pipeline", pipeline if pipeline in MEASURING else ""
    if throughput := read_throughput(record.get("throughput") or {}):
        yield "pipeline.lengths", throughput.lengths
    if parity := read_parity(record.get("parity") or {}):
        yield "pipeline.reference", parity.reference
    yield "device", engine.get("device") or hardware.get("device") or ""
    for key in ("gpus", "cores"):
        yield key, short_text(hardware[key]) if hardware.get(key) else ""
    yield "memory", f"{hardware['memory_mb'] / 1024:.0f} GiB" if hardware.get("memory_mb") else ""
    for key, value in (record.get("versions") or {}).items():
        yield f"versions.{key}", value or ""
    yield "platform", hardware.get("platform") or ""
    yield "git", record.get("git") or ""


def _read_as(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Return the prompts, instructions and templates with which texts or pairs were given to the model."""
    settings = record["settings"]
    if prompts := settings.get("prompts"):
        values = prompts["prompts"] | ({"default": prompts["default"]} if prompts.get("default") else {})
        yield "prompts", _texts(values)
        documents = ", documents too" if prompts.get("apply_to_documents") else ""
        yield "instruction", short_text(prompts["template"]) + documents if prompts.get("template") else ""
    if settings.get("instructions"):
        yield "instructions", _texts(settings["instructions"])
    if settings.get("prompts") or settings.get("instructions"):
        yield "prompts.source", record["prompts"].get("source") or ""
    if template := settings.get("score_template"):
        text, file = template.get("template"), (record["config"].get("score_template") or {}).get("file")
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
        return short_text(", ".join(config["names"]))
    if config.get("benchmark"):
        return str(config["benchmark"])
    return ", ".join(f"{key}={short_text(config[key])}" for key in ("types", "languages") if config.get(key))
