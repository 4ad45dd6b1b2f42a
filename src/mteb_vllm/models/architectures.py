"""Read a model's architecture from its `config.json`, and check that vLLM can use it for embedding or scoring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized

from mteb_vllm.models.files import Model
from mteb_vllm.util.setting_names import SettingNames


def label_count_error(labels: int, names: SettingNames = SettingNames.CONFIGURATION) -> str:
    """Return the message for a model that has not exactly one label.

    Args:
        labels: How many labels it has.
        names: How to name settings.
    """
    tokens = {"classifier_from_token": ["no", "yes"], "method": "from_2_way_softmax"}
    return (
        f"outputs {labels} scores per pair, but a reranker must output one: use a model with one label, or specify the two "
        f"answer tokens of a yes-or-no model: {names.assign('engine.hf_overrides', tokens)}"
    )


def architectures(config: Mapping[str, object]) -> list[str]:
    """Return the names of a model's architectures in its `config.json`; empty if it names none."""
    names = config.get("architectures")
    return [str(name) for name in names] if isinstance(names, (list, tuple)) else []


def check_architecture(model: Model, known: Sequence[str], *, trust_remote_code: bool) -> str | None:
    """Return why this vLLM cannot run the model's architecture; None if it can.

    Args:
        model: The model.
        known: The architectures that this vLLM supports.
        trust_remote_code: Whether the model's own code may be run.
    """
    names = architectures(model.config)
    if not names or any(name in known for name in names):
        return None
    if "auto_map" in model.config and not trust_remote_code:
        return (
            f"its architecture {names[0]} is Python code that comes with the model, which is not run by default: "
            "review it, then add engine.trust_remote_code=true"
        )
    if trust_remote_code:
        return None
    return (
        f"the installed vLLM does not support its architecture {names[0]}; try another version of vLLM, "
        "or transformers' own implementation: +engine.model_impl=transformers"
    )


def position_limit(config: Mapping[str, object]) -> int | None:
    """Return how many tokens a RoBERTa-like model has positions for; None for other models.

    Its positions start after the padding's (a fairseq convention), so there are fewer than `max_position_embeddings`.
    vLLM uses `max_position_embeddings`, and reads beyond the end of the table.
    """
    if config.get("model_type") not in ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "data2vec-text"):
        return None
    positions, padding = config.get("max_position_embeddings"), config.get("pad_token_id")
    if not isinstance(positions, int) or not positions:
        return None
    return positions - (padding if isinstance(padding, int) else 1) - 1


def longest_context(model: Model, config: Mapping[str, object]) -> int | None:
    """Return the longest context that vLLM accepts for a model (its `_get_and_verify_max_len`); None if uncertain.

    Args:
        model: The model.
        config: Its `config.json`, with the engine's overrides.
    """
    files = model.files
    transformer = next((module for module in files.modules or () if module.kind == "Transformer"), None)
    length = files.unread_context if transformer is None else transformer.config.get("max_seq_length")
    if isinstance(length, int):
        return max(length, _length(config.get("model_max_length")))
    positions = config.get("max_position_embeddings")
    scaled = any(config.get(name) for name in ("rope_scaling", "rope_parameters", "rope_theta"))
    if scaled or config.get("model_type") not in ("bert", "distilbert", "electra", "roberta", "xlm-roberta"):
        return None
    return max(positions, _length(config.get("model_max_length"))) if isinstance(positions, int) else None


def _length(value: object) -> int:
    return value if isinstance(value, int) else 0


def is_encoder_only(config: Mapping[str, object], encoder_only: Sequence[str]) -> bool:
    """Return whether a model's attention is never causal, so that vLLM has no KV cache for it.

    Args:
        config: Its `config.json`.
        encoder_only: The architectures that vLLM treats so.
    """
    names = architectures(config)
    return bool(names) and names[0] in encoder_only


def check_labels(model: Model, hf_overrides: Mapping[str, object]) -> str | None:
    """Return why a model cannot score pairs with one score each; None if it can.

    Args:
        model: The model.
        hf_overrides: Keys of its `config.json` that the engine overrides.
    """
    config = {**model.config, **hf_overrides}
    names = architectures(config)
    if config.get("is_original_qwen3_reranker"):
        return None  # vLLM itself uses the difference of two tokens' logits
    if config.get("method") or config.get("classifier_from_token"):
        # vLLM builds the head from the language model's: the difference of two tokens' logits, or one logit per token.
        tokens = config.get("classifier_from_token")
        n_tokens = len(tokens) if isinstance(tokens, Sized) else 0
        labels = 1 if config.get("method") == "from_2_way_softmax" and n_tokens == 2 else n_tokens
        return None if labels == 1 else label_count_error(labels)
    if is_language_model(config):
        return (
            f"its architecture {names[0]} is a language model, which scores a pair by the logits of its answer: "
            "engine.hf_overrides must name the answer tokens, as conf/model/qwen3_reranker_0_6b.yaml does"
        )
    if names and all(name.endswith(("Model", "ForMaskedLM")) for name in names):
        return f"its architecture {names[0]} has no head that scores a pair: it is an encoder (model.kind=encoder)"
    if not any(name.endswith("ForSequenceClassification") for name in names):
        return None
    # transformers' own default is two labels (PreTrainedConfig.num_labels).
    named = config.get("id2label")
    found = config.get("num_labels") or (len(named) if isinstance(named, Sized) else 0) or 2
    return None if found == 1 else label_count_error(found)


def is_language_model(config: Mapping[str, object]) -> bool:
    """Return whether a `config.json` is a language model's, which scores a pair by its answer to a rendered template."""
    return any(name.endswith("ForCausalLM") for name in architectures(config))
