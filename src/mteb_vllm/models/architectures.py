"""What a model's `config.json` says of its kind, and whether this vLLM and this use of it go together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized

from mteb_vllm.models.files import Model

NOT_ONE_LABEL = (
    "gives {labels} scores for a pair, and a reranker gives one: take a model with one label, or name the two tokens of a "
    'yes-or-no model in engine.hf_overrides: {{classifier_from_token: ["no", "yes"], method: from_2_way_softmax}}'
)


def architectures(config: Mapping[str, object]) -> list[str]:
    """Return the names of a model's architectures, by its `config.json`; none where it names none."""
    names = config.get("architectures")
    return [str(name) for name in names] if isinstance(names, (list, tuple)) else []


def check_architecture(model: Model, known: Sequence[str], *, trust_remote_code: bool) -> str | None:
    """Says what is wrong with the model's architecture for this vLLM, or None."""
    names = architectures(model.config)
    if not names or any(name in known for name in names):
        return None
    if "auto_map" in model.config and not trust_remote_code:
        return (
            f"its architecture {names[0]} is Python code that comes with the model, which is not run unless asked for: "
            "read it, then add engine.trust_remote_code=true"
        )
    if trust_remote_code:
        return None
    return (
        f"this vLLM does not know its architecture {names[0]}; another version may, "
        "or transformers' own implementation: +engine.model_impl=transformers"
    )


def position_limit(config: Mapping[str, object]) -> int | None:
    """Tokens that a model of RoBERTa's kind has positions for; None for other kinds.

    Its positions begin behind the padding's (fairseq's way), so there are fewer than `max_position_embeddings` says;
    vLLM goes by that, and reads beyond the table's end.
    """
    if config.get("model_type") not in ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "data2vec-text"):
        return None
    positions, padding = config.get("max_position_embeddings"), config.get("pad_token_id")
    if not isinstance(positions, int) or not positions:
        return None
    return positions - (padding if isinstance(padding, int) else 1) - 1


def longest_context(model: Model, config: Mapping[str, object]) -> int | None:
    """Return the longest context that vLLM takes for a model (its `_get_and_verify_max_len`); None where that is not sure.

    Args:
        model: The model.
        config: Its `config.json`, with what the engine replaces of it.
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
        encoder_only: The architectures of which vLLM says so.
    """
    names = architectures(config)
    return bool(names) and names[0] in encoder_only


def check_labels(model: Model, hf_overrides: Mapping[str, object]) -> str | None:
    """Says what is wrong with the head of a model that shall score pairs, or None.

    Args:
        model: The model.
        hf_overrides: Keys of its `config.json` that the engine replaces.
    """
    config = {**model.config, **hf_overrides}
    names = architectures(config)
    if config.get("is_original_qwen3_reranker"):
        return None  # for which vLLM itself takes the difference of two tokens
    if config.get("method") or config.get("classifier_from_token"):
        # vLLM makes the head of the language model's: of the difference of two tokens, or of each one's logit.
        tokens = config.get("classifier_from_token")
        n_tokens = len(tokens) if isinstance(tokens, Sized) else 0
        labels = 1 if config.get("method") == "from_2_way_softmax" and n_tokens == 2 else n_tokens
        return None if labels == 1 else NOT_ONE_LABEL.format(labels=labels)
    if is_language_model(config):
        return (
            f"its architecture {names[0]} is a language model, which scores a pair by the logits of its answer: "
            "engine.hf_overrides must say which tokens these are, as conf/model/qwen3_reranker_0_6b.yaml does"
        )
    if names and all(name.endswith(("Model", "ForMaskedLM")) for name in names):
        return f"its architecture {names[0]} has no head that scores a pair: it is an encoder (model.kind=encoder)"
    if not any(name.endswith("ForSequenceClassification") for name in names):
        return None
    # transformers' own default is two labels (PreTrainedConfig.num_labels).
    named = config.get("id2label")
    found = config.get("num_labels") or (len(named) if isinstance(named, Sized) else 0) or 2
    return None if found == 1 else NOT_ONE_LABEL.format(labels=found)


def is_language_model(config: Mapping[str, object]) -> bool:
    """Whether a `config.json` is a language model's, which scores a pair by its answer, through a template."""
    return any(name.endswith("ForCausalLM") for name in architectures(config))
