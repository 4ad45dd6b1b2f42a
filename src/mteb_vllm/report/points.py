"""A run as it is compared: what it ran with, its tasks and their scores, and what it measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Interval

from mteb_vllm.results.failures import Failure

# Pipelines whose runs are not about scores.
MEASURING = ("throughput", "parity")

# What a record may hold, and is checked for where it is read.
Score = Annotated[float, Interval(ge=-1e6, le=1e6)]
Count = Annotated[int, Interval(ge=0, le=10**15)]
Amount = Annotated[float, Interval(ge=0, le=1e15)]


@dataclass(frozen=True)
class Step:
    """Timed steps at one batch size; a step is one call with so many requests.

    Attributes:
        batch_size: Requests of a step.
        requests: Requests a second.
        tokens: Tokens a second.
        p50: The median latency of a step, in ms.
        p90: The latency that nine of ten steps stay below, in ms.
    """

    batch_size: Count
    requests: Amount
    tokens: Amount
    p50: Amount
    p90: Amount


@dataclass(frozen=True)
class Throughput:
    """How fast an engine answers.

    Attributes:
        unit: What a request is: "texts" or "pairs".
        lengths: How long the texts are, as it is shown.
        steps: By batch size, ascending.
        requests: Requests a second with everything given at once, the median of the repeats; None where that was not reached.
        tokens: Tokens a second then; likewise.
        spread: (largest - smallest) / median of the repeats; likewise.
        roof: Tokens a second at the arithmetic rate that the machine reaches; None where it could not be had.
        share: The share of it that `tokens` is; likewise.
        device_mb: Peak memory of the device, in MiB; None where there is none.
    """

    unit: str
    lengths: str
    steps: tuple[Step, ...]
    requests: Amount | None
    tokens: Amount | None
    spread: Amount | None
    roof: Amount | None
    share: Amount | None
    device_mb: Amount | None

    def p50(self, batch_size: int) -> float | None:
        """Return the median latency of steps of this size, in ms; None where there are none."""
        return next((step.p50 for step in self.steps if step.batch_size == batch_size), None)


@dataclass(frozen=True)
class Parity:
    """How far an engine is from a reference.

    Attributes:
        passed: The verdict.
        reference: What it was compared with, as it is shown.
        tolerance: How far a main score may be from the reference's.
        difference: Of all tasks, splits and subsets, the main score's difference to the reference whose absolute value is the
            largest; None where there is none.
        task: The task that it is of; "" where there is none.
        cosine: The lowest cosine of a text's two embeddings; None where there are none.
        reason: The first reason why a task did not pass; "" where all did.
        hint: The first of the hints at a cause; "" where there is none.
    """

    passed: bool
    reference: str
    tolerance: Score | None
    difference: Score | None
    task: str
    cosine: Score | None
    reason: str
    hint: str


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
        seconds: Wall time of the engine's work on them, without the store's.
        reused: Whether its result was there already; the figures are then those of the run that computed it.
    """

    name: str
    type: str = ""
    score: Score | None = None
    failed: bool = False
    first_stage: Score | None = None
    ceiling: Score | None = None
    unit: str = "texts"
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
        source: "run" is this program's, "results" a folder of results in mteb's layout, of whomever.
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
    throughput: Throughput | None = None
    parity: Parity | None = None

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


def read_throughput(said: Mapping[str, Any]) -> Throughput | None:
    """Return what a record says of throughput; None where it says nothing."""
    if not said:
        return None
    saturated, roof, memory = (said.get(key) or {} for key in ("saturated", "roof", "memory_mb"))
    return Throughput(
        unit=said["unit"],
        lengths=lengths_text(said["lengths"]),
        steps=tuple(
            Step(
                one["batch_size"],
                one["requests_per_second"],
                one["tokens_per_second"],
                one["latency_ms"]["p50"],
                one["latency_ms"]["p90"],
            )
            for one in said["steps"]
        ),
        requests=saturated.get("requests_per_second"),
        tokens=saturated.get("tokens_per_second"),
        spread=saturated.get("spread"),
        roof=roof.get("tokens_per_second"),
        share=roof.get("share"),
        device_mb=memory.get("device"),
    )


def read_parity(said: Mapping[str, Any]) -> Parity | None:
    """Return what a record says of parity; None where it says nothing."""
    if not said:
        return None
    worst = max(
        (
            (abs(split["difference"]), split["difference"], task["task"])
            for task in said["tasks"]
            for split in task.get("splits") or ()
            if split.get("difference") is not None
        ),
        default=(None, None, ""),
    )
    cosines = [(task.get("cosine") or {}).get("min") for task in said["tasks"]]
    reasons = (f"{task['task']}: {reason}" for task in said["tasks"] for reason in task.get("reasons") or ())
    hint = next(iter(said.get("hints") or ()), None)
    return Parity(
        passed=said["passed"],
        reference=said["reference"]["says"],
        tolerance=(said.get("tolerances") or {}).get("score"),
        difference=worst[1],
        task=worst[2],
        cosine=min((one for one in cosines if one is not None), default=None),
        reason=next(reasons, ""),
        hint=f"{hint['cause']}: {hint['says']}" if hint else "",
    )


def lengths_text(lengths: Mapping[str, Any]) -> str:
    """Return how long texts are, in words."""
    kind = lengths["kind"]
    if kind == "fixed":
        return f"{lengths['tokens']:,} tokens each"
    words = "the tasks' own texts" if kind == "tasks" else f"varied ({lengths.get('distribution') or 'a distribution'})"
    if "mean" not in lengths:  # a run that was cut short
        return words
    return f"{words}, mean {lengths['mean']:,.0f}, {lengths['min']:,} to {lengths['max']:,} tokens"
