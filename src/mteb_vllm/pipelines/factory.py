"""What the `_target_`s of a configuration make: its pipeline, and that pipeline's first stage or reference."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from mteb_vllm.config.schema import TARGETS, RunConfig, build
from mteb_vllm.errors import ConfigError, Mistake
from mteb_vllm.pipelines.base import Pipeline
from mteb_vllm.pipelines.report import Report
from mteb_vllm.results.failures import in_one_line
from mteb_vllm.util.shell import suggest
from mteb_vllm.util.sources import find_callable_source, import_current


def is_report(config: RunConfig) -> bool:
    """Whether a configuration only compares what other runs have left."""
    return config.pipeline.get("_target_") == f"{Report.__module__}.{Report.__name__}"


def make_pipeline(config: RunConfig) -> Pipeline:
    """The pipeline of a checked configuration."""
    made: Pipeline = build(_class(config.pipeline["_target_"]), _fields(config.pipeline), "pipeline")
    return made


def make_report(config: RunConfig) -> Report:
    """Return the report of a checked configuration that only compares runs."""
    made: Report = build(Report, _fields(config.pipeline), "pipeline")
    return made


def make_first_stage(config: RunConfig) -> Any:
    """The first stage of a checked configuration that reranks."""
    stage = config.pipeline["first_stage"]
    return build(_class(stage["_target_"]), _fields(stage), "pipeline.first_stage")


def make_reference(config: RunConfig) -> Any:
    """The reference of a checked configuration that compares with one."""
    reference = config.pipeline["reference"]
    return build(_class(reference["_target_"]), _fields(reference), "pipeline.reference")


def build_target(
    where: str, config: Mapping[str, Any], mark: str, own: Sequence[str] | None = None
) -> tuple[Any, list[Mistake]]:
    """Return what a part of the configuration with a `_target_` makes, and what is wrong with it.

    Args:
        where: The part's key.
        config: The part.
        mark: An attribute that such classes have.
        own: Where classes of the user's own may be (`allowed_targets`); None where none may be.
    """
    target = config.get("_target_")
    at = f"{where}._target_={target}"
    allowed = (*TARGETS, *(own or ()))
    if not isinstance(target, str) or not target.startswith(allowed):
        way = f"Allowed: {', '.join(allowed)}."
        way += "" if own is None else f" A class of your own: {suggest('allowed_targets', ['my_package.'])}"
        return None, [Mistake(at, "is not a class that a configuration may name", way)]
    try:
        cls: Any = _class(target)
    except Exception as error:  # a module of the user's does what it likes when it is imported
        return None, [Mistake(at, f"cannot be imported: {in_one_line(error)}")]
    if not (hasattr(cls, mark) and hasattr(cls, "__dataclass_fields__")):
        return None, [Mistake(at, f"is no {where.rpartition('.')[2].replace('_', ' ')}")]
    if missing := getattr(cls, "__abstractmethods__", None):
        return None, [Mistake(at, f"defines no {', '.join(sorted(missing))}")]
    try:
        return build(cls, _fields(config), where), []
    except ConfigError as error:
        return None, list(error.mistakes)


def _class(target: str) -> Any:
    module, _, name = target.rpartition(".")
    if target.startswith(TARGETS):
        return getattr(importlib.import_module(module), name)
    return import_current(module, name, find_callable_source(target))


def _fields(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != "_target_"}
