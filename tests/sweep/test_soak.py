"""Soak test: killing a sweep's whole process tree repeatedly never leaves wrong results."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

ROUNDS = 20
SEED = int(os.environ.get("MTEB_VLLM_SOAK_SEED", random.SystemRandom().randrange(10**6)))
PROMPTS = ",".join(f"'{letter}: '" for letter in "abcdefghijklmnop")
SWEEP = [
    "tasks.names=[StdlibDocsClassification]", "engine.max_num_seqs=32,64", "engine.max_model_len=16", "prompts=none",
    f"+prompts.Classification={PROMPTS}",
]  # fmt: skip
N_POINTS = 32


def started(root: Path) -> subprocess.Popen[bytes]:
    env = {key: value for key, value in os.environ.items() if not key.startswith("VLLM_")}
    words = [sys.executable, "-m", "mteb_vllm", "-m", *SWEEP, f"results.dir={root}"]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env, cwd=root)


def moment(root: Path, folder: Path, phase: str, nth: int) -> bool:
    """Whether the sweep in `folder` is currently in a phase: loading an engine, or computing its nth point."""
    logs = [path.read_text(errors="replace") for path in folder.glob("*/mteb_vllm.log")]
    if phase == "loading":
        return any("opening vLLM" in log and "vLLM opened" not in log for log in logs)
    if phase == "encoding":
        return sum("Encoding" in log for log in logs) > nth and any(
            "Encoding" in log and "Finished evaluation" not in log for log in logs
        )
    return len(list(folder.glob("*/run.json"))) >= nth and any(root.glob(".writing-*"))


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Send SIGKILL to all processes, in arbitrary order."""
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    random.shuffle(family)
    for one in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive, "a process is left behind"


def scores(root: Path) -> dict[str, Any]:
    """Return every result of a store; fails if one is damaged."""
    found = {}
    for file in root.glob("results/*/*/experiments/*/*.json"):
        content = json.loads(file.read_text())
        if file.name != "model_meta.json":
            found[f"{file.parent.name}/{file.name}"] = content["scores"]["test"][0]["main_score"]
    return found


def test_twenty_killed_sweeps_give_the_results_of_an_undisturbed_one(tmp_path: Path) -> None:
    draw = random.Random(SEED)
    print(f"\nseed {SEED} (MTEB_VLLM_SOAK_SEED={SEED} repeats it)", flush=True)
    control, root = tmp_path / "control", tmp_path / "out"
    control.mkdir()
    root.mkdir()
    output, _ = started(control).communicate(timeout=900)
    expected = scores(control)
    assert len(expected) == N_POINTS, output.decode()
    phases = ["loading", "encoding", "writing"] * (ROUNDS // 3 + 1)
    draw.shuffle(phases)
    for at, phase in enumerate(phases[:ROUNDS]):
        before = set(root.glob("sweeps/*/*"))
        nth, delay = draw.randrange(2), draw.random() * (0.5 if phase != "writing" else 0.02)
        process, since = started(root), time.monotonic()
        while process.poll() is None and time.monotonic() - since < 200:
            new = [folder for folder in root.glob("sweeps/*/*") if folder not in before]
            if new and moment(root, new[0], phase, nth):
                break
            time.sleep(0.002)
        assert process.poll() is None, f"round {at}: the sweep was through before it came to {phase}"
        time.sleep(delay)
        kill_tree(process)
        found = scores(root)
        print(
            f"round {at}: killed at {phase} ({nth}, {delay:.3f} s later), {len(found)} of {N_POINTS} done", flush=True
        )
        assert found == {key: expected[key] for key in found}
    output, _ = started(root).communicate(timeout=900)
    assert scores(root) == expected, output.decode()
    assert not list(root.glob(".writing-*")) and not list((root / ".locks").iterdir()), "nothing is left behind"
    assert not list(root.glob("results/**/*.broken")) and not list(root.glob("results/**/*.tmp"))
