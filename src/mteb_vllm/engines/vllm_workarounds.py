"""Workarounds for opening vLLM, and explanations of its errors."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mteb_vllm.models.architectures import position_limit

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from mteb_vllm.engines.base import EngineSpec


def shorter_context(spec: EngineSpec, args: Mapping[str, object]) -> dict[str, int]:
    """Return `max_model_len` for a model where vLLM's own default is too long; else an empty dict.

    The limit is the context length of sentence-transformers, and for RoBERTa models the number of positions.
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
    """Let vLLM open after a program has loaded numba (as BM25 does).

    vLLM's CPU build (0.32, triton_utils/dispatcher.py) reads `__dict__` of every object in every loaded module, and
    llvmlite's handle of its C library returns a C function for any attribute name.
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
    """Return vLLM's error in one line, and advice where the cause is known."""
    message, names = str(error), spec.names
    first = next((line.strip() for line in message.splitlines() if line.strip()), type(error).__name__)
    if callable(errors := getattr(error, "errors", None)):  # a pydantic ValidationError, with every field
        first = "; ".join(_validation_error(item) for item in errors(include_url=False, include_context=False))
    memory, batched = names.name_of("engine.gpu_memory_utilization"), names.name_of("engine.max_num_batched_tokens")
    length, caching = names.name_of("engine.max_model_len"), names.name_of("engine.enable_prefix_caching")
    pickled = names.assign("engine.load_format", "auto", new=True)
    hints = (
        ("Available memory on node", f"lower {memory} (on a CPU: a fraction of the node's memory)"),
        ("Free memory on device", f"lower {memory}, or free memory on the GPU"),
        ("out of memory", f"lower {memory} or {batched}, or use a smaller dtype"),
        ("safetensors", f"if the model has only pickled weights and you trust them: {pickled}"),
        ("no model weights", f"if the model has only pickled weights and you trust them: {pickled}"),
        (
            "trust_remote_code",
            f"review the model's own code, then add {names.assign('engine.trust_remote_code', True)}",
        ),
        ("smaller than max_model_len", f"raise {batched} to the context length, or lower {length}"),
        ("at least one cacheable group", f"leave {caching} unset: this model has no causal attention"),
        ("max_model_len", f"lower {length} to the model's context length"),
        ("Engine core initialization failed", "see the log: the cause is in the lines above this error"),
    )
    hint = next((way for mark, way in hints if mark.lower() in message.lower()), "")
    return f"vLLM failed to start with {spec.model.name}: {first}", hint


def _validation_error(item: ErrorDetails) -> str:
    """Return one pydantic error in one line: the field, its value if that is short, and the reason."""
    where = ".".join(str(part) for part in item["loc"])
    what = " ".join(str(item["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ").split())
    value = item.get("input")
    at = f"{where}={value}" if where and isinstance(value, (str, int, float)) and len(str(value)) < 100 else where
    return f"{at}: {what}" if at else what
