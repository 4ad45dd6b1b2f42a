"""Suggest the names that a misspelt or foreign name was probably meant to be."""

from __future__ import annotations

import functools
from collections.abc import Iterable

from rapidfuzz.distance.OSA import distance as edits

# The most suggestions where several are equally near.
_MOST = 5

# Names for the same engine setting: those of vLLM and of our backends first, then those of other libraries and of habit.
_SYNONYMS = (
    ("max_model_len", "max_len", "max_length", "max_seq_len", "max_seq_length", "max_sequence_length",
     "max_context_len", "context_length", "model_max_length", "max_input_length"),
    ("max_num_seqs", "batch_size", "batch", "max_batch_size", "max_num_sequences", "max_concurrent_requests"),
    ("max_num_batched_tokens", "max_batch_tokens", "max_batched_tokens", "batch_tokens"),
    ("dtype", "torch_dtype", "data_type", "model_dtype", "precision"),
    ("tensor_parallel_size", "tp", "tp_size", "tensor_parallel", "num_gpus", "n_gpus"),
    ("pipeline_parallel_size", "pp", "pp_size", "pipeline_parallel"),
    ("data_parallel_size", "dp", "dp_size", "data_parallel"),
    ("gpu_memory_utilization", "gpu_memory", "gpu_memory_fraction", "mem_fraction_static"),
    ("enforce_eager", "eager", "eager_mode"),
    ("trust_remote_code", "remote_code", "allow_remote_code"),
    ("quantization", "quant", "quantize"),
    ("pooler_config", "pooling", "pooling_mode", "pooling_type", "override_pooler_config"),
    ("attn_implementation", "attention_backend", "attention", "attn", "attention_implementation"),
    ("backend", "framework", "library"),
    ("prompt_dict", "prompts"),
    ("chunk_size", "window"),
)  # fmt: skip


def nearest(word: str, choices: Iterable[str], n: int = 3) -> tuple[str, ...]:
    """Return the names that `word` was probably meant to be, best first, ignoring case; empty if none is near.

    A name is near if about a third of its letters differ, or if it contains `word`; but not if another is twice as near.
    At most `n` are returned, except that equally near names are returned together, up to five of them.
    """
    return _nearest(word, frozenset(choices), n)


def nearest_argument(word: str, choices: Iterable[str]) -> tuple[str, ...]:
    """Return the engine arguments that `word` was probably meant to be: those of the same meaning, else the nearest names.

    Args:
        word: The unknown name, as `max_length` or `torch-dtype`.
        choices: The arguments that there are.
    """
    choices, plain = list(choices), word.lower().replace("-", "_")
    same = [name for names in _SYNONYMS if plain in names for name in names if name in choices and name != word]
    return (plain,) if plain in choices and plain != word else tuple(same) or nearest(word, choices)


@functools.lru_cache(maxsize=64)  # points of a sweep share their errors
def _nearest(word: str, choices: frozenset[str], n: int) -> tuple[str, ...]:
    low, limit = word.lower(), max(1, (len(word) + 1) // 3)
    near = []
    for name in choices:
        other = name.lower()
        distance = edits(low, other) if abs(len(low) - len(other)) <= limit else limit + 1
        if distance <= limit or (len(low) > 3 and low in other):
            # Of two typing errors at the same distance, swapped letters are the likelier one.
            near.append((min(distance, limit + 1), sorted(low) != sorted(other), len(other), name))
    near = [entry for entry in sorted(near) if entry[0] <= 2 * min(near)[0]]
    if len(near) > n:
        closer, equal = ([entry for entry in near if entry[0] < near[n - 1][0] + more] for more in (0, 1))
        near = equal if len(equal) <= _MOST else closer or equal[:_MOST]
    return tuple(name for *_, name in near)


def close(left: str, right: str) -> bool:
    """Return whether two names are at most two typing errors apart."""
    return edits(left.lower(), right.lower()) <= 2
