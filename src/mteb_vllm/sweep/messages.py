"""What a sweep and its child process tell each other, pickled over a pipe of their own."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mteb_vllm.results.failures import Failure
from mteb_vllm.results.record import TaskOutcome
from mteb_vllm.runner import Ahead
from mteb_vllm.sweep.planning import PlannedPoint
from mteb_vllm.util.phase import Phase


@dataclass(frozen=True)
class RunPoint:
    """To the child: run a point, or only its first stage.

    Attributes:
        point: The point, without its plan.
        plan: Its plan as bytes, which are read where a failure to do so costs only this point; None: the child makes it.
        config: Hydra's configuration of it.
        context: Hydra's context, for its callbacks.
        folder: The point's folder.
        secrets: What the child is to mask in every text.
        first_stage_only: Whether only the first stage is wanted now.
        ahead: What was said of the first stage, if it ran ahead.
    """

    point: PlannedPoint
    plan: bytes | None = field(repr=False)
    config: Any
    context: Any
    folder: Path
    secrets: tuple[str, ...] = field(default=(), repr=False)
    first_stage_only: bool = False
    ahead: Ahead | None = None


@dataclass(frozen=True)
class CloseEngines:
    """To the child: close what is open, and say what stays behind."""


@dataclass(frozen=True)
class Doing:
    """From the child: what goes on outside of any task, as the start of an engine.

    Attributes:
        phase: What is being done; while it is `Phase.WAITING`, no time counts.
        text: The same in words.
    """

    phase: Phase
    text: str


@dataclass(frozen=True)
class Opened:
    """From the child: an engine has opened."""

    fingerprint: str


@dataclass(frozen=True)
class Working:
    """From the child: how far a task is.

    Attributes:
        task: The task.
        phase: What is being done.
        text: The same in words, as "de query".
        done: How many texts or pairs are computed.
        total: How many there are; 0 where nobody knows.
        unit: "texts" or "pairs".
    """

    task: str
    phase: Phase
    text: str
    done: int = 0
    total: int = 0
    unit: str = "texts"


@dataclass(frozen=True)
class TaskDone:
    """From the child: a task has ended, one way or another."""

    outcome: TaskOutcome


@dataclass(frozen=True)
class AheadDone:
    """From the child: a first stage alone has ended."""

    ahead: Ahead


@dataclass(frozen=True)
class PointDone:
    """From the child: a point has ended; `answer` is Hydra's `JobReturn`, with its record."""

    answer: Any


@dataclass(frozen=True)
class PointFailed:
    """From the child: a point, or its first stage, has ended without a record."""

    failure: Failure


@dataclass(frozen=True)
class Closed:
    """From the child: its engines are closed.

    Attributes:
        leftover_mb: Memory that it holds more than before it opened its first engine.
        processes: Processes of its engines that are still there.
    """

    leftover_mb: float
    processes: int


Order = RunPoint | CloseEngines
Report = Doing | Opened | Working | TaskDone | AheadDone | PointDone | PointFailed | Closed
