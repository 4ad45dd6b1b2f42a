"""The child process of a sweep, which runs points one after another on command.

It exits when its parent exits for whatever reason, and kills the processes of its engines.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from types import FrameType
from typing import Protocol

import psutil
from hydra import version
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobStatus, configure_log, run_job, setup_globals
from omegaconf import open_dict, read_write

from mteb_vllm.engines.base import EngineSpec, close_engines, engine_processes, exit_if_engine_dies
from mteb_vllm.engines.memory import leftover_mb
from mteb_vllm.plan import unpack
from mteb_vllm.progress import MakeProgress, Progress
from mteb_vllm.results.failures import failure_from_exception
from mteb_vllm.results.record import TaskOutcome
from mteb_vllm.runner import prefetch_first_stage
from mteb_vllm.sweep.job import Job
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
    RunPoint,
    TaskDone,
    TaskProgress,
)
from mteb_vllm.sweep.planning import PlannedPoint
from mteb_vllm.util import disk
from mteb_vllm.util.child_process import connect
from mteb_vllm.util.console import Console
from mteb_vllm.util.masking import register, watch_environment
from mteb_vllm.util.phase import Phase
from mteb_vllm.util.streams import lenient

logger = logging.getLogger(__name__)

# Minimum number of seconds between two progress events.
_SEND_EVERY = 0.2


class Pipe(Protocol):
    """The pipe to the sweep."""

    def recv(self) -> Command:
        """Return the next command.

        Raises:
            EOFError: if the sweep has ended.
        """

    def send(self, event: Event, /) -> None:
        """Send an event."""


def main(orders: int, lifeline: int) -> None:
    """Execute commands until the pipe closes.

    Args:
        orders: File descriptor of the pipe to the sweep.
        lifeline: File descriptor of a pipe that closes when the sweep's process ends.
    """
    with connect(orders, lifeline) as pipe:
        serve(pipe)


def serve(pipe: Pipe) -> None:
    """Execute commands until the sweep ends or closes the pipe."""
    threading.Thread(target=exit_if_engine_dies, daemon=True).start()
    signal.signal(signal.SIGTERM, _stop)
    try:
        while True:
            pipe.send(_execute(pipe.recv(), pipe))
    except (EOFError, BrokenPipeError):
        pass
    except KeyboardInterrupt:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _close_engines()
        # End by the signal itself, so that the parent sees it in the exit status.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)


def _execute(command: Command, pipe: Pipe) -> Event:
    if isinstance(command, CloseEngines):
        return _close_engines()
    # Hydra will resolve the configuration again for its own files, so secrets have to be registered first.
    watch_environment()
    for value in command.secrets:
        register(value)
    try:
        command.folder.mkdir(parents=True, exist_ok=True)
        with (command.folder / "output.txt").open("a", encoding="utf-8") as file:
            console = Console(file=lenient(file), width=160)
            progress = functools.partial(_Relay, pipe=pipe)
            return (
                _run_first_stage(command, console, progress)
                if command.first_stage_only
                else _run_point(command, console, progress)
            )
    except Exception as error:
        disk.locate(error, command.folder)
        logger.exception("the point failed")
        traceback.print_exc()
        return PointFailed(failure_from_exception(error))


def _run_point(command: RunPoint, console: Console, progress: MakeProgress) -> Event:
    version.setbase("1.3")
    setup_globals()
    job = Job(console, [_point_with_plan(command)], progress=progress, prefetched=command.prefetched)
    answer = run_job(
        job,
        command.config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
        hydra_context=command.context,
    )
    if answer.status != JobStatus.COMPLETED:
        # The exception itself may not be picklable.
        return PointFailed(failure_from_exception(answer._return_value))
    return PointDone(answer, job.records[-1])


def _point_with_plan(command: RunPoint) -> PlannedPoint:
    return replace(command.point, plan=unpack(command.point.config, command.plan))


def _run_first_stage(command: RunPoint, console: Console, progress: MakeProgress) -> Event:
    # Not run as a Hydra job, because callbacks would take it for a point.
    setup_globals()
    config = command.config.copy()
    with read_write(config.hydra.runtime), open_dict(config.hydra.runtime):
        config.hydra.runtime.output_dir = str(command.folder.absolute())
    HydraConfig.instance().set_config(config)
    configure_log(config.hydra.job_logging, config.hydra.verbose)
    point = _point_with_plan(command)
    return FirstStageDone(
        prefetch_first_stage(point.config, point.plan, command.folder, console=console, progress=progress)
    )


class _Relay(Progress):
    """Progress that is written to the point's own file and sent to the sweep."""

    def __init__(self, console: Console, n_tasks: int, pipe: Pipe) -> None:
        super().__init__(console, n_tasks)
        self._pipe = pipe
        self._last_sent = 0.0

    def note(self, phase: Phase, text: str) -> None:
        super().note(phase, text)
        self._pipe.send(Activity(phase, text))

    @contextlib.contextmanager
    def opening(self, engine: EngineSpec) -> Iterator[None]:
        with super().opening(engine):
            yield
        self._pipe.send(EngineOpened(engine.identity))
        self._send_progress(Phase.ENCODING, "encoding")

    def start_task(self, name: str, what: str = "") -> None:
        super().start_task(name, what)
        self._send_progress(Phase.LOADING_DATA, "loading data")

    def encoded(self, what: str, done: int, total: int, unit: str = "texts") -> None:
        super().encoded(what, done, total, unit)
        now = time.perf_counter()
        if now - self._last_sent > _SEND_EVERY or done >= total:
            self._last_sent = now
            if done >= total:
                self._pipe.send(TaskProgress(self._task, Phase.SCORING, "scoring"))
            else:
                self._send_progress(Phase.ENCODING, what, done, total, unit)

    def _send_progress(self, phase: Phase, text: str, done: int = 0, total: int = 0, unit: str = "texts") -> None:
        self._pipe.send(TaskProgress(self._task, phase, f"{self._part} {text}".lstrip(), done, total, unit))

    def end_task(self, outcome: TaskOutcome) -> None:
        super().end_task(outcome)
        self._pipe.send(TaskDone(outcome))


def _close_engines() -> EnginesClosed:
    processes = engine_processes()
    close_engines()
    _, alive = psutil.wait_procs(processes, timeout=10)
    return EnginesClosed(leftover_mb(), len(alive))


def _stop(number: int, frame: FrameType | None) -> None:
    # As on Ctrl-C, write the record so far and close engines.
    raise KeyboardInterrupt
