"""The messages between a sweep and its child process, pickled over a dedicated pipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mteb_vllm.results.failures import Failure
from mteb_vllm.results.record import RunRecord, TaskOutcome
from mteb_vllm.runner import PrefetchedFirstStage
from mteb_vllm.sweep.planning import PlannedPoint
from mteb_vllm.util.phase import Phase


@dataclass(frozen=True)
class RunPoint:
    """Command: run a point, or only its first stage.

    Attributes:
        point: The point, without its plan.
        plan: Its pickled plan, unpickled by the child so that a failure affects only this point; None if the child has to
            make it.
        config: Hydra's configuration of the point.
        context: Hydra's context, for its callbacks.
        folder: The point's folder.
        secrets: The values to mask in all output.
        first_stage_only: Whether to run only the first stage.
        prefetched: The first stage's outcome, if it has been run already.
    """

    point: PlannedPoint
    plan: bytes | None = field(repr=False)
    config: Any
    context: Any
    folder: Path
    secrets: tuple[str, ...] = field(default=(), repr=False)
    first_stage_only: bool = False
    prefetched: PrefetchedFirstStage | None = None


@dataclass(frozen=True)
class CloseEngines:
    """Command: close all engines, and report the processes and memory that remain."""


@dataclass(frozen=True)
class Activity:
    """Event: an activity outside of any task, such as opening an engine.

    Attributes:
        phase: The phase; the time spent in `Phase.WAITING` does not count towards the time limit.
        text: A description.
    """

    phase: Phase
    text: str


@dataclass(frozen=True)
class Restarted:
    """Event: the child has been started anew, on the same or on another machine, and begins its command again."""


@dataclass(frozen=True)
class EngineOpened:
    """Event: an engine has opened; see `EngineSpec.identity`."""

    engine: str


@dataclass(frozen=True)
class TaskProgress:
    """Event: the progress of a task.

    Attributes:
        task: The task.
        phase: The phase.
        text: A description, e.g. "de query".
        done: Number of texts or pairs computed.
        total: Their total number; 0 if unknown.
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
    """Event: a task has ended, successfully or not."""

    outcome: TaskOutcome


@dataclass(frozen=True)
class FirstStageDone:
    """Event: a first stage that was run by itself has ended."""

    prefetched: PrefetchedFirstStage


@dataclass(frozen=True)
class PointDone:
    """Event: a point has ended.

    Attributes:
        answer: Hydra's `JobReturn`.
        record: The point's record.
    """

    answer: Any
    record: RunRecord


@dataclass(frozen=True)
class PointFailed:
    """Event: a point, or its first stage, has ended without a record."""

    failure: Failure


@dataclass(frozen=True)
class EnginesClosed:
    """Event: all engines are closed.

    Attributes:
        leftover_mb: The child's memory in excess of that before it opened its first engine, in MB.
        processes: Number of engine processes that are still alive.
    """

    leftover_mb: float
    processes: int


Command = RunPoint | CloseEngines
Event = (
    Activity
    | Restarted
    | EngineOpened
    | TaskProgress
    | TaskDone
    | FirstStageDone
    | PointDone
    | PointFailed
    | EnginesClosed
)
