"""What a result depends on besides its task, as one hash.

A result is reused only if nothing that could have changed it differs: model and revision (or the hash of local weights),
every engine argument and the engine's environment, prompts and templates, the kind of device, and the versions of vLLM,
torch, transformers and mteb. What vLLM resolves from these (dtype, pooling, context length) follows from them; it is
recorded beside the scores.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mteb_vllm.catalogue import vllm_distribution

# Packages whose version changes results. mteb's is counted although a score seldom moves with it: seldom is not never.
_COUNTED_PACKAGES = ("torch", "transformers", "mteb")

# Variables of vLLM's that change what is printed or kept where, and no result.
_UNCOUNTED = re.compile(
    r"VLLM_(LOGGING_.*|CONFIGURE_LOGGING|CACHE_ROOT|CONFIG_ROOT|ASSETS_.*|NO_USAGE_STATS|USAGE_.*|DO_NOT_TRACK|HOST_IP|PORT|DIST_IDENT"
    r"|RPC_.*|WORKER_MULTIPROC_METHOD|TRACE_.*|DEBUG_.*|LOG_.*)"
)
# As it was before anything of vLLM's ran here, which sets variables itself.
_SHELL = {key: value for key, value in os.environ.items() if key.startswith("VLLM_") and not _UNCOUNTED.fullmatch(key)}


def fingerprint(settings: Mapping[str, Any]) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of the settings' canonical JSON.

    Raises:
        TypeError: if something in the settings is no plain value, since two different objects might then look alike.
    """
    canonical = json.dumps(settings, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def shell_env(chosen: Mapping[str, str]) -> dict[str, str]:
    """Variables of vLLM's that came along from the shell, beside those of `engine.env`: they change results all the same."""
    return {key: value for key, value in _SHELL.items() if key not in chosen}


@functools.cache
def versions() -> Mapping[str, str | None]:
    """Versions of the packages that change results; None where one is not installed."""
    vllm = vllm_distribution()
    found: dict[str, str | None] = {"vllm": f"{vllm[1]} ({vllm[0]})" if vllm else None}
    for package in _COUNTED_PACKAGES:
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
    return f"cpu: {_processor()}"


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
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    # Through the driver's own tool: asking torch would cost its import, and CUDA started here breaks forked engines.
    if visible == "" or shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=index,uuid,name", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[cell.strip() for cell in line.split(",", 2)] for line in answer.splitlines() if line.count(",") >= 2]
    wanted = [] if visible is None else [word.strip() for word in visible.split(",")]
    chosen = [name for word in wanted for index, uuid, name in rows if word == index or uuid.startswith(word or " ")]
    # Slices of a GPU (MIG) go by identifiers of their own.
    return chosen or [name for _, _, name in rows]


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
