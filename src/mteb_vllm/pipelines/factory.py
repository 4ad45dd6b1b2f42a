"""Build a configuration's pipeline, with its first stage or reference, from the classes named by `_target_`."""

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
from mteb_vllm.util.sources import find_callable_source, find_module, import_current

# How a module of the user's own is found.
_SEARCHED = "Install its package, or add the folder that contains it to PYTHONPATH: PYTHONPATH=. mteb-vllm ..."


def is_report(config: RunConfig) -> bool:
    """Whether a configuration only compares finished runs."""
    return config.pipeline.get("_target_") == f"{Report.__module__}.{Report.__name__}"


@dataclass(frozen=True)
class PipelineParts:
    """The objects built from the `_target_`s of a configuration: built once, when it is checked, and passed on with it.

    Attributes:
        made: The pipeline, or a report over finished runs.
        first_stage: The pipeline's first stage; None if it has none.
        reference: The pipeline's reference; None if it has none.
    """

    made: Pipeline | Report
    first_stage: Any = None
    reference: Any = None

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline; the configuration must not be of a report."""
        assert isinstance(self.made, Pipeline)
        return self.made

    @property
    def report(self) -> Report:
        """The report; the configuration must be of one."""
        assert isinstance(self.made, Report)
        return self.made


def make_parts(config: RunConfig) -> PipelineParts:
    """Build the pipeline of a checked configuration, with its first stage and its reference."""
    pipeline: Pipeline = _make("pipeline", config.pipeline)
    stage = None if pipeline.first_stage is None else _make("pipeline.first_stage", config.pipeline["first_stage"])
    reference = None if pipeline.reference is None else _make("pipeline.reference", config.pipeline["reference"])
    return PipelineParts(pipeline, stage, reference)


def import_pipeline(config: RunConfig) -> None:
    """Import the class of a checked configuration's pipeline; a user's own module that was edited is imported again."""
    _class(config.pipeline["_target_"])


def _make(where: str, config: Mapping[str, Any]) -> Any:
    return build(_class(config["_target_"]), _fields(config), where)


def build_target(
    where: str, config: Mapping[str, Any], mark: str, own: Sequence[str] | None = None
) -> tuple[Any, list[Mistake]]:
    """Build the object of a section with a `_target_`.

    Args:
        where: The section's key, as `pipeline.first_stage`.
        config: The section.
        mark: An attribute that identifies suitable classes.
        own: Import prefixes allowed for the user's own classes (`allowed_targets`); None if none are allowed here.

    Returns:
        made: The object; None if it cannot be built.
        mistakes: The errors in the section.
    """
    target = config.get("_target_")
    wrong = functools.partial(Mistake, f"{where}._target_", value=f"{target}")
    allowed = (*TARGETS, *(own or ()))
    if not isinstance(target, str) or not target.startswith(allowed):
        way = f"Allowed: {', '.join(allowed)}."
        way += "" if own is None else f" For your own class: {suggest('allowed_targets', ['my_package.'])}"
        return None, [wrong("is not a class that a configuration may use", way, code="refused")]
    try:
        cls: Any = _class(target)
    except Exception as error:  # importing a user's own module can raise anything
        # The working directory is not searched, so that no file in it replaces an installed module.
        way = "" if target.startswith(TARGETS) or find_module(target.rpartition(".")[0]) else _SEARCHED
        return None, [wrong(f"cannot be imported: {one_line_message(error)}", way)]
    if not (hasattr(cls, mark) and hasattr(cls, "__dataclass_fields__")):
        return None, [wrong(f"is not a {where.rpartition('.')[2].replace('_', ' ')} class")]
    if missing := getattr(cls, "__abstractmethods__", None):
        return None, [wrong(f"does not define {', '.join(sorted(missing))}")]
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
