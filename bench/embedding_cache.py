"""Measure the embedding cache: writes and look-ups per second, and their memory.

    python bench/embedding_cache.py                          # one million vectors of 384 dimensions: about 1.6 GB of disk
    python bench/embedding_cache.py --vectors 100000 --dim 1024

A look-up reads and verifies the vectors; each is then compared with the one that was written.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mteb_vllm.inference.embedding_cache.cache import EmbeddingCache

CHUNK = 8192


def main() -> int:
    """Measure, and print a table; return 1 if a vector is wrong or missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=384)
    options = parser.parse_args()
    n, dim = options.vectors, options.dim
    with tempfile.TemporaryDirectory(prefix="mteb-vllm-bench-") as scratch:
        space = EmbeddingCache(Path(scratch), 2**50).space("bench", dim)
        keys = [space.key(f"text number {at}") for at in range(n)]
        started = time.perf_counter()
        for numbers in chunks(range(n)):
            vectors = expected(numbers, dim)
            space.add([keys[at] for at in numbers], vectors, np.zeros(len(numbers), dtype=np.bool_))
        print(f"vectors                    {n:,} of {dim} dimensions")
        print(f"written                    {n / (time.perf_counter() - started):,.0f}/s")
        size = sum(path.stat().st_size for path in space.folder.iterdir())
        print(f"on disk                    {size / n:,.0f} bytes each, {4 * dim} of them the vector")
        before = peak_mb()
        started = time.perf_counter()
        space = EmbeddingCache(Path(scratch), 2**50).space("bench", dim)
        space.refresh()
        print(f"opened                     {time.perf_counter() - started:.2f} s")
        wrong = 0
        orders = {"in order": range(n), "in random order": np.random.default_rng(0).permutation(n).tolist()}
        for name, order in orders.items():
            taken, bad = look_up(space, keys, order, dim)
            wrong += bad
            print(f"looked up {name:<16} {n / taken:,.0f}/s")
        print(f"added by opening, look-ups {peak_mb() - before:,.0f} MiB of memory")
        print(f"wrong or missing           {wrong}")
    return int(wrong > 0)


def look_up(space: object, keys: list[bytes], order: Iterable[int], dim: int) -> tuple[float, int]:
    """Look all keys up; return the seconds without the comparison, and the number of wrong vectors."""
    out, taken, wrong = np.empty((CHUNK, dim), dtype=np.float32), 0.0, 0
    for numbers in chunks(order):
        started = time.perf_counter()
        found, _ = space.look_up([keys[at] for at in numbers], out, range(len(numbers)))  # type: ignore[attr-defined]
        taken += time.perf_counter() - started
        wrong += int((~found | (out[: len(numbers)] != expected(numbers, dim)).any(axis=1)).sum())
    return taken, wrong


def expected(numbers: list[int], dim: int) -> np.ndarray:
    """Return a distinct vector for each number."""
    return np.add.outer(np.array(numbers, dtype=np.float32), np.arange(dim, dtype=np.float32) / dim)


def chunks(numbers: Iterable[int]) -> Iterable[list[int]]:
    """Split numbers into chunks."""
    listed = list(numbers)
    return (listed[at : at + CHUNK] for at in range(0, len(listed), CHUNK))


def peak_mb() -> float:
    """Return the peak memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    sys.exit(main())
