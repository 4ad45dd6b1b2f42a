"""Runs the points of a sweep in child processes, so that whatever one of them does costs no other point anything."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from hydra.core.utils import JobStatus

from mteb_vllm.failures import FATAL, Failure, last_lines, of_exception, of_exit, of_timeout
from mteb_vllm.files import write_atomically
from mteb_vllm.results import RunRecord, TaskOutcome
from mteb_vllm.runner import LOG, finish, started_record
from mteb_vllm.sweep.messages import Closed, CloseEngines, Doing, Opened, PointDone, RunPoint, TaskDone, Working
from mteb_vllm.sweep.planning import Group, PlannedPoint, Step, grouped
from mteb_vllm.sweep.process import Child
from mteb_vllm.sweep.view import View

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
class Summary:
    """A sweep as it is kept in `sweep.json`, beside its points' folders.

    Attributes:
        points: For each point that has ended its number, folder, fingerprint, status, failures and seconds.
        engines: For each engine its number, model, fingerprint, and the points on it.
        opened: How often each engine was opened, by fingerprint.
        children: How many child processes were started.
        seconds: Wall time.
    """

    points: dict[int, dict[str, Any]] = field(default_factory=dict)
    engines: dict[int, dict[str, Any]] = field(default_factory=dict)
    opened: Counter[str] = field(default_factory=Counter)
    children: int = 0
    seconds: float = 0.0

    def write(self, folder: Path) -> None:
        """Writes it, whole or not at all."""
        content = {
            "points": [self.points[number] for number in sorted(self.points)],
            "engines": [{**one, "opened": self.opened[one["fingerprint"]]} for one in self.engines.values()],
            "engines_opened": sum(self.opened.values()),
            "children": self.children,
            "seconds": self.seconds,
        }
        write_atomically(folder / "sweep.json", json.dumps(content, indent=2) + "\n")


def _while_loading(failure: Failure) -> bool:
    """Whether an engine did not open, whatever it was that kept it from opening."""
    return failure.kind in ("engine_start", "out_of_memory_loading") or (failure.task is None and failure.kind in FATAL)


class Supervisor:
    """Gives points to a child process, watches it, and replaces it when it fails.

    Args:
        points: The sweep's points.
        context: Hydra's context.
        folder: The sweep's folder.
        view: Shows what goes on.
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
        *,
        point_timeout: float | None,
        max_leftover_mb: float,
    ) -> None:
        self._points = {point.planned.number: point for point in points}
        self._context, self._folder, self._view = context, folder, view
        self._timeout, self._max_leftover_mb = point_timeout, max_leftover_mb
        self._child: Child | None = None
        self._summary = Summary()
        self._ahead: dict[int, dict[str, Any]] = {}
        self._started = time.perf_counter()
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
            for group in grouped([point.planned for point in self._points.values()]):
                self._run_group(group)
        finally:
            if self._child is not None:
                self._child.end()
            self._summarise()

    def _run_group(self, group: Group) -> None:
        if group.engine is not None:
            self._view.engine(group)
            self._summary.engines[group.number] = {
                "number": group.number,
                "model": group.engine.model.name,
                "fingerprint": group.engine.fingerprint,
                "points": [step.point.number for step in group.steps if not step.first_stage_only],
            }
        given_up: Failure | None = None
        last: Failure | None = None
        for step in group.steps:
            point = self._points[step.point.number]
            if point.planned.number in self.records:
                continue  # its first stage has failed, and it with it
            if given_up is not None:
                said = f"{given_up.message} (not tried: it was so twice in a row)"
                self._fail(point, replace(given_up, message=said))
                continue
            failure = self._run_step(step, point)
            failure = failure if failure is not None and _while_loading(failure) else None
            # The second time was in a new process, or with nothing open: a third will be no better.
            given_up = failure if failure is not None and last is not None and failure.kind == last.kind else None
            last = failure
        self._close_engines()

    def _run_step(self, step: Step, point: SweepPoint) -> Failure | None:
        """Runs a step in the child; returns what went wrong with it, if anything did."""
        started = time.perf_counter()
        deadline = started + self._timeout if self._timeout is not None else None
        tasks: list[TaskOutcome] = []
        task: str | None = None
        doing = "starting"
        self._view.started(point.planned, step.first_stage_only)
        child = self._the_child()
        ahead = self._ahead.get(point.planned.number)
        child.tell(RunPoint(point.config, self._context, point.folder, step.first_stage_only, ahead))
        while True:
            try:
                said = child.listen(_TICK)
            except EOFError:
                status = self._drop(child.ended)
                log = last_lines(point.folder / LOG)
                return self._fail(point, of_exit(status, doing, log, task), tasks, started)
            self._view.heard(said)
            if isinstance(said, Doing):
                doing, task = said.what[:1].lower() + said.what[1:], None
            elif isinstance(said, Opened):
                self._summary.opened[said.fingerprint] += 1
            elif isinstance(said, Working):
                doing, task = f"at {said.phase} of {said.task}", said.task
            elif isinstance(said, TaskDone):
                tasks.append(said.outcome)
                task = None
            elif isinstance(said, PointDone):
                if not step.first_stage_only:
                    return self._done(point, said.answer)
                if said.answer.status == JobStatus.COMPLETED:  # else the point itself will meet what is wrong
                    self._ahead[point.planned.number] = said.answer.return_value
                return None
            if deadline is not None and time.perf_counter() > deadline:
                assert self._timeout is not None
                child.show_where()
                self._drop(child.kill)
                log = last_lines(point.folder / LOG)
                return self._fail(point, of_timeout(self._timeout, doing, log, task), tasks, started)

    def _done(self, point: SweepPoint, answer: Any) -> Failure | None:
        number = point.planned.number
        if not isinstance(answer._return_value, RunRecord):
            # Hydra's own part of a point failed, as a callback of the user's.
            return self._fail(point, of_exception(answer._return_value), answer=answer)
        record = answer._return_value
        self._take(number, record, answer)
        if self._child is not None and any(failure.kind in FATAL for failure in record.failures):
            self._drop(self._child.end)
        return next(iter(record.failures), None)

    def _fail(
        self,
        point: SweepPoint,
        failure: Failure,
        tasks: Sequence[TaskOutcome] = (),
        started: float | None = None,
        answer: Any = None,
    ) -> Failure:
        """Writes the record of a point that could not write its own."""
        planned = point.planned
        record = started_record(planned.config, point.folder, planned.overrides, planned.number)
        if planned.plan is not None:
            record.settings, record.fingerprint = planned.plan.settings, planned.fingerprint
        record.tasks, record.failure = list(tasks), failure
        finish(record, started if started is not None else time.perf_counter())
        self._take(planned.number, record, answer)
        return failure

    def _take(self, number: int, record: RunRecord, answer: Any) -> None:
        self.records[number], self.answers[number] = record, answer
        self._summary.points[number] = {
            "point": number,
            "overrides": record.overrides,
            "folder": str(self._points[number].folder.name),
            "fingerprint": record.fingerprint,
            "status": record.status,
            "failures": [asdict(failure) for failure in record.failures],
            "seconds": record.seconds,
        }
        self._summarise()
        self._view.ended(record)

    def _summarise(self) -> None:
        self._summary.seconds = time.perf_counter() - self._started
        self._summary.write(self._folder)

    def _the_child(self) -> Child:
        if self._child is None:
            self._child = Child(self._folder / "child.log")
            self._summary.children += 1
        return self._child

    def _drop(self, how: Any) -> int:
        """Lets go of a child that is not to be relied on."""
        self._child = None
        status: int = how() or 0
        return status

    def _close_engines(self) -> None:
        """Closes the group's engine; a process that does not give its memory back is replaced."""
        child = self._child
        if child is None:
            return
        child.tell(CloseEngines())
        deadline = time.monotonic() + _CLOSE_WITHIN
        try:
            while time.monotonic() < deadline:
                said = child.listen(_TICK)
                if isinstance(said, Closed):
                    if said.leftover_mb > self._max_leftover_mb or said.processes:
                        self._view.line(f"A new process: {said.leftover_mb:,.0f} MB stayed behind the closed engine")
                        self._drop(child.end)
                    return
        except EOFError:
            self._drop(child.ended)
            return
        self._drop(child.kill)
