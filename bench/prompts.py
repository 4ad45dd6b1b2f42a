"""What the embedding cache saves a sweep over query prompts: the corpus is encoded once, and the scores are the same.

    python bench/prompts.py                        # six query prompts on the demo's retrieval task
    python bench/prompts.py --tasks SciFact        # another one, from the Hub or its offline caches

The same points run with the store and without it, each sweep with a results folder of its own. The ratio is the time of the
sweep's points over that of its first one, engine start apart: without a store it is the number of points.
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
    """Measures both and prints the tables; status 1 if scores differ or something failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="StdlibDocsRetrieval", help="names of tasks with commas")
    parser.add_argument("more", nargs="*", help="more overrides, as engine.dtype=bfloat16")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mteb-vllm-bench-") as scratch:
        runs = {use: sweep(Path(scratch, use), options.tasks, options.more, use) for use in ("auto", "never")}
    for use, records in runs.items():
        print(f"\nstore.use={use}")
        print(f"{'prompt':<60} {'score':>9} {'texts':>7} {'computed':>8} {'stored':>7} {'seconds':>8}")
        for prompt, record in zip(PROMPTS, records, strict=True):
            score = sum(task["main_score"] for task in record["tasks"]) / len(record["tasks"])
            texts, computed, stored = (
                sum(task[key] for task in record["tasks"]) for key in ("texts", "computed", "stored")
            )
            print(f"{prompt!r:<60} {score:9.5f} {texts:7,} {computed:8,} {stored:7,} {work(record):8.1f}")
        print(f"all points over the first one: {sum(map(work, records)) / work(records[0]):.2f}")
    same = scores(runs["auto"]) == scores(runs["never"])
    print(f"\nwith the store over without it: {sum(map(work, runs['auto'])) / sum(map(work, runs['never'])):.3f}")
    print(f"scores the same               : {same}")
    return int(not same)


def sweep(folder: Path, tasks: str, more: list[str], use: str) -> list[dict[str, Any]]:
    """Runs the sweep as a user would; returns its records, in order."""
    prompts = ",".join(f"'{prompt}'" for prompt in PROMPTS)
    words = [f"tasks.names=[{tasks}]", "prompts=none", f"prompts.query={prompts}", *more]
    env = {key: value for key, value in os.environ.items() if not key.startswith("VLLM_")}
    command = [sys.executable, "-m", "mteb_vllm", "-m", *words, f"results.dir={folder}", f"embedding_cache.use={use}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=env)
    records = [json.loads(path.read_text()) for path in folder.glob("sweeps/*/*/*/run.json")]
    return sorted(records, key=lambda record: int(record["point"]))


def work(record: dict[str, Any]) -> float:
    """Seconds of a point's tasks: loading data, encoding, the store, scoring."""
    return sum(sum(task["seconds"].values()) for task in record["tasks"])


def scores(records: list[dict[str, Any]]) -> list[Any]:
    """All scores, to the last digit, without the times that mteb notes beside them."""
    return [[task["scores"] for task in record["tasks"]] for record in records]


if __name__ == "__main__":
    sys.exit(main())
