"""What a user sees while a run goes on: a live line on a terminal, one plain line a task where output is piped."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from mteb_vllm.engines.base import EngineSpec
from mteb_vllm.results.record import TaskOutcome
from mteb_vllm.util.console import Column, Console
from mteb_vllm.util.phase import Phase
from mteb_vllm.util.streams import lenient


class Progress:
    """Progress of one run over its tasks.

    Args:
        console: Where it is shown.
        n_tasks: How many tasks there are.
    """

    def __init__(self, console: Console, n_tasks: int) -> None:
        self.console = console
        self.n_tasks = n_tasks
        self.n_done = 0
        self._task = self._what = ""
        self._texts = ""
        self._texts_started = 0.0
        self._shown = 0.0
        self._done = 0
        self._bar = Bar(
            Column("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            Column("{task.fields[rate]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._row = self._bar.add_task("", total=None, rate="")

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def note(self, phase: Phase, text: str) -> None:
        """Show what goes on outside of any task.

        Args:
            phase: What is being done.
            text: The same in words.
        """
        if self.console.is_terminal:
            self._bar.update(self._row, description=text, total=None, completed=0, rate="")
        else:
            self.console.print_line(text)

    @contextlib.contextmanager
    def opening(self, engine: EngineSpec) -> Iterator[None]:
        """An engine opens."""
        self.note(Phase.OPENING_ENGINE, f"Opening {engine.backend_name}: {engine.model.name}")
        yield
        if self._task:
            self._bar.update(self._row, description=f"{self._label()} encoding")

    def waiting(self) -> None:
        """Another run computes what is needed now."""
        self.note(Phase.WAITING, f"Waiting for another run that computes {self._task}")

    def line(self, text: str) -> None:
        """Shows a line that stays."""
        self.console.print_line(text)

    def start_task(self, name: str, what: str = "") -> None:
        """A task begins, or a part of it, as its first stage."""
        self._task, self._what, self._texts = name, what, ""
        self._bar.update(self._row, description=f"{self._label()} loading data", total=None, completed=0, rate="")

    def encoded(self, what: str, done: int, total: int, unit: str = "texts") -> None:
        """Show how many texts or pairs are computed.

        Args:
            what: Which ones, as "de query".
            done: How many are.
            total: How many there are.
            unit: "texts" or "pairs".
        """
        if not self.console.is_terminal:
            return
        now = time.perf_counter()
        if what != self._texts or done < self._done:  # the same ones may come again: STS encodes two columns
            self._texts, self._texts_started = what, now
            self._bar.reset(self._row, description=f"{self._label()} {what}", total=total)
        self._done = done
        if now - self._shown < 0.1 and done < total:
            return  # called for every text; nobody reads faster
        self._shown = now
        elapsed = now - self._texts_started
        rate = f"{done / elapsed:,.0f} {unit}/s" if done and elapsed > 0 else ""
        if done >= total:
            self._bar.update(self._row, completed=done, description=f"{self._label()} scoring", rate=rate)
        else:
            self._bar.update(self._row, completed=done, rate=rate)

    def end_task(self, outcome: TaskOutcome) -> None:
        """A task has ended, one way or another."""
        self.n_done += 1
        head = f"[{self.n_done}/{self.n_tasks}] {outcome.name}"
        if outcome.status == "failed":
            text = f"{head}: failed: {outcome.reason}"
        elif outcome.status == "cached":
            text = f"{head}: {outcome.metric} {outcome.main_score:.5f} (cached)"
        else:
            rate = outcome.texts_per_second
            speed = f", {rate:,.0f} {outcome.unit}/s" if rate else ""
            stored = f", {outcome.stored:,} of {outcome.texts:,} from the embedding cache" if outcome.stored else ""
            text = f"{head}: {outcome.metric} {outcome.main_score:.5f} in {outcome.total_seconds:.1f} s{speed}{stored}"
        style = "red" if outcome.status == "failed" else None
        self.console.print_line(text, style=style)
        if outcome.status == "failed" and (kept := outcome.subset_scores()):
            shown = ", ".join(f"{where} {score:.5f}" for where, score in kept[:5])
            more = f", and {len(kept) - 5:,} more" if len(kept) > 5 else ""
            self.line(f"      {outcome.metric} of the others, which are kept: {shown}{more}")

    def _label(self) -> str:
        return f"[{self.n_done + 1}/{self.n_tasks}] {self._task} {self._what}".rstrip()


# Makes what shows a run's progress, of a console and the number of tasks.
MakeProgress = Callable[[Console, int], Progress]


def terminal() -> Console:
    """Standard output as a place for progress and tables; wide enough for them where it is no terminal."""
    out = lenient(sys.stdout)
    return Console(file=out) if out.isatty() else Console(file=out, width=160)


def quiet_console() -> Console:
    """A place that shows nothing."""
    return Console(quiet=True)
