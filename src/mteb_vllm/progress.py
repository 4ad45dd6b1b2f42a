"""The progress of a run: a live line on a terminal, one plain line per task where output is piped."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from types import TracebackType

from rich.progress import BarColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from mteb_vllm.engines.base import EngineSpec
from mteb_vllm.results.record import TaskOutcome
from mteb_vllm.util.console import Column, Console, Counted, ElapsedColumn
from mteb_vllm.util.phase import Phase
from mteb_vllm.util.streams import lenient

# The width of tables in pipes and files, in characters; COLUMNS overrides it.
_WIDTH_IN_FILES = 160


class Progress:
    """Progress of one run over its tasks.

    Args:
        console: Where it is shown.
        n_tasks: The number of tasks.
    """

    def __init__(self, console: Console, n_tasks: int) -> None:
        self.console = console
        self.n_tasks = n_tasks
        self.n_done = 0
        self._task = self._part = ""
        self._texts = ""
        self._texts_started = 0.0
        self._shown = 0.0
        self._done = 0
        # Standard output and error belong to the run's log now (`util.quiet`): rich must not bring them back.
        self._bar = Bar(
            Column("{task.description}"),
            ElapsedColumn(),
            Counted(BarColumn(bar_width=24)),
            Column("{task.fields[count]}"),
            Column("{task.fields[rate]}"),
            Counted(TimeRemainingColumn(compact=True)),
            console=console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            disable=not console.is_terminal,
        )
        self._row = self._bar.add_task("", total=None, count="", rate="", since=None)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def note(self, phase: Phase, text: str) -> None:
        """Show an activity outside of any task; on a terminal with the elapsed seconds.

        Args:
            phase: The phase.
            text: Its description.
        """
        if self.console.is_terminal:
            self._show(text)
        else:
            self.console.print_line(text)

    @contextlib.contextmanager
    def opening(self, engine: EngineSpec) -> Iterator[None]:
        """Show that an engine is being opened, for the duration of the block."""
        copies = f" ({engine.replicas} replicas)" if engine.replicas > 1 else ""
        self.note(Phase.OPENING_ENGINE, f"Opening {engine.backend_name}: {engine.model.name}{copies}")
        yield
        if self._task:
            self._show(f"{self._label()} encoding")

    def waiting(self) -> None:
        """Show that the run waits for another one, which is computing the same result."""
        self.note(Phase.WAITING, f"Waiting for another run that is computing {self._task}")

    def line(self, text: str) -> None:
        """Print a permanent line."""
        self.console.print_line(text)

    def start_task(self, name: str, part: str = "") -> None:
        """Show that a task begins, or a part of it, such as its first stage."""
        self._task, self._part, self._texts = name, part, ""
        self._show(f"{self._label()} loading data")

    def encoded(self, what: str, done: int, total: int, unit: str = "texts") -> None:
        """Show how many texts or pairs are computed, and how many per second.

        Args:
            what: A label of the texts or pairs, e.g. "de query".
            done: The number of computed ones.
            total: The number of all.
            unit: "texts" or "pairs".
        """
        if not self.console.is_terminal:
            return
        now = time.perf_counter()
        if what != self._texts or done < self._done:  # the same side may come twice: STS encodes two columns
            self._texts, self._texts_started = what, now
            self._bar.reset(self._row, description=f"{self._label()} {what}", total=total)
            self._bar.update(self._row, count="", rate="", since=None)
        self._done = done
        if now - self._shown < 0.1 and done < total:
            return  # called for every text
        self._shown = now
        elapsed = now - self._texts_started
        rate = f"{done / elapsed:,.0f} {unit}/s" if done and elapsed > 0 else ""
        label = f"{self._label()} {'scoring' if done >= total else what}"
        self._bar.update(self._row, description=label, completed=done, count=f"{done:,}/{total:,}", rate=rate)

    def end_task(self, outcome: TaskOutcome) -> None:
        """Print the score of a task, or why it failed."""
        self.n_done += 1
        head = f"[{self.n_done}/{self.n_tasks}] {outcome.name}"
        if outcome.status == "failed":
            text = f"{head}: failed: {outcome.reason}"
        elif outcome.status == "cached":
            text = f"{head}: {outcome.metric} {outcome.main_score:.5f} (cached)"
        else:
            rates = ((outcome.texts_per_second, outcome.unit), (outcome.tokens_per_second, "tokens"))
            speed = "".join(f", {rate:,.0f} {unit}/s" for rate, unit in rates if rate)
            stored = f", {outcome.stored:,} of {outcome.texts:,} from the embedding cache" if outcome.stored else ""
            text = f"{head}: {outcome.metric} {outcome.main_score:.5f} in {outcome.total_seconds:.1f} s{speed}{stored}"
        style = "red" if outcome.status == "failed" else None
        self.console.print_line(text, style=style)
        if outcome.status == "failed" and (kept := outcome.subset_scores()):
            shown = ", ".join(f"{where} {score:.5f}" for where, score in kept[:5])
            more = f", and {len(kept) - 5:,} more" if len(kept) > 5 else ""
            self.line(f"      {outcome.metric} for the other subsets (kept): {shown}{more}")

    def _show(self, text: str) -> None:
        """Show a step of unknown length, with its seconds."""
        self._bar.update(self._row, description=text, completed=0, count="", rate="", since=time.perf_counter())

    def _label(self) -> str:
        return f"[{self.n_done + 1}/{self.n_tasks}] {self._task} {self._part}".rstrip()


# Makes a run's progress from a console and the number of tasks.
MakeProgress = Callable[[Console, int], Progress]


def terminal() -> Console:
    """Return standard output as a console; in pipes and files its tables are as wide as COLUMNS, else 160 characters."""
    out = lenient(sys.stdout)
    fixed = not out.isatty() and not os.environ.get("COLUMNS", "").isdigit()
    return Console(file=out, width=_WIDTH_IN_FILES if fixed else None)


def quiet_console() -> Console:
    """Return a console that shows nothing."""
    return Console(quiet=True)
