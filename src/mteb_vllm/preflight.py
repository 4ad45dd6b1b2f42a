"""What is wrong with a configuration, as far as that can be known before torch, mteb or vLLM is imported."""

from __future__ import annotations

import importlib
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from mteb_vllm import score_templates
from mteb_vllm import tasks as task_selection
from mteb_vllm.architectures import check_architecture, is_language_model, label_problem, position_limit
from mteb_vllm.arguments import backend_of, check_arguments, check_sentence_transformers, resolve_arguments
from mteb_vllm.catalogue import MtebCatalogue, TaskInfo, VllmCatalogue, mteb_catalogue, nearest, vllm_catalogue
from mteb_vllm.config import TARGETS, InstructionConfig, ModelConfig, RunConfig, ScoreTemplateConfig, build
from mteb_vllm.errors import ConfigError, Mistake, ModelError
from mteb_vllm.first_stages import Dense
from mteb_vllm.models import find_recipe
from mteb_vllm.pipelines.parity import Parity
from mteb_vllm.pipelines.report import Report
from mteb_vllm.pipelines.rerank import Rerank
from mteb_vllm.pipelines.throughput import Throughput
from mteb_vllm.prompt_checks import prompt_mistakes, template_mistakes
from mteb_vllm.prompts import applying_keys, candidates, instruction_keys
from mteb_vllm.searches import DEPTH


def check_config(config: RunConfig, *, broken: Collection[str] = ()) -> list[Mistake]:
    """What is wrong with one run, as far as that can be known without loading anything.

    Args:
        config: The run.
        broken: Parts of it, as `tasks`, in which mistakes have been found already. Their values are checked, but nothing
            that would only follow from those mistakes is reported.
    """
    if is_report(config):
        return _report_mistakes(config)
    if "experiment" in broken:
        broken = ("model", "engine", "prompts", "instruction", "score_template", "tasks", "pipeline")
    mteb = mteb_catalogue()
    reranker = config.model.kind == "cross_encoder"
    chosen, found = task_selection.select(config.tasks, mteb)
    if not chosen and not found and "tasks" not in broken:
        found = [task_selection.why_none(config.tasks)]
    sure = not found and not {"tasks", "prompts", *(["model", "score_template"] if reranker else [])} & set(broken)
    mistakes = _engine_mistakes("", config.model, config.engine)
    mistakes += found
    mistakes += _recipe_mistakes("", config.model, config.engine, config.prompts, config.instruction, broken=broken)
    mistakes += score_templates.check("score_template", config.score_template)
    mistakes += score_templates.check("model.score_template", config.model.score_template)
    pipeline = _pipeline_mistakes(config, () if found else chosen, broken) if "pipeline" not in broken else []
    if sure and not mistakes and not pipeline:
        prompts = {key: value for key, value in config.prompts.items() if key != "from_model"}
        mistakes += _applies_nowhere(prompts, _prompted(config, chosen), config)
    if not reranker and config.score_template != ScoreTemplateConfig(from_model=config.score_template.from_model):
        what = "is what a cross-encoder reads pairs through, and the model is an encoder"
        mistakes.append(Mistake("score_template", what, "Leave it away, or choose a reranker: model=ms_marco_minilm"))
    wrong_kind = any(mistake.where.startswith("model.kind=") for mistake in pipeline)
    if reranker and not wrong_kind and not {"model", "engine", "score_template", "instruction"} & set(broken):
        mistakes += _reranker_mistakes(config, templates_fine=not mistakes)
    mistakes += pipeline
    if config.runs is not None:
        what = "is what pipeline=report reads, and this is another pipeline"
        mistakes.append(Mistake("runs", what, "Add: pipeline=report"))
    mistakes += _folder_mistakes("results.dir", config.results.dir)
    return mistakes


def _prompted(config: RunConfig, chosen: Sequence[TaskInfo]) -> list[TaskInfo]:
    """The tasks whose texts prompts stand in front of."""
    made = make_pipeline(config)
    if isinstance(made, Throughput) and made.lengths != "tasks":
        return [made.prompted_as()]
    return task_selection.parts(chosen, mteb_catalogue())


def is_report(config: RunConfig) -> bool:
    """Whether a configuration only compares what other runs have left."""
    return config.pipeline.get("_target_") == f"{Report.__module__}.{Report.__name__}"


def _report_mistakes(config: RunConfig) -> list[Mistake]:
    made, mistakes = _made("pipeline", config.pipeline, "model_kinds")
    if not config.runs:
        way = "Name folders of sweeps, of runs, or of results: runs='outputs/sweeps/2026-11-24/*'"
        mistakes.append(Mistake("runs", "which runs shall be compared?", way))
    if config.dry_run:
        mistakes.append(Mistake("dry_run=true", "a report computes nothing that could be left out"))
    own = made.dir if made is not None else None
    return [
        *mistakes,
        *(_folder_mistakes("pipeline.dir", own) if own else _folder_mistakes("results.dir", config.results.dir)),
    ]


def _recipe_mistakes(
    where: str,
    model: ModelConfig,
    engine: Mapping[str, Any],
    prompts: Mapping[str, Any],
    instruction: InstructionConfig,
    *,
    broken: Collection[str] = (),
) -> list[Mistake]:
    """What is wrong with a model and its texts; `where` is what stands before `model`, `prompts` and so on."""
    mteb = mteb_catalogue()
    mistakes = prompt_mistakes(f"{where}prompts", prompts, mteb)
    mistakes += prompt_mistakes(f"{where}model.prompts", model.prompts or {}, mteb)
    mistakes += template_mistakes(f"{where}instruction", instruction)
    mistakes += template_mistakes(f"{where}model.instruction", model.instruction)
    if "model" not in broken:
        mistakes += _model_mistakes(f"{where}model", model, engine, mteb, vllm_catalogue())
    return mistakes


def _engine_mistakes(where: str, model: ModelConfig, engine: Mapping[str, Any]) -> list[Mistake]:
    if backend_of(engine) == "sentence_transformers":
        return check_sentence_transformers(f"{where}engine", engine)  # a recipe's arguments are vLLM's
    if (vllm := vllm_catalogue()) is None:
        return []
    if model.engine.get("backend") is not None:
        what = "what works in an engine, a recipe cannot say"
        return [Mistake(f"{where}model.engine.backend={model.engine['backend']}", what, f"Use {where}engine.backend.")]
    return [
        *check_arguments(f"{where}engine", engine, vllm),
        *check_arguments(f"{where}model.engine", model.engine, vllm),
    ]


def _applies_nowhere(prompts: Mapping[str, Any], parts: Sequence[TaskInfo], config: RunConfig) -> list[Mistake]:
    """Refuses prompts that the user chose and that would reach no text of the run."""
    keys = [key for key, value in prompts.items() if value is not None]
    if not keys or not parts:
        return []
    if config.model.kind == "cross_encoder":
        template = score_templates.resolve(config.score_template, config.model.score_template)
        if not template.takes_instruction:
            what = "a reranker's prompts are instructions, and its score template takes none"
            way = "A text before each query or document: score_template.query_prefix, score_template.document_prefix."
            return [Mistake("prompts", what, way)]
    elif applying_keys(keys, parts):
        return []
    if instruction_keys(keys, parts) and config.model.kind == "cross_encoder":
        return []
    types = ", ".join(sorted({task.type for task in parts}))
    what = f"none of its keys ({', '.join(keys)}) applies to the chosen tasks, which are of the types {types}"
    way = f"Keys that would apply: {', '.join(candidates(parts[0].name, parts[0].type, None))}. "
    way += "query and document apply only to tasks with a query side, as retrieval."
    return [Mistake("prompts", what, way)]


def _reranker_mistakes(config: RunConfig, *, templates_fine: bool) -> list[Mistake]:
    """What only a cross-encoder's run can have wrong."""
    mistakes: list[Mistake] = []
    try:
        model = find_recipe(config.model)
    except ModelError:
        return mistakes  # said already
    overrides = resolve_arguments(config.engine, config.model.engine)[0].get("hf_overrides")
    if problem := label_problem(model, overrides if isinstance(overrides, Mapping) else {}):
        mistakes.append(Mistake(f"model.name={model.name}", problem))
    if config.instruction.template is not None:
        what = "a reranker reads its instruction through its score template"
        mistakes.append(Mistake("instruction.template", what, "Write {{ instruction }} into score_template.template."))
    if not templates_fine or not is_language_model(model.config) or not config.score_template.from_model:
        return mistakes
    if score_templates.resolve(config.score_template, config.model.score_template).text is None:
        what = "a language model scores pairs through a template, and neither the recipe nor score_template names one"
        way = "Choose one, as score_template=qwen3_reranker, or say that it needs none: score_template=none."
        mistakes.append(Mistake("score_template", what, way))
    return mistakes


def _pipeline_mistakes(config: RunConfig, chosen: Sequence[TaskInfo], broken: Collection[str]) -> list[Mistake]:
    made, mistakes = _made("pipeline", config.pipeline, "model_kinds")
    if isinstance(reference := config.pipeline.get("reference"), Mapping):
        mistakes += _reference_mistakes(config, reference, chosen)
    if made is None:
        return mistakes
    name, kind = type(made).__name__.lower(), config.model.kind
    if "model" not in broken and kind not in made.model_kinds:
        what = f"the pipeline {name} needs a model of kind {' or '.join(made.model_kinds)}"
        way = "Rerankers belong into pipeline=rerank, with pipeline.scoring=cross_encoder."
        if name == "rerank" and kind == "encoder":
            way = "An encoder reranks by the cosine of its embeddings: pipeline.scoring=cosine"
        mistakes.append(Mistake(f"model.kind={kind}", what, way))
    # A reranker can be compared with its reference on what it can rerank.
    types = Rerank.task_types if isinstance(made, Parity) and kind == "cross_encoder" else made.task_types
    others = [task for task in chosen if types is not None and task.type not in types]
    parts_fit = [
        all(part.type in (types or ()) for part in task_selection.parts([task], mteb_catalogue())) for task in others
    ]
    others = [task for task, fits in zip(others, parts_fit, strict=True) if not fits]
    if others:
        names = ", ".join(f"{task.name} ({task.type})" for task in others[:5]) + (", ..." if len(others) > 5 else "")
        way = f"Take only those that can: 'tasks.types=[{','.join(types or ())}]', or tasks=demo_retrieval."
        who = "a reranker" if isinstance(made, Parity) else f"the pipeline {name}"
        mistakes.append(Mistake("tasks", f"{who} is for retrieval and reranking; not for {names}", way))
    if isinstance(made, Throughput):
        mistakes += _throughput_mistakes(config, made)
    if made.window < 1:
        mistakes.append(Mistake(f"pipeline.window={made.window}", "must be 1 or more"))
    if hasattr(made, "first_stage"):
        if not 1 <= made.top_k <= DEPTH:
            mistakes.append(Mistake(f"pipeline.top_k={made.top_k}", f"must be from 1 to {DEPTH}"))
        mistakes += _first_stage_mistakes(made.first_stage, chosen)
        mistakes += _engines_together(config, made)
    return mistakes


def _throughput_mistakes(config: RunConfig, made: Throughput) -> list[Mistake]:
    found = []
    if not any(size <= made.requests for size in made.batch_sizes):
        what = f"none is within the {made.requests:,} different requests"
        found.append(Mistake(f"pipeline.batch_sizes={made.batch_sizes}", what, "More of them: pipeline.requests=..."))
    elif too_many := [size for size in made.batch_sizes if size > made.requests]:
        what = f"there are {made.requests:,} different requests"
        found.append(Mistake(f"pipeline.batch_sizes={too_many}", what, "More of them: pipeline.requests=..."))
    limit = resolve_arguments(config.engine, config.model.engine)[0].get("max_model_len")
    if made.lengths != "tasks" and isinstance(limit, int) and made.tokens > limit:
        found.append(Mistake(f"pipeline.tokens={made.tokens}", f"the context is {limit} tokens (engine.max_model_len)"))
    return found


def _reference_mistakes(config: RunConfig, said: Mapping[str, Any], chosen: Sequence[TaskInfo]) -> list[Mistake]:
    where = "pipeline.reference"
    reference, mistakes = _made(where, said, "is_reference")
    if reference is None:
        return mistakes
    applied = reference.applied_to(config)
    mistakes += _engine_mistakes(f"{where}.", config.model, applied.engine)
    mistakes += prompt_mistakes(f"{where}.prompts", applied.prompts, mteb_catalogue())
    mistakes += template_mistakes(f"{where}.instruction", applied.instruction)
    mistakes += score_templates.check(f"{where}.score_template", applied.score_template)
    if backend_of(applied.engine) != "sentence_transformers":
        what = "the reference is sentence-transformers, which can be varied to find a cause"
        way = "Compare two engines of vLLM's by a sweep and its report, or by pipeline/reference=stored."
        mistakes.append(Mistake(f"{where}.engine.backend={applied.engine.get('backend')}", what, way))
    if (runs := getattr(reference, "runs", None)) and chosen:
        from mteb_vllm.parity.stored import stored_scores

        try:
            stored_scores(runs, [task.name for task in chosen])
        except ConfigError as error:
            mistakes += error.mistakes
    return mistakes


def _first_stage_mistakes(config: Mapping[str, Any], chosen: Sequence[TaskInfo]) -> list[Mistake]:
    where = "pipeline.first_stage"
    stage, mistakes = _made(where, config, "is_first_stage")
    # Tasks that bring their own candidates need nothing of it.
    needing = [task for task in chosen if not task_selection.brings_candidates(task.type)]
    parts = task_selection.parts(needing, mteb_catalogue())
    if isinstance(stage, Dense):
        mistakes += _engine_mistakes(f"{where}.", stage.model, stage.engine)
        mistakes += _recipe_mistakes(f"{where}.", stage.model, stage.engine, stage.prompts, stage.instruction)
        if stage.model.kind != "encoder":
            what = "a dense first stage needs a model of kind encoder"
            mistakes.append(Mistake(f"{where}.model.kind={stage.model.kind}", what))
        keys = [key for key, value in stage.prompts.items() if key != "from_model" and value is not None]
        if keys and parts and not mistakes and not applying_keys(keys, parts):
            mistakes.append(
                Mistake(f"{where}.prompts", f"none of its keys ({', '.join(keys)}) applies to the chosen tasks")
            )
    if stage is not None:
        mistakes += stage.mistakes(where, [part.name for part in parts])
    return mistakes


def _engines_together(config: RunConfig, pipeline: Any) -> list[Mistake]:
    """Refuses engines that shall be open together with different environments: these are the process's."""
    stage = pipeline.first_stage
    if not pipeline.keep_engines or "engine" not in stage:
        return []
    _, one, *_ = resolve_arguments(config.engine, config.model.engine)
    _, other, *_ = resolve_arguments(stage["engine"], (stage.get("model") or {}).get("engine") or {})
    if one == other or "sentence_transformers" in (backend_of(config.engine), backend_of(stage["engine"])):
        return []
    return [Mistake("pipeline.keep_engines=true", "the two engines have different environments (engine.env)")]


def _made(where: str, config: Mapping[str, Any], mark: str) -> tuple[Any, list[Mistake]]:
    """What a part of the configuration with a `_target_` makes, or what is wrong with it."""
    target = config.get("_target_")
    at = f"{where}._target_={target}"
    if not isinstance(target, str) or not target.startswith(TARGETS):
        return None, [Mistake(at, "is not a class that a configuration may name", f"Allowed: {', '.join(TARGETS)}.")]
    try:
        cls: Any = _class(target)
    except (ImportError, AttributeError) as error:
        return None, [Mistake(at, f"cannot be imported: {error}")]
    if not (hasattr(cls, mark) and hasattr(cls, "__dataclass_fields__")):
        return None, [Mistake(at, f"is no {where.rpartition('.')[2].replace('_', ' ')}")]
    try:
        return build(cls, _fields(config), where), []
    except ConfigError as error:
        return None, list(error.mistakes)


def _class(target: str) -> Any:
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)


def make_pipeline(config: RunConfig) -> Any:
    """The pipeline of a checked configuration."""
    return build(_class(config.pipeline["_target_"]), _fields(config.pipeline), "pipeline")


def make_first_stage(config: RunConfig) -> Any:
    """The first stage of a checked configuration that reranks."""
    stage = config.pipeline["first_stage"]
    return build(_class(stage["_target_"]), _fields(stage), "pipeline.first_stage")


def make_reference(config: RunConfig) -> Any:
    """The reference of a checked configuration that compares with one."""
    reference = config.pipeline["reference"]
    return build(_class(reference["_target_"]), _fields(reference), "pipeline.reference")


def _fields(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != "_target_"}


def _model_mistakes(
    at: str, model: ModelConfig, engine: Mapping[str, Any], mteb: MtebCatalogue, vllm: VllmCatalogue | None
) -> list[Mistake]:
    where = f"{at}.path={model.path}" if model.path else f"{at}.name={model.name}" if model.name else at
    if model.name is None and model.path is None and model.package is None:
        return [Mistake(where, "no model is named", f"Set {at}.name=org/name or {at}.path=/folder.")]
    try:
        found = find_recipe(model)
    except ModelError as error:
        by_name = model.path is None and model.package is None and model.name not in mteb.models
        near = tuple(f"{at}.name={name}" for name in nearest(model.name or "", mteb.models)) if by_name else ()
        return [Mistake(where, str(error), nearest=near)]
    arguments, *_ = resolve_arguments(engine, model.engine)
    overrides = arguments.get("hf_overrides")
    config = {**found.config, **(overrides if isinstance(overrides, Mapping) else {})}
    replaced = not set(config.get("architectures") or []).isdisjoint(vllm.architectures if vllm is not None else ())
    problems = []
    # The head that vLLM makes of a language model's has a name that it need not know.
    others = backend_of(engine) != "vllm" or "model_impl" in arguments
    if vllm is not None and not others and not replaced:
        trusted = arguments.get("trust_remote_code") is True
        problems.append(check_architecture(found, vllm.architectures, trust_remote_code=trusted))
    mistakes = [Mistake(where, problem) for problem in problems if problem]
    limit, context = position_limit(config), arguments.get("max_model_len")
    if limit is not None and isinstance(context, int) and context > limit:
        what = f"the model has positions for {limit} tokens"
        mistakes.append(Mistake(f"{at.removesuffix('model')}engine.max_model_len={context}", what))
    return mistakes


def _folder_mistakes(key: str, folder: str) -> list[Mistake]:
    path = Path(folder).absolute()
    try:
        existing = next(place for place in (path, *path.parents) if place.exists())
    except OSError as error:
        return [Mistake(f"{key}={folder}", str(error))]
    if not existing.is_dir():
        return [Mistake(f"{key}={folder}", f"{existing} is a file, not a folder")]
    if not os.access(existing, os.W_OK):
        return [Mistake(f"{key}={folder}", f"nothing can be written into {existing}")]
    return []
