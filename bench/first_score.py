"""Measure the time from a command's start to its first score, against another checkout, in alternating pairs.

    make bench-first-score BENCH="/path/to/another/checkout"
    make bench-first-score BENCH="/path/to/another/checkout --interpreted"

Each round starts the main job, `mteb-vllm` on the demo tasks, twice: a first run, with an empty folder for the catalogues
of mteb and vLLM, and a later run, which finds them. Both have an empty results store, and are ended after the first score.
Both checkouts use this Python and its packages. With `--interpreted`, the other one finds no compiled packages and may not
write them, as after an installation without `--compile-bytecode` where PYTHONDONTWRITEBYTECODE is set.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from overhead import median, median_interval

HERE = Path(__file__).resolve().parents[1]
FIRST_SCORE = re.compile(r"\[1/\d+\] \w+: \w+ \d")


def main() -> None:
    """Time both checkouts in turn, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="the root of the other checkout")
    parser.add_argument("--pairs", type=int, default=5, help="number of pairs (default: 5)")
    parser.add_argument("--interpreted", action="store_true", help="the other checkout runs without compiled packages")
    options = parser.parse_args()
    ratios: dict[str, list[float]] = {"first run": [], "later run": []}
    for pair in range(options.pairs):
        times: dict[Path, dict[str, float]] = {}
        order = [HERE, options.other.resolve()]
        for checkout in order if pair % 2 else reversed(order):
            times[checkout] = first_and_later_run(checkout, options.interpreted and checkout != HERE)
        for run, found in ratios.items():
            ours, others = (times[checkout][run] for checkout in order)
            found.append(ours / others)
            print(f"pair {pair + 1}, {run}: {ours:5.1f} s, other {others:5.1f} s, ratio {found[-1]:.3f}", flush=True)
    for run, found in ratios.items():
        low, high = median_interval(sorted(found))
        print(f"{run}: median ratio {median(sorted(found)):.3f}, {low:.3f} to {high:.3f}, {len(found)} pairs")


def first_and_later_run(checkout: Path, interpreted: bool) -> dict[str, float]:
    """Return the seconds to the first score of a first and of a later run of a checkout."""
    with tempfile.TemporaryDirectory(prefix="mteb-vllm-bench-") as scratch:
        env = {key: value for key, value in os.environ.items() if not key.startswith("VLLM_")}
        env |= {"PYTHONPATH": str(checkout / "src"), "MTEB_VLLM_CACHE": f"{scratch}/cache"}
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        if interpreted:
            env |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPYCACHEPREFIX": f"{scratch}/compiled"}
        return {run: first_score(scratch, env) for run in ("first run", "later run")}


def first_score(folder: str, env: dict[str, str]) -> float:
    """Return the seconds until a command prints its first score, and end it."""
    with tempfile.TemporaryDirectory(dir=folder) as results:
        started = time.perf_counter()
        command = [sys.executable, "-m", "mteb_vllm", f"results.dir={results}"]
        with subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, text=True) as running:
            assert running.stdout is not None
            for line in running.stdout:
                if FIRST_SCORE.match(line):
                    seconds = time.perf_counter() - started
                    running.kill()
                    return seconds
        raise SystemExit(f"{' '.join(command)} ended without a score, with status {running.returncode}")


if __name__ == "__main__":
    main()
