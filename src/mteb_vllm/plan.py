"""The plan of a run: a checked configuration resolved for this machine, before anything is loaded."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mteb_vllm.catalogue import TaskInfo, mteb_catalogue
from mteb_vllm.config.schema import InstructionConfig, ModelConfig, RunConfig
from mteb_vllm.engines.arguments import resolve_arguments
from mteb_vllm.engines.base import Convert, EngineSpec
from mteb_vllm.errors import FirstStageError
from mteb_vllm.models import score_templates
from mteb_vllm.models.files import refresh_recipe_model
from mteb_vllm.models.prompts import ImportedTemplate, Prompts, resolve
from mteb_vllm.models.score_templates import ScoreTemplate
from mteb_vllm.pipelines.base import FirstStage, Pipeline
from mteb_vllm.pipelines.factory import PipelineParts, import_pipeline, make_parts
from mteb_vllm.pipelines.rerank.first_stages import Dense, EncoderStage
from mteb_vllm.results.failures import Failure, earlier_failure, load_failures
from mteb_vllm.results.lookup import result_path, result_status
from mteb_vllm.tasks import selection as tasks
from mteb_vllm.util.fingerprint import fingerprint

# The settings of a reranking run that determine its candidates.
_CANDIDATE_KEYS = ("candidates", "first_stage", "top_k", "tasks")


@dataclass(frozen=True)
class Plan:
    """A resolved configuration, made once when the command is checked and passed to the process that runs it.

    Attributes:
        pipeline: The pipeline.
        spec: The engine of the evaluated model.
        prompts: The resolved prompts; for a cross-encoder, its instructions.
        template: The score template of a cross-encoder; None for other models.
        stage: The first stage of a reranking run; None otherwise.
        tasks: The tasks' metadata.
        parts: The same, with aggregates replaced by their parts.
        settings: Everything that results depend on, except the tasks, as plain values.
        reference: The plan of the reference engine, if the run compares with one.
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
        """All engines of the run, that of the evaluated model first."""
        stage = self.stage.spec if self.stage is not None else None
        reference = self.reference.spec if self.reference is not None else None
        return [self.spec, *(spec for spec in (stage, reference) if spec is not None)]

    def settings_for(self, task: TaskInfo) -> dict[str, Any]:
        """Return the settings that one task's result depends on; for reranking, with that task's own candidates.

        Raises:
            FirstStageError: if saved predictions cannot be read.
        """
        if self.stage is None:
            return self.settings
        own = {key: value for key, value in self.settings.items() if key not in _CANDIDATE_KEYS}
        return own | self.pipeline.candidate_settings(self.stage, task.type, task.aggregate_of or (task.name,))

    def input_fingerprint(self, task: TaskInfo) -> str | None:
        """Return the hash of everything that one task's result depends on, with only those prompts that apply to the task.

        Runs that differ only in other prompts share the result. None if the input texts cannot be determined from the
        prompts alone, without importing mteb.
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
        """Return the wrapper of the model for mteb; its engine opens on first use."""
        from mteb_vllm.wrappers import VllmCrossEncoderWrapper, VllmEncoderReranker, VllmEncoderWrapper

        chunk_size = self.pipeline.chunk_size
        if self.template is not None:
            wrapper: Any = VllmCrossEncoderWrapper.from_spec(self.spec, self.template, self.prompts, chunk_size)
        elif self.pipeline.reranks:
            wrapper = VllmEncoderReranker.from_spec(self.spec, self.prompts, chunk_size)
        else:
            wrapper = VllmEncoderWrapper.from_spec(self.spec, self.prompts, chunk_size)
        wrapper.set_fixed_settings(self.pipeline.code)
        return wrapper


def make_plan(config: RunConfig, made: PipelineParts | None = None) -> Plan:
    """Resolve a checked configuration for this machine.

    Args:
        config: The configuration.
        made: Its pipeline, if the check has already built it.

    Raises:
        ModelError: if a model cannot be found.
    """
    made = made if made is not None else make_parts(config)
    planned = _plan_model(config, made.pipeline, made.first_stage)
    if made.reference is not None:
        reference = _plan_model(made.reference.applied_to(config), made.pipeline, made.first_stage)
        compared = _reference_settings(made.pipeline, reference, getattr(made.reference, "runs", None))
        planned = replace(planned, reference=reference, settings=planned.settings | {"reference": compared})
    return planned


def current_plan(config: RunConfig, made: Plan | None) -> Plan:
    """Return a plan that is valid in this process now: the given one, or a new one if it is outdated.

    The last point of a sweep runs long after the command was checked, in another process. If the weights, another file or
    the environment have changed since, results would be stored under the wrong settings.

    Args:
        config: The configuration.
        made: The plan made when the command was checked; None if there is none.

    Raises:
        ModelError: if a model cannot be found.
    """
    return made if made is not None and _is_current(made) else make_plan(config)


def pack(made: Plan) -> bytes | None:
    """Return a plan as bytes for another process; None if it holds a user's object that cannot be pickled."""
    try:
        return pickle.dumps(made)
    except Exception:  # a user's class may raise anything when it is pickled
        return None


def unpack(config: RunConfig, packed: bytes | None) -> Plan | None:
    """Return the plan that `pack` turned into bytes; None if this process has to make it itself."""
    if packed is None:
        return None
    try:
        # First, so that an edited module of the user's is reloaded before the plan refers to it.
        import_pipeline(config)
        made: Plan = pickle.loads(packed)
    except Exception:  # a user's class may raise anything; `make_plan` will report the problem
        return None
    return made


def _is_current(made: Plan) -> bool:
    """Whether `make_plan` would return the same plan now; compares everything that the settings cover."""
    if any(spec.has_changed() for spec in made.engines):
        return False
    prompts = (made.prompts, made.reference and made.reference.prompts, made.stage and made.stage.prompts)
    templates = [one.template for one in prompts if one]
    try:
        if any(isinstance(template, ImportedTemplate) and template.has_changed() for template in templates):
            return False
        settings = _settings(made)
        if made.reference is not None:
            reference = replace(made.reference, settings=_settings(made.reference))
            settings["reference"] = _reference_settings(made.pipeline, reference, made.settings["reference"]["runs"])
    except ValueError:  # a user's module that can no longer be read
        return False
    return settings == made.settings


def _plan_model(config: RunConfig, pipeline: Pipeline, first_stage: Any) -> Plan:
    spec, prompts = _spec_and_prompts(config.model, config.engine, config.prompts, config.instruction)
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
    """Return the current settings of a plan: everything that its results depend on, except tasks and reference."""
    pipeline, prompts, template = planned.pipeline, planned.prompts, planned.template
    settings: dict[str, Any] = {"engine": planned.spec.settings()}
    if not pipeline.scores_tasks and planned.spec.replicated:
        # They change speeds, but no scores.
        settings["replicas"] = planned.spec.replicas
        if planned.spec.ray_address is not None:
            settings["on_cluster"] = True
    if template is not None:
        settings["score_template"] = template.settings()
        settings["instructions"] = dict(prompts.values) if template.takes_instruction else None
    else:
        settings["prompts"] = prompts.settings()
    settings |= pipeline.settings(_kind(planned), [task.name for task in planned.tasks]) | pipeline.code
    if planned.stage is not None:
        settings |= _candidates(pipeline, planned.stage, planned.tasks)
    return settings


def _reference_settings(pipeline: Pipeline, reference: Plan, runs: Any) -> dict[str, Any]:
    """Return the part of a reference's settings that belongs to the settings of the run compared with it."""
    own = pipeline.settings(_kind(reference), ())
    return {key: value for key, value in reference.settings.items() if key not in own} | {"runs": runs}


def _kind(planned: Plan) -> str:
    return "encoder" if planned.template is None else "cross_encoder"


def failed_before(config: RunConfig, planned: Plan) -> dict[str, Failure]:
    """Return the stored failures of tasks that failed under the same settings and have no result since."""
    root = Path(config.results.dir)
    earlier = load_failures(root, fingerprint(planned.settings), asdict(config.tasks))
    found = {}
    for task in planned.tasks:
        failure = earlier_failure(earlier, task.name)
        if failure is None:
            continue
        with contextlib.suppress(FirstStageError):
            settings = planned.settings_for(task)
            path = result_path(root, settings, task.name, fingerprint(settings))
            if result_status(root, path, task, config.tasks.splits) == "complete":
                continue
        found[task.name] = failure
    return found


def _spec_and_prompts(
    recipe: ModelConfig, engine: Mapping[str, Any], prompts: Mapping[str, Any], instruction: InstructionConfig
) -> tuple[EngineSpec, Prompts]:
    model = refresh_recipe_model(recipe)
    cross_encoder = recipe.kind == "cross_encoder"
    resolved = resolve(
        prompts,
        # A reranker's instruction is part of its score template.
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
    spec, prompts = _spec_and_prompts(stage.model, stage.engine, stage.prompts, stage.instruction)
    return EncoderStage(spec, prompts, pipeline.chunk_size)


def _candidates(pipeline: Pipeline, stage: FirstStage, chosen: list[TaskInfo]) -> dict[str, Any]:
    """Return the settings that the candidates depend on, by task where they differ."""
    each: dict[str, Any] = {}
    for task in chosen:
        try:
            each[task.name] = pipeline.candidate_settings(stage, task.type, task.aggregate_of or (task.name,))
        except FirstStageError as error:
            each[task.name] = {"failed": str(error)}  # the task itself will report it
    different = {str(candidates): candidates for candidates in each.values()}
    return next(iter(different.values())) if len(different) == 1 else {"tasks": each}
