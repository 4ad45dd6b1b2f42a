"""Runs the points of a sweep in child processes, so that whatever one of them does costs no other point anything."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mteb_vllm.plan import pack
from mteb_vllm.results.failures import FATAL, Failure, last_lines, of_exception, of_exit, of_timeout, where_it_stood
from mteb_vllm.results.record import RunRecord, TaskOutcome
from mteb_vllm.runner import LOG, Ahead, finish, started_record
from mteb_vllm.sweep.messages import (
    AheadDone,
    Closed,
    CloseEngines,
    Doing,
    Opened,
    PointDone,
    PointFailed,
    Report,
    RunPoint,
    TaskDone,
    Working,
)
from mteb_vllm.sweep.planning import Group, PlannedPoint, Step, grouped
from mteb_vllm.sweep.process import Child
from mteb_vllm.sweep.summary import Summary
from mteb_vllm.sweep.view import View
from mteb_vllm.util import disk
from mteb_vllm.util.masking import registered, scrub
from mteb_vllm.util.phase import Phase

# How often the view moves while a child says nothing, in seconds.
_TICK = 0.5

# How long engines may take to close, in seconds.
_CLOSE_WITHIN = 120.0


@dataclass(frozen=True)
class SweepPoint:
    """A point as it runs.

    Attributes:
        planned: What it comes down to.
        config: Hydra's configuration of it.
        folder: Where its record goes.
    """

    planned: PlannedPoint
    config: Any
    folder: Path


@dataclass
class _Running:
    """A step as far as the child has told of it."""

    phase: Phase = Phase.STARTING
    doing: str = "starting"
    task: str | None = None
    tasks: list[TaskOutcome] = field(default_factory=list)
    waited: float = 0.0
    waits_since: float | None = None

    def hear(self, said: Report) -> None:
        now = time.perf_counter()
        if self.waits_since is not None:
            self.waited, self.waits_since = self.waited + now - self.waits_since, None
        if isinstance(said, Doing):
            self.phase, self.doing = said.phase, said.text[:1].lower() + said.text[1:]
            if said.phase is Phase.WAITING:
                self.waits_since = now
            else:
                self.task = None
        elif isinstance(said, Working):
            self.phase, self.doing, self.task = said.phase, f"at {said.text} of {said.task}", said.task
        elif isinstance(said, TaskDone):
            self.tasks.append(said.outcome)
            self.phase, self.doing, self.task = Phase.BETWEEN_TASKS, f"after {said.outcome.name}", None


class Supervisor:
    """Gives points to a child process, watches it, and replaces it when it fails.

    Args:
        points: The sweep's points.
        context: Hydra's context.
        folder: The sweep's folder.
        view: Shows what goes on.
        summary: Where it is written down.
        point_timeout: Seconds that a point may take; None: no limit.
        max_leftover_mb: Memory that may stay behind a closed engine before its process is replaced.

    Attributes:
        answers: What became of the points: Hydra's `JobReturn` by number, None where Hydra could not say.
        records: Their records.
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
        self._ahead: dict[int, Ahead] = {}
        self._started = time.perf_counter() - summary.seconds
        self._unwritten = False
        self.answers: dict[int, Any] = {}
        self.records: dict[int, RunRecord] = {}

    def run(self) -> None:
        """Runs all points.

        Raises:
            KeyboardInterrupt: on Ctrl-C; the child has ended, and what is done is in `records`.
        """
        try:
            for point in self._points.values():
                if point.planned.failure is not None:
                    self._fail(point, point.planned.failure)
            groups = grouped([point.planned for point in self._points.values()])
            self._process = next((group.engine.process for group in groups if group.engine is not None), None)
            for group in groups:
                self._run_group(group)
        finally:
            if self._child is not None:
                self._child.end()
            self._summarise()
            scrub(self._folder)

    def _run_group(self, group: Group) -> None:
        if group.engine is not None:
            if group.engine.process != self._process:
                # What computes, and how its threads are made, a process cannot change.
                self._end_child()
                self._process = group.engine.process
            self._view.engine(group)
            numbers = [step.point.number for step in group.steps if not step.first_stage_only]
            about = {"model": group.engine.model.name, "points": []}
            self._summary.engines.setdefault(group.engine.fingerprint, about)["points"] += numbers
        last: Failure | None = None
        given_up: Failure | None = None
        for step in group.steps:
            point = self._points[step.point.number]
            if point.planned.number in self.records:
                continue  # its first stage has failed, and it with it
            if given_up is not None:
                said = f"{given_up.message} (not tried: this engine did not open twice in a row)"
                self._fail(point, replace(given_up, message=said, task=None, tried=False))
                continue
            failure = self._run_step(step, point)
            if failure is not None and not _did_not_open(failure):
                failure = None
            # The second time was in a new process: a third will be no better.
            given_up = failure if failure is not None and last is not None and failure.kind == last.kind else None
            last = failure
        self._close_engines()
        if any(step.point.plan.pipeline.own_process for step in group.steps if step.point.plan is not None):
            self._end_child()

    def _run_step(self, step: Step, point: SweepPoint) -> Failure | None:
        """Runs a step in the child; returns what went wrong with it, if anything did."""
        started, running = time.perf_counter(), _Running()
        self._view.started(point.planned, step.first_stage_only)
        try:
            child = self._the_child()
            written = self._child_log.stat().st_size
        except OSError as error:  # its log cannot be written
            return self._fail(point, of_exception(error), (), started)
        ahead = self._ahead.get(point.planned.number)
        planned, made = replace(point.planned, plan=None, composed=None), point.planned.plan
        packed = pack(made) if made is not None else None
        child.tell(
            RunPoint(
                planned, packed, point.config, self._context, point.folder, registered(), step.first_stage_only, ahead
            )
        )
        while True:
            try:
                said = child.listen(_TICK)
            except EOFError:
                status = child.ended()
                self._child = None
                failure = of_exit(status, running.phase, running.doing, self._log(point, written), running.task)
                return self._fail(point, failure, running.tasks, started)
            self._view.update(said)
            if said is not None:
                running.hear(said)
            if isinstance(said, Opened):
                self._summary.opened[said.fingerprint] += 1
                self._engine_log = point.folder / LOG
            elif isinstance(said, AheadDone):
                return self._first_stage_done(point, said.ahead)
            elif isinstance(said, PointDone):
                return self._point_done(point, said.answer)
            elif isinstance(said, PointFailed):
                failure = replace(said.failure, log=self._log(point, written))
                self._replace_child_after([failure])
                return self._fail(point, failure, running.tasks, started)
            if self._timeout is None or running.waits_since is not None:
                continue
            if time.perf_counter() > started + self._timeout + running.waited:
                child.show_where()
                child.kill()
                self._child = None
                log = where_it_stood(point.folder / LOG) or self._log(point, written)
                failure = of_timeout(self._timeout, running.phase, running.doing, log, running.task)
                return self._fail(point, failure, running.tasks, started)

    def _first_stage_done(self, point: SweepPoint, ahead: Ahead) -> Failure | None:
        self._ahead[point.planned.number] = ahead
        self._replace_child_after(ahead.failures)
        dead = next((failure for failure in ahead.failures if _did_not_open(failure)), None)
        # Anything else the point itself will meet, task by task.
        return self._fail(point, dead) if dead is not None else None

    def _point_done(self, point: SweepPoint, answer: Any) -> Failure | None:
        record: RunRecord = answer.return_value
        self._take(point.planned.number, record, answer)
        tried = [failure for failure in record.failures if failure.tried]
        self._replace_child_after(tried)
        return next((failure for failure in tried if _did_not_open(failure)), None)

    def _replace_child_after(self, failures: Sequence[Failure]) -> None:
        """Lets the child go if what went wrong in it says that it is not to be relied on."""
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
        """Writes the record of a point that could not write its own."""
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
        self._take(planned.number, record, None)
        return failure

    def _take(self, number: int, record: RunRecord, answer: Any) -> None:
        self.records[number], self.answers[number] = record, answer
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
        self._summarise()
        self._view.ended(record)

    def _summarise(self) -> None:
        self._summary.seconds = time.perf_counter() - self._started
        try:
            self._summary.write(self._folder)
        except OSError as error:
            if not self._unwritten:  # once: it is written after each point
                self._view.line(f"Not written: {self._folder}/sweep.json: {disk.reason(error)}", "red")
            self._unwritten = True

    def _log(self, point: SweepPoint, written: int) -> list[str]:
        """The last lines of a point's log, and of where else its engine writes to; else of what the child itself has said."""
        log = point.folder / LOG
        engine = self._engine_log
        lines = [*(last_lines(engine) if engine is not None and engine != log else []), *last_lines(log)]
        return lines or last_lines(self._child_log, since=written)

    def _the_child(self) -> Child:
        if self._child is None:
            self._child = Child(self._child_log, dict(self._process[1]) if self._process is not None else {})
            self._engine_log = None
            self._summary.children += 1
        return self._child

    def _close_engines(self) -> None:
        """Closes the group's engine; a process that does not give its memory back is replaced."""
        child, self._engine_log = self._child, None
        if child is None:
            return
        child.tell(CloseEngines())
        deadline = time.monotonic() + _CLOSE_WITHIN
        try:
            while time.monotonic() < deadline:
                said = child.listen(_TICK)
                if not isinstance(said, Closed):
                    continue
                if said.leftover_mb > self._max_leftover_mb or said.processes:
                    what = f"{said.processes} of its processes" if said.processes else f"{said.leftover_mb:,.0f} MB"
                    self._view.line(f"{what} stayed behind the closed engine: a new process goes on")
                    self._child = None
                    child.end()
                return
        except EOFError:
            pass
        self._child = None
        child.kill()


def _did_not_open(failure: Failure) -> bool:
    """Whether a failure kept an engine from opening: an error of vLLM's, or the end of the process while it opened."""
    return failure.kind in ("engine_start", "out_of_memory_loading") or (
        failure.kind in FATAL and failure.phase is Phase.OPENING_ENGINE
    )
