"""What preflight must know of mteb and of the installed vLLM, with neither imported in the process.

Importing mteb takes five to ten seconds, vLLM over twenty. So child processes (`_DESCRIBERS`) import them once per version
and write down what is needed; from then on the cache directory answers in milliseconds.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
from collections import UserDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, cast

from mteb_vllm.errors import CatalogueError
from mteb_vllm.util.files import cache_dir, read_with_checksum, write_with_checksum
from mteb_vllm.util.machine import vllm_distribution

logger = logging.getLogger(__name__)

# Offline and quiet, and neither mteb nor vLLM is looked for in the working directory, where a checkout may lie.
CHILD_ENV = {"HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "PYTHONWARNINGS": "ignore", "PYTHONSAFEPATH": "1"}
DEMO = "demo"  # the benchmark of our own tasks
# mteb's attributes that decide how much of its data a task has encoded.
SAMPLING = (
    "is_cross_validation",
    "max_document_to_embed",
    "max_eval_samples",
    "max_fraction_of_documents_to_embed",
    "n_experiments",
    "n_samples",
    "parallel_subsets",
    "samples_per_label",
    "train_split",
)

# What imports a package and writes down what preflight needs of it, as modules that are run; and our own files that decide
# about what is written.
_DESCRIBERS = {"mteb": "mteb_vllm.tasks.describe", "vllm": "mteb_vllm.engines.describe"}
_SOURCES = {
    "mteb": ("catalogue.py", "tasks/describe.py", "tasks/demo.py"),
    "vllm": ("catalogue.py", "engines/describe.py"),
}

# How values that JSON does not have are written: an enumeration's value, else their `repr`.
to_json = functools.partial(json.dumps, default=lambda item: getattr(item, "value", repr(item)), ensure_ascii=False)


@dataclass(frozen=True)
class TaskInfo:
    """One task's metadata; `languages` are codes as `eng-Latn`, `subsets` maps each hf_subset to its own.

    `sampling` holds those of the attributes in `SAMPLING` that the task has. `statistics` are our demo tasks' descriptive
    statistics, in the form of the files that mteb brings for its own; None for those.
    """

    name: str
    type: str
    modalities: tuple[str, ...]
    languages: tuple[str, ...]
    subsets: dict[str, tuple[str, ...]]
    splits: tuple[str, ...]
    dataset_path: str
    dataset_revision: str
    prompt: str | dict[str, str] | None
    main_score: str
    aggregate_of: tuple[str, ...] = ()
    sides: tuple[str, ...] = ("",)
    superseded_by: str | None = None
    is_public: bool = True
    is_beta: bool = False
    sampling: dict[str, Any] = field(default_factory=dict)
    statistics: dict[str, Any] | None = None


@dataclass(frozen=True)
class MtebCatalogue:
    """What mteb can be asked for, our demo tasks included.

    `benchmarks` holds mteb's aliases and our `demo`, too: task names, each with the subsets that the benchmark takes,
    None where it takes all; `benchmark_splits` the splits of those tasks that a benchmark takes not all splits of.
    `models` holds the names in mteb's registry, each with its loader's `model_prompts`, None where it has none.
    """

    version: str
    task_types: tuple[str, ...]
    prompt_types: tuple[str, ...]
    tasks: Mapping[str, TaskInfo]
    benchmarks: dict[str, dict[str, tuple[str, ...] | None]]
    benchmark_splits: dict[str, dict[str, tuple[str, ...]]]
    models: dict[str, dict[str, str] | None]


@dataclass(frozen=True)
class EngineArg:
    """One field of vLLM's `EngineArgs`.

    `choices` are the only values beside None that it takes, as strings; None where it is open. `kind` is the plain value
    that a YAML file may hold for it, None aside: `bool`, `int`, `float` (or an int), `str`, `list`, `dict`, or `any` where
    it takes several or nobody knows.
    `limits` are the bounds of a number, by pydantic's names (`ge`, `gt`, `le`, `lt`). `fields` are the keys of one of
    vLLM's configuration classes, which a YAML file writes as a dict; None where it is no such class.
    """

    name: str
    type: str
    choices: tuple[str, ...] | None
    kind: str
    limits: dict[str, float] = field(default_factory=dict)
    fields: dict[str, EngineArg] | None = None


@dataclass(frozen=True)
class VllmCatalogue:
    """What the installed vLLM takes: engine arguments, model architectures, environment variables.

    `encoder_only` are the architectures whose attention is never causal, for which there is no KV cache.
    """

    version: str
    args: dict[str, EngineArg]
    architectures: tuple[str, ...]
    encoder_only: tuple[str, ...]
    env: tuple[str, ...]


def known_prompt_key(key: str, mteb: MtebCatalogue) -> bool:
    """Whether mteb could ever look a prompt up by this key."""
    if key in mteb.prompt_types:
        return True
    bare, dash, side = key.rpartition("-")
    names = (key, bare) if dash and side in mteb.prompt_types else (key,)
    return any(name in mteb.tasks or name in mteb.task_types for name in names)


@functools.cache
def mteb_catalogue() -> MtebCatalogue:
    """What the installed mteb knows; raises `CatalogueError` where it cannot be imported."""
    raw = _load("mteb", "mteb", metadata.version("mteb"), "the task list", 15)
    return MtebCatalogue(**raw | {"tasks": _Tasks(raw["tasks"])})


@functools.cache
def vllm_catalogue() -> VllmCatalogue | None:
    """What the installed vLLM knows, None without one; raises `CatalogueError` where it cannot be imported."""
    if (found := vllm_distribution()) is None:
        return None
    raw = _load("vllm", *found, "the engine arguments", 30)
    args = {name: _engine_arg(arg) for name, arg in raw["args"].items()}
    return VllmCatalogue(**raw | {"args": args})


def _engine_arg(raw: dict[str, Any]) -> EngineArg:
    inner = raw["fields"]
    return EngineArg(**raw | {"fields": inner and {name: _engine_arg(one) for name, one in inner.items()}})


def warm() -> None:
    """Makes the catalogues that are missing, both at once; raises as they do."""
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda make: make(), (mteb_catalogue, vllm_catalogue)))


def _load(kind: str, name: str, version: str, what: str, seconds: int) -> dict[str, Any]:
    code = b"".join((Path(__file__).parent / source).read_bytes() for source in _SOURCES[kind])
    path = cache_dir() / f"{name}-{version}-py{platform.python_version()}-{hashlib.sha256(code).hexdigest()[:12]}.json"
    try:
        return {"version": version, **json.loads(read_with_checksum(path), object_hook=_frozen)}
    except (OSError, ValueError, TypeError) as error:
        if not isinstance(error, FileNotFoundError):
            logger.warning("%s cannot be read and is made anew (%s)", path, error)
    print(f"Reading {what} of {name} {version} (once, about {seconds} s)...", file=sys.stderr, flush=True)
    text = _make(kind)
    try:
        if path.is_dir() and not path.is_symlink():
            path.replace(f"{path}.broken")  # a file cannot take the place of a folder
        write_with_checksum(path, text)
    except OSError as error:
        logger.warning("%s cannot be written (%s), so every process makes its own", path, error)
    return {"version": version, **json.loads(text, object_hook=_frozen)}


def _make(kind: str) -> bytes:
    with tempfile.TemporaryDirectory(prefix="mteb-vllm-", ignore_cleanup_errors=True) as scratch:
        # What is made is kept for every run with this version: today's VLLM_* must not colour its defaults.
        env = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")} | CHILD_ENV
        env |= dict.fromkeys(("MTEB_CACHE", "VLLM_CACHE_ROOT", "VLLM_CONFIG_ROOT"), scratch)  # made by imports
        out = Path(scratch, "catalogue.json")
        command = [sys.executable, "-m", _DESCRIBERS[kind], str(out)]
        done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        if done.returncode:
            tail = "\n".join(done.stderr.decode(errors="replace").splitlines()[-15:])
            raise CatalogueError(f"{kind} cannot be read (exit status {done.returncode} of the child process):\n{tail}")
        return out.read_bytes()


class _Tasks(UserDict[str, Any]):
    # A task stays JSON until it is asked for: one of them has 41,412 subsets.
    def __getitem__(self, name: str) -> TaskInfo:
        if isinstance(self.data[name], str):
            self.data[name] = TaskInfo(**json.loads(self.data[name], object_hook=_frozen))
        return cast(TaskInfo, self.data[name])


def _frozen(item: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in item.items()}
