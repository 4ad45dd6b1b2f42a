"""The progress of a sweep: plain lines where output is piped, two live lines on a terminal."""

from __future__ import annotations

import io
import re

from measured_runs import parity, throughput
from mteb_vllm.preflight.command import check
from mteb_vllm.results.failures import Failure
from mteb_vllm.results.record import RunRecord, TaskOutcome
from mteb_vllm.sweep.messages import Activity, TaskDone, TaskProgress
from mteb_vllm.sweep.planning import add_task_states, group_by_engine, plan_points
from mteb_vllm.sweep.view import View
from mteb_vllm.util.console import Console
from mteb_vllm.util.phase import Phase


def shown(*, terminal: bool) -> str:
    """Return the output for a sweep of three points: one computed, one failed, one cached."""
    words = ["tasks.names=[STS12,STS13]", "prompts=none", "engine.max_num_seqs=1,2,3"]
    points = add_task_states(plan_points(check(words, multirun=True)))
    console = Console(file=io.StringIO(), width=160, force_terminal=terminal)
    fine = TaskOutcome("STS12", "STS", "computed", "cosine_spearman", 0.5)
    with View(console, points) as view:
        view.engine(group_by_engine(points)[0])
        row = view.row()
        row.start(points[0], False)
        row.update(Activity(Phase.OPENING_ENGINE, "Opening vLLM: [a/b]"))
        view._bar.refresh()
        row.update(TaskProgress("STS12", Phase.ENCODING, "texts", 200, 4_000))
        row.update(TaskProgress("STS12", Phase.ENCODING, "texts", 1_200, 4_000))
        view._bar.refresh()
        row.update(TaskDone(fine))
        row.update(None)
        view.ended(RunRecord(point=0, tasks=[fine], seconds=12.34))
        view._bar.refresh()
        view.ended(
            RunRecord(point=1, status="failed", failure=Failure("killed", "the process ended (SIGKILL)", "STS12"))
        )
        view.ended(RunRecord(point=2, tasks=[TaskOutcome("STS12", "STS", "cached", "cosine_spearman", 0.25)]))
        view._bar.refresh()
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.file.getvalue())  # type: ignore[attr-defined]


def test_piped_output_is_plain_lines() -> None:
    assert shown(terminal=False).splitlines() == [
        "Engine 1/3: max_num_seqs=1 (sentence-transformers/all-MiniLM-L6-v2, 1 point)",
        "  point 0: STS12 0.50000",
        "[1/3] point 0 engine.max_num_seqs=1: 0.50000 in 12.3 s",
        "[2/3] point 1 engine.max_num_seqs=2: failed: killed in STS12: the process ended (SIGKILL)",
        "[3/3] point 2 engine.max_num_seqs=3: 0.25000 (cached)",
    ]


def test_a_terminal_shows_how_far_it_is_and_how_long_it_takes() -> None:
    text = shown(terminal=True)
    assert "point 0: STS12 texts" in text and re.search(r"1,200/4,000 +[\d,]+ texts/s", text)
    assert re.search(r"point 0: Opening vLLM: \[a/b\] +\d+ s", text), "how long it has been opening"
    assert (
        "1/3" in text
        and "Engine 1/3" in text
        and re.search(r"about \d+ s left", text)
        and "1 failed, about 0 s left" in text
    )
    assert "  point 0: STS12 0.50000" not in text, "a line a task would be too many"


def test_the_line_of_an_engine_says_how_it_differs_from_the_others() -> None:
    words = ["tasks.names=[STS12]", "prompts=none", "engine.dtype=float32,bfloat16", "engine.max_num_seqs=64"]
    points = add_task_states(plan_points(check(words, multirun=True)))
    console = Console(file=io.StringIO(), width=160)
    with View(console, points) as view:
        for group in group_by_engine(points):
            view.engine(group)
    name = "sentence-transformers/all-MiniLM-L6-v2"
    assert console.file.getvalue().splitlines() == [  # type: ignore[attr-defined]
        f"Engine 1/2: dtype=float32 ({name}, 1 point)",
        f"Engine 2/2: dtype=bfloat16 ({name}, 1 point)",
    ]
    (only,) = group_by_engine(points[:1])
    with View(console, points[:1]) as view:
        view.engine(only)
    assert console.file.getvalue().endswith(f"Engine 1/1: {name}, 1 point\n")  # type: ignore[attr-defined]


def test_a_point_that_was_timed_or_compared_ends_with_its_result() -> None:
    words = ["tasks.names=[STS12]", "prompts=none", "engine.max_num_seqs=1,2"]
    points = add_task_states(plan_points(check(words, multirun=True)))
    console = Console(file=io.StringIO(), width=160)
    timed = throughput()
    timed.saturated.requests_per_second, timed.saturated.tokens_per_second = 1234.56, 98765.4
    with View(console, points) as view:
        view.ended(RunRecord(point=0, throughput=timed, seconds=2.0))
        view.ended(RunRecord(point=1, parity=parity(0.1), status="failed"))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[0].endswith(": 1,234.6 texts/s, 98,765 tokens/s in 2.0 s")
    assert lines[1].endswith(": Failed: no parity with sentence-transformers 6.2.0 in float32 on 2 of 2 tasks.")
