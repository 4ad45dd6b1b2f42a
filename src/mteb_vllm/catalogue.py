"""A catalogue of mteb's tasks and models and of vLLM's engine arguments, for preflight, which imports neither package.

Importing mteb takes five to ten seconds, vLLM over twenty. So child processes (`_DESCRIBERS`) import them once per version
and write the catalogues into the cache directory, from where they are read in milliseconds.
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
import threading
from collections import UserDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from mteb_vllm.errors import CatalogueError
from mteb_vllm.util.disk import reason
from mteb_vllm.util.files import cache_dir, read_with_checksum, write_with_checksum
from mteb_vllm.util.machine import vllm_distribution

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Offline, quiet, and without the working directory in the import path: it may hold a checkout of mteb or vLLM.
CHILD_ENV = {"HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "PYTHONWARNINGS": "ignore", "PYTHONSAFEPATH": "1"}
DEMO = "demo"  # the benchmark of our own tasks
# Attributes of mteb's tasks that determine how much of their data is encoded.
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

# The modules that are run to describe a package, and the source files that determine what they write.
_DESCRIBERS = {"mteb": "mteb_vllm.tasks.describe", "vllm": "mteb_vllm.engines.describe"}
_SOURCES = {
    "mteb": ("catalogue.py", "tasks/describe.py", "tasks/demo.py"),
    "vllm": ("catalogue.py", "engines/describe.py"),
}

# The child processes that are making catalogues.
_children: set[subprocess.Popen[bytes]] = set()

# Serialises a description; for types that JSON lacks, an enumeration's value, else the `repr`.
to_json = functools.partial(json.dumps, default=lambda item: getattr(item, "value", repr(item)), ensure_ascii=False)


@dataclass(frozen=True)
class TaskInfo:
    """The metadata of a task.

    `languages` are codes such as `eng-Latn`; `subsets` maps each hf_subset to its languages. `sampling` holds those of the
    attributes in `SAMPLING` that the task has. `statistics` are descriptive statistics in the format of mteb's files, which
    its own tasks have; None for those.
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
    """The tasks, benchmarks and models of mteb, and the demo tasks.

    `benchmarks` maps names, including mteb's aliases and `demo`, to task names, each with the subsets that belong to the
    benchmark (None: all). `benchmark_splits` holds the splits of those tasks of which not all splits belong to it.
    `models` maps the names in mteb's registry to the `model_prompts` of their loaders (None: no prompts). `languages` maps
    other names of a language, in lower case (`en`, `english`), to the codes by which mteb knows it (`eng`).
    """

    version: str
    task_types: tuple[str, ...]
    prompt_types: tuple[str, ...]
    tasks: Mapping[str, TaskInfo]
    benchmarks: dict[str, dict[str, tuple[str, ...] | None]]
    benchmark_splits: dict[str, dict[str, tuple[str, ...]]]
    models: dict[str, dict[str, str] | None]
    languages: dict[str, str]


@dataclass(frozen=True)
class EngineArg:
    """A field of vLLM's `EngineArgs`.

    `choices` are the only allowed values except None, as strings; None if any value is allowed. `kind` is the type of its
    value in YAML: `bool`, `int`, `float` (or an int), `str`, `list`, `dict`, or `any` if there are several or it is unknown.
    `limits` are the bounds of a number, by pydantic's names (`ge`, `gt`, `le`, `lt`). `fields` are those of one of vLLM's
    configuration classes, which is a dict in YAML; None for other types.
    """

    name: str
    type: str
    choices: tuple[str, ...] | None
    kind: str
    limits: dict[str, float] = field(default_factory=dict)
    fields: dict[str, EngineArg] | None = None


@dataclass(frozen=True)
class VllmCatalogue:
    """The engine arguments, model architectures and environment variables of the installed vLLM.

    `encoder_only` are the architectures whose attention is never causal: they have no KV cache.
    """

    version: str
    args: dict[str, EngineArg]
    architectures: tuple[str, ...]
    encoder_only: tuple[str, ...]
    env: tuple[str, ...]


def known_prompt_key(key: str, mteb: MtebCatalogue) -> bool:
    """Return whether this is a key by which mteb looks up prompts."""
    if key in mteb.prompt_types:
        return True
    bare, dash, side = key.rpartition("-")
    names = (key, bare) if dash and side in mteb.prompt_types else (key,)
    return any(name in mteb.tasks or name in mteb.task_types for name in names)


class _Once(Generic[T]):
    # Unlike `functools.cache`, which calls the function in each thread that comes before the first result.
    def __init__(self, function: Callable[[], T]) -> None:
        functools.update_wrapper(self, function)
        self._cached = functools.cache(function)
        self._lock = threading.Lock()
        self.cache_clear = self._cached.cache_clear

    def __call__(self) -> T:
        with self._lock:
            return self._cached()


@_Once
def mteb_catalogue() -> MtebCatalogue:
    """Return the catalogue of the installed mteb.

    Raises:
        CatalogueError: if mteb cannot be imported.
    """
    raw = _load("mteb", "mteb", metadata.version("mteb"), "the task list", 15)
    return MtebCatalogue(**raw | {"tasks": _Tasks(raw["tasks"])})


@_Once
def vllm_catalogue() -> VllmCatalogue | None:
    """Return the catalogue of the installed vLLM; None if there is none.

    Raises:
        CatalogueError: if vLLM cannot be imported.
    """
    if (found := vllm_distribution()) is None:
        return None
    raw = _load("vllm", *found, "the engine arguments", 30)
    args = {name: _engine_arg(arg) for name, arg in raw["args"].items()}
    return VllmCatalogue(**raw | {"args": args})


def _engine_arg(raw: dict[str, Any]) -> EngineArg:
    inner = raw["fields"]
    return EngineArg(**raw | {"fields": inner and {name: _engine_arg(one) for name, one in inner.items()}})


def warm(meanwhile: Callable[[], object] | None = None) -> None:
    """Make the missing catalogues in parallel.

    Args:
        meanwhile: Called while child processes make them; not called if none is missing.

    Raises:
        CatalogueError: if mteb or vLLM cannot be imported.
    """
    paths = filter(None, map(catalogue_path, _SOURCES))
    complete = all(path.exists() for path in paths)
    with ThreadPoolExecutor(2) as pool:
        making = [pool.submit(make) for make in (mteb_catalogue, vllm_catalogue)]
        try:
            if not complete and meanwhile is not None:
                meanwhile()
            for one in making:
                one.result()
        except BaseException:  # Ctrl-C must not wait for them
            for child in list(_children):
                child.kill()
            raise


def catalogue_path(kind: str) -> Path | None:
    """Return where the catalogue of the installed `mteb` or `vllm` is stored; None if it is not installed."""
    installed = ("mteb", metadata.version("mteb")) if kind == "mteb" else vllm_distribution()
    if installed is None:
        return None
    name, version = installed
    code = b"".join((Path(__file__).parent / source).read_bytes() for source in _SOURCES[kind])
    return cache_dir() / f"{name}-{version}-py{platform.python_version()}-{hashlib.sha256(code).hexdigest()[:12]}.json"


def _load(kind: str, name: str, version: str, what: str, seconds: int) -> dict[str, Any]:
    path = catalogue_path(kind)
    assert path is not None
    try:
        return {"version": version, **json.loads(read_with_checksum(path), object_hook=_freeze)}
    except (OSError, ValueError, TypeError) as error:
        if not isinstance(error, FileNotFoundError):
            logger.warning("%s cannot be read and is made again (%s)", path, error)
    # One write with the line break in it, unlike print: both catalogues are made at the same time.
    sys.stderr.write(f"Reading {what} of {name} {version} (only once; takes about {seconds} s)...\n")
    sys.stderr.flush()
    text = _make(kind)
    try:
        if path.is_dir() and not path.is_symlink():
            path.replace(f"{path}.broken")  # a file cannot replace a folder
        write_with_checksum(path, text)
    except OSError as error:
        logger.warning("%s cannot be written (%s): every process will make the catalogue again", path, reason(error))
    return {"version": version, **json.loads(text, object_hook=_freeze)}


def _make(kind: str) -> bytes:
    with tempfile.TemporaryDirectory(prefix="mteb-vllm-", ignore_cleanup_errors=True) as scratch:
        # The catalogue serves all runs with this version: the present VLLM_* variables must not affect its defaults.
        env = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")} | CHILD_ENV
        env |= dict.fromkeys(("MTEB_CACHE", "VLLM_CACHE_ROOT", "VLLM_CONFIG_ROOT"), scratch)  # imports create them
        out = Path(scratch, "catalogue.json")
        command = [sys.executable, "-m", _DESCRIBERS[kind], str(out)]
        with subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as child:
            _children.add(child)
            try:
                _, errors = child.communicate()
            except BaseException:
                child.kill()
                raise
            finally:
                _children.discard(child)
        if child.returncode:
            tail = "\n".join(errors.decode(errors="replace").splitlines()[-15:])
            raise CatalogueError(
                f"{kind} could not be imported and inspected (a child process exited with status {child.returncode}):\n{tail}"
            )
        return out.read_bytes()


class _Tasks(UserDict[str, Any]):
    # Tasks are parsed on access: one of them has 41,412 subsets.
    def __getitem__(self, name: str) -> TaskInfo:
        if isinstance(self.data[name], str):
            self.data[name] = TaskInfo(**json.loads(self.data[name], object_hook=_freeze))
        return cast(TaskInfo, self.data[name])


def _freeze(item: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in item.items()}
