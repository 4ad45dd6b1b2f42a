"""A worker of a sweep, which runs engine groups in child processes so that one point's failure does not affect others.

It owns one child at a time, monitors it, and replaces it when it fails.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mteb_vllm.errors import JobError
from mteb_vllm.plan import pack
from mteb_vllm.results.failures import (
    FATAL,
    Ending,
    Failure,
    failure_from_exception,
    failure_from_exit,
    failure_from_timeout,
    last_lines,
    last_stack,
)
from mteb_vllm.results.record import TaskOutcome
from mteb_vllm.runner import LOG, PrefetchedFirstStage
from mteb_vllm.sweep.messages import (
    Activity,
    CloseEngines,
    Command,
    EngineOpened,
    EnginesClosed,
    Event,
    FirstStageDone,
    PointDone,
    PointFailed,
    Restarted,
    RunPoint,
    TaskDone,
    TaskProgress,
)
from mteb_vllm.sweep.outcomes import Outcomes, SweepPoint
from mteb_vllm.sweep.planning import Group, Step
from mteb_vllm.sweep.queue import GroupQueue, Place
from mteb_vllm.sweep.view import View
from mteb_vllm.util.masking import registered
from mteb_vllm.util.phase import Phase

if TYPE_CHECKING:
    from hydra.types import HydraContext

# See `EngineSpec.process`.
Process = tuple[str, tuple[tuple[str, str], ...]]

# Seconds between updates of the view while the child sends nothing.
_TICK = 0.5

# Attempts to submit a job, and the seconds between them: SLURM may be overloaded, or a limit on queued jobs reached.
_SUBMIT_TRIES, _SUBMIT_EVERY = 5, 15.0

# Seconds that engines may take to close.
_CLOSE_WITHIN = 120.0

# Failures after which no other job is submitted for the group: a user who cancels a job does not want another one.
_WHY_GIVEN_UP: Mapping[str, str] = {
    "cancelled": "its job was cancelled",
    "not_submitted": "its job could not be submitted",
}

# The variable with which a user binds vLLM's threads to cores.
_BINDING = "VLLM_CPU_OMP_THREADS_BIND"


class ChildHandle(Protocol):
    """A process that runs points, wherever it runs."""

    @property
    def log(self) -> Path:
        """The file with its output outside of any point."""

    def send(self, message: Command, /) -> None:
        """Send a command."""

    def receive(self, seconds: float, /) -> Event | None:
        """Return the next event; None if there is none within so many seconds.

        Raises:
            EOFError: if the child has ended.
        """

    def dump_stacks(self) -> None:
        """Make the child write the stacks of its threads to its log."""

    def end(self) -> None:
        """Make the child exit, by force if it does not in time."""

    def abort(self) -> None:
        """End the child by force; may be called from any thread."""

    def kill(self) -> object:
        """End the child by force, and release everything that belongs to it."""

    def ending(self) -> Ending:
        """Return how a child that has ended did so, and release everything that belongs to it."""


class Host(Protocol):
    """Where children run: on this machine, or on those of a cluster.

    Attributes:
        one_group_each: Whether each group gets a child of its own.
    """

    one_group_each: bool

    def start(self, group: Group, place: Place, variables: Mapping[str, str], worker: int) -> ChildHandle:
        """Start a child.

        Args:
            group: The group that it begins with.
            place: The part of this machine that it may use.
            variables: Environment variables for it.
            worker: The number of its worker.

        Raises:
            OSError: if its log cannot be written.
            JobError: if its job cannot be submitted.
        """


class StoppedError(Exception):
    """The sweep is to end."""


@dataclass
class _StepState:
    """The state of a running step, according to the child's events."""

    phase: Phase = Phase.STARTING
    doing: str = "starting"
    task: str | None = None
    tasks: list[TaskOutcome] = field(default_factory=list)
    began: float = field(default_factory=lambda: time.perf_counter())
    waited: float = 0.0
    waits_since: float | None = None

    def update(self, event: Event) -> None:
        now = time.perf_counter()
        if self.waits_since is not None:
            self.waited, self.waits_since = self.waited + now - self.waits_since, None
        if isinstance(event, Activity):
            self.phase, self.doing = event.phase, event.text[:1].lower() + event.text[1:]
            if event.phase is Phase.WAITING:
                self.waits_since = now
            else:
                self.task = None
        elif isinstance(event, TaskProgress):
            self.phase, self.doing, self.task = event.phase, f"working on {event.task} ({event.text})", event.task
        elif isinstance(event, TaskDone):
            self.tasks.append(event.outcome)
            self.phase, self.doing, self.task = Phase.BETWEEN_TASKS, f"idle after {event.outcome.name}", None

    def is_overdue(self, seconds: float | None) -> bool:
        """Whether it has taken longer than so many seconds, without those that it waited; None: never."""
        if seconds is None or self.waits_since is not None:
            return False
        return time.perf_counter() > self.began + seconds + self.waited


class Worker:
    """Takes groups from a queue and runs them, one after another.

    Args:
        number: Its number, from 0.
        queue: The queue.
        host: Where its children run.
        outcomes: The outcomes that it adds to.
        view: The live view.
        context: Hydra's context.
        process: The `EngineSpec.process` of the first engine, for which a child for points without an engine is started.
        point_timeout: Time limit for a point in seconds; None for no limit.
        max_leftover_mb: Memory in MB that a closed engine may leave allocated before its process is replaced.
    """

    def __init__(
        self,
        number: int,
        queue: GroupQueue,
        host: Host,
        outcomes: Outcomes,
        view: View,
        context: HydraContext,
        process: Process | None,
        *,
        point_timeout: float | None,
        max_leftover_mb: float,
    ) -> None:
        self._number, self._queue, self._host, self._outcomes = number, queue, host, outcomes
        self._view, self._row, self._context = view, view.row(), context
        self._timeout, self._max_leftover_mb = point_timeout, max_leftover_mb
        self._child: ChildHandle | None = None
        self._steps = 0  # that were sent to the child
        self._group: Group | None = None
        self._slots: list[int] = []
        self._place = Place()
        self._process = process
        self._engine_log: Path | None = None
        self.error: BaseException | None = None
        self.ended = threading.Event()

    def run(self) -> None:
        """Run groups until none is left, or the sweep is to end; an unexpected error ends all workers."""
        try:
            self._run_all()
        finally:
            self.ended.set()

    def _run_all(self) -> None:
        try:
            self._run_groups()
        except StoppedError:
            pass
        except BaseException as error:
            self.error = error
            self._queue.stop()
        finally:
            self._row.hide()
            try:
                self._end_child()
            finally:
                self._queue.release(self._slots)

    def abort(self) -> None:
        """Kill the child; called from another thread, after which `run` returns."""
        if (child := self._child) is not None:
            child.abort()

    def _run_groups(self) -> None:
        while True:
            taken = self._queue.take(self._slots)
            if taken is None:
                # Others may need the slots, and a child may hold memory of theirs.
                self._move([])
                self._row.hide()
                if not self._queue.wait(_TICK):
                    return
                continue
            group, slots = taken
            try:
                self._move(slots, group)
                self._run_group(group)
            finally:
                self._queue.done(group)

    def _move(self, slots: list[int], group: Group | None = None) -> None:
        """Change to other slots, or to another kind of process; a child that is in the wrong place is ended first."""
        place = self._queue.place(slots) if slots else Place()
        if group is not None and group.engine is not None and _BINDING in group.engine.env:
            place = replace(place, cores=())
        if not slots or place != self._place:
            self._end_child()
        self._place = place
        before, self._slots = self._slots, slots
        if surplus := [slot for slot in before if slot not in slots]:
            self._queue.release(surplus)

    def _run_group(self, group: Group) -> None:
        self._group = group
        if group.engine is not None:
            if group.engine.process != self._process:
                # A process cannot change its device or threading runtime.
                self._end_child()
                self._process = group.engine.process
            self._view.engine(group, str(self._place))
            self._outcomes.begin_group(group)
        last: Failure | None = None
        given_up: Failure | None = None
        for step in group.steps:
            point = self._outcomes.point(step.point.number)
            if point.planned.number in self._outcomes.records:
                continue  # it has failed with its first stage
            if given_up is not None:
                why = _WHY_GIVEN_UP.get(given_up.kind, "this engine failed to start twice in a row")
                message = f"{given_up.message} (not tried: {why})"
                self._outcomes.fail(point, replace(given_up, message=message, task=None, tried=False))
                continue
            failure = self._run_step(step, point)
            if failure is not None and failure.kind in _WHY_GIVEN_UP:
                given_up = failure
                continue
            if failure is not None and not _did_not_open(failure):
                failure = None
            # The second attempt was in a new process, so a third would fail as well.
            given_up = failure if failure is not None and last is not None and failure.kind == last.kind else None
            last = failure
        own_process = any(step.point.plan.pipeline.own_process for step in group.steps if step.point.plan is not None)
        if self._host.one_group_each:
            self._end_child()
        else:
            self._close_engines()
            if own_process:
                self._end_child()

    def _run_step(self, step: Step, point: SweepPoint) -> Failure | None:
        """Run a step in the child; return its failure, if any."""
        running = _StepState()
        self._row.start(point.planned, step.first_stage_only)
        try:
            child = self._running_child()
            written = child.log.stat().st_size if child.log.exists() else 0
        except (OSError, JobError) as error:  # its log cannot be written, or its job cannot be submitted
            return self._outcomes.fail(point, failure_from_exception(error), (), running.began)
        planned, made = replace(point.planned, plan=None, composed=None), point.planned.plan
        packed = pack(made) if made is not None else None
        child.send(
            RunPoint(
                planned,
                packed,
                point.config,
                self._context,
                point.folder,
                registered(),
                step.first_stage_only,
                self._outcomes.prefetched.get(point.planned.number),
            )
        )
        self._steps += 1
        while True:
            if self._queue.stopped:
                raise StoppedError
            try:
                event = child.receive(_TICK)
            except EOFError:
                if self._queue.stopped:
                    raise StoppedError from None
                return self._child_ended(child, step, point, running, written)
            self._row.update(event)
            if event is not None:
                running.update(event)
            if isinstance(event, Restarted):
                self._view.line(f"point {point.planned.number}: its job was queued again, so it starts again")
                running = _StepState()
            elif isinstance(event, EngineOpened):
                self._outcomes.count_opened(event.engine)
                self._engine_log = point.folder / LOG
            elif isinstance(event, FirstStageDone):
                return self._first_stage_done(point, event.prefetched)
            elif isinstance(event, PointDone):
                return self._point_done(point, event)
            elif isinstance(event, PointFailed):
                failure = replace(event.failure, log=self._log(child, point, written))
                self._replace_child_after([failure])
                return self._outcomes.fail(point, failure, running.tasks, running.began)
            if self._timeout is not None and running.is_overdue(self._timeout):
                child.dump_stacks()
                child.kill()
                self._child = None
                log = last_stack(point.folder / LOG) or self._log(child, point, written)
                failure = failure_from_timeout(self._timeout, running.phase, running.doing, log, running.task)
                return self._outcomes.fail(point, failure, running.tasks, running.began)

    def _child_ended(
        self, child: ChildHandle, step: Step, point: SweepPoint, running: _StepState, written: int
    ) -> Failure | None:
        """Return the failure of a step whose child has ended."""
        ending = child.ending()
        self._child = None
        if ending.kind == "time_limit" and self._steps > 1:
            # Other points have used a part of the job's time: this one gets a job of its own.
            self._view.line(f"point {point.planned.number}: the job's time limit was reached; again in a new job")
            return self._run_step(step, point)
        log = self._log(child, point, written)
        failure = failure_from_exit(ending, running.phase, running.doing, log, running.task)
        return self._outcomes.fail(point, failure, running.tasks, running.began)

    def _first_stage_done(self, point: SweepPoint, prefetched: PrefetchedFirstStage) -> Failure | None:
        self._outcomes.prefetched[point.planned.number] = prefetched
        self._replace_child_after(prefetched.failures)
        dead = next((failure for failure in prefetched.failures if _did_not_open(failure)), None)
        # Other failures will recur, task by task, when the point itself runs.
        return self._outcomes.fail(point, dead) if dead is not None else None

    def _point_done(self, point: SweepPoint, done: PointDone) -> Failure | None:
        self._outcomes.add(point.planned.number, done.record, done.answer)
        tried = [failure for failure in done.record.failures if failure.tried]
        self._replace_child_after(tried)
        return next((failure for failure in tried if _did_not_open(failure)), None)

    def _replace_child_after(self, failures: Sequence[Failure]) -> None:
        """End the child if one of the failures means that its process can no longer be trusted."""
        if any(failure.kind in FATAL for failure in failures):
            self._end_child()

    def _end_child(self) -> None:
        if self._child is not None:
            child = self._child
            try:
                child.end()
            finally:
                self._child = None

    def _log(self, child: ChildHandle, point: SweepPoint, written: int) -> list[str]:
        """Return the last lines of a point's log and of its engine's, or else of the child's own output."""
        log = point.folder / LOG
        engine = self._engine_log
        lines = [*(last_lines(engine) if engine is not None and engine != log else []), *last_lines(log)]
        return lines or last_lines(child.log, since=written)

    def _running_child(self) -> ChildHandle:
        if self._child is None:
            assert self._group is not None
            variables = dict(self._process[1]) if self._process is not None else {}
            self._child = self._start(self._group, variables)
            self._engine_log, self._steps = None, 0
            self._outcomes.count_child()
        return self._child

    def _start(self, group: Group, variables: Mapping[str, str]) -> ChildHandle:
        for _ in range(_SUBMIT_TRIES - 1):
            try:
                return self._host.start(group, self._place, variables, self._number)
            except JobError:
                if self._queue.sleep(_SUBMIT_EVERY):
                    raise StoppedError from None
        return self._host.start(group, self._place, variables, self._number)

    def _close_engines(self) -> None:
        """Close the group's engine; replace the process if it does not release its memory."""
        child, self._engine_log = self._child, None
        if child is None:
            return
        child.send(CloseEngines())
        deadline = time.monotonic() + _CLOSE_WITHIN
        try:
            while time.monotonic() < deadline:
                if self._queue.stopped:
                    raise StoppedError
                event = child.receive(_TICK)
                if not isinstance(event, EnginesClosed):
                    continue
                if event.leftover_mb > self._max_leftover_mb or event.processes:
                    what = (
                        f"{event.processes} {'process' if event.processes == 1 else 'processes'}"
                        if event.processes
                        else f"{event.leftover_mb:,.0f} MB of memory"
                    )
                    self._view.line(f"The closed engine left {what} behind: continuing in a new process")
                    self._end_child()
                return
        except EOFError:
            pass
        self._child = None
        child.kill()


def _did_not_open(failure: Failure) -> bool:
    """Whether a failure kept an engine from opening: an engine error, or the end of the process while opening."""
    return failure.kind in ("engine_start", "out_of_memory_loading") or (
        failure.kind in FATAL and failure.phase is Phase.OPENING_ENGINE
    )
