"""What is wrong with a configuration, as far as that can be known before torch, mteb or vLLM is imported."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from mteb_vllm import tasks as task_selection
from mteb_vllm.catalogue import (
    EngineArg,
    MtebCatalogue,
    TaskInfo,
    VllmCatalogue,
    mteb_catalogue,
    nearest,
    vllm_catalogue,
    warm,
)
from mteb_vllm.config import TARGETS, RunConfig, build
from mteb_vllm.engine import INSTALL, OWN_KEYS, PRESETS, resolve_arguments
from mteb_vllm.errors import ConfigError, MissingPackageError, Mistake, ModelError
from mteb_vllm.models import Model, check_architecture, find_model, package_folder
from mteb_vllm.prompts import applying_keys, candidates, check_template


def check_config(config: RunConfig) -> list[Mistake]:
    """What is wrong with one run, as far as that can be known without loading anything."""
    warm()
    vllm = vllm_catalogue()
    if vllm is None:
        raise MissingPackageError(INSTALL)
    mteb = mteb_catalogue()
    mistakes = _engine_mistakes("engine", config.engine, vllm)
    mistakes += _engine_mistakes("model.engine", config.model.engine, vllm)
    chosen, task_mistakes = task_selection.select(config.tasks, mteb)
    mistakes += task_mistakes
    mistakes += _prompt_mistakes("prompts", config.prompts, mteb, chosen)
    mistakes += _prompt_mistakes("model.prompts", config.model.prompts or {}, mteb, None)
    for instruction in (config.instruction, config.model.instruction):
        if instruction is not None and instruction.template is not None:
            mistakes += filter(None, [check_template(instruction.template)])
    mistakes += _pipeline_mistakes(config)
    mistakes += _model_mistakes(config, vllm)
    return mistakes


def find(config: RunConfig) -> Model:
    """The model that a configuration names.

    Raises:
        ModelError: if it cannot be had.
    """
    model = config.model
    path = str(package_folder(model.package)) if model.package is not None and model.path is None else model.path
    return _find_model(model.name, model.revision, path)


# Points of a sweep share their models: the Hub is asked, and local weights are hashed, once.
_find_model = functools.lru_cache(maxsize=64)(find_model)


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
                        nearest(str(value), choices),
                    )
                )
        elif key not in vllm.args:
            near = tuple(f"{where}.{name}" for name in nearest(key, [*vllm.args, *OWN_KEYS]))
            what = f"vLLM {vllm.version} has no such engine argument"
            mistakes.append(Mistake(at if value is None else f"{at}={value}", what, nearest=near))
        elif value is not None:
            mistakes += _value_mistakes(at, value, vllm.args[key])
    return mistakes


def _value_mistakes(at: str, value: Any, arg: EngineArg) -> list[Mistake]:
    if arg.choices is not None and value not in arg.choices:
        near = nearest(str(value), [str(choice) for choice in arg.choices])
        allowed = ", ".join(str(choice) for choice in arg.choices)
        return [Mistake(f"{at}={value}", "vLLM does not know this value", f"Allowed: {allowed}.", near)]
    plain: dict[str, tuple[type, ...]] = {
        "bool": (bool,), "int": (int,), "float": (int, float), "str": (str,), "list": (list,), "dict": (dict,)
    }  # fmt: skip
    types = plain.get(arg.kind)
    if arg.choices is None and types is not None:
        right = isinstance(value, types) and (arg.kind == "bool" or not isinstance(value, bool))
        if not right:
            return [Mistake(f"{at}={value}", f"vLLM wants {arg.kind} here, this is {type(value).__name__}")]
    if arg.name in _AT_LEAST_ONE and isinstance(value, int) and value < 1:
        return [Mistake(f"{at}={value}", "must be 1 or more")]
    if arg.name == "gpu_memory_utilization" and not 0 < value <= 1:
        return [Mistake(f"{at}={value}", "is a share of the memory, above 0 and up to 1")]
    return []


_AT_LEAST_ONE = (
    "max_num_seqs", "max_num_batched_tokens", "tensor_parallel_size", "pipeline_parallel_size", "renderer_num_workers"
)  # fmt: skip


def _env_mistakes(at: str, value: Any, vllm: VllmCatalogue) -> list[Mistake]:
    if not isinstance(value, Mapping):
        return [Mistake(f"{at}={value}", "must be a dict of names and values")]
    return [
        Mistake(f"{at}.{name}", f"vLLM {vllm.version} reads no such variable", nearest=nearest(name, vllm.env))
        for name in value
        if str(name).startswith("VLLM_") and name not in vllm.env
    ]


def _prompt_mistakes(
    where: str, values: Mapping[str, Any], mteb: MtebCatalogue, chosen: Sequence[TaskInfo] | None
) -> list[Mistake]:
    mistakes = []
    keys = [key for key, value in values.items() if key != "from_model" and value is not None]
    for key in values:
        if key == "from_model" and where == "prompts":
            if not isinstance(values[key], bool):
                mistakes.append(Mistake(f"{where}.{key}={values[key]}", "must be true or false"))
            continue
        if not known_prompt_key(str(key), mteb):
            names = [*mteb.prompt_types, *mteb.task_types, *mteb.tasks]
            bare, dash, side = str(key).rpartition("-")
            near = (
                tuple(f"{where}.{name}-{side}" for name in nearest(bare, names))
                if dash and side in mteb.prompt_types
                else tuple(f"{where}.{name}" for name in nearest(str(key), names))
            )
            what = "is neither a task, a task type, query or document, nor a pair as STS12-query"
            mistakes.append(Mistake(f"{where}.{key}", what, nearest=near))
        elif values[key] is not None and not isinstance(values[key], str):
            mistakes.append(
                Mistake(f"{where}.{key}={values[key]}", f"a prompt is a text, this is {type(values[key]).__name__}")
            )
    applies = chosen and applying_keys(keys, [(task.name, task.type) for task in chosen])
    if chosen and keys and not applies and not mistakes and not values.get("from_model"):
        types = ", ".join(sorted({task.type for task in chosen}))
        mistakes.append(
            Mistake(
                where,
                f"none of its keys ({', '.join(keys)}) applies to the chosen tasks, which are of the types {types}",
                f"Keys that would apply: {', '.join(candidates(chosen[0].name, chosen[0].type, None))}. "
                "query and document apply only to tasks with a query side, as retrieval.",
            )
        )
    return mistakes


def known_prompt_key(key: str, mteb: MtebCatalogue) -> bool:
    """Whether mteb could ever look a prompt up by this key."""
    if key in mteb.prompt_types:
        return True
    bare, dash, side = key.rpartition("-")
    names = (key, bare) if dash and side in mteb.prompt_types else (key,)
    return any(name in mteb.tasks or name in mteb.task_types for name in names)


def _pipeline_mistakes(config: RunConfig) -> list[Mistake]:
    target = config.pipeline.get("_target_")
    if not isinstance(target, str) or not target.startswith(TARGETS):
        return [
            Mistake(
                f"pipeline._target_={target}",
                "is not a class that a configuration may name",
                f"Allowed: {TARGETS[0]}*.",
            )
        ]
    try:
        pipeline = pipeline_class(target)
    except (ImportError, AttributeError) as error:
        return [Mistake(f"pipeline._target_={target}", f"cannot be imported: {error}")]
    try:
        build(pipeline, _fields(config.pipeline), "pipeline")
    except ConfigError as error:
        return list(error.mistakes)
    kinds = pipeline.model_kinds
    if config.model.kind not in kinds:
        name = target.rpartition(".")[2].lower()
        return [
            Mistake(
                f"model.kind={config.model.kind}",
                f"the pipeline {name} needs a model of kind {' or '.join(kinds)}",
                "Rerankers belong into pipeline=rerank.",
            )
        ]
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


def _model_mistakes(config: RunConfig, vllm: VllmCatalogue) -> list[Mistake]:
    model = config.model
    written = f"model.name={model.name}" if model.name else "model"
    if model.name is None and model.path is None and model.package is None:
        return [Mistake(written, "no model is named", "Set model.name=org/name or model.path=/folder.")]
    try:
        found = find(config)
    except ModelError as error:
        return [Mistake(written, str(error))]
    arguments, _, _ = resolve_arguments(config.engine, model.engine)
    problem = check_architecture(found, vllm.architectures, trust_remote_code=bool(arguments.get("trust_remote_code")))
    return [Mistake(written, problem)] if problem and "model_impl" not in arguments else []
