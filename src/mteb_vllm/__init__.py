"""Evaluate embedding models and rerankers on MTEB with vLLM, from YAML."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mteb_vllm._version import __version__

if TYPE_CHECKING:
    from mteb_vllm.api import run
    from mteb_vllm.errors import (
        CatalogueError,
        ConfigError,
        EngineError,
        FirstStageError,
        MissingPackageError,
        ModelError,
        MtebVllmError,
        NonFiniteError,
    )
    from mteb_vllm.wrappers import VllmCrossEncoderWrapper, VllmEncoderWrapper, VllmWrapperBase

_HOMES = {
    "CatalogueError": "errors",
    "ConfigError": "errors",
    "EngineError": "errors",
    "FirstStageError": "errors",
    "MissingPackageError": "errors",
    "ModelError": "errors",
    "MtebVllmError": "errors",
    "NonFiniteError": "errors",
    "VllmCrossEncoderWrapper": "wrappers",
    "VllmEncoderWrapper": "wrappers",
    "VllmWrapperBase": "wrappers",
    "run": "api",
}

__all__ = [
    "CatalogueError",
    "ConfigError",
    "EngineError",
    "FirstStageError",
    "MissingPackageError",
    "ModelError",
    "MtebVllmError",
    "NonFiniteError",
    "VllmCrossEncoderWrapper",
    "VllmEncoderWrapper",
    "VllmWrapperBase",
    "__version__",
    "run",
]


def __getattr__(name: str) -> Any:
    # The wrappers need mteb, whose import takes seconds: nobody pays for it who only asks for --help.
    if name in _HOMES:
        return getattr(import_module(f"mteb_vllm.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
