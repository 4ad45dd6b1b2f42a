"""Which arguments an engine is opened with: what is set, else what the model's recipe says, else a preset of this machine."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from mteb_vllm.config import conf_dir
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
