"""Measure the time that the embedding cache saves in a sweep over query prompts, where the corpus is encoded once.

    python bench/prompts.py                        # six query prompts on the demo's retrieval task
    python bench/prompts.py --tasks SciFact        # another task, from the Hub or its offline cache

The same sweep runs with and without the cache, each with its own results folder. The ratio is the time of all points over
that of the first one, without engine start; without the cache it is the number of points. Scores must be the same.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PROMPTS = (
    "",
    "query: ",
    "Represent this sentence for searching relevant passages: ",
    "Question: ",
    "search_query: ",
    "Find the passage that answers this: ",
)


def main() -> int:
    """Run both sweeps and print the tables; return 1 if scores differ or a run failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="StdlibDocsRetrieval", help="names of tasks, separated by commas")
    parser.add_argument("more", nargs="*", help="more overrides, such as engine.dtype=bfloat16")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mteb-vllm-bench-") as scratch:
        runs = {use: sweep(Path(scratch, use), options.tasks, options.more, use) for use in ("auto", "never")}
    for use, records in runs.items():
        print(f"\nembedding_cache.use={use}")
        print(f"{'prompt':<60} {'score':>9} {'texts':>7} {'computed':>8} {'cached':>7} {'seconds':>8}")
        for prompt, record in zip(PROMPTS, records, strict=True):
            score = sum(task["main_score"] for task in record["tasks"]) / len(record["tasks"])
            texts, computed, stored = (
                sum(task[key] for task in record["tasks"]) for key in ("texts", "computed", "stored")
            )
            print(f"{prompt!r:<60} {score:9.5f} {texts:7,} {computed:8,} {stored:7,} {work(record):8.1f}")
        print(f"all points over the first one: {sum(map(work, records)) / work(records[0]):.2f}")
    same = scores(runs["auto"]) == scores(runs["never"])
    print(f"\ntime with the cache over without: {sum(map(work, runs['auto'])) / sum(map(work, runs['never'])):.3f}")
    print(f"same scores                     : {same}")
    return int(not same)


def sweep(folder: Path, tasks: str, more: list[str], use: str) -> list[dict[str, Any]]:
    """Run the sweep as a user would; return its records in order."""
    prompts = ",".join(f"'{prompt}'" for prompt in PROMPTS)
    words = [f"tasks.names=[{tasks}]", "prompts=none", f"prompts.query={prompts}", *more]
    env = {key: value for key, value in os.environ.items() if not key.startswith("VLLM_")}
    command = [sys.executable, "-m", "mteb_vllm", "-m", *words, f"results.dir={folder}", f"embedding_cache.use={use}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=env)
    records = [json.loads(path.read_text()) for path in folder.glob("sweeps/*/*/*/run.json")]
    return sorted(records, key=lambda record: int(record["point"]))


def work(record: dict[str, Any]) -> float:
    """Return the seconds of a point's tasks: loading data, encoding, the cache, scoring."""
    return sum(sum(task["seconds"].values()) for task in record["tasks"])


def scores(records: list[dict[str, Any]]) -> list[Any]:
    """Return all scores with full precision, without the times that mteb stores with them."""
    return [[task["scores"] for task in record["tasks"]] for record in records]


if __name__ == "__main__":
    sys.exit(main())
