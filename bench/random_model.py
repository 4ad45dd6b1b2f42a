"""Make a model with the shape of a public architecture and random weights, for measurements of speed only.

python bench/random_model.py qwen3-0.6b OUT --tokenizer FOLDER
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

# From the config.json of Qwen/Qwen3-Embedding-0.6B and google-bert/bert-large-uncased.
SHAPES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "qwen3-0.6b": (
        "Qwen3",
        "lasttoken",
        {
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 1024,
        },
    ),
    "bert-large": (
        "Bert",
        "mean",
        {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "max_position_embeddings": 512,
        },
    ),
}


def make(shape: str, out: Path, tokenizer: Path) -> None:
    """Write the model in sentence-transformers' format, with another model's tokenizer and a matching vocabulary size."""
    import torch
    import transformers

    family, pooling, sizes = SHAPES[shape]
    words = transformers.AutoTokenizer.from_pretrained(tokenizer)
    words.model_max_length = sizes["max_position_embeddings"]
    ends = {"pad_token_id": words.pad_token_id, "eos_token_id": words.sep_token_id, "bos_token_id": None}
    config = getattr(transformers, f"{family}Config")(
        **sizes, vocab_size=len(words), **(ends if family == "Qwen3" else {})
    )
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        model = getattr(transformers, f"{family}Model")(config)
    model.to(torch.bfloat16).save_pretrained(out)
    if family == "Qwen3":  # the architecture in the config.json of Qwen/Qwen3-Embedding-0.6B, which vLLM supports
        saved = json.loads((out / "config.json").read_text())
        (out / "config.json").write_text(json.dumps(saved | {"architectures": ["Qwen3ForCausalLM"]}, indent=2))
    words.save_pretrained(out)
    (out / "1_Pooling").mkdir(exist_ok=True)
    modes = {"pooling_mode_mean_tokens": pooling == "mean", "pooling_mode_lasttoken": pooling == "lasttoken"}
    modes |= {"pooling_mode_cls_token": False, "pooling_mode_max_tokens": False}
    (out / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 1024, **modes}))
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for at, (path, kind) in enumerate(kinds)
    ]
    (out / "modules.json").write_text(json.dumps(modules))
    print(f"{out}: {sum(part.numel() for part in model.parameters()) / 1e6:.0f} million parameters")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("shape", choices=SHAPES)
    arguments.add_argument("out", type=Path)
    arguments.add_argument("--tokenizer", type=Path, required=True, help="a folder with a model's tokenizer")
    make(**vars(arguments.parse_args()))
