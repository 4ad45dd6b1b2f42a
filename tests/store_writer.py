"""Writes embeddings until it is killed; run by `test_embeddings.py` in a process of its own.

    python store_writer.py ROOT MAX_BYTES FIRST

Each text's vector follows from the text, so that whoever reads can tell a wrong one.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np

from mteb_vllm.inference.embedding_cache.cache import EmbeddingCache

DIM, SEGMENT = 512, 1003
ENGINES = ("one", "other")


def vectors(numbers: range) -> np.ndarray:
    """The vectors of some texts: float32 array, shape (len(numbers), DIM)."""
    return np.add.outer(np.array(numbers, dtype=np.float32), np.arange(DIM, dtype=np.float32) / DIM)


def text(number: int) -> str:
    return f"text number {number}"


def main() -> None:
    root, max_bytes, first = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    store = EmbeddingCache(root, max_bytes)
    print("writing", flush=True)
    for number in itertools.count():
        # Of two engines in turn: what one has kept gives way to the other.
        space = store.space(ENGINES[number // 8 % 2], DIM)
        begin = first + number * SEGMENT
        numbers = range(begin, begin + SEGMENT)
        keys = [space.key(text(number)) for number in numbers]
        space.add(keys, vectors(numbers), np.array([number % 3 == 0 for number in numbers]))


if __name__ == "__main__":
    main()
