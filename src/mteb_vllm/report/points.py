"""A run as it is compared: what it ran with, its tasks and their scores, and what it measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mteb_vllm.results.failures import Failure
from mteb_vllm.results.measurements import Amount, Count, Score, ThroughputRecord, Unit
from mteb_vllm.results.parity import ParityRecord

# Pipelines whose runs are not about scores.
MEASURING = ("throughput", "parity")


@dataclass(frozen=True)
class TaskScore:
    """One task of a point.

    Attributes:
        name: The task.
        type: Its type; "" where nobody knows the task.
        score: The main score, the mean over splits and subsets; None if it failed.
        failed: Whether it failed.
        first_stage: Of a reranking run, the first stage's main score; None where there is none or it is not known.
        ceiling: Of a reranking run, what a perfect reranker would reach; likewise.
        unit: What `computed` and `stored` count: texts, or pairs.
        computed: Those that the engine computed, each different one once. This and what follows is None where nobody knows.
        stored: Those of the different ones that came from the embedding cache.
        tokens: Tokens that the engine was given.
        seconds: Wall time of the engine's work on them, without that of the embedding cache.
        reused: Whether its result was there already; the figures are then those of the run that computed it.
    """

    name: str
    type: str = ""
    score: Score | None = None
    failed: bool = False
    first_stage: Score | None = None
    ceiling: Score | None = None
    unit: Unit = "texts"
    computed: Count | None = None
    stored: Count | None = None
    tokens: Count | None = None
    seconds: Amount | None = None
    reused: bool = False


@dataclass(frozen=True)
class Point:
    """One run, as it is compared.

    Attributes:
        name: Its number in a sweep, or what its folder is called; different ones in a comparison.
        folder: Where it was found.
        source: "run" is this program's, "results" a folder of results in mteb's layout, whoever made it.
        overrides: What made it, by the command line: key to value.
        facts: Everything that it ran with, flat, by dotted keys: "model", "revision", "engine.dtype", "device",
            "versions.vllm", ...; values as they are shown.
        engine: The fingerprint of its engine; "" where there is none.
        tasks: Its tasks.
        engine_seconds: What the start of its engine took; where all results were there already, of the engine that computed
            them. None where none was opened or nobody knows.
        seconds: Wall time of the whole.
        peak_memory_mb: Of the process and its engine's processes, in MiB.
        failures: What went wrong, with logs.
        throughput: What a throughput run measured; None of any other.
        parity: What a parity run found out; None of any other.
    """

    name: str
    folder: Path
    source: Literal["run", "results"] = "run"
    overrides: dict[str, str] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    engine: str = ""
    tasks: list[TaskScore] = field(default_factory=list)
    engine_seconds: Amount | None = None
    seconds: Amount | None = None
    peak_memory_mb: Amount | None = None
    failures: list[Failure] = field(default_factory=list)
    throughput: ThroughputRecord | None = None
    parity: ParityRecord | None = None

    @property
    def told(self) -> bool:
        """Whether it came so far that it says what it ran with."""
        return bool(self.tasks) or self.throughput is not None

    @property
    def for_speed(self) -> bool:
        """Whether its throughput is what it was run for."""
        return self.throughput is not None or self.facts.get("pipeline") == "throughput"

    @property
    def for_scores(self) -> bool:
        """Whether its scores are what it was run for, or nobody knows."""
        return not self.for_speed and self.parity is None and self.facts.get("pipeline") not in MEASURING

    @property
    def failed(self) -> bool:
        """Whether it failed, in part or as a whole."""
        return bool(self.failures) or any(task.failed for task in self.tasks)

    def total(self, figure: str) -> int | None:
        """Return the sum of a figure over its tasks, as `computed`, as far as it is known; None where it is known of none.

        It is the point's own work: a task whose result was there already counts as 0.
        """
        figures = (0 if task.reused else getattr(task, figure) for task in self.tasks)
        known = [value for value in figures if value is not None]
        return sum(known) if known else None
