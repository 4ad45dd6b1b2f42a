"""What has to be known of vLLM to open it: where it would go wrong, and what its errors mean."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mteb_vllm.models.architectures import position_limit

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from mteb_vllm.engines.base import EngineSpec


def shorter_context(spec: EngineSpec, args: Mapping[str, object]) -> dict[str, int]:
    """Return the context of a model where vLLM by itself would take a longer one.

    It is the one at which sentence-transformers cuts texts, and of a model of RoBERTa's kind no more than its positions.
    """
    overrides, applied = args.get("hf_overrides"), spec.applied
    positions = position_limit({**spec.model.config, **(overrides if isinstance(overrides, Mapping) else {})})
    limits = [positions, None if applied.vllm_reads_context else applied.context]
    limit = min((one for one in limits if one is not None), default=None)
    if limit is None or args.get("max_model_len") is not None:
        return {}
    from vllm import EngineArgs

    context = EngineArgs(**args).create_model_config().max_model_len
    return {"max_model_len": limit} if context > limit else {}


def guard_llvmlite() -> None:
    """Keeps numba from hindering vLLM, where a program has loaded it (as BM25 does).

    vLLM's CPU build (0.32, triton_utils/dispatcher.py) looks at the `__dict__` of everything in every loaded module, and
    llvmlite's handle of its C library makes a C function of any name that it is asked for.
    """
    ffi = sys.modules.get("llvmlite.binding.ffi")
    handle: Any = type(getattr(ffi, "lib", None))
    look_up = getattr(handle, "__getattr__", None)
    if look_up is None or getattr(look_up, "refuses_dunders", False):
        return

    def refuse_dunders(self: object, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return look_up(self, name)

    refuse_dunders.refuses_dunders = True  # type: ignore[attr-defined]
    handle.__getattr__ = refuse_dunders


def explain_start_error(spec: EngineSpec, error: Exception) -> tuple[str, str]:
    """Return vLLM's error in one line, and the way out where it is known."""
    message = str(error)
    first = next((line.strip() for line in message.splitlines() if line.strip()), type(error).__name__)
    if callable(errors := getattr(error, "errors", None)):  # a ValidationError of pydantic's, which names every field
        first = "; ".join(_validation_error(item) for item in errors(include_url=False, include_context=False))
    hints = (
        ("Available memory on node", "lower engine.gpu_memory_utilization (on a CPU: a share of the node's memory)"),
        ("Free memory on device", "lower engine.gpu_memory_utilization, or free the GPU"),
        (
            "out of memory",
            "lower engine.gpu_memory_utilization or engine.max_num_batched_tokens, or take a smaller dtype",
        ),
        (
            "safetensors",
            "if the model has no safetensors weights: +engine.load_format=auto, if you trust its pickled ones",
        ),
        ("no model weights", "if the model has no safetensors weights: +engine.load_format=auto, if you trust them"),
        ("trust_remote_code", "read the model's own code, then add engine.trust_remote_code=true"),
        (
            "smaller than max_model_len",
            "raise engine.max_num_batched_tokens to the context, or lower engine.max_model_len",
        ),
        (
            "at least one cacheable group",
            "leave engine.enable_prefix_caching unset: this model has no causal attention",
        ),
        ("max_model_len", "lower engine.max_model_len to what the model can read"),
        ("Engine core initialization failed", "the cause stands above it in the log"),
    )
    hint = next((way for mark, way in hints if mark.lower() in message.lower()), "")
    return f"vLLM did not open {spec.model.name}: {first}", hint


def _validation_error(item: ErrorDetails) -> str:
    """Return one of pydantic's findings in one line: the field, its value where that is short, and what is wrong with it."""
    where = ".".join(str(part) for part in item["loc"])
    what = " ".join(str(item["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ").split())
    value = item.get("input")
    at = f"{where}={value}" if where and isinstance(value, (str, int, float)) and len(str(value)) < 100 else where
    return f"{at}: {what}" if at else what
