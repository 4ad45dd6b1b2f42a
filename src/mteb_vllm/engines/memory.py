"""Memory, in MiB: what this process and those of engines have held at most, and what stays behind closed engines."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from psutil import Process

# Memory that this process held before it opened its first engine, imports included.
_baseline_mb: float | None = None


def reset_peak_memory(processes: Sequence[Process] = ()) -> None:
    """Lets a run's peak be its own, in processes that have run others; where the system can (Linux: proc(5), clear_refs).

    Args:
        processes: Those of engines that are open, beside this one.
    """
    for pid in (os.getpid(), *(process.pid for process in processes)):
        with contextlib.suppress(OSError):
            Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")


def peak_memory(processes: Sequence[Process] = ()) -> dict[str, float]:
    """Peak resident memory so far, in MiB: of this process, and of the processes of open engines together.

    Args:
        processes: Those of engines that are open, beside this one.
    """
    # ru_maxrss is in KiB on Linux and in bytes on macOS (getrusage(2)).
    unit = 2**20 if platform.system() == "Darwin" else 2**10
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return {"process": round(own, 1), "engine_processes": round(sum(map(_process_peak, processes)), 1)}


def device_memory_mb() -> float | None:
    """Memory that is in use on the GPUs that this process may see, in MiB; None where there is none.

    An engine of vLLM's takes what it will need when it opens, so that this is its peak as well.
    """
    from mteb_vllm.util.machine import gpu_figures

    used = gpu_figures("memory.used")
    try:
        return sum(float(value.split()[0]) for value in used) if used else None
    except (ValueError, IndexError):  # as "[N/A]"
        return None


def _process_peak(process: Process) -> float:
    """What another process has held at most, as Linux says it, else what it holds now; 0 for one that has ended."""
    import psutil

    try:
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii", errors="replace")
        return float(status.partition("VmHWM:")[2].split()[0]) / 2**10
    except (OSError, ValueError, IndexError):
        pass
    try:
        return float(process.memory_info().rss) / 2**20
    except psutil.Error:
        return 0.0


def record_baseline() -> None:
    """Notes what this process holds, the first time: called right before an engine opens, when all is imported."""
    global _baseline_mb
    _baseline_mb = _resident_mb() if _baseline_mb is None else _baseline_mb


def leftover_mb() -> float:
    """Memory, the device's too, that this process holds more than before it opened its first engine."""
    if _baseline_mb is None:
        return 0.0
    import torch

    # An engine in this process has torch's allocator; one in a process of its own takes its memory along.
    device = torch.cuda.memory_reserved() / 2**20 if torch.cuda.is_available() else 0.0
    return max(0.0, _resident_mb() - _baseline_mb) + device


def _resident_mb() -> float:
    import psutil

    return float(psutil.Process().memory_info().rss) / 2**20
