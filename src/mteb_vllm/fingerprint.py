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
import inspect
import json
import os
import platform
import re
import shutil
import subprocess
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import CodeType
from typing import Any

from mteb_vllm.catalogue import vllm_distribution

# Packages whose version changes results. mteb's is counted although a score seldom moves with it: seldom is not never.
_COUNTED_PACKAGES = ("torch", "transformers", "mteb")

# Raised with every change of ours after which the same settings give other embeddings or scores.
METHOD = 3

# Variables of vLLM's that change what is printed or kept where, and no result.
_UNCOUNTED = re.compile(
    r"VLLM_(LOGGING_.*|CONFIGURE_LOGGING|CACHE_ROOT|CONFIG_ROOT|ASSETS_.*|NO_USAGE_STATS|USAGE_.*|DO_NOT_TRACK|HOST_IP|PORT|DIST_IDENT"
    r"|RPC_.*|WORKER_MULTIPROC_METHOD|TRACE_.*|DEBUG_.*|LOG_.*)"
)


def fingerprint(settings: Mapping[str, Any]) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of the settings' canonical JSON.

    Raises:
        TypeError: if something in the settings is no plain value, since two different objects might then look alike.
    """
    canonical = json.dumps(settings, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def uncounted_variable(name: str) -> bool:
    """Whether a variable of vLLM's changes only what is printed, or kept where."""
    return _UNCOUNTED.fullmatch(name) is not None


def identity(function: Callable[..., Any]) -> str:
    """What a callable does, as far as that can be known: the hash of its compiled code.

    One that holds anything else (a closure, defaults, an object) is known by itself only: what it computes is never taken
    for another's, nor found again in another process.
    """
    if inspect.isfunction(function) and not (function.__closure__ or function.__defaults__ or function.__kwdefaults__):
        digest = hashlib.sha256(repr(_code(function.__code__)).encode()).hexdigest()[:16]
        return f"{function.__module__}:{function.__qualname__}#{digest}"
    return f"{type(function).__name__}#{_STRANGERS.setdefault(id(function), (uuid.uuid4().hex, function))[0]}"


# Kept beside their names, so that no other object comes to have the same id.
_STRANGERS: dict[int, tuple[str, Any]] = {}


def _code(code: CodeType) -> tuple[Any, ...]:
    constants = tuple(_code(item) if isinstance(item, CodeType) else item for item in code.co_consts)
    return code.co_code, code.co_names, code.co_varnames, constants


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
    chosen = [said for word in wanted for index, uuid, said in rows if word == index or uuid.startswith(word or " ")]
    # Slices of a GPU (MIG) go by identifiers of their own.
    return chosen or [said for _, _, said in rows]


def processor() -> str:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
