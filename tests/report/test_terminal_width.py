"""On a terminal of 80 columns, no table of a report breaks a word, and no line is too long."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import rich.console
from rich.table import Table

from comparisons import comparison
from measured_runs import mixed_runs, outcome, parity, parity_runs, record, throughput_runs, write_runs
from mteb_vllm.models.prompts import Prompts
from mteb_vllm.report import one_run
from mteb_vllm.report.comparison import Comparison, compare
from mteb_vllm.report.loading import read_runs
from mteb_vllm.report.tables import print_comparison
from mteb_vllm.results.failures import Failure
from mteb_vllm.results.record import RunRecord
from mteb_vllm.util.console import Console

Show = Callable[[Console], object]
# Words that only narrow output has: those of the table of scores by task, and the backslash of a wrapped command.
NARROW_ONLY = {"Scores", "by", "task,", "task", "best", "points", "first", "\\"}
LEFT_OUT = re.compile(r"^Only in report\.(?:csv|md): .*\n(?:  .*\n)*", re.MULTILINE)


def shown(show: Show, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    show(console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def faults(show: Show, width: int = 80) -> list[str]:
    """Return the lines that are longer than a terminal, and the parts of broken words."""
    narrow, words = shown(show, width), {*shown(show, 2000).split(), *NARROW_ONLY}
    lines = [line.rstrip() for line in narrow.splitlines()]
    broken = [word for word in LEFT_OUT.sub("", narrow).split() if not {word, word.removesuffix(":")} & words]
    return [line for line in lines if len(line) > width and len(line.split()) > 1] + broken


@pytest.mark.parametrize(
    "of",
    [
        comparison(12, failed=2),
        comparison(6, tasks=20),
        comparison(9, reranked=True),
        comparison(1),
        comparison(4, axes={"engine.compilation_config": ["x" * 70, "y"], "prompts.query": ["Instruct: " * 9, "q: "]}),
    ],
    ids=["sweep", "many tasks", "reranking", "one point", "long values"],
)
def test_a_comparison_breaks_no_word(of: Comparison) -> None:
    assert faults(lambda console: print_comparison(console, of)) == []


@pytest.mark.parametrize("runs", [throughput_runs, parity_runs, mixed_runs])
def test_a_comparison_of_measurements_breaks_no_word(tmp_path: Path, runs: Callable[[], list[RunRecord]]) -> None:
    of = compare(read_runs([write_runs(tmp_path, runs())]))
    assert faults(lambda console: print_comparison(console, of)) == []


def parity_run() -> RunRecord:
    """A parity run of tasks with long names, a reason and a hint."""
    verdict = parity(-0.0124, cosine=0.41, hint="with CLS pooling, the reference matches: the lowest cosine is 0.99999")
    tasks = [
        replace(task, task=f"AmazonCounterfactualClassification{task.task}", reasons=["the scores differ by -0.01240"])
        for task in verdict.tasks
    ]
    return record(0, parity=replace(verdict, tasks=tasks), tasks=(outcome("STS12", 0.7, 20.0),))


def failed_run() -> RunRecord:
    advice = "lower engine.gpu_memory_utilization or engine.max_num_batched_tokens, or use a smaller dtype"
    cause = Failure(
        "out_of_memory_loading", "the process ended (SIGKILL) while opening vLLM: org/name", None, [], advice
    )
    return record(0, tasks=(outcome("AmazonCounterfactualClassification", None, 1.0),), failure=cause)


@pytest.mark.parametrize(
    "run",
    [throughput_runs()[0], parity_run(), failed_run(), mixed_runs()[1]],
    ids=["throughput", "parity", "failed", "scores"],
)
def test_one_run_breaks_no_word(run: RunRecord) -> None:
    assert faults(lambda console: one_run.print_run(console, run)) == []


def test_prompts_break_no_word() -> None:
    names = ("AmazonCounterfactualClassification", "StackExchangeClusteringP2P.v2")
    tasks = [SimpleNamespace(name=name, type="Classification", prompt=None, sides=("",)) for name in names]
    prompts = Prompts(
        {name: f"Instruct: Classify a review of {name}\nQuery: " for name in names}, source="the recipe's"
    )
    assert faults(lambda console: one_run.print_prompts(console, prompts, tasks)) == []  # type: ignore[arg-type]


def test_broken_words_and_long_lines_are_found() -> None:
    def broken(console: Console) -> None:
        table = Table(box=None)
        table.add_column("settings", overflow="fold", max_width=12)
        table.add_row("engine.max_num_batched_tokens=8192" if console.width < 100 else "")
        rich.console.Console.print(console, table)

    def long(console: Console) -> None:
        console.print("a word " * 20, soft_wrap=True)

    assert "engine.max_n" in faults(broken) and len(faults(long)) == 1
