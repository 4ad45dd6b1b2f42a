"""The progress of a run on a terminal: seconds for steps of unknown length, a bar and rates for texts."""

from __future__ import annotations

import io
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mteb_vllm.engines.base import EngineSpec
from mteb_vllm.models.files import Model
from mteb_vllm.progress import Progress, terminal
from mteb_vllm.results.record import TaskOutcome
from mteb_vllm.util.console import Console

ENGINE = EngineSpec(Model("org/m", "rev", "/m", None, {}), "embed")
DONE = TaskOutcome(
    "STS12", "STS", "computed", "cosine_spearman", 0.5, seconds={"encode": 2.0}, texts=400, computed=400, tokens=9000
)


def plain(console: Console) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.file.getvalue())  # type: ignore[attr-defined]


def on_terminal(width: int = 80) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=True)


def test_seconds_are_counted_while_an_engine_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    console = on_terminal()
    with Progress(console, 1) as progress, progress.opening(ENGINE):
        now = time.perf_counter()
        monkeypatch.setattr(time, "perf_counter", lambda: now + 83)
        progress._bar.refresh()
    assert re.search(r"Opening vLLM: org/m +83 s", plain(console))
    assert "━" not in plain(console) and "0/" not in plain(console), "nothing is counted"


def test_texts_are_counted_by_a_bar_with_their_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    console = on_terminal()
    with Progress(console, 2) as progress:
        progress.start_task("STS12")
        progress.encoded("texts", 0, 4_000)
        now = time.perf_counter()
        monkeypatch.setattr(time, "perf_counter", lambda: now + 2)
        progress.encoded("texts", 1_200, 4_000, "pairs")
        progress._bar.refresh()
    assert re.search(r"\[1/2\] STS12 texts +━.* +1,200/4,000 +\d+ pairs/s", plain(console))


@pytest.mark.parametrize(
    ("outcome", "line"),
    [
        (DONE, "[1/1] STS12: cosine_spearman 0.50000 in 2.0 s, 200 texts/s, 4,500 tokens/s"),
        (replace(DONE, status="cached"), "[1/1] STS12: cosine_spearman 0.50000 (cached)"),
        (
            replace(DONE, prompts={"query pair": {}}),
            "[1/1] STS12: cosine_spearman 0.50000 in 2.0 s, 200 pairs/s, 4,500 tokens/s",
        ),
    ],
)
def test_a_finished_task_is_one_line(outcome: TaskOutcome, line: str) -> None:
    console = Console(file=io.StringIO(), width=160)
    with Progress(console, 1) as progress:
        progress.start_task("STS12")
        progress.end_task(outcome)
    assert plain(console) == f"{line}\n"


def test_the_width_of_tables_in_pipes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as out:
        monkeypatch.setattr("sys.stdout", out)
        monkeypatch.delenv("COLUMNS", raising=False)
        assert terminal().width == 160
        monkeypatch.setenv("COLUMNS", "80")
        assert terminal().width == 80
