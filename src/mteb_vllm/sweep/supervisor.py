"""The supervisor of a sweep: it divides the engine groups among workers, and waits for them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mteb_vllm.sweep.outcomes import Outcomes, SweepPoint
from mteb_vllm.sweep.planning import group_by_engine
from mteb_vllm.sweep.queue import GroupQueue, Slots
from mteb_vllm.sweep.summary import Summary
from mteb_vllm.sweep.view import View
from mteb_vllm.sweep.worker import Host, Worker
from mteb_vllm.util.masking import scrub

if TYPE_CHECKING:
    from hydra.types import HydraContext

# Seconds between looks at the workers, in which Ctrl-C is noticed.
_TICK = 0.5


class Supervisor:
    """Runs the points of a sweep.

    Args:
        points: The points.
        context: Hydra's context.
        folder: The sweep's folder.
        view: The live view.
        summary: The sweep's summary, which is updated.
        slots: The resources that groups which run at the same time share.
        host: Where child processes run.
        point_timeout: Time limit for a point in seconds; None for no limit.
        max_leftover_mb: Memory in MB that a closed engine may leave allocated before its process is replaced.

    Attributes:
        outcomes: The outcomes of the points.
    """

    def __init__(
        self,
        points: Sequence[SweepPoint],
        context: HydraContext,
        folder: Path,
        view: View,
        summary: Summary,
        slots: Slots,
        host: Host,
        *,
        point_timeout: float | None,
        max_leftover_mb: float,
    ) -> None:
        self._points, self._folder = points, folder
        self.outcomes = Outcomes(points, folder, view, summary)
        groups = group_by_engine([point.planned for point in points])
        process = next((group.engine.process for group in groups if group.engine is not None), None)
        self._queue = GroupQueue(groups, slots)
        self._workers = [
            Worker(
                number,
                self._queue,
                host,
                self.outcomes,
                view,
                context,
                process,
                point_timeout=point_timeout,
                max_leftover_mb=max_leftover_mb,
            )
            for number in range(self._queue.workers)
        ]

    def run(self) -> None:
        """Run all points.

        Raises:
            KeyboardInterrupt: on Ctrl-C; the children have been ended, and `outcomes` holds what is done.
        """
        try:
            for point in self._points:
                if point.planned.failure is not None:
                    self.outcomes.fail(point, point.planned.failure)
            self._run_workers()
        finally:
            self.outcomes.write_summary()
            scrub(self._folder)

    def _run_workers(self) -> None:
        started: list[Worker] = []
        try:
            for number, worker in enumerate(self._workers):
                threading.Thread(target=worker.run, name=f"mteb-vllm worker {number}", daemon=True).start()
                started.append(worker)
            _wait_for(started)
        except BaseException:
            self._queue.stop()
            try:
                _wait_for(started)  # they end their children, which write what they have
            except BaseException:  # a second Ctrl-C
                for worker in started:
                    worker.abort()
                _wait_for(started)
                raise
            raise
        for worker in self._workers:
            if worker.error is not None:
                raise worker.error


def _wait_for(workers: Sequence[Worker]) -> None:
    for worker in workers:
        # Not `Thread.join`: Python before 3.13 takes a thread whose join is interrupted by a signal for one that has ended.
        # And a wait without a limit would not be interrupted by signals on every system.
        while not worker.ended.wait(_TICK):
            pass
