"""The names that a misspelt one was probably meant to be."""

from __future__ import annotations

import functools
from collections.abc import Iterable

from rapidfuzz.distance.OSA import distance as edits

_MOST = 5  # names that are equally near

# Names that other libraries use, each with our name or vLLM's for the same thing.
_SYNONYMS = {
    "max_len": "max_model_len",
    "max_length": "max_model_len",
    "max_seq_len": "max_model_len",
    "max_seq_length": "max_model_len",
    "context_length": "max_model_len",
    "torch_dtype": "dtype",
    "precision": "dtype",
    "tp_size": "tensor_parallel_size",
    "num_gpus": "tensor_parallel_size",
    "gpu_memory_fraction": "gpu_memory_utilization",
    "prompts": "prompt_dict",
    "window": "chunk_size",
}


def nearest(word: str, choices: Iterable[str], n: int = 3) -> tuple[str, ...]:
    """The names that `word` was probably meant to be, best first and whatever the case; none where none is near.

    Near is a name with about a third of its letters mistyped, or one that holds `word`, unless one is twice as near.
    `n` are enough, but names that are equally near all come or none, or the first five where none is better.
    A name that other libraries use for one of the choices is answered with that one.
    """
    return _nearest(word, frozenset(choices), n)


@functools.lru_cache(maxsize=64)  # the points of a sweep share their mistakes
def _nearest(word: str, choices: frozenset[str], n: int) -> tuple[str, ...]:
    low, limit = word.lower(), max(1, (len(word) + 1) // 3)
    if (synonym := _SYNONYMS.get(low)) in choices:
        return (synonym,)
    near = []
    for name in choices:
        other = name.lower()
        distance = edits(low, other) if abs(len(low) - len(other)) <= limit else limit + 1
        if distance <= limit or (len(low) > 3 and low in other):
            # Letters in the wrong order are the likelier one of two mistakes that cost the same.
            near.append((min(distance, limit + 1), sorted(low) != sorted(other), len(other), name))
    near = [entry for entry in sorted(near) if entry[0] <= 2 * min(near)[0]]
    if len(near) > n:
        closer, equal = ([entry for entry in near if entry[0] < near[n - 1][0] + more] for more in (0, 1))
        near = equal if len(equal) <= _MOST else closer or equal[:_MOST]
    return tuple(name for *_, name in near)


def close(left: str, right: str) -> bool:
    """Return whether two names are one or two typing errors apart."""
    return edits(left.lower(), right.lower()) <= 2
