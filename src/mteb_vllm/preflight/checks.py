"""Check the configuration of a run without importing torch, mteb or vLLM."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from mteb_vllm.catalogue import TaskInfo, mteb_catalogue
from mteb_vllm.config.schema import RunConfig, ScoreTemplateConfig
from mteb_vllm.engines.arguments import backend_of, resolve_arguments
from mteb_vllm.errors import Mistake, ModelError
from mteb_vllm.models import score_templates
from mteb_vllm.models.architectures import check_labels, is_language_model
from mteb_vllm.models.files import find_recipe_model
from mteb_vllm.models.prompts import applying_keys, candidate_keys, instruction_keys
from mteb_vllm.models.sentence_transformers_files import apply_files
from mteb_vllm.pipelines.factory import PipelineParts, build_target, is_report
from mteb_vllm.preflight.models import engine_mistakes, recipe_mistakes
from mteb_vllm.preflight.pipelines import check_pipeline
from mteb_vllm.tasks import selection as task_selection
from mteb_vllm.util.disk import why_not_writable
from mteb_vllm.util.shell import suggest


def check_config(config: RunConfig, *, broken: Collection[str] = ()) -> tuple[PipelineParts | None, list[Mistake]]:
    """Check one run without loading anything, and make its pipeline.

    Args:
        config: The run.
        broken: Sections with known mistakes, as `tasks`. Their values are checked, but consequences of those mistakes are
            not reported.

    Returns:
        the pipeline with its parts, None only if there are mistakes; and the mistakes.
    """
    if is_report(config):
        return _check_report(config)
    if "experiment" in broken:
        broken = ("model", "engine", "prompts", "instruction", "score_template", "tasks", "pipeline")
    mteb = mteb_catalogue()
    reranker = config.model.kind == "cross_encoder"
    chosen, found = task_selection.select(config.tasks, mteb)
    if not chosen and not found and "tasks" not in broken:
        found = [task_selection.no_tasks_mistake(config.tasks)]
    needed = {"tasks", "prompts", "pipeline", *(["model", "score_template"] if reranker else [])}
    sure = not found and not needed & set(broken)
    mistakes = engine_mistakes("", config.model, config.engine)
    mistakes += found
    mistakes += recipe_mistakes("", config.model, config.engine, config.prompts, config.instruction, broken=broken)
    mistakes += score_templates.check("score_template", config.score_template)
    mistakes += score_templates.check("model.score_template", config.model.score_template)
    parts, pipeline = (
        check_pipeline(config, () if found else chosen, broken) if "pipeline" not in broken else (None, [])
    )
    if sure and not mistakes and not pipeline and parts is not None:
        prompts = {key: value for key, value in config.prompts.items() if key != "from_model"}
        prompted = parts.pipeline.prompted_tasks(task_selection.parts(chosen, mteb))
        mistakes += _unused_prompts(prompts, prompted, config)
    if not reranker and config.score_template != ScoreTemplateConfig(from_model=config.score_template.from_model):
        what = "is for cross-encoders, but the model is an encoder"
        way = "Leave it out, or choose a reranker: model=ms_marco_minilm"
        mistakes.append(Mistake("score_template", what, way, code="conflict"))
    wrong_kind = any(mistake.code == "model_kind" for mistake in pipeline)
    if reranker and not wrong_kind and not {"model", "engine", "score_template", "instruction"} & set(broken):
        mistakes += _reranker_mistakes(config, templates_fine=not mistakes)
    mistakes += pipeline
    if parts is not None:
        mistakes += _objective_mistakes(config, scored=parts.pipeline.scores_tasks, name=parts.pipeline.name)
    if config.runs is not None:
        what = "is only used by pipeline=report"
        mistakes.append(Mistake("runs", what, "Add: pipeline=report", code="conflict"))
    mistakes += folder_mistakes("results.dir", config.results.dir, "results")
    if config.embedding_cache.dir is not None:
        mistakes += folder_mistakes("embedding_cache.dir", config.embedding_cache.dir, "embeddings")
    return parts, mistakes


def _objective_mistakes(config: RunConfig, *, scored: bool, name: str) -> list[Mistake]:
    """Return a mistake for an objective that the pipeline does not measure.

    Args:
        config: The run.
        scored: Whether the pipeline scores tasks.
        name: The pipeline.
    """
    report, mistakes = config.report, []
    if report.objective == "mean" and not scored:
        what, way = f"pipeline={name} has no scores", "Choose: report.objective=texts_per_second"
        mistakes.append(Mistake("report.objective", what, way, value="mean", code="conflict"))
    if report.score_tolerance is not None and not scored:
        what, way = f"pipeline={name} has no scores to compare", "Leave it out, or choose: pipeline=evaluate"
        mistakes.append(Mistake("report.score_tolerance", what, way, code="conflict"))
    return mistakes


def _check_report(config: RunConfig) -> tuple[PipelineParts | None, list[Mistake]]:
    made, mistakes = build_target("pipeline", config.pipeline, "model_kinds")
    if not config.runs:
        way = "Specify folders of sweeps, runs or results: runs='outputs/sweeps/2026-11-24/*'"
        mistakes.append(Mistake("runs", "no runs to compare are specified", way, code="missing"))
    if config.dry_run:
        mistakes.append(Mistake("dry_run", "a report has no dry run: it computes no scores", value="true"))
    own = made.dir if made is not None else None
    mistakes += (
        folder_mistakes("pipeline.dir", own)
        if own is not None
        else folder_mistakes("results.dir", config.results.dir, "reports")
    )
    return PipelineParts(made) if made is not None else None, mistakes


def _unused_prompts(prompts: Mapping[str, Any], parts: Sequence[TaskInfo], config: RunConfig) -> list[Mistake]:
    """Return a mistake if none of the chosen prompts applies to a text of the run."""
    keys = [key for key, value in prompts.items() if value is not None]
    if not keys or not parts:
        return []
    if config.model.kind == "cross_encoder":
        template = score_templates.resolve(config.score_template, config.model.score_template)
        if not template.takes_instruction:
            what = "a reranker's prompts are instructions, but its score template does not use {{ instruction }}"
            way = "To prefix each query or document, set score_template.query_prefix or score_template.document_prefix."
            return [Mistake("prompts", what, way, code="conflict")]
    elif applying_keys(keys, parts):
        return []
    if instruction_keys(keys, parts) and config.model.kind == "cross_encoder":
        return []
    types = ", ".join(sorted({task.type for task in parts}))
    what = f"none of its keys ({', '.join(keys)}) applies to the chosen tasks (task types: {types})"
    way = f"Keys that would apply: {', '.join(candidate_keys(parts[0].name, parts[0].type, None))}. "
    way += "query and document apply only to tasks with queries, such as retrieval."
    return [Mistake("prompts", what, way, code="conflict")]


def _reranker_mistakes(config: RunConfig, *, templates_fine: bool) -> list[Mistake]:
    """Return the mistakes that only the run of a cross-encoder can have."""
    mistakes: list[Mistake] = []
    try:
        model = find_recipe_model(config.model)
    except ModelError:
        return mistakes  # already reported
    overrides = resolve_arguments(config.engine, config.model.engine)[0].get("hf_overrides")
    if problem := check_labels(model, overrides if isinstance(overrides, Mapping) else {}):
        mistakes.append(Mistake("model.name", problem, value=f"{model.name}"))
    if backend_of(config.engine) == "vllm" and templates_fine:
        chosen = score_templates.resolve(config.score_template, config.model.score_template)
        arguments = resolve_arguments(config.engine, config.model.engine)[0]
        refused = apply_files(model.files, model.config, arguments, "classify").activation_refused
        if refused and chosen.activation is None:
            mistakes.append(Mistake("model.name", refused, value=f"{model.name}"))
    if config.instruction.template is not None:
        what = "is for encoders; a reranker's instruction is part of its score template"
        mistakes.append(Mistake("instruction.template", what, "Write {{ instruction }} into score_template.template."))
    if not templates_fine or not is_language_model(model.config) or not config.score_template.from_model:
        return mistakes
    if score_templates.resolve(config.score_template, config.model.score_template).text is None:
        what = "a language model needs a score template, and neither the recipe nor score_template has one"
        way = "Choose one, such as score_template=qwen3_reranker; if the model needs none, score_template=none."
        mistakes.append(Mistake("score_template", what, way))
    return mistakes


# The longest path that Linux accepts, in bytes, and the part of it that is reserved for names below the results folder.
_LONGEST_PATH, _BELOW = 4096, 1024


def folder_mistakes(key: str, folder: str, below: str = "") -> list[Mistake]:
    """Return the mistakes in the name of a folder that will be written to.

    Args:
        key: The key of the configuration that names it.
        folder: The folder; it need not exist.
        below: The subfolder that is written to.
    """
    if not folder.strip():
        return [Mistake(key, "is empty", f"For the current folder: {key}=.", value=f"{folder!r}")]
    if folder.startswith("~"):
        expanded = suggest(key, str(Path(folder).expanduser()))
        return [Mistake(key, "~ is not replaced by the home directory", f"Write: {expanded}", value=folder)]
    if not folder.isprintable():
        return [Mistake(key, "contains an unprintable character", value=f"{folder!r}")]
    if len(os.fsencode(Path(folder).absolute())) + _BELOW > _LONGEST_PATH:
        return [
            Mistake(key, "is too long: the paths of results would exceed the system's limit", value=f"{folder[:80]}...")
        ]
    why = why_not_writable(Path(folder) / below)
    return [Mistake(key, why, value=folder, code="not_writable")] if why is not None else []
