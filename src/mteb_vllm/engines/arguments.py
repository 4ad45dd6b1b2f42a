"""Engine arguments: merge the configuration, the model's recipe and this machine's preset; find errors in them.

Nothing here imports vLLM.
"""

from __future__ import annotations

import functools
import math
import operator
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from mteb_vllm.catalogue import EngineArg, VllmCatalogue, vllm_catalogue
from mteb_vllm.config.schema import conf_dir
from mteb_vllm.engines.base import Backend
from mteb_vllm.engines.ray_cluster import ClusterError, find_nodes, place, replicas_of
from mteb_vllm.errors import Mistake
from mteb_vllm.util.machine import cores, cpu_build, device, gpu_count
from mteb_vllm.util.shell import as_typed, shown, suggest
from mteb_vllm.util.suggestions import nearest, nearest_argument
from mteb_vllm.util.type_names import wrong_type

# Keys of `engine` that are not vLLM engine arguments.
OWN_KEYS = ("backend", "preset", "env", "head_dtype", "replicas", "ray_address")
PRESETS = ("auto", "vllm", "vllm_cpu")
BACKENDS = ("vllm", "sentence_transformers")

# The arguments of the sentence-transformers backend with their types; vLLM has no equivalent of the first three.
_SENTENCE_TRANSFORMERS_TYPES: dict[str, type] = {
    "batch_size": int,
    "attn_implementation": str,
    "device": str,
    "dtype": str,
    "max_model_len": int,
    "trust_remote_code": bool,
    "load_format": str,
}
_SENTENCE_TRANSFORMERS_ONLY = ("batch_size", "attn_implementation", "device")
# Arguments of vLLM that follow from the model and its use.
_SET_BY_WRAPPERS = frozenset({"model", "revision", "runner", "convert"})
_CHOICES = {
    "dtype": ("float32", "float16", "bfloat16", "auto"),
    "load_format": ("safetensors", "auto"),
    "attn_implementation": ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"),
}


def pick_preset(preset: str) -> str:
    """Return the name of a preset, with `auto` resolved for this machine."""
    if preset != "auto":
        return preset
    return "vllm_cpu" if cpu_build() or device().startswith("cpu") else "vllm"


def backend_of(engine: Mapping[str, Any]) -> Backend:
    """Return the backend that an engine's configuration selects."""
    backend: Backend = engine.get("backend") or "vllm"
    return backend


def resolve_arguments(
    engine: Mapping[str, Any], recipe: Mapping[str, Any]
) -> tuple[dict[str, object], dict[str, str], str, Backend, int, str | None]:
    """Return engine arguments and environment: the configuration over the recipe over the preset of this machine.

    Args:
        engine: The config group `engine`, nulls included.
        recipe: The model recipe's own engine arguments.

    Returns:
        the arguments without nulls, the environment, the name of the preset, the backend, the number of replicas, and the
        address of the Ray cluster that they run on.
    """
    if backend_of(engine) == "sentence_transformers":
        args = _sentence_transformers_arguments(engine, recipe)
        # On a CPU both backends use the same thread settings.
        preset = _preset_values("vllm_cpu") if str(args.get("device") or device()).startswith("cpu") else {}
        env = {key: value for key, value in _merge_env(preset, recipe, engine).items() if not key.startswith("VLLM_")}
        return args, env, "none", "sentence_transformers", 1, None
    name = pick_preset(engine.get("preset") or "none")
    layers = [_preset_values(name), recipe, engine]
    merged: dict[str, object] = {}
    for layer in layers:
        merged |= {key: value for key, value in layer.items() if value is not None and key not in ("preset", "env")}
    args = _vllm_arguments(merged)
    address = merged.get("ray_address")
    count = _resolve_replicas(merged.get("replicas"), args, address)
    return args, _merge_env(*layers), name, "vllm", count, address if isinstance(address, str) else None


def gpus_per_engine(args: Mapping[str, object]) -> int:
    """Return the number of GPUs that one engine uses, or of groups of cores on a CPU."""
    sizes = [args.get(f"{way}_parallel_size") for way in ("tensor", "pipeline")]
    return math.prod(size for size in sizes if isinstance(size, int))


def _resolve_replicas(value: object, args: Mapping[str, object], address: object) -> int:
    """Return the number of replicas; `auto` is one for each group of GPUs that an engine uses, and 1 on a CPU.

    With the address of a Ray cluster, unset means `auto`: for each group of the cluster's GPUs, or each of its nodes.
    """
    if address is not None and value in (None, "auto"):
        try:
            return max(1, replicas_of(find_nodes(address), gpus_per_engine(args)))
        except ClusterError:  # reported by `cluster_problem`
            return 1
    if value == "auto":
        return max(1, gpu_count() // gpus_per_engine(args))
    return value if isinstance(value, int) else 1


def cluster_problem(
    address: object, replicas: object, args: Mapping[str, object], env: Mapping[str, str]
) -> ClusterError | None:
    """Return why replicas cannot run on a Ray cluster; None if they can.

    Args:
        address: Its address.
        replicas: Their number, or `auto`, or None.
        args: The arguments of an engine.
        env: Its environment.
    """
    if args.get("distributed_executor_backend") == "ray":
        what = "replicas on a Ray cluster start their workers themselves, each on its node"
        return ClusterError(what, "Leave engine.distributed_executor_backend unset.", "conflict")
    if "CUDA_VISIBLE_DEVICES" in env:
        what = "Ray assigns the GPUs of its nodes"
        return ClusterError(what, "Leave engine.env.CUDA_VISIBLE_DEVICES unset.", "conflict")
    try:
        place(find_nodes(address), replicas if isinstance(replicas, int) else 1, gpus_per_engine(args))
    except ClusterError as error:
        return error
    return None


def replicas_problem(value: object, backend: Backend, *, on_cluster: bool = False) -> tuple[str, str] | None:
    """Return the error in a number of replicas, and the allowed values; None if it is valid.

    Args:
        value: The number, or `auto`, or None.
        backend: The backend of the engine.
        on_cluster: Whether they run on the nodes of a Ray cluster, which `cluster_problem` looks at.
    """
    if backend == "sentence_transformers" and on_cluster:
        return "sentence-transformers has no replicas on a cluster", "Leave it unset, or switch to vLLM: engine=auto"
    if value is None or value == "auto":
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        return "must be a number of engines, 1 or more, or auto", ""
    if backend == "sentence_transformers" and value > 1:
        return "sentence-transformers has no replicas", "Leave it unset, or switch to vLLM: engine=auto"
    if backend == "vllm" and not on_cluster and not gpu_count() and value > len(cores()):
        return "each replica needs a core, and there are fewer", f"Cores: {len(cores())}."
    return None


def _merge_env(*layers: Mapping[str, Any]) -> dict[str, str]:
    """Merge the environments of several layers of engine values; later layers win."""
    env: dict[str, str] = {}
    for layer in layers:
        for key, value in (layer.get("env") or {}).items():
            if value is not None:
                env[key] = value if isinstance(value, str) else str(value)  # keeps the type of a secret string
    return env


def _sentence_transformers_arguments(engine: Mapping[str, object], recipe: Mapping[str, Any]) -> dict[str, object]:
    """Return the arguments for sentence-transformers, including those of a vLLM recipe that have an equivalent."""
    merged: dict[str, object] = {"load_format": "safetensors", "trust_remote_code": False}
    for layer in (_preset_values("sentence_transformers"), recipe, engine):
        merged |= {
            key: value for key, value in layer.items() if value is not None and key in _SENTENCE_TRANSFORMERS_TYPES
        }
    if (dimensions := (recipe.get("pooler_config") or {}).get("dimensions")) is not None:
        merged["dimensions"] = dimensions
    if (answers := (recipe.get("hf_overrides") or {}).get("classifier_from_token")) is not None:
        merged["hf_overrides"] = {"classifier_from_token": answers}
    return merged


def _vllm_arguments(values: Mapping[str, Any]) -> dict[str, object]:
    """Convert values named as in `conf/engine/` to vLLM engine arguments."""
    args = {
        key: value
        for key, value in values.items()
        if value is not None and key not in (*OWN_KEYS, *_SENTENCE_TRANSFORMERS_ONLY)
    }
    if values.get("head_dtype") is not None:
        # vLLM reads the head's dtype from the model's configuration.
        args["hf_overrides"] = {**(args.get("hf_overrides") or {}), "head_dtype": values["head_dtype"]}
    if args.get("quantization") is None:
        # Loading pickled weights executes code, so they have to be requested: +engine.load_format=auto.
        args.setdefault("load_format", "safetensors")
    args.setdefault("trust_remote_code", False)
    return args


@functools.cache
def _preset_values(preset: str) -> Mapping[str, object]:
    if preset not in ("vllm", "vllm_cpu", "sentence_transformers"):
        return {}
    from omegaconf import OmegaConf

    values = OmegaConf.to_container(OmegaConf.load(conf_dir() / "engine" / f"{preset}.yaml"))
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def unknown_arguments(
    names: Collection[str], backend: Backend, others: Collection[str] = ()
) -> dict[str, tuple[str, ...]]:
    """Find the names that are no arguments of a backend.

    Args:
        names: Names of arguments.
        backend: The backend.
        others: Further names that may be suggested.

    Returns:
        for each unknown name the suggested names, best first.
    """
    known = {*_SENTENCE_TRANSFORMERS_TYPES, *OWN_KEYS}
    if backend == "vllm":
        known = {*known, *_preset_values("vllm")} - {*_SENTENCE_TRANSFORMERS_ONLY}
        # Reading the catalogue takes half a minute the first time, so it is read only for less common arguments.
        if not known.issuperset(names) and (vllm := vllm_catalogue()) is not None:
            known |= vllm.args.keys() - _SET_BY_WRAPPERS
    return {name: nearest_argument(name, [*known, *others]) for name in names if name not in known}


def check_sentence_transformers(where: str, values: Mapping[str, object]) -> list[Mistake]:
    """Return the errors in the arguments of a sentence-transformers engine; parameters as in `check_arguments`."""
    mistakes = []
    for key, value in values.items():
        wrong = functools.partial(Mistake, f"{where}.{key}", value=shown(value))
        kind = _SENTENCE_TRANSFORMERS_TYPES.get(key)
        if value is None or key in ("backend", "preset"):
            continue
        if key == "replicas":
            mistakes += _replicas_mistakes(f"{where}.{key}", value, "sentence_transformers")
            continue
        if key == "ray_address":
            mistakes.append(
                wrong("sentence-transformers has no replicas", "Leave it unset, or switch to vLLM: engine=auto")
            )
            continue
        if key == "env":
            mistakes += _env_mistakes(f"{where}.env", value, None)
        elif kind is None:
            what = "is a vLLM argument, but this engine is sentence-transformers"
            known = f"Arguments of sentence-transformers: {', '.join(_SENTENCE_TRANSFORMERS_TYPES)}."
            mistakes.append(
                wrong(
                    what,
                    known,
                    tuple(
                        as_typed(f"{where}.{near}", f"{where}.{key}")
                        for near in nearest_argument(key, _SENTENCE_TRANSFORMERS_TYPES)
                    ),
                )
            )
        elif not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            mistakes.append(wrong(wrong_type(kind, value)))
        elif isinstance(value, int) and kind is int and value < 1:
            mistakes.append(wrong("must be 1 or more"))
        elif key in _CHOICES and value not in _CHOICES[key]:
            near = tuple(suggest(f"{where}.{key}", choice) for choice in nearest(str(value), _CHOICES[key]))
            mistakes.append(
                wrong("is not a valid value", f"Allowed: {', '.join(_CHOICES[key])}.", near, code="unknown_choice")
            )
    return mistakes


def check_arguments(
    where: str, values: Mapping[str, object], vllm: VllmCatalogue, *, on_cluster: bool = False
) -> list[Mistake]:
    """Return the errors in vLLM engine arguments, according to the installed vLLM's own description of them.

    Args:
        where: The section of the configuration, such as `engine`.
        values: Its values, nulls included.
        vllm: The description of the installed vLLM.
        on_cluster: Whether replicas run on the nodes of a Ray cluster.
    """
    mistakes = []
    for key, value in values.items():
        at = f"{where}.{key}"
        if key == "preset":
            if value not in (None, *PRESETS):
                mistakes.append(
                    Mistake(
                        at,
                        "there is no such preset",
                        f"Presets: {', '.join(PRESETS)}.",
                        value=shown(value),
                        code="unknown_choice",
                    )
                )
        elif key == "backend":
            if value not in (None, *BACKENDS):
                near = tuple(suggest(at, choice) for choice in nearest(str(value), BACKENDS))
                mistakes.append(
                    Mistake(
                        at,
                        "there is no such backend",
                        f"Backends: {', '.join(BACKENDS)}.",
                        near,
                        value=shown(value),
                        code="unknown_choice",
                    )
                )
        elif key == "env":
            mistakes += _env_mistakes(at, value, vllm)
        elif key == "replicas":
            mistakes += _replicas_mistakes(at, value, "vllm", on_cluster=on_cluster)
        elif key == "ray_address":
            pass  # `cluster_problem` needs other arguments too
        elif key in _SENTENCE_TRANSFORMERS_ONLY:
            if value is not None:
                what = "is an argument of sentence-transformers, but this engine is vLLM"
                near = tuple(as_typed(f"{where}.{name}", at) for name in nearest_argument(key, vllm.args))
                mistakes.append(Mistake(at, what, "To switch: engine=sentence_transformers", near, value=shown(value)))
        elif key in _SET_BY_WRAPPERS:
            way = "Use model.name, model.revision or model.kind."
            mistakes.append(Mistake(at, "is set by the model and the pipeline", way))
        elif key == "head_dtype":
            choices = ("model", *(vllm.args["dtype"].choices or ()))
            if value is not None and value not in choices:
                mistakes.append(
                    Mistake(
                        at,
                        "there is no such dtype",
                        f"Allowed: {', '.join(choices)}.",
                        tuple(suggest(at, choice) for choice in nearest(str(value), choices)),
                        value=shown(value),
                    )
                )
        elif key not in vllm.args:
            near = tuple(
                as_typed(f"{where}.{name}", at, new=name not in values)
                for name in nearest_argument(key, [*vllm.args, *OWN_KEYS])
            )
            what = f"vLLM {vllm.version} has no such engine argument"
            mistakes.append(
                Mistake(at, what, nearest=near, value=None if value is None else shown(value), code="unknown_key")
            )
        elif value is not None:
            mistakes += _value_mistakes(at, value, vllm.args[key])
    return mistakes


_TYPES: dict[str, tuple[type, ...]] = {
    "bool": (bool,), "int": (int,), "float": (int, float), "str": (str,), "list": (list,), "dict": (dict,)
}  # fmt: skip
# vLLM's own description may lack their lower bound.
_AT_LEAST_ONE = (
    "max_num_seqs", "max_num_batched_tokens", "tensor_parallel_size", "pipeline_parallel_size", "renderer_num_workers"
)  # fmt: skip
_BOUNDS: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    "ge": ("{:g} or more", operator.ge), "gt": ("more than {:g}", operator.gt),
    "le": ("{:g} or less", operator.le), "lt": ("less than {:g}", operator.lt),
}  # fmt: skip
_MULTIPLES = {"k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}


def _value_mistakes(
    at: str, value: object, arg: EngineArg, write: Callable[[object], str] | None = None
) -> list[Mistake]:
    """Return the errors in the value of an argument, or of a key inside one.

    Args:
        at: The key, such as `engine.dtype`.
        value: The value.
        arg: vLLM's description of the argument.
        write: Formats the override that sets a suggested value; by default `at=value`.
    """
    write = write or functools.partial(suggest, at)
    if arg.choices is not None:
        if str(value) in arg.choices:
            return []
        near = tuple(write(choice) for choice in nearest(str(value), arg.choices))
        allowed = f"Allowed: {', '.join(arg.choices)}."
        return [
            Mistake(at, "vLLM does not accept this value", allowed, near, value=shown(value), code="unknown_choice")
        ]
    # vLLM's own configuration classes are written as dicts.
    kind = "dict" if arg.kind == "any" and re.fullmatch(r"\w+Config( \| None)?", arg.type) else arg.kind
    types = _TYPES.get(kind)
    if types is not None and not (isinstance(value, types) and (kind == "bool" or not isinstance(value, bool))):
        what = wrong_type(kind, value)
        near = (write(number),) if kind == "int" and (number := _as_number(value)) is not None else ()
        return [Mistake(at, what, _EXAMPLES.get(kind, ""), near, value=shown(value))]
    if arg.name == "gpu_memory_utilization" and isinstance(value, (int, float)) and not 0 < value <= 1:
        return [Mistake(at, "must be a fraction of the memory, above 0 and at most 1", value=shown(value))]
    if arg.name == "max_model_len" and isinstance(value, (int, float)) and value < 1:
        # With -1, vLLM would choose it by the free memory, so scores would depend on that.
        way = "Leave it unset for the model's own context length."
        return [Mistake(at, "must be 1 or more", way, value=shown(value))]
    if isinstance(value, (int, float)):
        limits = {"ge": 1, **arg.limits} if arg.name in _AT_LEAST_ONE else arg.limits
        unmet = [_BOUNDS[name][0].format(bound) for name, bound in limits.items() if not _BOUNDS[name][1](value, bound)]
        return [Mistake(at, f"must be {unmet[0]}", value=shown(value))] if unmet else []
    return _field_mistakes(at, value, arg.fields, write) if arg.fields and isinstance(value, Mapping) else []


def _field_mistakes(
    at: str, value: Mapping[str, object], known: Mapping[str, EngineArg], write: Callable[[object], str]
) -> list[Mistake]:
    """Return the errors in a dict that is converted to one of vLLM's configuration classes."""
    mistakes = []
    for key, item in value.items():
        if key not in known:
            near = tuple(
                write({name if other == key else other: one for other, one in value.items()})
                for name in nearest(str(key), known)
            )
            kind = at.rpartition(".")[2]
            mistakes.append(
                Mistake(
                    f"{at}.{key}",
                    f"{kind} has no such key",
                    f"Keys: {', '.join(known)}.",
                    near,
                    value=shown(item),
                    code="unknown_key",
                )
            )
        elif item is not None and not _is_coerced(known[key].kind, item):
            rewrite = functools.partial(_with_key, write, value, key)
            mistakes += _value_mistakes(f"{at}.{key}", item, known[key], rewrite)
    return mistakes


def _is_coerced(kind: str, value: object) -> bool:
    """Return whether pydantic converts a value of another type to this kind, as it does inside configuration classes."""
    if kind == "bool":
        return value in (0, 1) or str(value).lower() in ("true", "false", "yes", "no", "on", "off", "y", "n", "t", "f")
    if kind in ("int", "float") and isinstance(value, str):
        return (
            re.fullmatch(r"[+-]?\d+(\.0*)?" if kind == "int" else r"[+-]?\d*\.?\d+([eE][+-]?\d+)?", value) is not None
        )
    return kind == "int" and isinstance(value, float) and value.is_integer()


def _with_key(write: Callable[[object], str], values: Mapping[str, object], key: str, value: object) -> str:
    return write({**values, key: value})


def _as_number(value: object) -> int | None:
    """Parse a human-readable number as vLLM's command line does: `16k` is 16,000 and `16K` is 16,384."""
    found = re.fullmatch(r"(\d+)([kKmMgG])", value) if isinstance(value, str) else None
    return None if found is None else int(found[1]) * _MULTIPLES[found[2]]


def context_limit(arguments: Mapping[str, object]) -> int | None:
    """Return the context length that arguments set, in tokens; None if it is the model's own."""
    limit = arguments.get("max_model_len")
    return limit if isinstance(limit, int) and limit > 0 else None


def _replicas_mistakes(at: str, value: object, backend: Backend, *, on_cluster: bool = False) -> list[Mistake]:
    problem = replicas_problem(value, backend, on_cluster=on_cluster)
    return [Mistake(at, *problem, value=shown(value))] if problem is not None else []


_EXAMPLES = {"bool": "Allowed: true, false.", "list": "Write it as [a,b].", "dict": "Write it as {key: value}."}


def _env_mistakes(at: str, value: object, vllm: VllmCatalogue | None) -> list[Mistake]:
    """Return the errors in `engine.env`; `vllm` is None if the engine is sentence-transformers."""
    if not isinstance(value, Mapping):
        return [Mistake(at, "must be a mapping of names to values", value=shown(value))]
    mistakes = []
    for name, setting in value.items():
        if not isinstance(name, str) or not name or "=" in name or "\0" in name:
            mistakes.append(Mistake(f"{at}.{name}", "is not a valid environment variable name"))
            continue
        if name.startswith("VLLM_") and vllm is None:
            what = "is a vLLM variable, but this engine is sentence-transformers"
            mistakes.append(Mistake(f"{at}.{name}", what, "Remove it, or switch to vLLM: engine=auto"))
        elif name.startswith("VLLM_") and vllm is not None and name not in vllm.env:
            near = tuple(as_typed(f"{at}.{known}", f"{at}.{name}") for known in nearest(name, vllm.env))
            mistakes.append(Mistake(f"{at}.{name}", f"is not a variable that vLLM {vllm.version} reads", nearest=near))
        if isinstance(setting, bool) or not isinstance(setting, (str, int, float)):
            mistakes.append(
                Mistake(f"{at}.{name}", "must be text or a number", "Write booleans as 0 or 1.", value=shown(setting))
            )
    return mistakes
