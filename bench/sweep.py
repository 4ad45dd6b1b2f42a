"""Measure the wall time that a sweep saves over the same points as separate commands, one after the other.

The sweep and each separate command start with an empty results store.

    python bench/sweep.py                  # 2 dtypes x 2 max_num_seqs x 3 query prompts on the demo tasks: 12 points
    python bench/sweep.py --tasks StdlibDocsClassification prompts=none,e5 engine.max_num_seqs=32,64

Compare the ratio and not the times, which depend on the machine and its load. The scores of both must be the same; in half
precision they may differ in the last digits, because the sweep reads embeddings from its cache that a separate command
computes in other batches.
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

# In half precision, a larger difference of a main score means that something other than rounding differs.
HALF_TOLERANCE = 0.003

AXES = (
    "engine.dtype=float32,bfloat16",
    "engine.max_num_seqs=32,128",
    "prompts.query='','query: ','Represent this sentence for searching relevant passages: '",
)


def main() -> int:
    """Run both and print the table; return 1 if scores differ by more than rounding."""
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
        ours = scores(sweep)
        theirs: dict[str, float] = {}
        tolerances: dict[str, float] = {}
        for number, point in enumerate(points):
            found = scores(single / str(number))
            half = any(word in ("engine.dtype=bfloat16", "engine.dtype=float16") for word in point)
            theirs |= found
            tolerances |= dict.fromkeys(found, HALF_TOLERANCE if half else 0.0)
    print(f"points                     {len(points)}")
    print(f"engines opened             {summary['engines_opened']}")
    print(f"processes                  {summary['children']}")
    print(f"sweep                      {seconds:.1f} s")
    print(f"separate commands          {sum(each):.1f} s ({min(each):.1f} to {max(each):.1f} s each)")
    print(f"ratio                      {seconds / sum(each):.3f}")
    if ours.keys() != theirs.keys():
        print("the sweep and the separate commands have results of different tasks or settings")
        return 1
    differences = {key: abs(ours[key] - theirs[key]) for key in ours}
    equal = sum(not difference for difference in differences.values())
    print(f"equal main scores          {equal} of {len(ours)}")
    print(f"largest difference         {max(differences.values()):.5f}")
    return int(any(difference > tolerances[key] for key, difference in differences.items()))


def run(*words: str) -> None:
    """Run a command as a user would."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("VLLM_")}
    subprocess.run([sys.executable, "-m", "mteb_vllm", *words], check=True, stdout=subprocess.DEVNULL, env=env)


def scores(root: Path) -> dict[str, float]:
    """Return all main scores of a results store, by settings, task, split and subset."""
    found = {}
    for file in root.glob("results/*/*/experiments/*/*.json"):
        if file.name != "model_meta.json":
            content = json.loads(file.read_text())
            for split, entries in content["scores"].items():
                for entry in entries:
                    found[f"{file.parent.name}/{file.name}/{split}/{entry['hf_subset']}"] = float(entry["main_score"])
    return found


if __name__ == "__main__":
    sys.exit(main())
