"""Measure the wall time that a sweep saves over the same points as separate commands, one after the other.

The sweep and each separate command start with an empty results store.

    python bench/sweep.py                  # 2 dtypes x 2 max_num_seqs x 3 query prompts on the demo tasks: 12 points
    python bench/sweep.py --tasks StdlibDocsClassification prompts=none,e5 engine.max_num_seqs=32,64

Compare the ratio and not the times, which depend on the machine and its load. The scores of both must be the same.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

AXES = (
    "engine.dtype=float32,bfloat16",
    "engine.max_num_seqs=32,128",
    "prompts.query='','query: ','Represent this sentence for searching relevant passages: '",
)


def main() -> int:
    """Run both and print the table; return 1 if scores differ or a run failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="demo", help="demo, or names of tasks, separated by commas")
    parser.add_argument("axes", nargs="*", default=list(AXES), help="overrides with several values")
    options = parser.parse_args()
    from mteb_vllm.preflight.command import check

    tasks = "tasks=demo" if options.tasks == "demo" else f"tasks.names=[{options.tasks}]"
    words = [tasks, "prompts=none", *options.axes]
    points = [list(point.overrides) for point in check(words, multirun=True)]
    with tempfile.TemporaryDirectory(prefix="mteb-vllm-bench-") as scratch:
        sweep, single = Path(scratch, "sweep"), Path(scratch, "single")
        started = time.perf_counter()
        run("-m", *words, f"results.dir={sweep}")
        seconds = time.perf_counter() - started
        each = []
        for number, point in enumerate(points):
            started = time.perf_counter()
            run(*point, f"results.dir={single / str(number)}")
            each.append(time.perf_counter() - started)
            print(f"separate command {len(each)} of {len(points)}: {each[-1]:.1f} s", flush=True)
        (record,) = sweep.glob("sweeps/*/*/sweep.json")
        summary = json.loads(record.read_text())
        same = scores(sweep) == {
            key: found for number in range(len(points)) for key, found in scores(single / str(number)).items()
        }
    print(f"points                     {len(points)}")
    print(f"engines opened             {summary['engines_opened']}")
    print(f"processes                  {summary['children']}")
    print(f"sweep                      {seconds:.1f} s")
    print(f"separate commands          {sum(each):.1f} s ({min(each):.1f} to {max(each):.1f} s each)")
    print(f"ratio                      {seconds / sum(each):.3f}")
    print(f"same scores                {same}")
    return int(not same)


def run(*words: str) -> None:
    """Run a command as a user would."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("VLLM_")}
    subprocess.run([sys.executable, "-m", "mteb_vllm", *words], check=True, stdout=subprocess.DEVNULL, env=env)


def scores(root: Path) -> dict[str, object]:
    """Return all main scores of a results store, by settings and task."""
    files = root.glob("results/*/*/experiments/*/*.json")
    found = {}
    for file in files:
        if file.name != "model_meta.json":
            content = json.loads(file.read_text())["scores"]
            mains = {split: [entry["main_score"] for entry in entries] for split, entries in content.items()}
            found[f"{file.parent.name}/{file.name}"] = mains
    return found


if __name__ == "__main__":
    sys.exit(main())
