"""The record of a run, stored as `run.json` and `scores.csv`.

`run.json` is written from the dataclasses here, and validated when it is read back into them; see `write_record` and
`read_record`.
"""

from __future__ import annotations

import csv
import functools
import io
import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
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
from mteb_vllm.util.fingerprint import fingerprint
from mteb_vllm.util.machine import device, gpu_count, versions
from mteb_vllm.util.masking import mask_values
from mteb_vllm.util.plain import json_value

if TYPE_CHECKING:
    from pydantic import ConfigDict, TypeAdapter

# The version of the format of `run.json`, raised whenever another version of the program could not read it, or misread it.
SCHEMA = 2

Status = Literal["computed", "cached", "failed"]

# Longer lists of subsets are shown as their number and a hash.
_LONGEST_SUBSETS = 100


def describe_subsets(found: Iterable[tuple[str, str]]) -> str:
    """Return pairs of split and subset in a short form, which is the same for the same pairs only, in any order."""
    of_split: dict[str, list[str]] = {}
    for split, subset in sorted(set(found)):
        of_split.setdefault(split, []).append(subset)
    text = "; ".join(f"{split}: {', '.join(subsets)}" for split, subsets in of_split.items())
    if len(text) <= _LONGEST_SUBSETS:
        return text
    return f"{sum(map(len, of_split.values())):,} subsets ({fingerprint({'subsets': text})[:8]})"


@dataclass
class TaskOutcome:
    """The outcome of one task.

    Attributes:
        name: The task.
        type: Its type.
        status: Computed by this run, read from the results store, or failed.
        metric: The name of its main score.
        main_score: The mean over splits and subsets; None if it failed.
        scores: Split to subset to all scores; of a failed task, only of the subsets that have scores.
        subsets: The splits and subsets that the main score is the mean over, as `describe_subsets` returns them.
        failure: The failure, if it failed.
        seconds: Wall time by phase: load, encode, store (reading and writing the embedding cache), score.
        texts: Texts, or pairs of texts, requested by mteb. This and the following counts are None if nothing was computed.
        computed: Distinct ones that the engine computed.
        stored: Distinct ones that came from the embedding cache.
        tokens: Tokens passed to the engine.
        cached_tokens: Those of them found in the engine's prefix cache.
        blank: Texts without a token, which are embedded as zeros; of pairs, those scored 0 for that reason.
        truncated: Texts longer than the context length; of pairs, those whose document was truncated.
        truncated_queries: Pairs whose query alone exceeds the context and was truncated.
        prompts: For each side, the prefix, its key, and a rendered example.
        candidates: Where a reranker's candidates come from: "first stage", or "own" if the task brings them.
        first_stage: The first stage's main score; None if there is no first stage or the score is unknown.
        ceiling: The score of a perfect reranker on the same candidates; None in the same cases.
        predictions: Paths of the first stage's predictions.
        measured: For a cached result, what the run that computed it recorded of its work; None if it was not recorded.
        settings: For reranking, the hash in the name of the result's folder: tasks may differ in their candidates.
        warnings: Warnings to show to the user.
    """

    name: str
    type: str
    status: Status
    metric: str
    main_score: Score | None = None
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    subsets: str = ""
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
        """The failure's message in one line."""
        return " ".join(self.failure.message.split()) if self.failure is not None else None

    def subset_scores(self) -> list[tuple[str, float]]:
        """Return pairs of `subset/split` and main score, for those that have a score."""
        return [
            (f"{subset}/{split}", float(scores[self.metric]))
            for split, subsets in self.scores.items()
            for subset, scores in subsets.items()
            if isinstance(scores.get(self.metric), (int, float))
        ]

    @property
    def unit(self) -> Unit:
        """Whether the counts are of texts, or of pairs of a query and a document."""
        return "pairs" if "pair" in {side.rpartition(" ")[2] for side in self.prompts} else "texts"

    def set_work(self, work: Work) -> None:
        """Set the counts from the work that was done."""
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
        """Return the cost of computing this result and the counts of its texts, to be stored with it.

        Args:
            engine: The record of its engine; None if none was opened.
        """
        return Measured(
            texts=self.texts,
            computed=self.computed,
            stored=self.stored,
            tokens=self.tokens,
            seconds=self.seconds.get("encode"),
            unit=self.unit,
            engine_seconds=engine.seconds if engine is not None else None,
            max_model_len=engine.resolved.get("max_model_len") if engine is not None else None,
            blank=self.blank,
            truncated=self.truncated,
            truncated_queries=self.truncated_queries,
            subsets=self.subsets,
        )

    @property
    def gain(self) -> float | None:
        """The difference between the reranked and the first stage's main score."""
        return None if self.main_score is None or self.first_stage is None else self.main_score - self.first_stage

    @property
    def share(self) -> float | None:
        """The main score as a share of the ceiling."""
        return None if self.main_score is None or not self.ceiling else self.main_score / self.ceiling

    @property
    def total_seconds(self) -> float:
        """Wall time of the whole task."""
        return sum(self.seconds.values())

    @property
    def texts_per_second(self) -> float | None:
        """Computed texts per second of encoding; None if nothing was computed."""
        return _rate(self.computed, self.seconds.get("encode"))

    @property
    def tokens_per_second(self) -> float | None:
        """Computed tokens per second of encoding; None if nothing was computed."""
        return _rate(self.tokens, self.seconds.get("encode"))


@dataclass
class FirstStageRecord:
    """The first stage of a reranking run.

    Attributes:
        kind: Its name in the configuration: "bm25", "dense", ...
        settings: The settings that its candidates depend on: one set for a dense first stage, else one per task.
        options: Its options; empty for a dense one, whose options are in `settings`.
        engine: The record of a dense one's engine; None if it was not opened.
        prompts: The prompts of a dense one: `task: side` to the prefix, its key and an example.
        work: The counts of a dense one's work; None for others.
    """

    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    engine: EngineRecord | None = None
    prompts: dict[str, Any] = field(default_factory=dict)
    work: Work | None = None

    @property
    def model(self) -> str | None:
        """The name of a dense first stage's model; None for others."""
        engine = self.settings.get("engine")
        return engine.get("model") if self.kind == "dense" and isinstance(engine, dict) else None


@dataclass
class Hardware:
    """The machine that a run used.

    Attributes:
        device: The kind of device that engines compute on.
        gpus: The number of visible GPUs.
        cores: The number of CPU cores available to the process.
        memory_mb: The machine's memory in MiB.
        platform: The operating system.
    """

    device: str = ""
    gpus: Count = 0
    cores: Count | None = None
    memory_mb: Count = 0
    platform: str = ""


@dataclass
class Objective:
    """The value that a run returns to a search, which maximises it.

    Attributes:
        name: The value of `report.objective`.
        value: The figure; None if the run does not have it.
        reason: Why there is no value.
    """

    name: Literal["mean", "texts_per_second"]
    value: Amount | Score | None = None
    reason: str | None = None


@dataclass(frozen=True)
class CommandLine:
    """The arguments of a run's command.

    Attributes:
        overrides: The overrides of its configuration.
        search_path: The arguments that add folders of configuration files: `--config-dir`, `hydra.searchpath`.
    """

    overrides: Sequence[str] = ()
    search_path: Sequence[str] = ()


@dataclass
class RunRecord:
    """One run, as stored in `run.json`.

    Attributes:
        schema: The version of this format.
        status: "ok" if every task has a score and, for a parity run, the comparison passed.
        fingerprint: The hash of everything that the scores depend on, except the tasks.
        search_path: The arguments of its command that add folders of configuration files: `--config-dir`, `hydra.searchpath`.
        overrides: The command-line overrides of this run.
        point: Its number in a sweep.
        settings: The settings of which the fingerprint is the hash.
        config: The resolved configuration.
        prompts: Values, source and template of the prompts, and the keys that apply to no task.
        tasks: The outcome of each task.
        embedding_cache: Counts of reads and writes of the embedding cache; None if it was not used.
        engine: The record of the engine; None if all results were cached.
        first_stage: The first stage of a reranking run.
        throughput: The measurements of a throughput run.
        parity: The comparison of a parity run.
        objective: The figure returned to a search; None if `report.objective` is not set.
        failure: The failure of the run as a whole, if any.
        unwritten: Failures to write files; the scores are not affected by these.
        warnings: Warnings to show to the user.
        seconds: Wall time of the run.
        first_score: Seconds until the first score that this run computed, by phase: start (of a single run, from the start of
            the command), import (of mteb), first_stage and reference (of all tasks), engine (opening it), load, encode, store
            and score (of that task), other. Empty if no score was computed.
        peak_memory_mb: Peak memory; None if the process ended before it could be recorded.
        started: The start time in ISO format with time zone.
        output_dir: The folder of this record.
        versions: Versions of the relevant packages; None for one that is not installed.
        hardware: The machine.
        git: The commit of the checkout that the program ran from; None for an installed package.
    """

    # Pydantic applies this to the dataclasses in the fields as well.
    __pydantic_config__: ClassVar[ConfigDict] = {"strict": True, "allow_inf_nan": False}

    schema: int = SCHEMA
    status: Literal["ok", "failed"] = "ok"
    fingerprint: str = ""
    search_path: list[str] = field(default_factory=list)
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
    objective: Objective | None = None
    failure: Failure | None = None
    unwritten: list[Failure] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    seconds: Amount = 0.0
    first_score: dict[str, Amount] = field(default_factory=dict)
    peak_memory_mb: Memory | None = None
    started: str = ""
    output_dir: str = ""
    versions: dict[str, str | None] = field(default_factory=dict)
    hardware: Hardware = field(default_factory=Hardware)
    git: str | None = None

    @property
    def failures(self) -> list[Failure]:
        """All failures: first that of the whole run, then of tasks, then of files that could not be written."""
        found = [self.failure, *(task.failure for task in self.tasks), *self.unwritten]
        return [failure for failure in found if failure is not None]

    @property
    def deviates(self) -> bool:
        """Whether a comparison with a reference did not pass."""
        return self.parity is not None and not self.parity.passed

    @property
    def scores(self) -> dict[str, float | None]:
        """Task to main score."""
        return {task.name: task.main_score for task in self.tasks}


def write_record(record: RunRecord, folder: Path) -> None:
    """Write `run.json`, with its checksum, and `scores.csv` into a run's folder; write errors are collected, not raised.

    Versions, hardware and git commit are added to the record first.
    """
    record.versions = {"mteb-vllm": __version__, "python": platform.python_version(), **versions()}
    record.hardware, record.git = hardware(), git_revision()
    # An invalid value must not cost the whole record; it is reported when the record is read.
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
        scores: Whether to read the scores of each split and subset, which are nine tenths of the file.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is not a record, was modified after it was written, or has another format version.
    """
    text = read_file(path)
    sealed = check_seal(text)
    text = text if scores else _without_scores(text)
    content = parse_json(text)
    if not isinstance(content, dict):
        raise ValueError("it is not the record of a run")
    if (schema := content.get("schema")) != SCHEMA:
        version = (
            (content.get("versions") or {}).get("mteb-vllm") if isinstance(content.get("versions"), dict) else None
        )
        origin = f"written by {f'mteb-vllm {version}' if version else 'another version of mteb-vllm'}"
        raise ValueError(f"{origin} in format {schema or 0}, but this version reads format {SCHEMA}")
    if not sealed:
        raise ValueError("it was changed after it was written")
    return _adapter().validate_json(text)


@functools.cache
def _adapter() -> TypeAdapter[RunRecord]:
    """Return the adapter that writes records, and validates types and ranges when reading them."""
    # Imported here because --help does not need pydantic.
    from pydantic import TypeAdapter

    return TypeAdapter(RunRecord)


def _without_scores(text: bytes) -> bytes:
    """Return a record without the scores of each split and subset.

    They are located by the indentation that `write_record` produces, which is safe because JSON strings contain no line
    breaks. Scores in any other layout are kept.
    """
    start, end = b'\n      "scores": {\n', b"\n      }"
    parts, at = [], 0
    while (opened := text.find(start, at)) >= 0 and (closed := text.find(end, opened)) >= 0:
        parts.append(text[at : opened + len(start)])
        at = closed
    return b"".join([*parts, text[at:]])


def scores_csv(record: RunRecord) -> str:
    """Return CSV with one line per task, split, subset and score."""
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
    """Return a description of this machine."""
    return Hardware(
        device=device(),
        gpus=gpu_count(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        memory_mb=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        platform=platform.platform(),
    )


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values; None if there are none or one is None."""
    found = list(values)
    known = [value for value in found if value is not None]
    return sum(known) / len(known) if known and len(known) == len(found) else None


def git_revision() -> str | None:
    """Return the commit of the checkout that this package runs from, with `-dirty` if modified; None if installed."""
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    # An installed package may be inside an unrelated repository.
    return answer.stdout.strip() or None if (here.parents[2] / ".git").exists() else None


def _rate(count: int | None, seconds: float | None) -> float | None:
    return count / seconds if count and seconds else None
