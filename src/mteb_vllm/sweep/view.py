"""What a user sees while a sweep goes on: two live lines on a terminal, plain lines where output is piped."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.progress import BarColumn, Progress

from mteb_vllm.report.parity import headline
from mteb_vllm.results.record import RunRecord, mean
from mteb_vllm.sweep.messages import Activity, Event, TaskDone, TaskProgress
from mteb_vllm.sweep.planning import Group, PlannedPoint, group_by_engine
from mteb_vllm.util.console import Column, Console


class View:
    """The view of a sweep.

    Args:
        console: Where it is shown.
        points: The sweep's points.
    """

    def __init__(self, console: Console, points: Sequence[PlannedPoint]) -> None:
        self._console = console
        self._points = {point.number: point for point in points}
        self._left = _weights(points)
        self._passed = 0.0
        self._began: float | None = None  # when the first point that needs an engine did
        self._n_engines = sum(group.engine is not None for group in group_by_engine(points))
        self._done = self._failed = 0
        self._now = ""
        self._bar = Progress(
            Column("{task.description}"),
            BarColumn(bar_width=24),
            Column("{task.fields[count]}"),
            Column("{task.fields[more]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._all = self._bar.add_task("points", total=len(points), count=f"0/{len(points)}", more="")
        self._one = self._bar.add_task("", total=1, count="", more="")

    def __enter__(self) -> View:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def line(self, text: str, style: str | None = None) -> None:
        """A line that stays."""
        self._console.print_line(text, style=style)

    def engine(self, group: Group) -> None:
        """The points of an engine begin."""
        assert group.engine is not None
        n_points = len({step.point.number for step in group.steps})
        name, of = group.engine.model.name, f"{n_points} {'point' if n_points == 1 else 'points'}"
        self.line(f"Engine {group.number}/{self._n_engines}: {name}, {of}")
        self._began = self._began or time.perf_counter()

    def started(self, point: PlannedPoint, first_stage_only: bool) -> None:
        """A point begins, or its first stage."""
        self._now = f"point {point.number}{' first stage' if first_stage_only else ''}"
        self._show(self._now)

    def heard(self, said: Event | None) -> None:
        """The child has said something, or nothing for a while."""
        if isinstance(said, Activity):
            self._show(f"{self._now}: {said.text}")
        elif isinstance(said, TaskProgress):
            self._show(f"{self._now}: {said.task} {said.text}", said.done, said.total)
        elif isinstance(said, TaskDone) and not self._console.is_terminal:
            outcome = said.outcome
            score = f"failed: {outcome.reason}" if outcome.main_score is None else f"{outcome.main_score:.5f}"
            self.line(f"  {self._now}: {outcome.name} {score}")
        self._bar.update(self._all, more=self._summary())

    def ended(self, record: RunRecord) -> None:
        """A point has ended, one way or another."""
        assert record.point is not None
        self._done += 1
        self._failed += record.status == "failed"
        self._passed += self._left.pop(record.point, 0.0)
        settings = " ".join(f"{key}={value}" for key, value in self._points[record.point].differs.items())
        head = f"[{self._done}/{len(self._points)}] point {record.point} {settings}"
        failures = [failure for failure in record.failures if failure not in record.unwritten]
        for failure in record.unwritten:
            self.line(f"point {record.point}: not written: {failure.message}", "red")
        if failures or record.deviates:
            kinds = dict.fromkeys(f"failed: {failure}" for failure in failures)
            verdict = headline(record.parity) if record.parity is not None else ""
            self.line(f"{head}: {'; '.join(kinds) or verdict}", "red")
        else:
            known = record.tasks and all(task.status == "cached" for task in record.tasks)
            self.line(f"{head}: {_came_out(record)}{'(cached)' if known else f'in {record.seconds:.1f} s'}")
        count = f"{self._done}/{len(self._points)}"
        self._bar.update(self._all, completed=self._done, count=count, more=self._summary())
        self._show(f"point {record.point} has ended")

    def _show(self, text: str, done: int = 0, total: int = 0) -> None:
        count = f"{done:,}/{total:,}" if total else ""
        self._bar.update(self._one, description=text, completed=done, total=total or 1, count=count)

    def _summary(self) -> str:
        failed = f"{self._failed} failed, " if self._failed else ""
        if not self._passed or self._began is None:
            return failed.rstrip(", ")
        seconds = (time.perf_counter() - self._began) * sum(self._left.values()) / self._passed
        return f"{failed}about {_duration(seconds)} left"


def _came_out(record: RunRecord) -> str:
    """What a point has to say for itself, in a word."""
    if record.throughput is not None and record.throughput.saturated is not None:
        return f"{record.throughput.saturated.requests_per_second:,.1f} requests/s "
    score = mean(task.main_score for task in record.tasks)
    shown = "" if score is None else f"mean {score:.5f} " if len(record.tasks) > 1 else f"{score:.5f} "
    return f"passed: {shown}" if record.parity else shown


def _weights(points: Sequence[PlannedPoint]) -> dict[int, float]:
    """How much of a sweep's time each point is expected to take; known ones nothing, unknown ones as much as the mean."""
    tokens = {point.number: float(point.tokens) for point in points if point.pending_tasks}
    known = [weight for weight in tokens.values() if weight]
    mean_of_known = sum(known) / len(known) if known else 1.0
    return {number: weight or mean_of_known for number, weight in tokens.items()}


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
