"""The header of a run's output: models, engines and prompts, printed before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mteb_vllm.catalogue import TaskInfo
from mteb_vllm.engines.base import EngineSpec
from mteb_vllm.models.architectures import is_language_model
from mteb_vllm.plan import Plan
from mteb_vllm.report import one_run
from mteb_vllm.results.record import RunRecord
from mteb_vllm.tasks.selection import brings_candidates
from mteb_vllm.util.machine import device
from mteb_vllm.util.masking import mask_values

if TYPE_CHECKING:
    from mteb_vllm.util.console import Console


def print_run_header(console: Console, planned: Plan, record: RunRecord) -> None:
    """Print the models, engines and prompts of a plan, and add warnings about them to the record."""
    stage = planned.stage
    if stage is not None and stage.spec is not None and stage.prompts is not None:
        _print_engine(console, "First stage", stage.spec)
        one_run.print_prompts(console, stage.prompts, _tasks_of_first_stage(planned))
        console.print()
    elif stage is not None:
        options = _words({key: value for key, value in vars(stage).items() if value is not None})
        console.print_line(f"First stage: {stage.name}" + (f" ({options})" if options else ""))
    _print_engine(console, "Model" if stage is None else "Reranker", planned.spec)
    for spec in [planned.spec, *([stage.spec] if stage is not None and stage.spec is not None else [])]:
        if spec.args.get("trust_remote_code"):
            text = f"trust_remote_code is on: Python code shipped with {spec.model.name} is executed"
            record.warnings.append(f"{text}.")
            console.print_line(f"        {text}", style="yellow")
        record.warnings += [f"{spec.model.name}: {note}" for note in spec.applied.notes]
    if shell := record.settings["engine"]["shell"]:
        record.warnings.append(
            "Variables set in the shell rather than in engine.env, which are part of the fingerprint: "
            f"{', '.join(f'{k}={v}' for k, v in shell.items())}"
        )
    _print_input_texts(console, planned)
    if planned.template is not None:
        default = planned.spec.model.files.default_pair_prompt
        if default and default != planned.template.query_prefix:
            record.warnings.append(
                f"sentence-transformers would prefix texts with the model's default prompt {default!r}; here "
                "score_template.query_prefix applies instead."
            )
        if planned.template.text is None and is_language_model(planned.spec.model.config):
            record.warnings.append(
                "This language model scores pairs without a score template: unless it was trained that way, its scores are "
                "meaningless."
            )
    if planned.reference is not None:
        console.print()
        _print_engine(console, "Reference", planned.reference.spec)
        _print_input_texts(console, planned.reference)
    console.print()


def prompts_in_effect(planned: Plan) -> dict[str, Any]:
    """Return the resolved prompts and templates of a plan, including those of a dense first stage and a reference."""
    found = one_run.prompts_record(planned.prompts, planned.parts, planned.template)
    if planned.stage is not None and planned.stage.prompts is not None:
        found["first_stage"] = one_run.prompts_record(planned.stage.prompts, _tasks_of_first_stage(planned))
    if planned.reference is not None:
        found["reference"] = prompts_in_effect(planned.reference)
    return found


def _tasks_of_first_stage(planned: Plan) -> list[TaskInfo]:
    """Return the tasks for which a first stage retrieves, i.e. those without their own candidates."""
    return [task for task in planned.parts if not brings_candidates(task.type)]


def _print_input_texts(console: Console, planned: Plan) -> None:
    if planned.template is None:
        one_run.print_prompts(console, planned.prompts, planned.parts)
    else:
        one_run.print_pairs(console, planned.template, planned.prompts, planned.parts)


def _print_engine(console: Console, what: str, spec: EngineSpec) -> None:
    args = {key: value for key, value in spec.args.items() if key not in ("load_format", "trust_remote_code")}
    description = f"preset {spec.preset}" + (f" (device {device()})" if spec.preset != "none" else "")
    if spec.backend != "vllm":
        description = spec.backend_name
    if spec.replicas > 1:
        description += f", {spec.replicas} replicas"
    console.print_line(f"{what}: {spec.model.name}, revision {spec.model.revision}")
    console.print_line(f"Engine: {description}: {_words(args)}")
    if vector_options := str(spec.applied):
        console.print_line(f"Embeddings: {vector_options}")


def _words(values: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in mask_values(values).items())
