"""Which arguments an engine is opened with: what is set, else what the model's recipe says, else a preset of this machine.

And what is wrong with them, before vLLM is imported.
"""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from mteb_vllm.catalogue import EngineArg, VllmCatalogue
from mteb_vllm.config.schema import conf_dir
from mteb_vllm.engines.base import Backend
from mteb_vllm.errors import Mistake
from mteb_vllm.util.machine import cpu_build, device
from mteb_vllm.util.shell import as_typed, suggest
from mteb_vllm.util.suggestions import nearest, nearest_argument

# Keys of `engine` that are not vLLM's: how the arguments were chosen, and the environment.
OWN_KEYS = ("backend", "preset", "env", "head_dtype")
PRESETS = ("auto", "vllm", "vllm_cpu")
BACKENDS = ("vllm", "sentence_transformers")

# What sentence-transformers is opened and asked with, and the types of that; the first three are its alone.
_OF_SENTENCE_TRANSFORMERS: dict[str, type] = {
    "batch_size": int,
    "attn_implementation": str,
    "device": str,
    "dtype": str,
    "max_model_len": int,
    "trust_remote_code": bool,
    "load_format": str,
}
_NOT_VLLMS = ("batch_size", "attn_implementation", "device")
_CHOICES = {
    "dtype": ("float32", "float16", "bfloat16", "auto"),
    "load_format": ("safetensors", "auto"),
    "attn_implementation": ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"),
}


@functools.cache
def pick_preset(preset: str) -> str:
    """The preset that `auto` stands for on this machine."""
    if preset != "auto":
        return preset
    return "vllm_cpu" if cpu_build() or device().startswith("cpu") else "vllm"


def backend_of(engine: Mapping[str, Any]) -> Backend:
    """What works in an engine, by its configuration."""
    backend: Backend = engine.get("backend") or "vllm"
    return backend


def resolve_arguments(
    engine: Mapping[str, Any], recipe: Mapping[str, Any]
) -> tuple[dict[str, object], dict[str, str], str, Backend]:
    """Engine arguments and environment: what is set, else what the recipe says, else the preset of this machine.

    Args:
        engine: The config group `engine`, nulls included.
        recipe: The model recipe's own engine arguments.

    Returns:
        arguments without nulls, environment, the name of the preset, and what works in the engine.
    """
    if backend_of(engine) == "sentence_transformers":
        args = _of_sentence_transformers(engine, recipe)
        # On a CPU its threads are made as vLLM's are, by the same file.
        preset = _preset_values("vllm_cpu") if str(args.get("device") or device()).startswith("cpu") else {}
        env = {key: value for key, value in _env(preset, recipe, engine).items() if not key.startswith("VLLM_")}
        return args, env, "none", "sentence_transformers"
    name = pick_preset(engine.get("preset") or "none")
    layers = [_preset_values(name), recipe, engine]
    merged: dict[str, object] = {}
    for layer in layers:
        merged |= {key: value for key, value in layer.items() if value is not None and key not in ("preset", "env")}
    return _vllm_names(merged), _env(*layers), name, "vllm"


def _env(*layers: Mapping[str, Any]) -> dict[str, str]:
    """Return the environment that layers of engine values make, the last one first."""
    env: dict[str, str] = {}
    for layer in layers:
        for key, value in (layer.get("env") or {}).items():
            if value is not None:
                env[key] = value if isinstance(value, str) else str(value)  # a secret stays one
    return env


def _of_sentence_transformers(engine: Mapping[str, object], recipe: Mapping[str, Any]) -> dict[str, object]:
    """What is set for sentence-transformers; of a recipe for vLLM, what means the same here."""
    merged: dict[str, object] = {"load_format": "safetensors", "trust_remote_code": False}
    for layer in (_preset_values("sentence_transformers"), recipe, engine):
        merged |= {key: value for key, value in layer.items() if value is not None and key in _OF_SENTENCE_TRANSFORMERS}
    if (dimensions := (recipe.get("pooler_config") or {}).get("dimensions")) is not None:
        merged["dimensions"] = dimensions
    if (answers := (recipe.get("hf_overrides") or {}).get("classifier_from_token")) is not None:
        merged["hf_overrides"] = {"classifier_from_token": answers}
    return merged


def _vllm_names(values: Mapping[str, Any]) -> dict[str, object]:
    """Values by the names of `conf/engine/` as vLLM's engine arguments."""
    args = {key: value for key, value in values.items() if value is not None and key not in (*OWN_KEYS, *_NOT_VLLMS)}
    if values.get("head_dtype") is not None:
        # vLLM reads the head's dtype from the model's configuration.
        args["hf_overrides"] = {**(args.get("hf_overrides") or {}), "head_dtype": values["head_dtype"]}
    if args.get("quantization") is None:
        # Pickled weights run code when they are read; whoever needs them says so: +engine.load_format=auto.
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


def check_sentence_transformers(where: str, values: Mapping[str, object]) -> list[Mistake]:
    """What is wrong with the arguments of an engine of sentence-transformers; for the arguments see `check_arguments`."""
    mistakes = []
    for key, value in values.items():
        wrong = functools.partial(Mistake, f"{where}.{key}", value=f"{value}")
        kind = _OF_SENTENCE_TRANSFORMERS.get(key)
        if value is None or key in ("backend", "preset"):
            continue
        if key == "env":
            mistakes += _env_mistakes(f"{where}.env", value, None)
        elif kind is None:
            what = "is an argument of vLLM's, and this engine is sentence-transformers"
            known = f"Known to both, or to it: {', '.join(_OF_SENTENCE_TRANSFORMERS)}."
            mistakes.append(
                wrong(
                    what,
                    known,
                    tuple(
                        as_typed(f"{where}.{near}", f"{where}.{key}")
                        for near in nearest_argument(key, _OF_SENTENCE_TRANSFORMERS)
                    ),
                )
            )
        elif not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            mistakes.append(wrong(f"must be {kind.__name__}, this is {type(value).__name__}"))
        elif isinstance(value, int) and kind is int and value < 1:
            mistakes.append(wrong("must be 1 or more"))
        elif key in _CHOICES and value not in _CHOICES[key]:
            near = tuple(suggest(f"{where}.{key}", choice) for choice in nearest(str(value), _CHOICES[key]))
            mistakes.append(
                wrong("there is no such choice", f"Allowed: {', '.join(_CHOICES[key])}.", near, code="unknown_choice")
            )
    return mistakes


def check_arguments(where: str, values: Mapping[str, object], vllm: VllmCatalogue) -> list[Mistake]:
    """What is wrong with engine arguments, as far as the installed vLLM's own description of them says.

    Args:
        where: The part of the configuration, as `engine`.
        values: What it says, nulls included.
        vllm: What the installed vLLM takes.
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
                        value=f"{value}",
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
                        value=f"{value}",
                        code="unknown_choice",
                    )
                )
        elif key == "env":
            mistakes += _env_mistakes(at, value, vllm)
        elif key in _NOT_VLLMS:
            if value is not None:
                what = "is an argument of sentence-transformers, and this engine is vLLM"
                near = tuple(as_typed(f"{where}.{name}", at) for name in nearest_argument(key, vllm.args))
                mistakes.append(
                    Mistake(at, what, "Choose the other: engine=sentence_transformers", near, value=f"{value}")
                )
        elif key in ("model", "revision", "runner", "convert"):
            mistakes.append(
                Mistake(at, "this argument is set by the model and the pipeline", "Use model.name, model.revision.")
            )
        elif key == "head_dtype":
            choices = ("model", *(vllm.args["dtype"].choices or ()))
            if value is not None and value not in choices:
                mistakes.append(
                    Mistake(
                        at,
                        "no such dtype",
                        f"Allowed: {', '.join(choices)}.",
                        tuple(suggest(at, choice) for choice in nearest(str(value), choices)),
                        value=f"{value}",
                    )
                )
        elif key not in vllm.args:
            near = tuple(
                as_typed(f"{where}.{name}", at, new=name not in values)
                for name in nearest_argument(key, [*vllm.args, *OWN_KEYS])
            )
            what = f"vLLM {vllm.version} has no such engine argument"
            mistakes.append(
                Mistake(at, what, nearest=near, value=None if value is None else f"{value}", code="unknown_key")
            )
        elif value is not None:
            mistakes += _value_mistakes(at, value, vllm.args[key])
    return mistakes


_TYPES: dict[str, tuple[type, ...]] = {
    "bool": (bool,), "int": (int,), "float": (int, float), "str": (str,), "list": (list,), "dict": (dict,)
}  # fmt: skip
# Where vLLM's own description may not say it.
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
    """What is wrong with the value of an argument, or of a key in one; `write` makes an override of a better value."""
    write = write or functools.partial(suggest, at)
    if arg.choices is not None:
        if str(value) in arg.choices:
            return []
        near = tuple(write(choice) for choice in nearest(str(value), arg.choices))
        allowed = f"Allowed: {', '.join(arg.choices)}."
        return [Mistake(at, "vLLM does not know this value", allowed, near, value=f"{value}", code="unknown_choice")]
    # vLLM's own classes of settings are written as dicts.
    kind = "dict" if arg.kind == "any" and re.fullmatch(r"\w+Config( \| None)?", arg.type) else arg.kind
    types = _TYPES.get(kind)
    if types is not None and not (isinstance(value, types) and (kind == "bool" or not isinstance(value, bool))):
        what = f"vLLM wants {kind} here, this is {type(value).__name__}"
        near = (write(number),) if kind == "int" and (number := _as_number(value)) is not None else ()
        return [Mistake(at, what, _EXAMPLES.get(kind, ""), near, value=f"{value}")]
    if arg.name == "gpu_memory_utilization" and isinstance(value, (int, float)) and not 0 < value <= 1:
        return [Mistake(at, "is a share of the memory, above 0 and up to 1", value=f"{value}")]
    if arg.name == "max_model_len" and isinstance(value, (int, float)) and value < 1 and value != -1:
        way = "Leave it unset for the model's own context; -1 is as much of that as fits into the memory."
        return [Mistake(at, "must be 1 or more", way, value=f"{value}")]
    if isinstance(value, (int, float)):
        limits = {"ge": 1, **arg.limits} if arg.name in _AT_LEAST_ONE else arg.limits
        unmet = [_BOUNDS[name][0].format(bound) for name, bound in limits.items() if not _BOUNDS[name][1](value, bound)]
        return [Mistake(at, f"must be {unmet[0]}", value=f"{value}")] if unmet else []
    return _field_mistakes(at, value, arg.fields, write) if arg.fields and isinstance(value, Mapping) else []


def _field_mistakes(
    at: str, value: Mapping[str, object], known: Mapping[str, EngineArg], write: Callable[[object], str]
) -> list[Mistake]:
    """What is wrong with a dict that stands for one of vLLM's configuration classes."""
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
                    value=f"{item}",
                    code="unknown_key",
                )
            )
        elif item is not None and not _is_coerced(known[key].kind, item):
            rewrite = functools.partial(_with_key, write, value, key)
            mistakes += _value_mistakes(f"{at}.{key}", item, known[key], rewrite)
    return mistakes


def _is_coerced(kind: str, value: object) -> bool:
    """Return whether pydantic turns a value of another type into this kind, as it does inside configuration classes."""
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
    """Return what a human-readable number stands for: `16k` is 16,000 and `16K` 16,384, as on vLLM's own command line."""
    found = re.fullmatch(r"(\d+)([kKmMgG])", value) if isinstance(value, str) else None
    return None if found is None else int(found[1]) * _MULTIPLES[found[2]]


def context_limit(arguments: Mapping[str, object]) -> int | None:
    """Return the context that arguments set, in tokens; None where it is the model's own (-1: as much of it as fits)."""
    limit = arguments.get("max_model_len")
    return limit if isinstance(limit, int) and limit > 0 else None


_EXAMPLES = {"bool": "true or false.", "list": "As [a,b].", "dict": "As {key: value}."}


def _env_mistakes(at: str, value: object, vllm: VllmCatalogue | None) -> list[Mistake]:
    """Return what is wrong with `engine.env`; `vllm` is None where the engine is sentence-transformers."""
    if not isinstance(value, Mapping):
        return [Mistake(at, "must be a dict of names and values", value=f"{value}")]
    mistakes = []
    for name, setting in value.items():
        if not isinstance(name, str) or not name or "=" in name or "\0" in name:
            mistakes.append(Mistake(f"{at}.{name}", "is no name of a variable of the shell"))
            continue
        if name.startswith("VLLM_") and vllm is None:
            what = "is a variable of vLLM's, and this engine is sentence-transformers"
            mistakes.append(Mistake(f"{at}.{name}", what, "Leave it away, or choose the other: engine=auto"))
        elif name.startswith("VLLM_") and vllm is not None and name not in vllm.env:
            near = tuple(as_typed(f"{at}.{known}", f"{at}.{name}") for known in nearest(name, vllm.env))
            mistakes.append(Mistake(f"{at}.{name}", f"vLLM {vllm.version} reads no such variable", nearest=near))
        if isinstance(setting, bool) or not isinstance(setting, (str, int, float)):
            mistakes.append(
                Mistake(f"{at}.{name}", "a variable is a text or a number", "Switches are 0 and 1.", value=f"{setting}")
            )
    return mistakes
