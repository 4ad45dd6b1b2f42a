"""Memory, in MB: what this process and its children have held at most, and what stays behind closed engines."""

from __future__ import annotations

import contextlib
import platform
import resource
from pathlib import Path

# Memory that this process held before it opened its first engine, imports included.
_before: float | None = None


def reset_peak_memory() -> None:
    """Lets a run's peak be its own, in a process that has run others; where the system can (Linux: proc(5), clear_refs)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory() -> dict[str, float]:
    """Peak resident memory so far in MB: of this process, and of its largest child that has ended."""
    # ru_maxrss is in KiB on Linux and in bytes on macOS (getrusage(2)).
    unit = 2**20 if platform.system() == "Darwin" else 2**10
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return {"process": round(own / unit, 1), "largest_child": round(child / unit, 1)}


def note_before_engines() -> None:
    """Notes what this process holds, the first time: called right before an engine opens, when all is imported."""
    global _before
    _before = _resident() if _before is None else _before


def leftover_mb() -> float:
    """Memory, the device's too, that this process holds more than before it opened its first engine."""
    if _before is None:
        return 0.0
    import torch

    # An engine in this process has torch's allocator; one in a process of its own takes its memory along.
    device = torch.cuda.memory_reserved() / 2**20 if torch.cuda.is_available() else 0.0
    return max(0.0, _resident() - _before) + device


def _resident() -> float:
    import psutil

    return float(psutil.Process().memory_info().rss) / 2**20
