"""What a run notes of its engines: how they opened, what they held, and how fast they were.

These are parts of a `RunRecord`, written and read back by the same classes. Fields that are None are not known, unless their
description says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Interval

# What a record may hold, and is checked for where it is read back.
Score = Annotated[float, Interval(ge=-1e6, le=1e6)]
Count = Annotated[int, Interval(ge=0, le=10**15)]
Amount = Annotated[float, Interval(ge=0, le=1e15)]
Rate = Annotated[float, Interval(ge=0, le=1e30)]

Unit = Literal["texts", "pairs"]


@dataclass
class EngineRecord:
    """How an engine was opened.

    Attributes:
        backend: "vllm" or "sentence_transformers".
        preset: The preset of its arguments.
        fingerprint: The hash of all that its results depend on.
        opened: How often this run opened it; 0 where it was open already, from a run before.
        seconds: What opening took, imports included.
        resolved: Argument to value: what unset arguments became.
        threading: The variables of the threading runtime that its process found.
        late: Those of `engine.env` that were set after that runtime had been loaded, and are not in effect.
        warnings: Warnings about the model while it opened.
    """

    backend: str
    preset: str
    fingerprint: str
    opened: Count
    seconds: Amount
    resolved: dict[str, Any] = field(default_factory=dict)
    threading: dict[str, str] = field(default_factory=dict)
    late: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


@dataclass
class CacheRecord:
    """What a run read from the embedding cache, and wrote to it.

    Attributes:
        folder: Where the cache is.
        read: Embeddings that were read.
        written: Embeddings that were written.
        passed: Embeddings that were not kept.
        stopped: Why not; None where all were kept.
    """

    folder: str
    read: Count
    written: Count
    passed: Count
    stopped: str | None = None


@dataclass
class Memory:
    """The most memory that was held, in MiB.

    Attributes:
        process: By the process that ran.
        engine_processes: By its engine's processes together.
        device: In use on the GPUs; None where there is none.
    """

    process: Amount
    engine_processes: Amount
    device: Amount | None = None

    @property
    def total(self) -> float:
        """By all processes, in MiB."""
        return self.process + self.engine_processes


@dataclass
class Lengths:
    """How long the texts of a throughput run are, in tokens.

    Attributes:
        kind: "fixed" (all equally long), "varied" (drawn from a distribution) or "tasks" (texts of tasks).
        tokens: The length, or the mean, that was requested; None for texts of tasks.
        distribution: The distribution of varied lengths.
        mean: The mean length; this and what follows is None until everything was timed once.
        min: The smallest.
        max: The largest.
    """

    kind: Literal["fixed", "varied", "tasks"]
    tokens: Count | None = None
    distribution: str | None = None
    mean: Amount | None = None
    min: Count | None = None
    max: Count | None = None

    def __str__(self) -> str:
        """Return how long the texts are, in words."""
        if self.kind == "fixed":
            return f"{self.tokens:,} tokens each"
        words = "the tasks' own texts" if self.kind == "tasks" else f"varied ({self.distribution or 'a distribution'})"
        if self.mean is None:
            return words
        return f"{words}, mean {self.mean:,.0f}, {self.min:,} to {self.max:,} tokens"


@dataclass
class Latency:
    """Latencies of calls, in ms."""

    mean: Amount
    p50: Amount
    p90: Amount
    p99: Amount


@dataclass
class PhaseTimes:
    """Parts of what a caller waits for; they add up to the whole.

    Attributes:
        tokenise: Waiting for texts to become tokens.
        engine: The model at work, and what schedules it.
        collect: The rest.
    """

    tokenise: Amount
    engine: Amount
    collect: Amount


@dataclass
class Step:
    """Timed calls at one batch size.

    Attributes:
        batch_size: Requests of a call.
        steps: How many calls were timed.
        requests_per_second: Their rate.
        tokens_per_second: The same, in tokens.
        latency_ms: The latency of a call.
        phases_ms: The mean parts of a call.
        spread: The interquartile range of the latency, as a share of the median.
    """

    batch_size: Count
    steps: Count
    requests_per_second: Amount
    tokens_per_second: Amount
    latency_ms: Latency
    phases_ms: PhaseTimes
    spread: Amount


@dataclass
class Saturated:
    """Throughput where all requests are given in one call.

    Attributes:
        repeats: How often that was timed.
        seconds: Each time.
        requests_per_second: At the median of the repeats.
        tokens_per_second: The same, in tokens.
        spread: (largest - smallest) / median of the repeats.
        cached_share: The share of the tokens that came from the engine's prefix cache.
        phases_s: The parts of the repeat next to the median.
    """

    repeats: Count
    seconds: list[Amount]
    requests_per_second: Amount
    tokens_per_second: Amount
    spread: Amount
    cached_share: Amount
    phases_s: PhaseTimes


@dataclass
class Roofline:
    """The tokens a second that a machine can compute at most.

    Attributes:
        unknown: Why that is not known; all else is None then.
        dtype: The dtype in which the machine was measured.
        device: The device.
        flops_per_second: Floating-point operations a second, of a large matrix product.
        flops_per_token: Floating-point operations of the model for a token, on average.
        tokens_per_second: The first over the second.
        mfu: Model FLOPs utilisation: the share of `tokens_per_second` that the engine reached.
    """

    unknown: str | None = None
    dtype: str = ""
    device: str = ""
    flops_per_second: Rate | None = None
    flops_per_token: Rate | None = None
    tokens_per_second: Amount | None = None
    mfu: Amount | None = None


@dataclass
class ThroughputRecord:
    """How fast an engine answers. A run that was cut short has what was timed until then.

    Attributes:
        unit: What a request is: a text, or a pair.
        requests: How many there are.
        lengths: How long they are.
        warm_up_seconds: What the first calls took.
        steps: By batch size, ascending.
        saturated: With everything given at once.
        memory_mb: The most memory that was held until then.
        roofline: The most that the machine could compute.
    """

    unit: Unit
    requests: Count
    lengths: Lengths
    warm_up_seconds: Amount = 0.0
    steps: list[Step] = field(default_factory=list)
    saturated: Saturated | None = None
    memory_mb: Memory | None = None
    roofline: Roofline | None = None

    @property
    def requests_per_second(self) -> float | None:
        """With everything given at once; this and what follows is None where that was not reached."""
        return self.saturated.requests_per_second if self.saturated is not None else None

    @property
    def tokens_per_second(self) -> float | None:
        """The same, in tokens."""
        return self.saturated.tokens_per_second if self.saturated is not None else None

    @property
    def spread(self) -> float | None:
        """(largest - smallest) / median of the repeats."""
        return self.saturated.spread if self.saturated is not None else None

    def p50(self, batch_size: int) -> float | None:
        """Return the median latency of calls of this size, in ms; None where there are none."""
        return next((step.latency_ms.p50 for step in self.steps if step.batch_size == batch_size), None)
