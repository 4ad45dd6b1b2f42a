"""What a run leaves behind: its record, as `run.json` and `scores.csv`.

`run.json` is written from the dataclasses here and read back into them, and checked on the way: see `write_record` and
`read_record`.
"""

from __future__ import annotations

import csv
import functools
import io
import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from mteb_vllm._version import __version__
from mteb_vllm.results.counters import Measured, Work
from mteb_vllm.results.failures import Failure
from mteb_vllm.results.measurements import (
    Amount,
    CacheRecord,
    Count,
    EngineRecord,
    Memory,
    Score,
    ThroughputRecord,
    Unit,
)
from mteb_vllm.results.parity import ParityRecord
from mteb_vllm.util.disk import attempt
from mteb_vllm.util.escape import csv_cell
from mteb_vllm.util.files import check_seal, dump_sealed, parse_json, read_file, write_atomically
from mteb_vllm.util.machine import device, gpu_count, versions
from mteb_vllm.util.masking import mask_values
from mteb_vllm.util.plain import json_value

if TYPE_CHECKING:
    from pydantic import ConfigDict, TypeAdapter

# The version of `run.json`: it goes up where a record could be misread, or not be read, by the program of before.
SCHEMA = 2

Status = Literal["computed", "cached", "failed"]


@dataclass
class TaskOutcome:
    """What became of one task.

    Attributes:
        name: The task.
        type: Its type.
        status: Computed now, read from the results store, or failed.
        metric: The name of its main score.
        main_score: The mean over splits and subsets; None if it failed.
        scores: Split to subset to all scores; of a failed task, of those subsets that have some.
        failure: Why it failed.
        seconds: Wall time by phase: load, encode, store (embeddings looked up in the cache and kept there), score.
        texts: Texts, or pairs of texts, that mteb asked for. This and what follows is None where nothing was computed now.
        computed: Different ones, which the engine computed.
        stored: Different ones, whose embeddings were in the embedding cache.
        tokens: Tokens that the engine was given.
        cached_tokens: Those of them that it had in its prefix cache.
        blank: Texts without a token, which are embedded as zeros; of pairs, those with the score 0 for that reason.
        truncated: Texts that were longer than the context; of pairs, those whose document was cut.
        truncated_queries: Pairs whose query was too long by itself, and was cut.
        prompts: For each side, the prefix, its key, and a rendered example.
        candidates: Where a reranker's candidates come from: "first stage", or "own" where the task brings them.
        first_stage: The first stage's main score; None where there is none or it is not known.
        ceiling: What a perfect reranker would reach with the same candidates; likewise.
        predictions: Where the first stage's predictions are.
        measured: Of a result that was reused, what the run that computed it noted of texts, tokens and seconds; None where
            nobody noted it.
        settings: Of a reranking run, the hash that names the result's folder in the store: tasks may differ in candidates.
        warnings: What a user should know of it.
    """

    name: str
    type: str
    status: Status
    metric: str
    main_score: Score | None = None
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    failure: Failure | None = None
    seconds: dict[str, Amount] = field(default_factory=dict)
    texts: Count | None = None
    computed: Count | None = None
    stored: Count | None = None
    tokens: Count | None = None
    cached_tokens: Count | None = None
    blank: Count | None = None
    truncated: Count | None = None
    truncated_queries: Count | None = None
    prompts: dict[str, Any] = field(default_factory=dict)
    candidates: Literal["first stage", "own"] | None = None
    first_stage: Score | None = None
    ceiling: Score | None = None
    predictions: list[str] = field(default_factory=list)
    measured: Measured | None = None
    settings: str | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def reason(self) -> str | None:
        """Why it failed, in one line."""
        return " ".join(self.failure.message.split()) if self.failure is not None else None

    def subset_scores(self) -> list[tuple[str, float]]:
        """Return the main score of each subset and split that has one, by `subset/split`."""
        return [
            (f"{subset}/{split}", float(scores[self.metric]))
            for split, subsets in self.scores.items()
            for subset, scores in subsets.items()
            if isinstance(scores.get(self.metric), (int, float))
        ]

    @property
    def unit(self) -> Unit:
        """What is counted: texts, or pairs of a query and a document."""
        return "pairs" if "pair" in {side.rpartition(" ")[2] for side in self.prompts} else "texts"

    def set_work(self, work: Work) -> None:
        """Notes what was computed."""
        for name in (
            "texts",
            "computed",
            "stored",
            "tokens",
            "cached_tokens",
            "blank",
            "truncated",
            "truncated_queries",
        ):
            setattr(self, name, getattr(work, name))

    def to_measured(self, engine: EngineRecord | None) -> Measured:
        """Return what computing it took, for runs that will find its result.

        Args:
            engine: How its engine was opened; None if none was.
        """
        return Measured(
            texts=self.texts,
            computed=self.computed,
            stored=self.stored,
            tokens=self.tokens,
            seconds=self.seconds.get("encode"),
            unit=self.unit,
            engine_seconds=engine.seconds if engine is not None else None,
        )

    @property
    def gain(self) -> float | None:
        """What reranking adds to the first stage's main score."""
        return None if self.main_score is None or self.first_stage is None else self.main_score - self.first_stage

    @property
    def share(self) -> float | None:
        """The share of the ceiling that reranking reaches."""
        return None if self.main_score is None or not self.ceiling else self.main_score / self.ceiling

    @property
    def total_seconds(self) -> float:
        """Wall time of the whole task."""
        return sum(self.seconds.values())

    @property
    def texts_per_second(self) -> float | None:
        """Computed texts a second of encoding; None where nothing was computed."""
        return _rate(self.computed, self.seconds.get("encode"))

    @property
    def tokens_per_second(self) -> float | None:
        """Computed tokens a second of encoding; None where nothing was computed."""
        return _rate(self.tokens, self.seconds.get("encode"))


@dataclass
class FirstStageRecord:
    """The first stage of a run that reranks.

    Attributes:
        kind: What it is called, as in the configuration: "bm25", "dense", ...
        settings: What its candidates depend on: of a dense one, of all tasks; else task by task.
        options: Its fields, but those of a dense one, which are in its settings.
        engine: How the engine of a dense one was opened; None where it was not.
        prompts: What a dense one's texts were prefixed with: `task: side` to the prefix, its key and an example.
        work: What a dense one computed; None of others.
    """

    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    engine: EngineRecord | None = None
    prompts: dict[str, Any] = field(default_factory=dict)
    work: Work | None = None

    @property
    def model(self) -> str | None:
        """The name of a dense one's model."""
        engine = self.settings.get("engine")
        return engine.get("model") if self.kind == "dense" and isinstance(engine, dict) else None


@dataclass
class Hardware:
    """The kind of machine.

    Attributes:
        device: What engines compute on.
        gpus: How many GPUs there are.
        cores: How many cores this process may use.
        memory_mb: The machine's memory in MiB.
        platform: The operating system.
    """

    device: str = ""
    gpus: Count = 0
    cores: Count | None = None
    memory_mb: Count = 0
    platform: str = ""


@dataclass
class RunRecord:
    """One run, as it is kept in `run.json`.

    Attributes:
        schema: The version of this format.
        status: Whether every task has a score, and a comparison with a reference passed.
        fingerprint: The hash of everything but the tasks that the scores depend on.
        overrides: The command-line overrides of this run.
        point: Its number in a sweep.
        settings: What the fingerprint is made of.
        config: The resolved configuration.
        prompts: Values, source and template, and which keys apply to nothing here.
        tasks: What became of each task.
        embedding_cache: What was read from the embedding cache, and written to it; None where there is none.
        engine: How it was opened; None where known results needed none.
        first_stage: The first stage of a run that reranks.
        throughput: How fast the engine was, of a run that measures that.
        parity: Whether the engine's results are a reference's, of a run that compares them.
        failure: Why the run as a whole failed.
        unwritten: Which files could not be written, and why; scores are none the worse for it.
        warnings: What a user should know of this run.
        seconds: Wall time of the run.
        peak_memory_mb: The most memory that was held; None where the process has ended before it could say.
        started: When, in ISO format with the time zone.
        output_dir: Where this record is.
        versions: The versions of the packages that matter; None of one that is not installed.
        hardware: The kind of machine.
        git: The commit of the checkout that the program ran from; None of an installed package.
    """

    # Of this class and, as pydantic has it, of the dataclasses in its fields.
    __pydantic_config__: ClassVar[ConfigDict] = {"strict": True, "allow_inf_nan": False}

    schema: int = SCHEMA
    status: Literal["ok", "failed"] = "ok"
    fingerprint: str = ""
    overrides: list[str] = field(default_factory=list)
    point: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    prompts: dict[str, Any] = field(default_factory=dict)
    tasks: list[TaskOutcome] = field(default_factory=list)
    engine: EngineRecord | None = None
    embedding_cache: CacheRecord | None = None
    first_stage: FirstStageRecord | None = None
    throughput: ThroughputRecord | None = None
    parity: ParityRecord | None = None
    failure: Failure | None = None
    unwritten: list[Failure] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    seconds: Amount = 0.0
    peak_memory_mb: Memory | None = None
    started: str = ""
    output_dir: str = ""
    versions: dict[str, str | None] = field(default_factory=dict)
    hardware: Hardware = field(default_factory=Hardware)
    git: str | None = None

    @property
    def failures(self) -> list[Failure]:
        """All that went wrong, what concerns the whole run first, and what could not be written last."""
        found = [self.failure, *(task.failure for task in self.tasks), *self.unwritten]
        return [failure for failure in found if failure is not None]

    @property
    def deviates(self) -> bool:
        """Whether it was compared with a reference, and did not pass."""
        return self.parity is not None and not self.parity.passed

    @property
    def scores(self) -> dict[str, float | None]:
        """Task to main score."""
        return {task.name: task.main_score for task in self.tasks}


def write_record(record: RunRecord, folder: Path) -> None:
    """Write `run.json`, with its checksum, and `scores.csv` into a run's folder; what cannot be written is noted.

    The record gets versions, hardware and the commit of a checkout first.
    """
    record.versions = {"mteb-vllm": __version__, "python": platform.python_version(), **versions()}
    record.hardware, record.git = hardware(), git_revision()
    # Whatever is in it must not cost the record: what has another type than it should is named where it is read.
    values = _adapter().dump_python(record, warnings="none")
    content = {key: json_value(value) for key, value in values.items()}
    with attempt(folder / "run.json"):
        write_atomically(folder / "run.json", dump_sealed(mask_values(content)))
    with attempt(folder / "scores.csv"):
        write_atomically(folder / "scores.csv", scores_csv(record))


def read_record(path: Path, *, scores: bool = True) -> RunRecord:
    """Read `run.json`.

    Args:
        path: The file.
        scores: Whether to read the scores of each split and subset, which are nine tenths of it.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no record, was changed after it was written, or is of another version of this program.
    """
    text = read_file(path)
    sealed = check_seal(text)
    text = text if scores else _without_scores(text)
    content = parse_json(text)
    if not isinstance(content, dict):
        raise ValueError("it is not a record of a run")
    if (schema := content.get("schema")) != SCHEMA:
        version = (
            (content.get("versions") or {}).get("mteb-vllm") if isinstance(content.get("versions"), dict) else None
        )
        what = f"another version of mteb-vllm{f' ({version})' if version else ''} wrote it, in version {schema or 0} of the"
        raise ValueError(f"{what} format, not {SCHEMA}: run it again")
    if not sealed:
        raise ValueError("it was changed after it was written")
    return _adapter().validate_json(text)


@functools.cache
def _adapter() -> TypeAdapter[RunRecord]:
    """Return what writes records, and checks types and ranges where it reads them."""
    # Imported late: what only asks for --help needs none of it.
    from pydantic import TypeAdapter

    return TypeAdapter(RunRecord)


def _without_scores(text: bytes) -> bytes:
    """Return a record without the scores of each split and subset.

    They are cut out by the indentation that `write_record` gives them: no string of JSON holds a line break. Where they stand
    in another way, they stay.
    """
    start, end = b'\n      "scores": {\n', b"\n      }"
    parts, at = [], 0
    while (opened := text.find(start, at)) >= 0 and (closed := text.find(end, opened)) >= 0:
        parts.append(text[at : opened + len(start)])
        at = closed
    return b"".join([*parts, text[at:]])


def scores_csv(record: RunRecord) -> str:
    """One line for each task, split, subset and score."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["task", "type", "split", "subset", "metric", "value", "main", "status"])
    for task in record.tasks:
        if task.status == "failed":
            writer.writerow(map(csv_cell, [task.name, task.type, "", "", task.metric, "", "", "failed"]))
        for split, subsets in task.scores.items():
            for subset, scores in subsets.items():
                for metric, value in scores.items():
                    if isinstance(value, (int, float)) and metric != "main_score":
                        main = int(metric == task.metric)
                        line = [task.name, task.type, split, subset, metric, value, main, task.status]
                        writer.writerow(map(csv_cell, line))
    return out.getvalue()


def hardware() -> Hardware:
    """Return the kind of machine that this process is on."""
    return Hardware(
        device=device(),
        gpus=gpu_count(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        memory_mb=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        platform=platform.platform(),
    )


def mean(values: Iterable[float | None]) -> float | None:
    """The mean, if all of them are there."""
    found = list(values)
    known = [value for value in found if value is not None]
    return sum(known) / len(known) if known and len(known) == len(found) else None


def git_revision() -> str | None:
    """The commit of the checkout that this package runs from, with `-dirty` where files differ; None elsewhere."""
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    # An installed package may lie inside somebody else's repository.
    return answer.stdout.strip() or None if (here.parents[2] / ".git").exists() else None


def _rate(count: int | None, seconds: float | None) -> float | None:
    return count / seconds if count and seconds else None
