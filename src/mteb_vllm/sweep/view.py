"""The progress of a sweep: live lines on a terminal, one for each worker, and plain lines where output is piped."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

from rich.progress import BarColumn, Progress

from mteb_vllm.engines.base import EngineSpec
from mteb_vllm.report.parity import headline
from mteb_vllm.results.record import RunRecord, mean
from mteb_vllm.sweep.messages import Activity, Event, TaskDone, TaskProgress
from mteb_vllm.sweep.planning import Group, PlannedPoint, group_by_engine
from mteb_vllm.util.console import Column, Console, Counted, ElapsedColumn
from mteb_vllm.util.masking import mask_values


class View:
    """The view of a sweep over points, of which each is one combination of the sweep's values.

    Every method may be called from any thread.

    Args:
        console: Where it is shown.
        points: The sweep's points.
    """

    def __init__(self, console: Console, points: Sequence[PlannedPoint]) -> None:
        self._console = console
        self._points = {point.number: point for point in points}
        self._left = _weights(points)
        self._passed = 0.0
        self._began: float | None = None  # when the first point that needs an engine began
        engines = {group.number: group.engine for group in group_by_engine(points) if group.engine is not None}
        self._n_engines, self._differences = len(engines), _differences(engines)
        self._done = self._failed = 0
        self._lock = threading.RLock()
        self._rows: list[Row] = []
        self._bar = Progress(
            Column("{task.description}"),
            ElapsedColumn(),
            Counted(BarColumn(bar_width=24)),
            Column("{task.fields[count]}"),
            Column("{task.fields[more]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._all = self._bar.add_task("points", total=len(points), count=f"0/{len(points)}", more="")

    def __enter__(self) -> View:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def row(self) -> Row:
        """Return a new row, for the point that one worker runs."""
        row = Row(self, self._bar)
        self._rows.append(row)
        return row

    def line(self, text: str, style: str | None = None) -> None:
        """Print a permanent line."""
        with self._lock:
            self._console.print_line(text, style=style)

    def engine(self, group: Group, place: str = "") -> None:
        """Print which engine is used from now on, how it differs from the others, for how many points, and where."""
        assert group.engine is not None
        n_points = len({step.point.number for step in group.steps})
        name, of = group.engine.model.name, f"{n_points} {'point' if n_points == 1 else 'points'}"
        of += f", {place}" if place else ""
        differs = self._differences[group.number]
        about = f"{differs} ({name}, {of})" if differs else f"{name}, {of}"
        with self._lock:
            self.line(f"Engine {group.number}/{self._n_engines}: {about}")
            self._began = self._began or time.perf_counter()

    def task_done(self, where: str, message: TaskDone) -> None:
        """Print a task's score, unless a terminal shows its progress."""
        if not self._console.is_terminal:
            outcome = message.outcome
            score = f"failed: {outcome.reason}" if outcome.main_score is None else f"{outcome.main_score:.5f}"
            self.line(f"  {where}: {outcome.name} {score}")

    def refresh(self) -> None:
        """Update the estimate of the remaining time."""
        with self._lock:
            self._bar.update(self._all, more=self._summary())

    def ended(self, record: RunRecord) -> None:
        """Print the result of a point, or why it failed."""
        assert record.point is not None
        with self._lock:
            self._done += 1
            self._failed += record.status == "failed"
            self._passed += self._left.pop(record.point, 0.0)
            settings = " ".join(f"{key}={value}" for key, value in self._points[record.point].differs.items())
            head = f"[{self._done}/{len(self._points)}] point {record.point} {settings}".rstrip()
            failures = [failure for failure in record.failures if failure not in record.unwritten]
            for failure in record.unwritten:
                self.line(f"point {record.point}: not written: {failure.message}", "red")
            if failures or record.deviates:
                kinds = dict.fromkeys(f"failed: {failure}" for failure in failures)
                verdict = headline(record.parity) if record.parity is not None else ""
                self.line(f"{head}: {'; '.join(kinds) or verdict}", "red")
            else:
                cached = record.tasks and all(task.status == "cached" for task in record.tasks)
                self.line(f"{head}: {_result(record)}{'(cached)' if cached else f'in {record.seconds:.1f} s'}")
            count = f"{self._done}/{len(self._points)}"
            self._bar.update(self._all, completed=self._done, count=count, more=self._summary())
            for row in self._rows:
                if row.point in (record.point, None):
                    row.show(f"point {record.point} has ended")
                    break

    def _summary(self) -> str:
        failed = f"{self._failed} failed, " if self._failed else ""
        if not self._passed or self._began is None:
            return failed.rstrip(", ")
        seconds = (time.perf_counter() - self._began) * sum(self._left.values()) / self._passed
        return f"{failed}about {_duration(seconds)} left"


class Row:
    """The row of one worker: the point that it runs.

    Args:
        view: The view that it belongs to.
        bar: Its rows.

    Attributes:
        point: The number of the point; None before the first one.
    """

    def __init__(self, view: View, bar: Progress) -> None:
        self._view, self._bar = view, bar
        self.point: int | None = None
        self._now = ""
        self._first = ("", 0, 0.0)  # the first message about the texts at hand: its text, their number, and the time
        self._last = 0  # their number in the last message
        self._one = bar.add_task("", total=1, count="", more="", since=None)

    def start(self, point: PlannedPoint, first_stage_only: bool) -> None:
        """Show that a point begins, or only its first stage."""
        self.point = point.number
        self._now = f"point {point.number}{' first stage' if first_stage_only else ''}"
        self._bar.update(self._one, visible=True)
        self.show(self._now)

    def update(self, message: Event | None) -> None:
        """Show a message of the process that runs the point; None: there was none for a while."""
        if isinstance(message, Activity):
            self.show(f"{self._now}: {message.text}", since=time.perf_counter())
        elif isinstance(message, TaskProgress):
            text = f"{self._now}: {message.task} {message.text}"
            self.show(text, message.done, message.total, rate=self._rate(text, message))
        elif isinstance(message, TaskDone):
            self._view.task_done(self._now, message)
        self._view.refresh()

    def hide(self) -> None:
        """Hide it, while its worker has nothing to do."""
        self._bar.update(self._one, visible=False)

    def show(self, text: str, done: int = 0, total: int = 0, *, rate: str = "", since: float | None = None) -> None:
        """Show a text, how much is done, the rate, and since when it is being done."""
        count = f"{done:,}/{total:,}" if total else ""
        self._bar.update(
            self._one, description=text, completed=done, total=total or 1, count=count, more=rate, since=since
        )

    def _rate(self, text: str, message: TaskProgress) -> str:
        """Return the texts or pairs per second since the first message about the same ones, which shares its text."""
        now = time.perf_counter()
        if text != self._first[0] or message.done < self._last:
            self._first = (text, message.done, now)
        self._last = message.done
        _, first, began = self._first
        return f"{(message.done - first) / (now - began):,.0f} {message.unit}/s" if message.done > first else ""


def _differences(engines: Mapping[int, EngineSpec]) -> dict[int, str]:
    """Return for each engine, by its number, the settings in which the engines of its model differ, as `dtype=float16`."""
    values = {number: _values(engine) for number, engine in engines.items()}
    found = {}
    for number, engine in engines.items():
        same = [values[other] for other in engines if engines[other].model.name == engine.model.name]
        keys = dict.fromkeys(key for one in same for key in one)
        differing = [key for key in keys if len({repr(one.get(key)) for one in same}) > 1]
        found[number] = " ".join(f"{key}={values[number].get(key, 'null')}" for key in differing)
    return found


def _values(engine: EngineSpec) -> dict[str, object]:
    shown = {"backend": engine.backend, "revision": engine.model.revision, "convert": engine.convert}
    variables = {f"env.{key}": value for key, value in engine.env.items()}
    return {**shown, **mask_values(dict(engine.args)), **mask_values(variables)}


def _result(record: RunRecord) -> str:
    """Return a point's throughput or mean score, with a space behind it; empty if it has neither."""
    if record.throughput is not None and record.throughput.saturated is not None:
        measured = record.throughput.saturated
        return f"{measured.requests_per_second:,.1f} {record.throughput.unit}/s, {measured.tokens_per_second:,.0f} tokens/s "
    score = mean(task.main_score for task in record.tasks)
    shown = "" if score is None else f"mean {score:.5f} " if len(record.tasks) > 1 else f"{score:.5f} "
    return f"passed: {shown}" if record.parity else shown


def _weights(points: Sequence[PlannedPoint]) -> dict[int, float]:
    """Return the tokens of each point that is not cached, which its time is estimated from; their mean where unknown."""
    tokens = {point.number: float(point.tokens) for point in points if point.pending_tasks}
    known = [weight for weight in tokens.values() if weight]
    mean_of_known = sum(known) / len(known) if known else 1.0
    return {number: weight or mean_of_known for number, weight in tokens.items()}


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
