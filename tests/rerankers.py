"""Make small rerankers with random weights, of real architectures and with trained tokenizers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

SPECIAL = {
    "wordpiece": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
    "roberta": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
    "qwen": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"],
    "gemma": ["<pad>", "<eos>", "<bos>", "<unk>"],
}
VOCABULARY = 2000


def texts() -> list[str]:
    """Return real texts to train tokenizers on and to score: docstrings of the standard library."""
    from mteb_vllm.tasks.demo import docstrings

    return [doc.text for doc in docstrings()][:1500]


def save_tokenizer(folder: Path, kind: str, context: int) -> Any:
    """Train a tokenizer of a model family's type, and save it as transformers does."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = SPECIAL[kind]
    if kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer: Any = trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=special)
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet)
    answers = ["yes", "no", "Yes", "No"] * 200
    tokenizer.train_from_iterator([*texts(), *answers], trainer)
    tokenizer.add_tokens([word for word in ("yes", "no", "Yes") if tokenizer.token_to_id(word) is None])
    at = tokenizer.token_to_id
    names: dict[str, str] = {}
    if kind == "wordpiece":
        pair = [("[CLS]", at("[CLS]")), ("[SEP]", at("[SEP]"))]
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=pair
        )
        names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    elif kind == "roberta":
        pair = [("<s>", at("<s>")), ("</s>", at("</s>"))]
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=pair
        )
        names = {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
        names |= {"bos_token": "<s>", "eos_token": "</s>"}
    elif kind == "gemma":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", at("<bos>"))]
        )
        names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    else:
        names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    inputs = ["input_ids", *(["token_type_ids"] if kind == "wordpiece" else []), "attention_mask"]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=context, model_input_names=inputs, **names
    )
    fast.save_pretrained(folder)
    return fast


def small(name: str, folder: Path, context: int = 256) -> Path:
    """Make a small reranker with random weights, and return its folder.

    Args:
        name: bert, roberta, modernbert (one label each), two_labels, qwen3 or gemma (language models).
        folder: The folder to make it in, in a subfolder of its name.
        context: Its context length in tokens.
    """
    import transformers as hf

    torch.manual_seed(7)
    out = folder / name
    kinds = {"bert": "wordpiece", "two_labels": "wordpiece", "qwen3": "qwen", "gemma": "gemma"}
    tokenizer = save_tokenizer(out, kinds.get(name, "roberta"), context)
    sizes: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 128, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    label = {"num_labels": 2 if name == "two_labels" else 1}
    if name in ("bert", "two_labels"):
        config: Any = hf.BertConfig(**sizes, **label, max_position_embeddings=context)
        model: Any = hf.BertForSequenceClassification(config)
    elif name == "roberta":
        # Positions start after the padding's.
        room = context + tokenizer.pad_token_id + 1
        config = hf.XLMRobertaConfig(**sizes, **label, max_position_embeddings=room, type_vocab_size=1)
        model = hf.XLMRobertaForSequenceClassification(config)
    elif name == "modernbert":
        ends = {"cls_token_id": tokenizer.cls_token_id, "sep_token_id": tokenizer.sep_token_id}
        ends |= {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
        config = hf.ModernBertConfig(
            **sizes, **label, **ends, max_position_embeddings=context, classifier_pooling="mean", local_attention=32
        )
        model = hf.ModernBertForSequenceClassification(config)
    elif name == "qwen3":
        heads = {"num_key_value_heads": 1, "head_dim": 32, "tie_word_embeddings": True}
        config = hf.Qwen3Config(**sizes, **heads, max_position_embeddings=context, eos_token_id=tokenizer.eos_token_id)
        model = hf.Qwen3ForCausalLM(config)
    else:
        heads = {"num_key_value_heads": 1, "head_dim": 32}
        ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        config = hf.GemmaConfig(**sizes, **heads, **ends, max_position_embeddings=context)
        model = hf.GemmaForCausalLM(config)
    with torch.no_grad():
        for part in model.parameters():
            if part.dim() > 1:
                part.normal_(0, 0.15)  # an untrained head would give nearly equal scores
    model.eval().save_pretrained(out)
    return out


def loaders(queries: Sequence[str], documents: Sequence[str]) -> list[Any]:
    """Return the two data loaders for `predict`."""
    from datasets import Dataset
    from torch.utils.data import DataLoader

    return [DataLoader(Dataset.from_dict({"text": list(side)}), batch_size=16) for side in (queries, documents)]


def predict(model: Any, queries: Sequence[str], documents: Sequence[str], task: str = "SciFact") -> Any:
    """Return a wrapper's scores for pairs of a task."""
    import mteb

    metadata = mteb.get_task(task).metadata
    return model.predict(*loaders(queries, documents), task_metadata=metadata, hf_split="test", hf_subset="default")
