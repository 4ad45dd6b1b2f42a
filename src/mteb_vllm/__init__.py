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
        DataError,
        EngineError,
        EngineStartError,
        FirstStageError,
        JobError,
        LockError,
        MeasureError,
        MissingPackageError,
        ModelError,
        MtebVllmError,
        NonFiniteError,
        PartialResultError,
        StorageError,
        TemplateError,
    )
    from mteb_vllm.wrappers import VllmCrossEncoderWrapper, VllmEncoderWrapper, VllmWrapperBase

__all__ = [
    "CatalogueError",
    "ConfigError",
    "DataError",
    "EngineError",
    "EngineStartError",
    "FirstStageError",
    "JobError",
    "LockError",
    "MeasureError",
    "MissingPackageError",
    "ModelError",
    "MtebVllmError",
    "NonFiniteError",
    "PartialResultError",
    "StorageError",
    "TemplateError",
    "VllmCrossEncoderWrapper",
    "VllmEncoderWrapper",
    "VllmWrapperBase",
    "__version__",
    "run",
]


def __getattr__(name: str) -> Any:
    # The wrappers import mteb, which takes seconds, so they are imported on first use.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "api" if name == "run" else "wrappers" if name.startswith("Vllm") else "errors"
    return getattr(import_module(f"mteb_vllm.{home}"), name)
