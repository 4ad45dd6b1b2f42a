"""Real faults in a sweep's child process: it is killed, runs out of memory, crashes or hangs at a chosen moment.

The child process imports this module first, installs the fault, and then runs as usual. The package itself has no code for
this.
"""

from __future__ import annotations

import ctypes
import functools
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mteb_vllm.sweep import process

_OWN = "from mteb_vllm.sweep.child import main"


def start(fault: str, when: str, point: int, marker: Path) -> str:
    """Return the start code of a child process with a fault.

    Args:
        fault: A key of `_FAULTS`.
        when: loading, encoding, scoring or writing.
        point: The point that is to fail.
        marker: A file that is written when the fault happens, so that it happens only once.
    """
    install = f"import faults; faults.install({fault!r}, {when!r}, {point}, {str(marker)!r})"
    assert _OWN in process.START
    return process.START.replace(_OWN, f"{install}\n{_OWN}")


def install(fault: str, when: str, point: int, marker: str) -> None:
    """Install the fault in this process."""
    from mteb_vllm.sweep import child

    now: list[int] = []
    execute = child._execute

    def executed(command: Any, pipe: Any) -> Any:
        if hasattr(command, "config"):
            now[:] = [int(command.config.hydra.job.num)]
        return execute(command, pipe)

    child._execute = executed

    def happens() -> None:
        if now == [point] and not Path(marker).exists():
            Path(marker).write_text(f"{fault} {when}")
            _FAULTS[fault]()

    _WHEN[when](happens)


def _before(owner: Any, name: str, happens: Callable[[], None]) -> None:
    real = getattr(owner, name)

    @functools.wraps(real)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        happens()
        return real(*args, **kwargs)

    setattr(owner, name, wrapped)


def _loading(happens: Callable[[], None]) -> None:
    # Called immediately before vLLM's LLM is constructed.
    from mteb_vllm.engines import vllm

    _before(vllm, "shorter_context", happens)


def _encoding(happens: Callable[[], None]) -> None:
    from mteb_vllm.engines.vllm import VllmEngine

    _before(VllmEngine, "_run_requests", happens)


def _scoring(happens: Callable[[], None]) -> None:
    from mteb_vllm.pipelines import mteb_run

    _before(mteb_run, "evaluate_loaded", happens)


def _writing(happens: Callable[[], None]) -> None:
    # Between writing a file and moving it into the store.
    real = Path.replace

    def replaced(self: Path, target: Any) -> Any:
        if ".writing-" in str(self):
            happens()
        return real(self, target)

    Path.replace = replaced  # type: ignore[method-assign,assignment]


_WHEN = {"loading": _loading, "encoding": _encoding, "scoring": _scoring, "writing": _writing}


def _killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _terminated() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _killed_soon() -> None:
    threading.Timer(0.3, _killed).start()


def _segmentation_fault() -> None:
    ctypes.string_at(0)


def _out_of_memory() -> None:
    # Limit the address space to the current size and 1 MiB, so that neither weights nor activations fit.
    _, size = 0, int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 2**20, size + 2**20))


def _hang() -> None:
    time.sleep(100_000)


def _exception() -> None:
    raise ZeroDivisionError("a metric that is not defined")


def _core_killed() -> None:
    from mteb_vllm.engines.base import engine_processes

    for one in engine_processes():
        os.kill(one.pid, signal.SIGKILL)


_FAULTS: dict[str, Callable[[], None]] = {
    "killed": _killed,
    "killed soon": _killed_soon,
    "terminated": _terminated,
    "segmentation fault": _segmentation_fault,
    "out of memory": _out_of_memory,
    "hang": _hang,
    "exception": _exception,
    "core killed": _core_killed,
}

if __name__ == "__main__":
    sys.exit("this module is for the child process of a test's sweep, not a program")
