"""What a checked configuration comes down to on this machine, before anything is loaded."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mteb_vllm.catalogue import TaskInfo, mteb_catalogue
from mteb_vllm.config.schema import InstructionConfig, ModelConfig, RunConfig
from mteb_vllm.engines.arguments import resolve_arguments
from mteb_vllm.engines.base import Convert, EngineSpec
from mteb_vllm.errors import FirstStageError
from mteb_vllm.models import score_templates
from mteb_vllm.models.files import find_recipe_now
from mteb_vllm.models.prompts import ImportedTemplate, Prompts, resolve
from mteb_vllm.models.score_templates import ScoreTemplate
from mteb_vllm.pipelines.base import FirstStage, Pipeline
from mteb_vllm.pipelines.factory import PipelineParts, import_pipeline, make_parts
from mteb_vllm.pipelines.rerank.first_stages import Dense, EncoderStage
from mteb_vllm.results.failures import Failure, before, remembered
from mteb_vllm.results.lookup import look, result_path
from mteb_vllm.tasks import selection as tasks
from mteb_vllm.util.fingerprint import fingerprint

# What of a reranking run's settings says where the candidates come from.
_OF_CANDIDATES = ("candidates", "first_stage", "top_k", "tasks")


@dataclass(frozen=True)
class Plan:
    """What a configuration comes down to: made once, by the command that was checked, and passed on to whatever runs it.

    Attributes:
        pipeline: What is done.
        spec: The engine that it needs.
        prompts: The prompts, wherever they come from; of a cross-encoder, its instructions.
        template: What a cross-encoder reads a pair through; None for other models.
        stage: What retrieves the candidates of a reranker; None where nothing is reranked.
        tasks: The tasks' metadata.
        parts: The same, with the parts of an aggregate in its place.
        settings: Everything but the tasks that results depend on, as plain values.
        reference: What the engine is compared with, where it is.
    """

    pipeline: Pipeline
    spec: EngineSpec
    prompts: Prompts
    template: ScoreTemplate | None
    stage: FirstStage | None
    tasks: list[TaskInfo]
    parts: list[TaskInfo]
    settings: dict[str, Any]
    reference: Plan | None = None

    @property
    def engines(self) -> list[EngineSpec]:
        """Its engines, the one that it is about first."""
        stage = self.stage.spec if self.stage is not None else None
        reference = self.reference.spec if self.reference is not None else None
        return [self.spec, *(spec for spec in (stage, reference) if spec is not None)]

    def settings_for(self, task: TaskInfo) -> dict[str, Any]:
        """What the result of one task depends on: of reranking, that task's own candidates.

        Raises:
            FirstStageError: if saved predictions cannot be read.
        """
        if self.stage is None:
            return self.settings
        own = {key: value for key, value in self.settings.items() if key not in _OF_CANDIDATES}
        return own | self.pipeline.candidate_settings(self.stage, task.type, task.aggregate_of or (task.name,))

    def input_fingerprint(self, task: TaskInfo) -> str | None:
        """Return the hash of what one task's result depends on, of the prompts only those that its texts are prefixed with.

        Runs that differ in other prompts have the same result. None where that cannot be known before mteb is imported, or
        depends on more.
        """
        if not self.pipeline.cached or self.stage is not None:
            return None
        if self.template is not None or callable(self.prompts.template):
            return None
        own = {key: value for key, value in self.settings.items() if key != "prompts"}
        read = {
            part.name: {side or "texts": self.prompts.prefix(part, side or None).text for side in part.sides}
            for part in tasks.parts([task], mteb_catalogue())
        }
        return fingerprint({**own, "task": task.name, "read": read})

    def wrapper(self) -> Any:
        """The model, as mteb knows it; its engine opens when it is needed."""
        from mteb_vllm.wrappers import VllmCrossEncoderWrapper, VllmEncoderReranker, VllmEncoderWrapper

        chunk_size = self.pipeline.chunk_size
        if self.template is not None:
            wrapper: Any = VllmCrossEncoderWrapper.planned(self.spec, self.template, self.prompts, chunk_size)
        elif self.pipeline.reranks:
            wrapper = VllmEncoderReranker.planned(self.spec, self.prompts, chunk_size)
        else:
            wrapper = VllmEncoderWrapper.planned(self.spec, self.prompts, chunk_size)
        wrapper.count_always(self.pipeline.code)
        return wrapper


def plan(config: RunConfig, made: PipelineParts | None = None) -> Plan:
    """Works out what a checked configuration means on this machine.

    Args:
        config: The configuration.
        made: Its pipeline, as its check has made it; None: it is made here.

    Raises:
        ModelError: if a model cannot be had.
    """
    made = made if made is not None else make_parts(config)
    planned = _planned(config, made.pipeline, made.first_stage)
    if made.reference is not None:
        reference = _planned(made.reference.applied_to(config), made.pipeline, made.first_stage)
        compared = _compared(made.pipeline, reference, getattr(made.reference, "runs", None))
        planned = replace(planned, reference=reference, settings=planned.settings | {"reference": compared})
    return planned


def current_plan(config: RunConfig, made: Plan | None) -> Plan:
    """Return the plan of a checked configuration as it holds in this process now.

    That is the plan that was made when the command was checked. But a sweep's last point runs long after its check, in
    another process: where the weights, a file that is read or the environment are other ones than those that the plan
    counts, its results would be kept under settings that they do not have, and the plan is made anew.

    Args:
        config: The configuration.
        made: Its plan; None where it could not be made, or could not be passed on.

    Raises:
        ModelError: if a model cannot be had.
    """
    return made if made is not None and _is_current(made) else plan(config)


def pack(made: Plan) -> bytes | None:
    """Return a plan as bytes, for another process; None where an object of the user's in it cannot be pickled."""
    try:
        return pickle.dumps(made)
    except Exception:  # a class of the user's does what it likes when it is pickled
        return None


def unpack(config: RunConfig, packed: bytes | None) -> Plan | None:
    """Return the plan of a configuration that `pack` made bytes of; None where this process has to make it itself."""
    if packed is None:
        return None
    try:
        # First, so that a module of the user's is known by its source, and is not an older one in this process.
        import_pipeline(config)
        made: Plan = pickle.loads(packed)
    except Exception:  # likewise; `plan` will say what is wrong with it
        return None
    return made


def _is_current(made: Plan) -> bool:
    """Return whether `plan` would make the same now: of what can change, everything that the settings count."""
    if any(spec.model.has_changed() for spec in made.engines):
        return False
    prompts = (made.prompts, made.reference and made.reference.prompts, made.stage and made.stage.prompts)
    templates = [one.template for one in prompts if one]
    try:
        if any(isinstance(template, ImportedTemplate) and template.has_changed() for template in templates):
            return False
        settings = _settings(made)
        if made.reference is not None:
            reference = replace(made.reference, settings=_settings(made.reference))
            settings["reference"] = _compared(made.pipeline, reference, made.settings["reference"]["runs"])
    except ValueError:  # a module of the user's that cannot be read any more
        return False
    return settings == made.settings


def _planned(config: RunConfig, pipeline: Pipeline, first_stage: Any) -> Plan:
    spec, prompts = _encoder(config.model, config.engine, config.prompts, config.instruction)
    template = None
    if config.model.kind == "cross_encoder":
        template = score_templates.resolve(
            config.score_template, config.model.score_template, spec.model.files.default_pair_prompt
        )
    chosen = tasks.select(config.tasks, mteb_catalogue())[0] if pipeline.needs_tasks else []
    stage = _stage(first_stage, pipeline) if first_stage is not None else None
    parts = [*pipeline.prompted_tasks(tasks.parts(chosen, mteb_catalogue()))]
    planned = Plan(pipeline, spec, prompts, template, stage, chosen, parts, {})
    return replace(planned, settings=_settings(planned))


def _settings(planned: Plan) -> dict[str, Any]:
    """Return everything but the tasks and the reference that a plan's results depend on, as it is now."""
    pipeline, prompts, template = planned.pipeline, planned.prompts, planned.template
    settings: dict[str, Any] = {"engine": planned.spec.settings()}
    if template is not None:
        settings["score_template"] = template.settings()
        settings["instructions"] = dict(prompts.values) if template.takes_instruction else None
    else:
        settings["prompts"] = prompts.settings()
    settings |= pipeline.settings(_kind(planned), [task.name for task in planned.tasks]) | pipeline.code
    if planned.stage is not None:
        settings |= _candidates(pipeline, planned.stage, planned.tasks)
    return settings


def _compared(pipeline: Pipeline, reference: Plan, runs: Any) -> dict[str, Any]:
    """Return what of a reference's settings counts among those of the run that is compared with it."""
    own = pipeline.settings(_kind(reference), ())
    return {key: value for key, value in reference.settings.items() if key not in own} | {"runs": runs}


def _kind(planned: Plan) -> str:
    return "encoder" if planned.template is None else "cross_encoder"


def failed_before(config: RunConfig, planned: Plan) -> dict[str, Failure]:
    """The tasks that failed before under the very same settings and have no result since."""
    root = Path(config.results.dir)
    earlier = remembered(root, fingerprint(planned.settings))
    found = {}
    for task in planned.tasks:
        failure = before(earlier, task.name)
        if failure is None:
            continue
        with contextlib.suppress(FirstStageError):
            settings = planned.settings_for(task)
            path = result_path(root, settings, task.name, fingerprint(settings))
            if look(root, path, task, config.tasks.splits) == "whole":
                continue
        found[task.name] = failure
    return found


def _encoder(
    recipe: ModelConfig, engine: Mapping[str, Any], prompts: Mapping[str, Any], instruction: InstructionConfig
) -> tuple[EngineSpec, Prompts]:
    model = find_recipe_now(recipe)
    cross_encoder = recipe.kind == "cross_encoder"
    resolved = resolve(
        prompts,
        # A reranker's instruction goes into its score template.
        InstructionConfig() if cross_encoder else instruction,
        recipe=recipe.prompts,
        recipe_instruction=recipe.instruction,
        registry=None if cross_encoder else mteb_catalogue().models.get(model.name),
        sentence_transformers={} if cross_encoder else model.sentence_transformers,
    )
    convert: Convert = "classify" if cross_encoder else "embed"
    return EngineSpec(model, convert, *resolve_arguments(engine, recipe.engine)), resolved


def _stage(stage: Any, pipeline: Pipeline) -> FirstStage:
    if not isinstance(stage, Dense):
        made: FirstStage = stage
        return made
    spec, prompts = _encoder(stage.model, stage.engine, stage.prompts, stage.instruction)
    return EncoderStage(spec, prompts, pipeline.chunk_size)


def _candidates(pipeline: Pipeline, stage: FirstStage, chosen: list[TaskInfo]) -> dict[str, Any]:
    """What the candidates depend on; task by task where that differs."""
    each: dict[str, Any] = {}
    for task in chosen:
        try:
            each[task.name] = pipeline.candidate_settings(stage, task.type, task.aggregate_of or (task.name,))
        except FirstStageError as error:
            each[task.name] = {"failed": str(error)}  # that task will
    different = {str(candidates): candidates for candidates in each.values()}
    return next(iter(different.values())) if len(different) == 1 else {"tasks": each}
