"""The parts of a `RunRecord` about engines: how they opened, their memory, and their speed.

Fields that are None are unknown, unless their description says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Interval

# Ranges of the numbers in a record, validated when it is read.
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
        fingerprint: The hash of everything that its results depend on.
        opened: How often this run opened it; 0 if it was still open from an earlier run.
        seconds: Time to open it, including imports.
        resolved: Argument to value, as resolved by the engine.
        threading: The threading runtime's environment variables, as its process saw them.
        late: Variables of `engine.env` set after that runtime was loaded, which are not in effect.
        warnings: Warnings about the model while it opened.
        text_reason: Why it got text instead of token ids; None if it got token ids, or nothing.
        replicas: How many copies of it shared the work.
        replicas_lost: How many of them died.
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
    text_reason: str | None = None
    replicas: Count = 1
    replicas_lost: Count = 0

    @property
    def identity(self) -> str:
        """Its fingerprint, and the number of its replicas if there are several, on which speeds depend."""
        return self.fingerprint if self.replicas == 1 else f"{self.fingerprint} x {self.replicas}"


@dataclass
class CacheRecord:
    """A run's use of the embedding cache.

    Attributes:
        folder: The folder of the cache.
        read: Number of embeddings read.
        written: Number of embeddings written.
        passed: Number of embeddings that were computed and not written.
        stopped: Why not; None if all were written.
    """

    folder: str
    read: Count
    written: Count
    passed: Count
    stopped: str | None = None


@dataclass
class Memory:
    """Peak memory, in MiB.

    Attributes:
        process: Of the main process.
        engine_processes: Of the engine's processes together.
        device: In use on the GPUs; None without a GPU.
    """

    process: Amount
    engine_processes: Amount
    device: Amount | None = None

    @property
    def total(self) -> float:
        """Of all processes, in MiB."""
        return self.process + self.engine_processes


@dataclass
class Lengths:
    """The lengths of a throughput run's texts, in tokens.

    Attributes:
        kind: "fixed" (all equally long), "varied" (drawn from a distribution) or "tasks" (texts of tasks).
        tokens: The requested length, or mean length; None for texts of tasks.
        distribution: The distribution of varied lengths.
        mean: The measured mean length; like the next two, None until all requests have been timed once.
        min: The measured minimum.
        max: The measured maximum.
    """

    kind: Literal["fixed", "varied", "tasks"]
    tokens: Count | None = None
    distribution: str | None = None
    mean: Amount | None = None
    min: Count | None = None
    max: Count | None = None

    def __str__(self) -> str:
        """Return a description of the lengths."""
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
    """The parts of a call's latency; they add up to it.

    Attributes:
        tokenise: Waiting for tokenisation.
        engine: The model and the engine's scheduler.
        collect: The rest.
    """

    tokenise: Amount
    engine: Amount
    collect: Amount


@dataclass
class Step:
    """Measurements at one batch size.

    Attributes:
        batch_size: Requests per call.
        steps: Number of timed calls.
        requests_per_second: Request throughput.
        tokens_per_second: Token throughput.
        latency_ms: The latency of a call.
        phases_ms: The parts of a call, on average.
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
    """Offline (saturated) throughput: all requests in one call.

    Attributes:
        repeats: Number of timed repeats.
        seconds: The time of each repeat.
        requests_per_second: Request throughput at the median of the repeats.
        tokens_per_second: Token throughput at the median of the repeats.
        spread: (largest - smallest) / median of the repeats.
        cached_share: The share of the tokens that came from the engine's prefix cache.
        phases_s: The parts of the repeat closest to the median.
        by_replica: Requests per second of each replica, in the same repeat; empty without replicas.
    """

    repeats: Count
    seconds: list[Amount]
    requests_per_second: Amount
    tokens_per_second: Amount
    spread: Amount
    cached_share: Amount
    phases_s: PhaseTimes
    by_replica: list[Amount] = field(default_factory=list)


@dataclass
class Roofline:
    """The roofline: the tokens per second that the machine can compute at most.

    Attributes:
        unknown: Why it is unknown; all numbers are None then.
        dtype: The dtype in which the machine was measured.
        device: The device.
        flops_per_second: Floating-point operations per second of a large matrix multiplication.
        flops_per_token: Floating-point operations of the model per token, on average.
        tokens_per_second: `flops_per_second / flops_per_token`.
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
    """The measurements of a throughput run. If the run was interrupted, those made until then.

    Attributes:
        unit: Whether a request is a text or a pair.
        requests: Number of requests.
        lengths: Their lengths.
        warm_up_seconds: Time of the warm-up calls.
        steps: Measurements by batch size, ascending.
        saturated: Offline (saturated) throughput.
        memory_mb: Peak memory.
        roofline: The machine's roofline.
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
        """Offline request throughput; None if it was not measured."""
        return self.saturated.requests_per_second if self.saturated is not None else None

    @property
    def tokens_per_second(self) -> float | None:
        """Offline token throughput; None if it was not measured."""
        return self.saturated.tokens_per_second if self.saturated is not None else None

    @property
    def spread(self) -> float | None:
        """(largest - smallest) / median of the offline repeats; None if they were not measured."""
        return self.saturated.spread if self.saturated is not None else None

    def p50(self, batch_size: int) -> float | None:
        """Return the median latency in ms of calls of this batch size; None if it was not measured."""
        return next((step.latency_ms.p50 for step in self.steps if step.batch_size == batch_size), None)
