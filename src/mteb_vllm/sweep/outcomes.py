"""The outcomes of a sweep's points: their records, and the sweep's summary. All workers of a sweep add to them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mteb_vllm.results.failures import Failure
from mteb_vllm.results.record import CommandLine, RunRecord, TaskOutcome
from mteb_vllm.runner import PrefetchedFirstStage, finish, started_record
from mteb_vllm.sweep.planning import Group, PlannedPoint
from mteb_vllm.sweep.summary import Summary
from mteb_vllm.sweep.view import View
from mteb_vllm.util import disk
from mteb_vllm.util.files import shown_path
from mteb_vllm.util.masking import scrub


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


class Outcomes:
    """The outcomes so far; every method may be called from any thread.

    Args:
        points: The sweep's points.
        folder: The sweep's folder.
        view: The live view.
        summary: The sweep's summary, which is updated.

    Attributes:
        job_returns: Point number to Hydra's `JobReturn`; None if the point ended without one.
        records: Point number to record.
        prefetched: Point number to the outcome of its first stage, if that has been run by itself.
    """

    def __init__(self, points: Sequence[SweepPoint], folder: Path, view: View, summary: Summary) -> None:
        self._points = {point.planned.number: point for point in points}
        self._folder, self._view, self._summary = folder, view, summary
        self._started = time.perf_counter() - summary.seconds
        self._unwritten = False
        self._lock = threading.RLock()
        self.job_returns: dict[int, Any] = {}
        self.records: dict[int, RunRecord] = {}
        self.prefetched: dict[int, PrefetchedFirstStage] = {}

    def point(self, number: int) -> SweepPoint:
        """Return a point by its number."""
        return self._points[number]

    def begin_group(self, group: Group) -> None:
        """Add a group's engine to the summary."""
        assert group.engine is not None
        numbers = [step.point.number for step in group.steps if not step.first_stage_only]
        with self._lock:
            about = self._summary.engines.setdefault(
                group.engine.identity, {"model": group.engine.model.name, "points": []}
            )
            about["points"] += numbers

    def count_child(self) -> None:
        """Count a child process."""
        with self._lock:
            self._summary.children += 1

    def count_opened(self, engine: str) -> None:
        """Count the opening of an engine, given its identity."""
        with self._lock:
            self._summary.opened[engine] += 1

    def fail(
        self,
        point: SweepPoint,
        failure: Failure,
        tasks: Sequence[TaskOutcome] = (),
        started: float | None = None,
    ) -> Failure:
        """Write the record of a point that could not write its own; return the failure."""
        planned = point.planned
        command = CommandLine(planned.overrides, planned.search_path)
        record = started_record(planned.config, point.folder, command, planned.number)
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
        self.add(planned.number, record, None)
        return failure

    def add(self, number: int, record: RunRecord, answer: Any) -> None:
        """Add the record of a point that has ended, and Hydra's `JobReturn` if there is one."""
        scrub(self._points[number].folder)
        with self._lock:
            self.records[number], self.job_returns[number] = record, answer
            self._summary.points[number] = {
                "point": number,
                "overrides": record.overrides,
                "folder": os.path.relpath(self._points[number].folder, self._folder),
                "fingerprint": record.fingerprint,
                "status": record.status,
                "failures": [asdict(failure) for failure in record.failures],
                "seconds": record.seconds,
            }
            self.write_summary()
        self._view.ended(record)

    def write_summary(self) -> None:
        """Write `sweep.json`."""
        with self._lock:
            self._summary.seconds = time.perf_counter() - self._started
            try:
                self._summary.write(self._folder)
            except OSError as error:
                if not self._unwritten:  # once: it is written after each point
                    self._view.line(
                        f"Not written: {shown_path(self._folder / 'sweep.json')}: {disk.reason(error)}", "red"
                    )
                self._unwritten = True
