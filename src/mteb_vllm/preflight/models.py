"""Check a model's recipe, its prompts and templates, and the arguments of its engine."""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from types import NoneType
from typing import Any

from mteb_vllm.catalogue import MtebCatalogue, VllmCatalogue, mteb_catalogue, vllm_catalogue
from mteb_vllm.config.schema import InstructionConfig, ModelConfig
from mteb_vllm.engines.arguments import (
    backend_of,
    check_arguments,
    check_sentence_transformers,
    cluster_problem,
    context_limit,
    resolve_arguments,
)
from mteb_vllm.engines.base import Convert
from mteb_vllm.errors import Mistake, ModelError
from mteb_vllm.models.architectures import check_architecture, is_encoder_only, longest_context, position_limit
from mteb_vllm.models.files import Model, find_recipe_model, missing_files
from mteb_vllm.models.sentence_transformers_files import apply_files
from mteb_vllm.preflight.prompts import prompt_mistakes, template_mistakes
from mteb_vllm.results.lookup import model_folder
from mteb_vllm.util.files import name_problem
from mteb_vllm.util.shell import suggest
from mteb_vllm.util.suggestions import close, nearest

# The largest default of `max_num_batched_tokens` on any device (vLLM's `EngineArgs.get_batch_defaults`), doubled for
# `performance_mode=throughput`.
_DEFAULT_TOKENS = 32768
_CAUSAL_ONLY = {
    "enable_prefix_caching": "there is no KV cache for texts to share",
    "enable_chunked_prefill": "a text cannot be split across several steps",
}
# Keys of any model's config.json: those that transformers' PreTrainedConfig declares, and others that vLLM reads.
_CONFIG_KEYS = (
    "architectures", "num_labels", "id2label", "label2id", "problem_type", "max_position_embeddings", "is_causal",
    "classifier_from_token", "method", "head_dtype", "is_original_qwen3_reranker", "use_sep_token", "rope_scaling",
    "rope_parameters", "rope_theta", "sliding_window", "matryoshka_dimensions", "is_matryoshka", "model_max_length",
    "text_config", "tie_word_embeddings", "pad_token_id", "num_hidden_layers", "sentence_transformers", "dtype",
    "torch_dtype",
)  # fmt: skip


def engine_mistakes(where: str, model: ModelConfig, engine: Mapping[str, Any]) -> list[Mistake]:
    """Return the mistakes in engine arguments, including the recipe's.

    Args:
        where: The prefix of the keys `engine` and `model`, as `pipeline.first_stage.`; empty for the run itself.
        model: The recipe.
        engine: The config group `engine`.
    """
    if backend_of(engine) == "sentence_transformers":
        return check_sentence_transformers(f"{where}engine", engine)  # a recipe's arguments are vLLM's
    if (vllm := vllm_catalogue()) is None:
        return []
    if model.engine.get("backend") is not None:
        what, way = "a recipe cannot set the backend", f"Use {where}engine.backend."
        return [Mistake(f"{where}model.engine.backend", what, way, value=f"{model.engine['backend']}")]
    address = next((one["ray_address"] for one in (engine, model.engine) if one.get("ray_address") is not None), None)
    on_cluster = address is not None
    mistakes = [
        *check_arguments(f"{where}engine", engine, vllm, on_cluster=on_cluster),
        *check_arguments(f"{where}model.engine", model.engine, vllm, on_cluster=on_cluster),
    ]
    return mistakes if mistakes or not on_cluster else _cluster_mistakes(where, address, model, engine)


def _cluster_mistakes(where: str, address: object, model: ModelConfig, engine: Mapping[str, object]) -> list[Mistake]:
    """Return the mistakes in the use of a Ray cluster for replicas."""
    args, env, *_ = resolve_arguments({**engine, "ray_address": None}, model.engine)
    replicas = next((one["replicas"] for one in (engine, model.engine) if one.get("replicas") is not None), None)
    if (problem := cluster_problem(address, replicas, args, env)) is None:
        return []
    key = f"{where}engine.ray_address"
    return [Mistake(key, problem.what, problem.way, value=f"{address}", code=problem.code)]


def recipe_mistakes(
    where: str,
    model: ModelConfig,
    engine: Mapping[str, Any],
    prompts: Mapping[str, Any],
    instruction: InstructionConfig,
    *,
    broken: Collection[str] = (),
) -> list[Mistake]:
    """Return the mistakes in a model, its prompts and its templates; `where` is the prefix of their keys."""
    mteb = mteb_catalogue()
    mistakes = prompt_mistakes(f"{where}prompts", prompts, mteb)
    mistakes += prompt_mistakes(f"{where}model.prompts", model.prompts or {}, mteb)
    mistakes += template_mistakes(f"{where}instruction", instruction)
    mistakes += template_mistakes(f"{where}model.instruction", model.instruction)
    if "model" not in broken:
        mistakes += _model_mistakes(f"{where}model", model, engine, mteb, vllm_catalogue())
    return mistakes


def _revision_mistakes(at: str, revision: str | None) -> list[Mistake]:
    """Return the mistake in the form of a revision, if there is one; needs no access to the Hub."""
    if revision is None:
        return []
    # Names of branches may contain slashes.
    problems = (name_problem(part) for part in revision.split("/"))
    problem = next((problem for problem in problems if problem is not None), None)
    what = f"is not the name of a commit, branch or tag: {problem}"
    return [Mistake(f"{at}.revision", what, value=f"{revision}")] if problem else []


def file_problems(model: Model, kind: str, engine: Mapping[str, Any], arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a message for each missing file of a model, and for each of its settings that the engine does not support."""
    missing = tuple(missing_files(model)) if not {"tokenizer", "skip_tokenizer_init"} & set(arguments) else ()
    if backend_of(engine) != "vllm":
        return missing
    convert: Convert = "classify" if kind == "cross_encoder" else "embed"
    return missing + apply_files(model.files, model.config, arguments, convert).refused


def _model_mistakes(
    at: str, model: ModelConfig, engine: Mapping[str, Any], mteb: MtebCatalogue, vllm: VllmCatalogue | None
) -> list[Mistake]:
    named = "path" if model.path else "name" if model.name else None
    wrong = functools.partial(Mistake, f"{at}.{named}", value=model.path or model.name)
    if named is None:
        wrong = functools.partial(Mistake, at)
    if model.name is None and model.path is None and model.package is None:
        return [wrong("no model is specified", f"Set {at}.name=org/name or {at}.path=/folder.", code="missing")]
    if mistakes := _revision_mistakes(at, model.revision):
        return mistakes
    try:
        found = find_recipe_model(model)
    except ModelError as error:
        by_name = model.path is None and model.package is None and model.name not in mteb.models
        near = tuple(suggest(f"{at}.name", name) for name in nearest(model.name or "", mteb.models)) if by_name else ()
        return [wrong(str(error), nearest=near)]
    # Both become names of folders, and for a local model the user chooses them.
    folders = {f"name={found.name}": model_folder(found.name), f"revision={found.revision}": found.revision}
    misplaced = [(field, problem) for field, name in folders.items() if (problem := name_problem(name)) is not None]
    if misplaced:
        way = "It is used as the name of a results folder."
        return [Mistake(f"{at}.{field}", problem, way) for field, problem in misplaced]
    arguments, env, *_ = resolve_arguments(engine, model.engine)
    overrides = arguments.get("hf_overrides")
    config = {**found.config, **(overrides if isinstance(overrides, Mapping) else {})}
    overridden = not set(config.get("architectures") or []).isdisjoint(vllm.architectures if vllm is not None else ())
    problems = []
    # Only vLLM's own implementations are checked, and only if `hf_overrides` does not choose another architecture.
    others = backend_of(engine) != "vllm" or "model_impl" in arguments
    if vllm is not None and not others and not overridden:
        trusted = arguments.get("trust_remote_code") is True
        problems.append(check_architecture(found, vllm.architectures, trust_remote_code=trusted))
    mistakes = [wrong(problem) for problem in problems if problem]
    mistakes += [wrong(problem) for problem in file_problems(found, model.kind, engine, arguments)]
    place = f"{at.removesuffix('model')}engine"
    mistakes += _tokenizer_mistakes(place, arguments, found)
    limit, context = position_limit(config), context_limit(arguments)
    if limit is not None and context is not None and context > limit:
        what = f"the model has position embeddings for only {limit} tokens"
        mistakes.append(
            Mistake(
                f"{place}.max_model_len", what, nearest=(suggest(f"{place}.max_model_len", limit),), value=f"{context}"
            )
        )
    elif backend_of(engine) == "vllm" and vllm is not None:
        longest = limit or longest_context(found, config)
        mistakes += _step_mistakes(place, arguments, longest, env, is_encoder_only(config, vllm.encoder_only))
        mistakes += _override_mistakes(f"{place}.hf_overrides", overrides, found.config)
    return mistakes


def _tokenizer_mistakes(place: str, arguments: Mapping[str, object], model: Model) -> list[Mistake]:
    """Return the mistake of a tokenizer on the Hub that may change without a change of the fingerprint, if it is one."""
    tokenizer, commit = arguments.get("tokenizer"), arguments.get("tokenizer_revision")
    # By default, vLLM reads it from the model's own commit.
    own = tokenizer == model.location and commit is None
    pinned = own or (isinstance(commit, str) and re.fullmatch(r"[0-9a-f]{40}", commit) is not None)
    if not isinstance(tokenizer, str) or Path(tokenizer).exists() or pinned:
        return []
    what = "is not a local folder, and a tokenizer on the Hub needs a commit, since scores depend on it"
    way = f"Set +{place}.tokenizer_revision=COMMIT (40 digits)."
    return [Mistake(f"{place}.tokenizer", what, way, value=tokenizer)]


def _step_mistakes(
    place: str, arguments: Mapping[str, Any], longest: int | None, env: Mapping[str, str], encoder_only: bool
) -> list[Mistake]:
    """Return the mistakes in the limits of an engine's step (vLLM's `SchedulerConfig.verify_max_model_len`).

    Args:
        place: The section of the arguments, as `engine`.
        arguments: The engine arguments.
        longest: The longest context length of the model in tokens; None if unknown.
        env: The engine's environment.
        encoder_only: Whether the model's attention is never causal.
    """
    mistakes = []
    given, tokens, texts = (
        context_limit(arguments),
        arguments.get("max_num_batched_tokens"),
        arguments.get("max_num_seqs"),
    )
    allowed = env.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN", os.environ.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "0"))
    if longest is not None and given is not None and given > longest and allowed.lower() not in ("1", "true"):
        near = (suggest(f"{place}.max_model_len", longest),)
        return [
            Mistake(
                f"{place}.max_model_len",
                f"the model's context length is {longest} tokens",
                nearest=near,
                value=f"{given}",
            )
        ]
    context = given or longest
    for name, reason in _CAUSAL_ONLY.items():
        if encoder_only and arguments.get(name) is True:
            way = f"Leave it unset, or: {suggest(f'{place}.{name}', False)}"
            mistakes.append(
                Mistake(f"{place}.{name}", f"this model has no causal attention, so {reason}", way, value="true")
            )
    if (
        not (isinstance(texts, int) and isinstance(tokens, (int, NoneType)))
        or (tokens is not None and tokens < 1)
        or texts < 1
    ):
        return mistakes  # reported as wrong values
    if tokens is not None and encoder_only and context is not None and tokens < context:
        if arguments.get("enable_chunked_prefill") is not True:
            what = f"is less than the context length of {context} tokens, but this model must process a text in a single step"
            ways = (suggest(f"{place}.max_num_batched_tokens", context), suggest(f"{place}.max_model_len", tokens))
            mistakes.append(
                Mistake(f"{place}.max_num_batched_tokens", what, nearest=ways, value=f"{tokens}", code="conflict")
            )
    elif tokens is not None and tokens < texts:
        what = f"is less than {place}.max_num_seqs={texts}, and a text has at least one token"
        ways = (suggest(f"{place}.max_num_batched_tokens", texts), suggest(f"{place}.max_num_seqs", tokens))
        mistakes.append(
            Mistake(f"{place}.max_num_batched_tokens", what, nearest=ways, value=f"{tokens}", code="conflict")
        )
    devices = [arguments.get(name) or 1 for name in ("tensor_parallel_size", "pipeline_parallel_size")]
    most = max(context or 0, _DEFAULT_TOKENS * math.prod(size for size in devices if isinstance(size, int)))
    if tokens is None and texts > most and context is not None:
        what = f"exceeds the default number of tokens in one engine step ({most:,}), and a text has at least one token"
        way = f"Typical values are 128 to 1024. For more than {most:,}, also set {place}.max_num_batched_tokens."
        mistakes.append(Mistake(f"{place}.max_num_seqs", what, way, value=f"{texts}"))
    return mistakes


def _override_mistakes(at: str, overrides: Any, config: Mapping[str, Any]) -> list[Mistake]:
    """Return the keys of `hf_overrides` that are probably misspelt: one or two letters from a known key."""
    if not isinstance(overrides, Mapping):
        return []
    known = {*config, *_CONFIG_KEYS}
    mistakes = []
    for key in overrides:
        near = [name for name in nearest(str(key), known) if close(str(key), name)] if key not in known else []
        if near:
            written = [{name if other == key else other: one for other, one in overrides.items()} for name in near]
            what = "is not a key of the model's config.json, and vLLM does not read it"
            mistakes.append(
                Mistake(
                    f"{at}.{key}",
                    what,
                    nearest=tuple(suggest(at, one) for one in written),
                    value=f"{overrides[key]}",
                    code="unknown_key",
                )
            )
    return mistakes
