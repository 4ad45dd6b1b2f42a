"""Check a pipeline: its model and tasks, its first stage, and its reference."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mteb_vllm.catalogue import TaskInfo, mteb_catalogue
from mteb_vllm.config.schema import RunConfig
from mteb_vllm.engines.arguments import backend_of, context_limit, resolve_arguments
from mteb_vllm.errors import ConfigError, Mistake
from mteb_vllm.models import score_templates
from mteb_vllm.models.prompts import applying_keys
from mteb_vllm.pipelines.factory import PipelineParts, build_target
from mteb_vllm.pipelines.rerank.first_stages import Dense
from mteb_vllm.preflight.models import engine_mistakes, recipe_mistakes
from mteb_vllm.preflight.prompts import prompt_mistakes, template_mistakes
from mteb_vllm.tasks import selection as task_selection
from mteb_vllm.util.shell import suggest

_KINDS = {"encoder": "an embedding model", "cross_encoder": "a reranker"}


def check_pipeline(
    config: RunConfig, chosen: Sequence[TaskInfo], broken: Collection[str]
) -> tuple[PipelineParts | None, list[Mistake]]:
    """Make the pipeline of a run and check it.

    Args:
        config: The run.
        chosen: Its tasks; empty if there are mistakes in them.
        broken: Sections of the configuration with known mistakes.

    Returns:
        the pipeline with its parts, None if it cannot be made; and the mistakes.
    """
    made, mistakes = build_target("pipeline", config.pipeline, "model_kinds", config.allowed_targets or ())
    reference, stage = None, None
    if isinstance(values := config.pipeline.get("reference"), Mapping):
        reference, found = _check_reference(config, values, chosen)
        mistakes += found
    if made is None:
        return None, mistakes
    name, kind = made.name, config.model.kind
    if "model" not in broken and kind not in made.model_kinds:
        kinds = " or ".join(f"{_KINDS.get(one, 'a model')} (model.kind={one})" for one in made.model_kinds)
        what = f"pipeline={name} needs {kinds}"
        way = "Rerankers are evaluated with pipeline=rerank and pipeline.scoring=cross_encoder."
        if name == "rerank" and kind == "encoder":
            way = "To rerank by the cosine similarity of an encoder's embeddings: pipeline.scoring=cosine"
        mistakes.append(Mistake("model.kind", what, way, value=kind, code="model_kind"))
    types = made.types_for(kind)
    others = [task for task in chosen if types is not None and task.type not in types]
    parts_fit = [
        all(part.type in (types or ()) for part in task_selection.parts([task], mteb_catalogue())) for task in others
    ]
    others = [task for task, fits in zip(others, parts_fit, strict=True) if not fits]
    if others:
        names = ", ".join(f"{task.name} ({task.type})" for task in others[:5]) + (", ..." if len(others) > 5 else "")
        way = f"Choose tasks of these types: {suggest('tasks.types', list(types or ()))}, or tasks=demo_retrieval."
        who = "a reranker" if made.task_types is None else f"pipeline={name}"
        mistakes.append(Mistake("tasks", f"{who} supports only retrieval and reranking tasks, not {names}", way))
    mistakes += made.check(context_limit(resolve_arguments(config.engine, config.model.engine)[0]))
    if made.first_stage is not None:
        stage, found = _check_first_stage(made.first_stage, chosen)
        mistakes += found
    return PipelineParts(made, stage, reference if made.reference is not None else None), mistakes


def _check_reference(
    config: RunConfig, values: Mapping[str, Any], chosen: Sequence[TaskInfo]
) -> tuple[Any, list[Mistake]]:
    where = "pipeline.reference"
    reference, mistakes = build_target(where, values, "is_reference")
    if reference is None:
        return None, mistakes
    applied = reference.applied_to(config)
    mistakes += engine_mistakes(f"{where}.", config.model, applied.engine)
    mistakes += prompt_mistakes(f"{where}.prompts", applied.prompts, mteb_catalogue())
    mistakes += template_mistakes(f"{where}.instruction", applied.instruction)
    mistakes += score_templates.check(f"{where}.score_template", applied.score_template)
    if backend_of(applied.engine) != "sentence_transformers":
        what = "the reference must be sentence-transformers, whose settings can be varied to find a cause"
        way = "To compare two vLLM engines, use a sweep and its report, or pipeline/reference=stored."
        mistakes.append(Mistake(f"{where}.engine.backend", what, way, value=f"{applied.engine.get('backend')}"))
    if (runs := getattr(reference, "runs", None)) and chosen:
        from mteb_vllm.pipelines.parity.stored import stored_scores

        try:
            stored_scores(runs, [task.name for task in chosen])
        except ConfigError as error:
            mistakes += error.mistakes
    return reference, mistakes


def _check_first_stage(config: Mapping[str, Any], chosen: Sequence[TaskInfo]) -> tuple[Any, list[Mistake]]:
    where = "pipeline.first_stage"
    stage, mistakes = build_target(where, config, "is_first_stage")
    # Tasks with their own candidates do not use the first stage.
    needing = [task for task in chosen if not task_selection.brings_candidates(task.type)]
    parts = task_selection.parts(needing, mteb_catalogue())
    if isinstance(stage, Dense):
        mistakes += engine_mistakes(f"{where}.", stage.model, stage.engine)
        mistakes += recipe_mistakes(f"{where}.", stage.model, stage.engine, stage.prompts, stage.instruction)
        if stage.model.kind != "encoder":
            what = "a dense first stage needs an embedding model"
            mistakes.append(Mistake(f"{where}.model.kind", what, value=f"{stage.model.kind}"))
        keys = [key for key, value in stage.prompts.items() if key != "from_model" and value is not None]
        if keys and parts and not mistakes and not applying_keys(keys, parts):
            mistakes.append(
                Mistake(f"{where}.prompts", f"none of its keys ({', '.join(keys)}) applies to the chosen tasks")
            )
    if stage is not None:
        mistakes += stage.mistakes(where, [part.name for part in parts])
    return stage, mistakes
