"""The supervisor of a sweep, which runs points in child processes so that one point's failure does not affect others."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mteb_vllm.plan import pack
from mteb_vllm.results.failures import (
    FATAL,
    Failure,
    failure_from_exception,
    failure_from_exit,
    failure_from_timeout,
    last_lines,
    last_stack,
)
from mteb_vllm.results.record import RunRecord, TaskOutcome
from mteb_vllm.runner import LOG, PrefetchedFirstStage, finish, started_record
from mteb_vllm.sweep.messages import (
    Activity,
    CloseEngines,
    EngineOpened,
    EnginesClosed,
    Event,
    FirstStageDone,
    PointDone,
    PointFailed,
    RunPoint,
    TaskDone,
    TaskProgress,
)
from mteb_vllm.sweep.planning import Group, PlannedPoint, Step, group_by_engine
from mteb_vllm.sweep.process import Child
from mteb_vllm.sweep.summary import Summary
from mteb_vllm.sweep.view import View
from mteb_vllm.util import disk
from mteb_vllm.util.masking import registered, scrub
from mteb_vllm.util.phase import Phase

# Seconds between updates of the view while the child sends nothing.
_TICK = 0.5

# Seconds that engines may take to close.
_CLOSE_WITHIN = 120.0


@dataclass(frozen=True)
class SweepPoint:
    """A point to run.

    Attributes:
        planned: The planned point.
        config: Hydra's configuration of it.
        folder: The folder for its record.
    """

    planned: PlannedPoint
    config: Any
    folder: Path


@dataclass
class _StepState:
    """The state of a running step, according to the child's events."""

    phase: Phase = Phase.STARTING
    doing: str = "starting"
    task: str | None = None
    tasks: list[TaskOutcome] = field(default_factory=list)
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


class Supervisor:
    """Sends points to a child process, monitors it, and replaces it when it fails.

    Args:
        points: The sweep's points.
        context: Hydra's context.
        folder: The sweep's folder.
        view: The live view.
        summary: The sweep's summary, which is updated.
        point_timeout: Time limit for a point in seconds; None for no limit.
        max_leftover_mb: Memory in MB that a closed engine may leave allocated before its process is replaced.

    Attributes:
        job_returns: Point number to Hydra's `JobReturn`; None if the point ended without one.
        records: Point number to record.
    """

    def __init__(
        self,
        points: Sequence[SweepPoint],
        context: Any,
        folder: Path,
        view: View,
        summary: Summary,
        *,
        point_timeout: float | None,
        max_leftover_mb: float,
    ) -> None:
        self._points = {point.planned.number: point for point in points}
        self._context, self._folder, self._view, self._summary = context, folder, view, summary
        self._timeout, self._max_leftover_mb = point_timeout, max_leftover_mb
        self._child: Child | None = None
        self._process: tuple[str, tuple[tuple[str, str], ...]] | None = None
        self._child_log = folder / "child.log"
        self._engine_log: Path | None = None
        self._prefetched: dict[int, PrefetchedFirstStage] = {}
        self._started = time.perf_counter() - summary.seconds
        self._unwritten = False
        self.job_returns: dict[int, Any] = {}
        self.records: dict[int, RunRecord] = {}

    def run(self) -> None:
        """Run all points.

        Raises:
            KeyboardInterrupt: on Ctrl-C; the child has been ended, and `records` has the finished points.
        """
        try:
            for point in self._points.values():
                if point.planned.failure is not None:
                    self._fail(point, point.planned.failure)
            groups = group_by_engine([point.planned for point in self._points.values()])
            self._process = next((group.engine.process for group in groups if group.engine is not None), None)
            for group in groups:
                self._run_group(group)
        finally:
            if self._child is not None:
                self._child.end()
            self._write_summary()
            scrub(self._folder)

    def _run_group(self, group: Group) -> None:
        if group.engine is not None:
            if group.engine.process != self._process:
                # A process cannot change its device or threading runtime.
                self._end_child()
                self._process = group.engine.process
            self._view.engine(group)
            numbers = [step.point.number for step in group.steps if not step.first_stage_only]
            about = {"model": group.engine.model.name, "points": []}
            self._summary.engines.setdefault(group.engine.identity, about)["points"] += numbers
        last: Failure | None = None
        given_up: Failure | None = None
        for step in group.steps:
            point = self._points[step.point.number]
            if point.planned.number in self.records:
                continue  # it has failed with its first stage
            if given_up is not None:
                message = f"{given_up.message} (not tried: this engine failed to start twice in a row)"
                self._fail(point, replace(given_up, message=message, task=None, tried=False))
                continue
            failure = self._run_step(step, point)
            if failure is not None and not _did_not_open(failure):
                failure = None
            # The second attempt was in a new process, so a third would fail as well.
            given_up = failure if failure is not None and last is not None and failure.kind == last.kind else None
            last = failure
        self._close_engines()
        if any(step.point.plan.pipeline.own_process for step in group.steps if step.point.plan is not None):
            self._end_child()

    def _run_step(self, step: Step, point: SweepPoint) -> Failure | None:
        """Run a step in the child; return its failure, if any."""
        started, running = time.perf_counter(), _StepState()
        self._view.started(point.planned, step.first_stage_only)
        try:
            child = self._running_child()
            written = self._child_log.stat().st_size
        except OSError as error:  # its log cannot be written
            return self._fail(point, failure_from_exception(error), (), started)
        prefetched = self._prefetched.get(point.planned.number)
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
                prefetched,
            )
        )
        while True:
            try:
                event = child.receive(_TICK)
            except EOFError:
                status = child.reap()
                self._child = None
                failure = failure_from_exit(
                    status, running.phase, running.doing, self._log(point, written), running.task
                )
                return self._fail(point, failure, running.tasks, started)
            self._view.update(event)
            if event is not None:
                running.update(event)
            if isinstance(event, EngineOpened):
                self._summary.opened[event.engine] += 1
                self._engine_log = point.folder / LOG
            elif isinstance(event, FirstStageDone):
                return self._first_stage_done(point, event.prefetched)
            elif isinstance(event, PointDone):
                return self._point_done(point, event)
            elif isinstance(event, PointFailed):
                failure = replace(event.failure, log=self._log(point, written))
                self._replace_child_after([failure])
                return self._fail(point, failure, running.tasks, started)
            if self._timeout is None or running.waits_since is not None:
                continue
            if time.perf_counter() > started + self._timeout + running.waited:
                child.dump_stacks()
                child.kill()
                self._child = None
                log = last_stack(point.folder / LOG) or self._log(point, written)
                failure = failure_from_timeout(self._timeout, running.phase, running.doing, log, running.task)
                return self._fail(point, failure, running.tasks, started)

    def _first_stage_done(self, point: SweepPoint, prefetched: PrefetchedFirstStage) -> Failure | None:
        self._prefetched[point.planned.number] = prefetched
        self._replace_child_after(prefetched.failures)
        dead = next((failure for failure in prefetched.failures if _did_not_open(failure)), None)
        # Other failures will recur, task by task, when the point itself runs.
        return self._fail(point, dead) if dead is not None else None

    def _point_done(self, point: SweepPoint, done: PointDone) -> Failure | None:
        self._add_record(point.planned.number, done.record, done.answer)
        tried = [failure for failure in done.record.failures if failure.tried]
        self._replace_child_after(tried)
        return next((failure for failure in tried if _did_not_open(failure)), None)

    def _replace_child_after(self, failures: Sequence[Failure]) -> None:
        """End the child if one of the failures means that its process can no longer be trusted."""
        if any(failure.kind in FATAL for failure in failures):
            self._end_child()

    def _end_child(self) -> None:
        if self._child is not None:
            child, self._child = self._child, None
            child.end()

    def _fail(
        self,
        point: SweepPoint,
        failure: Failure,
        tasks: Sequence[TaskOutcome] = (),
        started: float | None = None,
    ) -> Failure:
        """Write the record of a point that could not write its own."""
        planned = point.planned
        record = started_record(planned.config, point.folder, planned.overrides, planned.number)
        if planned.plan is not None:
            record.settings, record.fingerprint = planned.plan.settings, planned.fingerprint
        record.tasks, record.failure = list(tasks), failure
        if planned.plan is not None:
            done = {task.name for task in tasks}
            record.tasks += [
                TaskOutcome(task.name, task.type, "failed", task.main_score)
                for task in planned.plan.tasks
                if task.name not in done
            ]
        finish(record, started if started is not None else time.perf_counter())
        self._add_record(planned.number, record, None)
        return failure

    def _add_record(self, number: int, record: RunRecord, answer: Any) -> None:
        self.records[number], self.job_returns[number] = record, answer
        scrub(self._points[number].folder)
        self._summary.points[number] = {
            "point": number,
            "overrides": record.overrides,
            "folder": os.path.relpath(self._points[number].folder, self._folder),
            "fingerprint": record.fingerprint,
            "status": record.status,
            "failures": [asdict(failure) for failure in record.failures],
            "seconds": record.seconds,
        }
        self._write_summary()
        self._view.ended(record)

    def _write_summary(self) -> None:
        self._summary.seconds = time.perf_counter() - self._started
        try:
            self._summary.write(self._folder)
        except OSError as error:
            if not self._unwritten:  # once: it is written after each point
                self._view.line(f"Not written: {self._folder}/sweep.json: {disk.reason(error)}", "red")
            self._unwritten = True

    def _log(self, point: SweepPoint, written: int) -> list[str]:
        """Return the last lines of a point's log and of its engine's, or else of the child's own output."""
        log = point.folder / LOG
        engine = self._engine_log
        lines = [*(last_lines(engine) if engine is not None and engine != log else []), *last_lines(log)]
        return lines or last_lines(self._child_log, since=written)

    def _running_child(self) -> Child:
        if self._child is None:
            self._child = Child(self._child_log, dict(self._process[1]) if self._process is not None else {})
            self._engine_log = None
            self._summary.children += 1
        return self._child

    def _close_engines(self) -> None:
        """Close the group's engine; replace the process if it does not release its memory."""
        child, self._engine_log = self._child, None
        if child is None:
            return
        child.send(CloseEngines())
        deadline = time.monotonic() + _CLOSE_WITHIN
        try:
            while time.monotonic() < deadline:
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
                    self._child = None
                    child.end()
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
