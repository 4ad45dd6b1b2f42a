"""Memory in MiB: the peaks of this process and of engine processes, and the memory left by closed engines."""

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

# The environment variable that limits the memory of an engine in a process that shares this machine's with others: the
# largest fraction that it may take. Its effect is not part of any fingerprint, since it changes no result.
LIMIT_VARIABLE = "MTEB_VLLM_MEMORY_LIMIT"

# Resident memory before the first engine was opened, imports included.
_baseline_mb: float | None = None


def within_limit(fraction: float) -> float:
    """Return a fraction of the memory, or the largest one that this process may take."""
    return min(fraction, float(os.environ.get(LIMIT_VARIABLE) or 1.0))


def reset_peak_memory(processes: Sequence[Process] = ()) -> None:
    """Reset the peak of this process and of engine processes where the system can (Linux: proc(5), clear_refs).

    Args:
        processes: The processes of open engines, without this one.
    """
    for pid in (os.getpid(), *(process.pid for process in processes)):
        with contextlib.suppress(OSError):
            Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")


def peak_memory(processes: Sequence[Process] = ()) -> dict[str, float]:
    """Return the peak resident memory in MiB of this process, and of the processes of open engines together.

    Args:
        processes: The processes of open engines, without this one.
    """
    # ru_maxrss is in KiB on Linux and in bytes on macOS (getrusage(2)).
    unit = 2**20 if platform.system() == "Darwin" else 2**10
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return {"process": round(own, 1), "engine_processes": round(sum(map(_process_peak, processes)), 1)}


def device_memory_mb() -> float | None:
    """Return the memory in use on the visible GPUs in MiB; None without a GPU.

    vLLM allocates all its memory when it opens, so this is also its peak.
    """
    from mteb_vllm.util.machine import gpu_figures

    used = gpu_figures("memory.used")
    try:
        return sum(float(value.split()[0]) for value in used) if used else None
    except (ValueError, IndexError):  # for example "[N/A]"
        return None


def _process_peak(process: Process) -> float:
    """Return the peak memory of another process, or its current memory where the system has no peak; 0 if it has ended."""
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
    """Record this process's memory on the first call; to be called after imports, right before an engine opens."""
    global _baseline_mb
    _baseline_mb = _resident_mb() if _baseline_mb is None else _baseline_mb


def leftover_mb() -> float:
    """Return how much more memory this process holds than before its first engine, memory on the GPU included."""
    if _baseline_mb is None:
        return 0.0
    import torch

    # The allocator of an engine in this process; an engine in a separate process frees everything when it ends.
    device = torch.cuda.memory_reserved() / 2**20 if torch.cuda.is_available() else 0.0
    return max(0.0, _resident_mb() - _baseline_mb) + device


def _resident_mb() -> float:
    import psutil

    return float(psutil.Process().memory_info().rss) / 2**20
