"""The process that runs a sweep's points, one after another, as it is told.

It ends when whoever started it does, however that ends, and takes the processes of its engines with it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import logging
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from types import FrameType

import psutil
from hydra import version
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobStatus, configure_log, run_job, setup_globals
from omegaconf import open_dict, read_write

from mteb_vllm.engines.base import EngineSpec, close_engines, dead_processes, working_processes
from mteb_vllm.engines.memory import leftover_mb
from mteb_vllm.plan import unpack
from mteb_vllm.progress import MakeProgress, Progress
from mteb_vllm.results.failures import ENGINE_DIED, of_exception
from mteb_vllm.results.record import TaskOutcome
from mteb_vllm.runner import retrieve_ahead
from mteb_vllm.sweep.job import Job
from mteb_vllm.sweep.messages import (
    AheadDone,
    Closed,
    CloseEngines,
    Doing,
    Opened,
    Order,
    PointDone,
    PointFailed,
    Report,
    RunPoint,
    TaskDone,
    Working,
)
from mteb_vllm.sweep.planning import PlannedPoint
from mteb_vllm.util import disk
from mteb_vllm.util.console import Console
from mteb_vllm.util.masking import register, watch_environment
from mteb_vllm.util.phase import Phase
from mteb_vllm.util.streams import lenient, open_standard_streams

logger = logging.getLogger(__name__)

# How long vLLM may take to notice that a process of its own has ended, in seconds.
_NOTICE_WITHIN = 10.0

# How often a phase's progress is told, in seconds.
_TELL_EVERY = 0.2


def main(orders: int, lifeline: int) -> None:
    """Does what it is told until it is told nothing more.

    Args:
        orders: File descriptor of the pipe to the sweep.
        lifeline: File descriptor of a pipe that closes when the sweep's process ends.
    """
    for descriptor in (orders, lifeline):
        os.set_inheritable(descriptor, False)  # an engine's processes must not hold them open
    open_standard_streams()
    # A crash, and a hang that is asked about, show where they are; standard error goes into the point's log.
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    threading.Thread(target=_die_with_parent, args=(lifeline,), daemon=True).start()
    threading.Thread(target=_watch_engines, daemon=True).start()
    signal.signal(signal.SIGTERM, _stop)
    with Connection(orders) as pipe:
        try:
            while True:
                pipe.send(_follow(pipe.recv(), pipe))
        except (EOFError, BrokenPipeError):
            pass
        except KeyboardInterrupt:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            _close_engines()
            # Ended by it, as whoever waits for this process shall see.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)


def _follow(order: Order, pipe: Connection) -> Report:
    if isinstance(order, CloseEngines):
        return _close_engines()
    # Hydra resolves the configuration once more for its own files, and the log begins.
    watch_environment()
    for value in order.secrets:
        register(value)
    try:
        order.folder.mkdir(parents=True, exist_ok=True)
        with (order.folder / "output.txt").open("a", encoding="utf-8") as file:
            console = Console(file=lenient(file), width=160)
            progress = functools.partial(_Relay, pipe=pipe)
            return (
                _first_stage(order, console, progress) if order.first_stage_only else _point(order, console, progress)
            )
    except Exception as error:
        disk.locate(error, order.folder)
        logger.exception("the point failed")
        traceback.print_exc()
        return PointFailed(of_exception(error))


def _point(order: RunPoint, console: Console, progress: MakeProgress) -> Report:
    version.setbase("1.3")
    setup_globals()
    answer = run_job(
        Job(console, [_planned(order)], progress=progress, ahead=order.ahead),
        order.config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
        hydra_context=order.context,
    )
    if answer.status != JobStatus.COMPLETED:
        # The exception itself need not survive the pipe.
        return PointFailed(of_exception(answer._return_value))
    return PointDone(answer)


def _planned(order: RunPoint) -> PlannedPoint:
    return replace(order.point, plan=unpack(order.point.config, order.plan))


def _first_stage(order: RunPoint, console: Console, progress: MakeProgress) -> Report:
    # No job of Hydra's, whose callbacks would take it for a point of its own.
    setup_globals()
    config = order.config.copy()
    with read_write(config.hydra.runtime), open_dict(config.hydra.runtime):
        config.hydra.runtime.output_dir = str(order.folder.absolute())
    HydraConfig.instance().set_config(config)
    configure_log(config.hydra.job_logging, config.hydra.verbose)
    point = _planned(order)
    return AheadDone(retrieve_ahead(point.config, point.plan, order.folder, console=console, progress=progress))


class _Relay(Progress):
    """Progress that goes into the point's own file, and to the sweep."""

    def __init__(self, console: Console, n_tasks: int, pipe: Connection) -> None:
        super().__init__(console, n_tasks)
        self._pipe = pipe
        self._told = 0.0

    def note(self, phase: Phase, text: str) -> None:
        super().note(phase, text)
        self._pipe.send(Doing(phase, text))

    @contextlib.contextmanager
    def opening(self, engine: EngineSpec) -> Iterator[None]:
        with super().opening(engine):
            yield
        self._pipe.send(Opened(engine.fingerprint))
        self._work(Phase.ENCODING, "encoding")

    def start_task(self, name: str, what: str = "") -> None:
        super().start_task(name, what)
        self._work(Phase.LOADING_DATA, "loading data")

    def encoded(self, what: str, done: int, total: int, unit: str = "texts") -> None:
        super().encoded(what, done, total, unit)
        now = time.perf_counter()
        if now - self._told > _TELL_EVERY or done >= total:
            self._told = now
            if done >= total:
                self._pipe.send(Working(self._task, Phase.SCORING, "scoring"))
            else:
                self._work(Phase.ENCODING, what, done, total, unit)

    def _work(self, phase: Phase, text: str, done: int = 0, total: int = 0, unit: str = "texts") -> None:
        self._pipe.send(Working(self._task, phase, f"{self._part} {text}".lstrip(), done, total, unit))

    def end_task(self, outcome: TaskOutcome) -> None:
        super().end_task(outcome)
        self._pipe.send(TaskDone(outcome))


def _close_engines() -> Closed:
    processes = working_processes()
    close_engines()
    _, alive = psutil.wait_procs(processes, timeout=10)
    return Closed(leftover_mb(), len(alive))


def _watch_engines() -> None:
    """Ends this process when one of an engine's has ended and vLLM does not notice."""
    missing: set[int] = set()
    while True:
        time.sleep(_NOTICE_WITHIN)
        # Between two looks vLLM says so itself, and the engine closes.
        dead = set(dead_processes())
        if still := dead & missing:
            logger.error("a process of the engine has ended (%s) and vLLM has not noticed", sorted(still))
            logging.shutdown()
            os._exit(ENGINE_DIED)
        missing = dead


def _stop(number: int, frame: FrameType | None) -> None:
    # As Ctrl-C: the record of what is done is written, and engines close.
    raise KeyboardInterrupt


def _die_with_parent(lifeline: int) -> None:
    while os.read(lifeline, 1):
        pass
    os.killpg(0, signal.SIGKILL)
