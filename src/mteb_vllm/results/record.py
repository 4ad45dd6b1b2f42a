"""What a run leaves behind: its record, as `run.json` and `scores.csv`."""

from __future__ import annotations

import csv
import io
import math
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from mteb_vllm._version import __version__
from mteb_vllm.results.counters import Work
from mteb_vllm.results.failures import Failure
from mteb_vllm.util.disk import attempt
from mteb_vllm.util.escape import csv_cell
from mteb_vllm.util.files import dump_sealed, write_atomically
from mteb_vllm.util.machine import device, gpu_count, versions
from mteb_vllm.util.masking import masked

Status = Literal["computed", "reused", "failed"]


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
        seconds: Wall time by phase: load, encode, store (embeddings looked up and kept), score.
        texts: Texts, or pairs of texts, that mteb asked for. This and what follows is None where nothing was computed now.
        computed: Different ones, which the engine computed.
        stored: Different ones, whose embeddings were in the store.
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
    main_score: float | None = None
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    failure: Failure | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    texts: int | None = None
    computed: int | None = None
    stored: int | None = None
    tokens: int | None = None
    cached_tokens: int | None = None
    blank: int | None = None
    truncated: int | None = None
    truncated_queries: int | None = None
    prompts: dict[str, Any] = field(default_factory=dict)
    candidates: Literal["first stage", "own"] | None = None
    first_stage: float | None = None
    ceiling: float | None = None
    predictions: list[str] = field(default_factory=list)
    measured: dict[str, Any] | None = None
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
    def unit(self) -> str:
        """What is counted: texts, or pairs of a query and a document."""
        return "pairs" if "pair" in {side.rpartition(" ")[2] for side in self.prompts} else "texts"

    def take(self, work: Work) -> None:
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

    def figures(self) -> dict[str, Any]:
        """What computing it took, for runs that will find its result."""
        return {
            "texts": self.texts,
            "computed": self.computed,
            "stored": self.stored,
            "tokens": self.tokens,
            "seconds": self.seconds.get("encode"),
            "unit": self.unit,
        }

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
class RunRecord:
    """One run, as it is kept in `run.json`.

    Attributes:
        status: Whether every task has a score, and a comparison with a reference passed.
        fingerprint: The hash of everything but the tasks that the scores depend on.
        overrides: The command-line overrides of this run.
        point: Its number in a sweep.
        settings: What the fingerprint is made of.
        config: The resolved configuration.
        prompts: Values, source and template, and which keys apply to nothing here.
        tasks: What became of each task.
        embedding_cache: What was read from the embedding cache, and written to it; empty where there is none.
        engine: How it was opened: preset, resolved values, seconds; empty where known results needed none.
        first_stage: Of a reranking run: its configuration; of a dense one also its engine, prompts, and what it computed.
        throughput: Of a run that times its engine: lengths, the figures of each batch size and of everything at once, the
            roof, memory.
        parity: Of a run that compares with a reference: the verdict, task by task, and hints at the cause.
        failure: Why the run as a whole failed.
        unwritten: Which files could not be written, and why; scores are none the worse for it.
        warnings: What a user should know of this run.
        seconds: Wall time of the run.
        peak_memory_mb: What was held at most, in MiB: by the process, and by its engine's processes together; empty where the
            process has ended before it could say.
        started: When, in ISO format with the time zone.
        output_dir: Where this record is.
    """

    status: Literal["ok", "failed"] = "ok"
    fingerprint: str = ""
    overrides: list[str] = field(default_factory=list)
    point: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    prompts: dict[str, Any] = field(default_factory=dict)
    tasks: list[TaskOutcome] = field(default_factory=list)
    engine: dict[str, Any] = field(default_factory=dict)
    embedding_cache: dict[str, Any] = field(default_factory=dict)
    first_stage: dict[str, Any] = field(default_factory=dict)
    throughput: dict[str, Any] = field(default_factory=dict)
    parity: dict[str, Any] = field(default_factory=dict)
    failure: Failure | None = None
    unwritten: list[Failure] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0
    peak_memory_mb: dict[str, float] = field(default_factory=dict)
    started: str = ""
    output_dir: str = ""

    @property
    def failures(self) -> list[Failure]:
        """All that went wrong, what concerns the whole run first, and what could not be written last."""
        found = [self.failure, *(task.failure for task in self.tasks), *self.unwritten]
        return [failure for failure in found if failure is not None]

    @property
    def scores(self) -> dict[str, float | None]:
        """Task to main score."""
        return {task.name: task.main_score for task in self.tasks}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with versions, hardware and the revision of a checkout."""
        return {
            **masked(asdict(self)),
            "versions": {"mteb-vllm": __version__, "python": platform.python_version(), **versions()},
            "hardware": hardware(),
            "git": git_revision(),
        }


def write_record(record: RunRecord, folder: Path) -> None:
    """Write `run.json`, with its checksum, and `scores.csv` into a run's folder; what cannot be written is noted."""
    with attempt(folder / "run.json"):
        write_atomically(folder / "run.json", dump_sealed(_finite(record.to_dict())))
    with attempt(folder / "scores.csv"):
        write_atomically(folder / "scores.csv", scores_csv(record))


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


def hardware() -> dict[str, Any]:
    """The kind of machine."""
    return {
        "device": device(),
        "gpus": gpu_count(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        "platform": platform.platform(),
    }


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


def _finite(value: Any) -> Any:
    """The value with NaN and Inf as None, which JSON has no words for."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
