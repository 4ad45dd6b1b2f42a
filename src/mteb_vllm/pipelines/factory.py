"""What the `_target_`s of a configuration make: its pipeline, and that pipeline's first stage or reference."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mteb_vllm.config.schema import TARGETS, RunConfig, build
from mteb_vllm.errors import ConfigError, Mistake
from mteb_vllm.pipelines.base import Pipeline
from mteb_vllm.pipelines.report import Report
from mteb_vllm.results.failures import one_line_message
from mteb_vllm.util.shell import suggest
from mteb_vllm.util.sources import find_callable_source, import_current


def is_report(config: RunConfig) -> bool:
    """Whether a configuration only compares what other runs have left."""
    return config.pipeline.get("_target_") == f"{Report.__module__}.{Report.__name__}"


@dataclass(frozen=True)
class PipelineParts:
    """What the `_target_`s of one configuration make; made once, by its check, and passed on with it.

    Attributes:
        made: The pipeline, or the report that only compares runs.
        first_stage: The pipeline's first stage; None where it has none.
        reference: What it compares with; None where it compares with nothing.
    """

    made: Pipeline | Report
    first_stage: Any = None
    reference: Any = None

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline; a report is none."""
        assert isinstance(self.made, Pipeline)
        return self.made

    @property
    def report(self) -> Report:
        """The report of a configuration that only compares runs."""
        assert isinstance(self.made, Report)
        return self.made


def make_parts(config: RunConfig) -> PipelineParts:
    """Make the pipeline of a checked configuration, with its first stage and its reference."""
    pipeline: Pipeline = _make("pipeline", config.pipeline)
    stage = None if pipeline.first_stage is None else _make("pipeline.first_stage", config.pipeline["first_stage"])
    reference = None if pipeline.reference is None else _make("pipeline.reference", config.pipeline["reference"])
    return PipelineParts(pipeline, stage, reference)


def import_pipeline(config: RunConfig) -> None:
    """Import the class of a checked configuration's pipeline; a module of the user's that was edited is imported anew."""
    _class(config.pipeline["_target_"])


def _make(where: str, config: Mapping[str, Any]) -> Any:
    return build(_class(config["_target_"]), _fields(config), where)


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
    wrong = functools.partial(Mistake, f"{where}._target_", value=f"{target}")
    allowed = (*TARGETS, *(own or ()))
    if not isinstance(target, str) or not target.startswith(allowed):
        way = f"Allowed: {', '.join(allowed)}."
        way += "" if own is None else f" A class of your own: {suggest('allowed_targets', ['my_package.'])}"
        return None, [wrong("is not a class that a configuration may name", way, code="refused")]
    try:
        cls: Any = _class(target)
    except Exception as error:  # a module of the user's does what it likes when it is imported
        return None, [wrong(f"cannot be imported: {one_line_message(error)}")]
    if not (hasattr(cls, mark) and hasattr(cls, "__dataclass_fields__")):
        return None, [wrong(f"is no {where.rpartition('.')[2].replace('_', ' ')}")]
    if missing := getattr(cls, "__abstractmethods__", None):
        return None, [wrong(f"defines no {', '.join(sorted(missing))}")]
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
