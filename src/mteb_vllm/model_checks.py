"""What is wrong with a model's recipe, its texts, and the arguments of its engine."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from mteb_vllm.architectures import check_architecture, position_limit
from mteb_vllm.arguments import backend_of, check_arguments, check_sentence_transformers, resolve_arguments
from mteb_vllm.catalogue import MtebCatalogue, VllmCatalogue, mteb_catalogue, nearest, vllm_catalogue
from mteb_vllm.config import InstructionConfig, ModelConfig
from mteb_vllm.engine import Convert
from mteb_vllm.errors import Mistake, ModelError
from mteb_vllm.files import name_problem
from mteb_vllm.models import Model, find_recipe, missing_files
from mteb_vllm.prompt_checks import prompt_mistakes, template_mistakes
from mteb_vllm.sentence_transformers_files import apply_files
from mteb_vllm.shell import suggest
from mteb_vllm.stored import model_folder


def engine_mistakes(where: str, model: ModelConfig, engine: Mapping[str, Any]) -> list[Mistake]:
    """What is wrong with engine arguments, the recipe's among them; `where` is what stands before `engine` and `model`."""
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


def recipe_mistakes(
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


def _revision_mistakes(at: str, revision: str | None) -> list[Mistake]:
    """What is wrong with a revision, before the Hub's cache is looked through for it."""
    if revision is None:
        return []
    # A branch's name may hold slashes.
    problems = (name_problem(part) for part in revision.split("/"))
    problem = next((problem for problem in problems if problem is not None), None)
    return [Mistake(f"{at}.revision={revision}", f"is no commit, branch or tag: {problem}")] if problem else []


def file_problems(model: Model, kind: str, engine: Mapping[str, Any], arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """Say what of a model's files is missing, or asks for what the engine does not do."""
    missing = tuple(missing_files(model)) if not {"tokenizer", "skip_tokenizer_init"} & set(arguments) else ()
    if backend_of(engine) != "vllm":
        return missing
    convert: Convert = "classify" if kind == "cross_encoder" else "embed"
    return missing + apply_files(model.files, model.config, arguments, convert).refused


def _model_mistakes(
    at: str, model: ModelConfig, engine: Mapping[str, Any], mteb: MtebCatalogue, vllm: VllmCatalogue | None
) -> list[Mistake]:
    where = f"{at}.path={model.path}" if model.path else f"{at}.name={model.name}" if model.name else at
    if model.name is None and model.path is None and model.package is None:
        return [Mistake(where, "no model is named", f"Set {at}.name=org/name or {at}.path=/folder.")]
    if mistakes := _revision_mistakes(at, model.revision):
        return mistakes
    try:
        found = find_recipe(model)
    except ModelError as error:
        by_name = model.path is None and model.package is None and model.name not in mteb.models
        near = tuple(suggest(f"{at}.name", name) for name in nearest(model.name or "", mteb.models)) if by_name else ()
        return [Mistake(where, str(error), nearest=near)]
    # A local model's are what the user says, and folders of the results.
    folders = {f"name={found.name}": model_folder(found.name), f"revision={found.revision}": found.revision}
    misplaced = [(said, problem) for said, name in folders.items() if (problem := name_problem(name)) is not None]
    if misplaced:
        way = "Results are in folders of these names."
        return [Mistake(f"{at}.{said}", problem, way) for said, problem in misplaced]
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
    mistakes += [Mistake(where, problem) for problem in file_problems(found, model.kind, engine, arguments)]
    limit, context = position_limit(config), arguments.get("max_model_len")
    if limit is not None and isinstance(context, int) and context > limit:
        what = f"the model has positions for {limit} tokens"
        mistakes.append(Mistake(f"{at.removesuffix('model')}engine.max_model_len={context}", what))
    return mistakes
