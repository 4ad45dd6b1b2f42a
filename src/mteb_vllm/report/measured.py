"""What throughput and parity runs measured, as it is compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Interval

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
        """The median latency of steps of this size, in ms; None where there are none."""
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


def read_throughput(said: Mapping[str, Any]) -> Throughput | None:
    """What a record says of throughput; None where it says nothing."""
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
    """What a record says of parity; None where it says nothing."""
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
    """How long texts are, in words."""
    kind = lengths["kind"]
    if kind == "fixed":
        return f"{lengths['tokens']:,} tokens each"
    words = "the tasks' own texts" if kind == "tasks" else f"varied ({lengths.get('distribution') or 'a distribution'})"
    if "mean" not in lengths:  # a run that was cut short
        return words
    return f"{words}, mean {lengths['mean']:,.0f}, {lengths['min']:,} to {lengths['max']:,} tokens"
