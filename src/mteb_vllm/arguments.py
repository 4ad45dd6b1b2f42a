"""Which arguments an engine is opened with: what is set, else what the model's recipe says, else a preset of this machine.

And what is wrong with them, before vLLM is imported.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

from mteb_vllm.catalogue import EngineArg, VllmCatalogue, nearest
from mteb_vllm.config import conf_dir
from mteb_vllm.errors import Mistake
from mteb_vllm.fingerprint import cpu_build, device

# Keys of `engine` that are not vLLM's: how the arguments were chosen, and the environment.
OWN_KEYS = ("preset", "env", "head_dtype")
PRESETS = ("auto", "vllm", "vllm_cpu")


@functools.cache
def pick_preset(preset: str) -> str:
    """The preset that `auto` stands for on this machine."""
    if preset != "auto":
        return preset
    return "vllm_cpu" if cpu_build() or device().startswith("cpu") else "vllm"


def resolve_arguments(
    engine: Mapping[str, Any], recipe: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, str], str]:
    """Engine arguments and environment: what is set, else what the recipe says, else the preset of this machine.

    Args:
        engine: The config group `engine`, nulls included.
        recipe: The model recipe's own engine arguments.

    Returns:
        arguments without nulls, environment, and the name of the preset.
    """
    preset = pick_preset(engine.get("preset") or "none")
    layers = [_preset_values(preset), recipe, engine]
    merged: dict[str, Any] = {}
    env: dict[str, str] = {}
    for layer in layers:
        merged |= {key: value for key, value in layer.items() if value is not None and key not in ("preset", "env")}
        env |= {key: str(value) for key, value in (layer.get("env") or {}).items() if value is not None}
    return _vllm_names(merged), env, preset


def _vllm_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by the names of `conf/engine/` as vLLM's engine arguments."""
    args = {key: value for key, value in values.items() if value is not None and key not in OWN_KEYS}
    if values.get("head_dtype") is not None:
        # vLLM reads the head's dtype from the model's configuration.
        args["hf_overrides"] = {**(args.get("hf_overrides") or {}), "head_dtype": values["head_dtype"]}
    if args.get("quantization") is None:
        # Pickled weights run code when they are read; whoever needs them says so: +engine.load_format=auto.
        args.setdefault("load_format", "safetensors")
    args.setdefault("trust_remote_code", False)
    return args


@functools.cache
def _preset_values(preset: str) -> Mapping[str, Any]:
    if preset not in ("vllm", "vllm_cpu"):
        return {}
    from omegaconf import OmegaConf

    values = OmegaConf.to_container(OmegaConf.load(conf_dir() / "engine" / f"{preset}.yaml"))
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def check_arguments(where: str, values: Mapping[str, Any], vllm: VllmCatalogue) -> list[Mistake]:
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
                mistakes.append(Mistake(f"{at}={value}", "there is no such preset", f"Presets: {', '.join(PRESETS)}."))
        elif key == "env":
            mistakes += _env_mistakes(at, value, vllm)
        elif key in ("model", "revision", "runner", "convert"):
            mistakes.append(
                Mistake(at, "this argument is set by the model and the pipeline", "Use model.name, model.revision.")
            )
        elif key == "head_dtype":
            choices = ("model", *(vllm.args["dtype"].choices or ()))
            if value is not None and value not in choices:
                mistakes.append(
                    Mistake(
                        f"{at}={value}",
                        "no such dtype",
                        f"Allowed: {', '.join(choices)}.",
                        tuple(f"{at}={choice}" for choice in nearest(str(value), choices)),
                    )
                )
        elif key not in vllm.args:
            near = tuple(f"{where}.{name}" for name in nearest(key, [*vllm.args, *OWN_KEYS]))
            what = f"vLLM {vllm.version} has no such engine argument"
            mistakes.append(Mistake(at if value is None else f"{at}={value}", what, nearest=near))
        elif value is not None:
            mistakes += _value_mistakes(at, value, vllm.args[key])
    return mistakes


_TYPES: dict[str, tuple[type, ...]] = {
    "bool": (bool,), "int": (int,), "float": (int, float), "str": (str,), "list": (list,), "dict": (dict,)
}  # fmt: skip
_AT_LEAST_ONE = (
    "max_num_seqs", "max_num_batched_tokens", "tensor_parallel_size", "pipeline_parallel_size", "renderer_num_workers"
)  # fmt: skip


def _value_mistakes(at: str, value: Any, arg: EngineArg) -> list[Mistake]:
    if arg.choices is not None:
        if str(value) in arg.choices:
            return []
        near = tuple(f"{at}={choice}" for choice in nearest(str(value), arg.choices))
        allowed = f"Allowed: {', '.join(arg.choices)}."
        return [Mistake(f"{at}={value}", "vLLM does not know this value", allowed, near)]
    # vLLM's own classes of settings are written as dicts.
    kind = "dict" if arg.kind == "any" and re.fullmatch(r"\w+Config( \| None)?", arg.type) else arg.kind
    types = _TYPES.get(kind)
    if types is not None and not (isinstance(value, types) and (kind == "bool" or not isinstance(value, bool))):
        return [
            Mistake(f"{at}={value}", f"vLLM wants {kind} here, this is {type(value).__name__}", _EXAMPLES.get(kind, ""))
        ]
    if arg.name in _AT_LEAST_ONE and value < 1:
        return [Mistake(f"{at}={value}", "must be 1 or more")]
    if arg.name == "gpu_memory_utilization" and not 0 < value <= 1:
        return [Mistake(f"{at}={value}", "is a share of the memory, above 0 and up to 1")]
    return []


_EXAMPLES = {"bool": "true or false.", "list": "As [a,b].", "dict": "As {key: value}."}


def _env_mistakes(at: str, value: Any, vllm: VllmCatalogue) -> list[Mistake]:
    if not isinstance(value, Mapping):
        return [Mistake(f"{at}={value}", "must be a dict of names and values")]
    mistakes = []
    for name, setting in value.items():
        if str(name).startswith("VLLM_") and name not in vllm.env:
            near = tuple(f"{at}.{known}" for known in nearest(name, vllm.env))
            mistakes.append(Mistake(f"{at}.{name}", f"vLLM {vllm.version} reads no such variable", nearest=near))
        if isinstance(setting, bool) or not isinstance(setting, (str, int, float)):
            mistakes.append(
                Mistake(f"{at}.{name}={setting}", "a variable is a text or a number", "Switches are 0 and 1.")
            )
    return mistakes
