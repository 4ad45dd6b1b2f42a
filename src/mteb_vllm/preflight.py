"""What is wrong with a configuration, as far as that can be known before torch, mteb or vLLM is imported."""

from __future__ import annotations

import functools
import importlib
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mteb_vllm import tasks as task_selection
from mteb_vllm.arguments import OWN_KEYS, PRESETS, resolve_arguments
from mteb_vllm.catalogue import (
    EngineArg,
    MtebCatalogue,
    TaskInfo,
    VllmCatalogue,
    mteb_catalogue,
    nearest,
    vllm_catalogue,
)
from mteb_vllm.config import TARGETS, InstructionConfig, RunConfig, build, quoted
from mteb_vllm.errors import ConfigError, Mistake, ModelError
from mteb_vllm.models import Model, check_architecture, find_model, package_folder
from mteb_vllm.prompts import applying_keys, candidates, check_template


def check_config(config: RunConfig, *, broken: Collection[str] = ()) -> list[Mistake]:
    """What is wrong with one run, as far as that can be known without loading anything.

    Args:
        config: The run.
        broken: Parts of it, as `tasks`, in which mistakes have been found already. Their values are checked, but nothing
            that would only follow from those mistakes is reported.
    """
    if "experiment" in broken:
        broken = ("model", "engine", "prompts", "instruction", "tasks", "pipeline")
    vllm, mteb = vllm_catalogue(), mteb_catalogue()
    mistakes = []
    if vllm is not None:
        mistakes += _engine_mistakes("engine", config.engine, vllm)
        mistakes += _engine_mistakes("model.engine", config.model.engine, vllm)
    chosen, found = task_selection.select(config.tasks, mteb)
    if not chosen and not found and "tasks" not in broken:
        found = [task_selection.why_none(config.tasks)]
    mistakes += found
    sure = not found and not {"tasks", "prompts"} & set(broken)
    mistakes += _prompt_mistakes("prompts", config.prompts, mteb, chosen if sure else ())
    mistakes += _prompt_mistakes("model.prompts", config.model.prompts or {}, mteb, ())
    mistakes += _template_mistakes("instruction", config.instruction)
    mistakes += _template_mistakes("model.instruction", config.model.instruction)
    if "pipeline" not in broken:
        mistakes += _pipeline_mistakes(config, kind_known="model" not in broken)
    if "model" not in broken:
        mistakes += _model_mistakes(config, mteb, vllm)
    mistakes += _results_mistakes(config.results.dir)
    return mistakes


def find(config: RunConfig) -> Model:
    """The model that a configuration names; looked up once in a command.

    Raises:
        ModelError: if it cannot be had.
    """
    model = config.model
    found = _look_up(model.name, model.revision, model.path, model.package)
    if isinstance(found, ModelError):
        raise ModelError(str(found))
    return found


# Points of a sweep share their models: the Hub is asked, and told that it has none, once.
@functools.lru_cache(maxsize=64)
def _look_up(name: str | None, revision: str | None, path: str | None, package: str | None) -> Model | ModelError:
    try:
        if path is None and package is not None:
            path = str(package_folder(package))
        return find_model(name, revision, path)
    except ModelError as error:
        return error


def find_now(config: RunConfig) -> Model:
    """The model as it is now: local weights may have changed since the command was checked, and their digest with them.

    Raises:
        ModelError: if it cannot be had.
    """
    found = find(config)
    return found if found.digest is None else find_model(config.model.name, config.model.revision, found.location)


def forget_models() -> None:
    """Looks models up anew: in a notebook, weights and log-ins change from one command to the next."""
    _look_up.cache_clear()


def _engine_mistakes(where: str, values: Mapping[str, Any], vllm: VllmCatalogue) -> list[Mistake]:
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


def _prompt_mistakes(
    where: str, values: Mapping[str, Any], mteb: MtebCatalogue, chosen: Sequence[TaskInfo]
) -> list[Mistake]:
    mistakes = []
    for key, value in values.items():
        if key == "from_model" and where == "prompts":
            if not isinstance(value, bool):
                mistakes.append(Mistake(f"{where}.{key}={value}", "must be true or false"))
        elif not known_prompt_key(str(key), mteb):
            what = "is neither a task, a task type, query or document, nor a pair as STS12-query"
            near = tuple(f"{where}.{name}" for name in _near_prompt_keys(str(key), mteb))
            mistakes.append(Mistake(f"{where}.{key}", what, nearest=near))
        elif value is not None and not isinstance(value, str):
            what = f"a prompt is a text, this is {type(value).__name__}"
            mistakes.append(Mistake(f"{where}.{key}={value}", what, quoted(f"{where}.{key}", str(value))))
        elif value is not None:
            mistakes += _line_break_mistakes(f"{where}.{key}", value)
    keys = [key for key, value in values.items() if key != "from_model" and value is not None]
    chosen = task_selection.parts(chosen, mteb)
    if chosen and keys and not mistakes and not applying_keys(keys, chosen):
        types = ", ".join(sorted({task.type for task in chosen}))
        what = f"none of its keys ({', '.join(keys)}) applies to the chosen tasks, which are of the types {types}"
        way = f"Keys that would apply: {', '.join(candidates(chosen[0].name, chosen[0].type, None))}. "
        way += "query and document apply only to tasks with a query side, as retrieval."
        mistakes.append(Mistake(where, what, way))
    return mistakes


def _near_prompt_keys(key: str, mteb: MtebCatalogue) -> tuple[str, ...]:
    names = [*mteb.prompt_types, *mteb.task_types, *mteb.tasks]
    bare, dash, side = key.rpartition("-")
    if dash and side in mteb.prompt_types:
        return tuple(f"{name}-{side}" for name in nearest(bare, names))
    if dash and bare in names:
        return tuple(f"{bare}-{near}" for near in nearest(side, mteb.prompt_types) or mteb.prompt_types)
    return nearest(key, names)


def known_prompt_key(key: str, mteb: MtebCatalogue) -> bool:
    """Whether mteb could ever look a prompt up by this key."""
    if key in mteb.prompt_types:
        return True
    bare, dash, side = key.rpartition("-")
    names = (key, bare) if dash and side in mteb.prompt_types else (key,)
    return any(name in mteb.tasks or name in mteb.task_types for name in names)


def _template_mistakes(where: str, instruction: InstructionConfig | None) -> list[Mistake]:
    if instruction is None or instruction.template is None:
        return []
    mistakes = _line_break_mistakes(f"{where}.template", instruction.template)
    try:
        mistake = check_template(instruction.template)
    except Exception as error:  # a module of the user's, which does what it likes when it is imported
        mistake = Mistake(where, f"its module cannot be imported: {type(error).__name__}: {error}")
    return [*mistakes, *([replace(mistake, where=f"{where}.template={instruction.template}")] if mistake else [])]


def _line_break_mistakes(where: str, text: str) -> list[Mistake]:
    if "\\n" not in text:
        return []
    what = "holds a backslash and an n, which the model would read as they are"
    way = f'A line break, in YAML: "...\\n..." in double quotes; in a shell: $\'{where}="...\\n..."\''
    return [Mistake(f"{where}={text}", what, way)]


def _pipeline_mistakes(config: RunConfig, *, kind_known: bool) -> list[Mistake]:
    target = config.pipeline.get("_target_")
    where = f"pipeline._target_={target}"
    if not isinstance(target, str) or not target.startswith(TARGETS):
        return [Mistake(where, "is not a class that a configuration may name", f"Allowed: {TARGETS[0]}*.")]
    try:
        pipeline = pipeline_class(target)
    except (ImportError, AttributeError) as error:
        return [Mistake(where, f"cannot be imported: {error}")]
    if not hasattr(pipeline, "model_kinds"):
        return [Mistake(where, "is no pipeline")]
    try:
        build(pipeline, _fields(config.pipeline), "pipeline")
    except ConfigError as error:
        return list(error.mistakes)
    kinds = pipeline.model_kinds
    if kind_known and config.model.kind not in kinds:
        what = f"the pipeline {pipeline.__name__.lower()} needs a model of kind {' or '.join(kinds)}"
        return [Mistake(f"model.kind={config.model.kind}", what, "Rerankers belong into pipeline=rerank.")]
    return []


def pipeline_class(target: str) -> Any:
    """The class that a pipeline's `_target_` names."""
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)


def make_pipeline(config: RunConfig) -> Any:
    """The pipeline of a checked configuration."""
    return build(pipeline_class(config.pipeline["_target_"]), _fields(config.pipeline), "pipeline")


def _fields(pipeline: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in pipeline.items() if key != "_target_"}


def _model_mistakes(config: RunConfig, mteb: MtebCatalogue, vllm: VllmCatalogue | None) -> list[Mistake]:
    model = config.model
    where = f"model.path={model.path}" if model.path else f"model.name={model.name}" if model.name else "model"
    if model.name is None and model.path is None and model.package is None:
        return [Mistake(where, "no model is named", "Set model.name=org/name or model.path=/folder.")]
    try:
        found = find(config)
    except ModelError as error:
        by_name = model.path is None and model.package is None and model.name not in mteb.models
        near = tuple(f"model.name={name}" for name in nearest(model.name or "", mteb.models)) if by_name else ()
        return [Mistake(where, str(error), nearest=near)]
    arguments, _, _ = resolve_arguments(config.engine, model.engine)
    if vllm is None or "model_impl" in arguments:
        return []
    problem = check_architecture(
        found, vllm.architectures, trust_remote_code=arguments.get("trust_remote_code") is True
    )
    return [Mistake(where, problem)] if problem else []


def _results_mistakes(folder: str) -> list[Mistake]:
    path = Path(folder).absolute()
    try:
        existing = next(place for place in (path, *path.parents) if place.exists())
    except OSError as error:
        return [Mistake(f"results.dir={folder}", str(error))]
    if not existing.is_dir():
        return [Mistake(f"results.dir={folder}", f"{existing} is a file, not a folder")]
    if not os.access(existing, os.W_OK):
        return [Mistake(f"results.dir={folder}", f"nothing can be written into {existing}")]
    return []
