"""The tables of a comparison: every figure is what the files say, nothing breaks them, and any size is readable."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from mteb_vllm.report.comparison import Comparison, Point, TaskScore, compare
from mteb_vllm.report.loading import read_runs
from mteb_vllm.report.tables import comparison_csv, comparison_markdown, print_comparison
from mteb_vllm.results.failures import Failure
from mteb_vllm.results.measurements import EngineRecord, Memory
from mteb_vllm.results.record import RunRecord, TaskOutcome, write_record
from mteb_vllm.util.console import Console

CONFIG = {"model": {"name": "m"}, "tasks": {"benchmark": "demo"}, "pipeline": {}}
TYPES = {"S1": "STS", "S2": "STS", "R1": "Retrieval"}


def shown(comparison: Comparison, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_comparison(console, comparison)
    return console.file.getvalue()  # type: ignore[attr-defined]


def outcome(
    name: str, score: float | None, work: tuple[int, int, float] | None, failure: Failure | None = None
) -> TaskOutcome:
    status: Any = "failed" if failure else "computed" if work else "cached"
    made = TaskOutcome(name, TYPES[name], status, "m", score, failure=failure)
    if work is not None:
        made.computed, made.tokens, made.seconds = work[0], work[1], {"load": 9.0, "encode": work[2]}
    return made


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Four points of a sweep: the second reuses most of the first, the third fails in a task, the last in all."""
    gone = Failure("data", "no | network\nat all", "S2", ["a ``` in a log"], "go online")
    works = [
        [
            outcome("S1", 0.81, (100, 900, 1.5)),
            outcome("S2", 0.72, (50, 450, 0.75)),
            outcome("R1", 0.43, (800, 9000, 9.0)),
        ],
        [outcome("S1", 0.81, None), outcome("S2", 0.72, None), outcome("R1", 0.4305, (801, 9100, 8.0))],
        [outcome("S1", 0.8, (100, 900, 0.5)), outcome("S2", None, None, gone), outcome("R1", 0.42, (800, 9000, 4.0))],
        [],
    ]
    for number, tasks in enumerate(works):
        kind, prompt = ("bfloat16", "float32")[number < 2], ("none", "e5")[number % 2]
        record = RunRecord(
            status="failed" if number > 1 else "ok",
            overrides=[f"engine.dtype={kind}", f"prompts={prompt}"],
            point=number,
            settings={"engine": {"model": "m", "args": {"dtype": kind}}},
            config=CONFIG,
            tasks=tasks,
            engine=EngineRecord("vllm", "", kind, opened=1 - number % 2, seconds=20.0 + number),
            failure=Failure("killed", "the process ended") if not tasks else None,
            seconds=60.0 + number,
            peak_memory_mb=Memory(900.0 + number, 100.5) if tasks else None,
        )
        (tmp_path / str(number)).mkdir()
        write_record(record, tmp_path / str(number))
    return tmp_path


def test_every_figure_is_recomputed_from_the_files(sweep: Path) -> None:
    records = [json.loads((sweep / str(number) / "run.json").read_text()) for number in range(4)]
    rows = list(csv.DictReader(io.StringIO(comparison_csv(compare(read_runs([sweep]))))))
    seen = set()

    def check(row: dict[str, str], name: str, value: Any) -> None:
        seen.add(name)
        found = row[name]
        assert found == "" if value is None else float(found) == pytest.approx(value, rel=1e-12), (row["point"], name)

    def mean(scores: list[float | None]) -> float | None:
        known = [score for score in scores if score is not None]
        return sum(known) / len(scores) if scores and len(known) == len(scores) else None

    all_means = []
    for number, (row, record) in enumerate(zip(rows, records, strict=True)):
        scores = {task["name"]: task["main_score"] for task in record["tasks"]}
        own = mean([scores.get(name) for name in TYPES])
        all_means.append(own)
        for name in TYPES:
            check(row, name, scores.get(name))
        check(row, "mean", own)
        check(row, "difference", own - all_means[0] if own is not None and all_means[0] is not None else None)
        check(row, "mean STS", mean([scores.get("S1"), scores.get("S2")]))
        check(row, "mean Retrieval", scores.get("R1"))
        # The second computed too little: its speed is that of the first, on the same engine. No other computed all tasks.
        work = records[0]["tasks"] if number < 2 else []
        seconds = sum(task["seconds"]["encode"] for task in work)
        check(row, "texts_per_second", sum(task["computed"] for task in work) / seconds if work else None)
        check(row, "tokens_per_second", sum(task["tokens"] for task in work) / seconds if work else None)
        check(row, "measured_on", sum(task["computed"] for task in work) if work else None)
        check(row, "measured_in", 0 if work else None)
        check(row, "computed", sum(task["computed"] or 0 for task in record["tasks"]) if record["tasks"] else None)
        check(
            row,
            "stored",
            0 if any(task["status"] == "cached" for task in record["tasks"]) else None,
        )
        check(row, "engine_start_seconds", record["engine"]["seconds"] if record["engine"]["opened"] else None)
        check(row, "seconds", record["seconds"])
        memory = record["peak_memory_mb"]
        check(row, "peak_memory_mb", memory and memory["process"] + memory["engine_processes"])
    assert [row["status"] for row in rows] == ["ok", "ok", "failed", "failed"]
    assert [row["failures"] for row in rows] == ["", "", "data in S2: no | network at all", "killed: the process ended"]
    assert [(row["engine.dtype"], row["prompts"], row["unit"]) for row in rows[1:3]] == [
        ("float32", "e5", "texts"),
        ("bfloat16", "none", ""),
    ]
    words = {"point", "folder", "status", "failures", "engine.dtype", "prompts", "unit"}
    assert rows[0].keys() == seen | words


def test_markdown_holds_all_of_it_and_nothing_breaks_it(sweep: Path) -> None:
    text = comparison_markdown(compare(read_runs([sweep])))
    assert text.startswith("# 4 points, 3 tasks, differences to point 0\n\n- model: `` m ``\n")
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert [line.split(" | ")[0] for line in table[:6]] == ["| point", "| ---", "| 2", "| 3", "| 1", "| 0"], (
        "failures first"
    )
    assert "| 1 | float32 | e5 | 0.65350 | +0.00017 |" in text and "speed of 0 |" in text
    for heading in ("Answer", "Effects", "Differences to the baseline, by task", "Failures"):
        assert f"\n## {heading}\n" in text
    assert "| R1 | 0.43000 | +0.00050 | -0.01000 |  |" not in text, "a point without tasks has no column"
    assert "| R1 | 0.43000 | +0.00050 | -0.01000 |" in text
    assert "### 2 (S2)\n" in text and "What to try: go online." in text
    widths: dict[int, int] = {}
    for line in table:
        widths[line.count(" | ")] = widths.get(line.count(" | "), 0) + 1
    assert min(widths.values()) > 2, "all rows of a table have its columns"


def test_the_terminal_shows_what_fits_and_says_what_is_left_out(sweep: Path) -> None:
    comparison = compare(read_runs([sweep]))
    wide, narrow = shown(comparison, 250), shown(comparison, 90)
    assert "S1" in wide and "Not shown" not in wide
    assert "the columns mean STS" not in narrow and re.search(
        r"Not shown, but in report.csv: the columns .*S1, S2, R1", narrow
    )
    assert narrow.index("\n2 ") < narrow.index("\n3 ") < narrow.index("\n1 "), "failures first"
    assert "Best: point 1 (engine.dtype=float32, prompts=e5), mean 0.65350 over 3 tasks, 84 texts/s." in narrow
    assert "The speed of point 1 was measured in point 0, on the same engine" in narrow


def test_text_of_a_user_is_never_markup() -> None:
    made = [
        Point(str(n), Path(str(n)), overrides={"[red]": f"[bold]{n}"}, tasks=[TaskScore("A", score=0.5)])
        for n in range(2)
    ]
    text = shown(compare(made))
    assert "[red]" in text and "[bold]1" in text


def test_a_reranking_sweep_shows_both_stages() -> None:
    work: dict[str, Any] = {"computed": 10, "seconds": 1.0, "unit": "pairs"}
    tasks = [TaskScore("A", "Retrieval", score=0.5, first_stage=0.25, ceiling=1.0, **work),
             TaskScore("B", "Retrieval", score=0.75, first_stage=0.5, ceiling=0.75, **work)]  # fmt: skip
    made = compare([Point(str(n), Path(str(n)), overrides={"k": str(n)}, tasks=tasks) for n in range(2)])
    text = comparison_markdown(made)
    assert (
        "| point | k | first stage | reranked | gain | ceiling | share | difference | A | B | pairs/s | tokens/s |  |"
        in text
    )
    assert "| 0 | 0 | 0.37500 | 0.62500 | +0.25000 | 0.87500 | 75.0% | +0.00000 |" in text
    assert next(csv.DictReader(io.StringIO(comparison_csv(made))))["gain"] == "0.25"


def test_a_single_run_and_results_of_others_render(sweep: Path, tmp_path: Path) -> None:
    single = compare(read_runs([sweep / "0"]))
    folder = tmp_path / "org__m" / "r"
    folder.mkdir(parents=True)
    scores = {"test": [{"hf_subset": "default", "main_score": 0.5, "languages": []}]}
    (folder / "STS12.json").write_text(json.dumps({"task_name": "STS12", "scores": scores}))
    others = compare(read_runs([tmp_path / "org__m"]))
    for made, title in ((single, "One point, 3 tasks"), (others, "One point, 1 task")):
        assert title in shown(made) and comparison_markdown(made).startswith(f"# {title}\n")
        assert len(comparison_csv(made).splitlines()) == 2
    assert "texts/s" not in shown(others), "nobody knows it"


def test_a_thousand_points_of_sixty_tasks_are_readable() -> None:
    def tasks(at: int) -> list[TaskScore]:
        return [
            TaskScore(f"T{n}", f"Type{n % 5}", score=(at * 7 + n) % 100 / 100, computed=9, seconds=1.0)
            for n in range(60)
        ]

    points = [
        Point(
            str(at), Path(str(at)), overrides={"x": str(at % 50), "y": str(at // 50)}, engine=str(at),
            tasks=tasks(at),
            failures=[Failure("killed", "gone", log=["line"])] if at % 100 == 99 else [],
        )
        for at in range(1000)
    ]  # fmt: skip
    made = compare(points)
    text = shown(made)
    assert len(text.splitlines()) < 100 and "950 points" in text and "the scores of 60 tasks" in text
    assert len(comparison_csv(made).splitlines()) == 1001
    markdown = comparison_markdown(made)
    assert "Of 999 points the best 12; all scores are in report.csv." in markdown
    assert markdown.count("**Failed:**") == 1, "what many points have stands once"
