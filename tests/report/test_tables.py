"""The tables of a comparison: every figure is that of the files, nothing breaks them, and any size is readable."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from mteb_vllm.report.comparison import Comparison, Point, TaskScore, compare
from mteb_vllm.report.header import recommended_command, title
from mteb_vllm.report.loading import read_runs
from mteb_vllm.report.page import page
from mteb_vllm.report.tables import comparison_csv, comparison_markdown, print_comparison
from mteb_vllm.results.counters import Measured
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
    """Four points of a sweep: in the second most is cached, the third fails in a task, the last completely."""
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


def test_every_figure_is_that_of_the_files(sweep: Path) -> None:
    records = [json.loads((sweep / str(number) / "run.json").read_text()) for number in range(4)]
    rows = list(csv.DictReader(io.StringIO(comparison_csv(compare(read_runs([sweep]))))))
    assert [row["point"] for row in rows] == ["1", "0", "2", "3"], "best first"
    rows.sort(key=lambda row: row["point"])
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
        check(row, "cached_results", sum(task["status"] == "cached" for task in record["tasks"]))
        check(row, "engine_start_seconds", record["engine"]["seconds"] if record["engine"]["opened"] else None)
        check(row, "wall_time_seconds", record["seconds"])
        memory = record["peak_memory_mb"]
        check(row, "peak_memory_mb", memory and memory["process"] + memory["engine_processes"])
    assert [row["status"] for row in rows] == ["ok", "ok", "failed", "failed"]
    assert [row["failures"] for row in rows] == [
        "",
        "",
        "data error in S2: no | network at all",
        "killed: the process ended",
    ]
    assert [(row["engine.dtype"], row["prompts"], row["unit"]) for row in rows[1:3]] == [
        ("float32", "e5", "texts"),
        ("bfloat16", "none", ""),
    ]
    words = {"point", "folder", "status", "failures", "notes", "engine.dtype", "prompts", "unit"}
    assert rows[0].keys() == seen | words


def test_markdown_has_every_section_and_nothing_breaks_it(sweep: Path) -> None:
    text = comparison_markdown(compare(read_runs([sweep])))
    assert text.startswith("# m on S1, S2, R1\n\n4 points, 3 tasks, differences relative to point 0\n")
    assert (
        text.index("| R1 |")
        < text.index("## Conclusions")
        < text.index("## Identical in all points\n\n- model: `` m ``")
    )
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert [line.split(" | ")[0] for line in table[:6]] == ["| point", "| ---", "| 1", "| 0", "| 2", "| 3"], (
        "best first"
    )
    assert "| 1 | float32 | e5 | 0.65350 | 0.81000 | 0.72000 | 0.43050 | +0.00017 |" in text
    assert "speed of point 0; 2 of 3 tasks cached |" in text
    for heading in ("Conclusions", "Effects", "Differences from the baseline, by task", "Failures"):
        assert f"\n## {heading}\n" in text
    assert "| R1 | 0.43000 | +0.00050 | -0.01000 |  |" not in text, "a point without tasks has no column"
    assert "| R1 | 0.43000 | +0.00050 | -0.01000 |" in text
    assert "### 2 (S2)\n" in text and "What to try: go online." in text
    widths: dict[int, int] = {}
    for line in table:
        widths[line.count(" | ")] = widths.get(line.count(" | "), 0) + 1
    assert min(widths.values()) > 2, "all rows of a table have its columns"


def test_the_terminal_shows_scores_first_and_says_which_columns_are_left_out(sweep: Path) -> None:
    comparison = compare(read_runs([sweep]))
    wide, narrow = shown(comparison, 250), shown(comparison, 90)
    assert "S1" in wide and "in report.csv" not in wide
    assert re.search(r"Only in report.csv: the columns .*engine start \(s\), peak memory \(MiB\)", narrow)
    assert wide.index("\n1 ") < wide.index("\n0 ") < wide.index("\n2 ") < wide.index("\n3 "), "best first"
    head = next(line for line in wide.splitlines() if line.startswith("point "))
    columns = ["engine.dtype", "prompts", "mean", "S1", "difference", "texts/s", "wall time (s)", "peak memory (MiB)"]
    assert sorted(columns, key=head.index) == columns, "settings, scores, speeds, technical details"
    # However narrow it is, the scores are there.
    for width in (250, 90, 60, 40):
        text = shown(comparison, width)
        assert all(figure in text for figure in ("0.65350", "0.81000", "0.72000", "0.43050")), width
    assert "Best: point 1 (engine.dtype=float32, prompts=e5), mean 0.65350 over 3 tasks, 84 texts/s." in narrow
    assert (
        "The speed of point 1 was measured in point 0, on the same engine, since point 1 itself computed too few"
        in narrow
    )


def test_user_text_is_not_parsed_as_markup() -> None:
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
        "| point | k | first stage | reranked | gain | A | B | difference | ceiling | share of ceiling "
        "| share of possible gain | pairs/s | tokens/s |  |" in text
    )
    assert "| 0 | 0 | 0.37500 | 0.62500 | +0.25000 | 0.50000 | 0.75000 | +0.00000 | 0.87500 | 75.0% | 50.0% |" in text
    first = next(csv.DictReader(io.StringIO(comparison_csv(made))))
    assert (first["gain"], first["gain_share"]) == ("0.25", "0.5")


def test_a_single_run_and_results_of_others_render(sweep: Path, tmp_path: Path) -> None:
    single = compare(read_runs([sweep / "0"]))
    folder = tmp_path / "org__m" / "r"
    folder.mkdir(parents=True)
    scores = {"test": [{"hf_subset": "default", "main_score": 0.5, "languages": []}]}
    (folder / "STS12.json").write_text(json.dumps({"task_name": "STS12", "scores": scores}))
    others = compare(read_runs([tmp_path / "org__m"]))
    for made, name, scope in (
        (single, "m on S1, S2, R1", "1 point, 3 tasks"),
        (others, "org/m on STS12", "1 point, 1 task"),
    ):
        assert f"{name} ({scope})" in shown(made) and comparison_markdown(made).startswith(f"# {name}\n\n{scope}\n")
        assert len(comparison_csv(made).splitlines()) == 2
    assert "texts/s" not in shown(others), "it is unknown"


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
    assert "The best 12 of 999 points; all scores are in report.csv." in markdown
    assert markdown.count("**Failed:**") == 1, "equal failures are shown once"


def cached_run(point: int, *tasks: TaskOutcome, dtype: str = "float32") -> RunRecord:
    return RunRecord(
        overrides=[f"engine.dtype={dtype}"], point=point, config=CONFIG, tasks=list(tasks), seconds=3.0,
        settings={"engine": {"model": "m", "args": {"dtype": dtype}}}, peak_memory_mb=Memory(700.0, 0.0),
        started=f"2026-11-2{4 + point}T10:00:00+00:00",
    )  # fmt: skip


def written(folder: Path, *records: RunRecord) -> Comparison:
    for record in records:
        (folder / str(record.point)).mkdir(parents=True)
        write_record(record, folder / str(record.point))
    return compare(read_runs([folder]))


def test_a_cached_point_shows_cached_instead_of_measurements(tmp_path: Path) -> None:
    computed = cached_run(0, outcome("S1", 0.8, (100, 900, 1.0)))
    computed.engine = EngineRecord("vllm", "", "float32", opened=1, seconds=20.0)
    known = replace(outcome("S1", 0.81, None), measured=Measured(computed=100, stored=0, tokens=900, seconds=0.5))
    made = written(tmp_path, computed, cached_run(1, known, dtype="bfloat16"))
    rows = {row["point"]: row for row in csv.DictReader(io.StringIO(comparison_csv(made)))}
    assert (rows["1"]["cached_results"], rows["1"]["texts_per_second"], rows["1"]["peak_memory_mb"]) == ("1", "", "")
    line = "| 1 | bfloat16 | 0.81000 | +0.01000 | cached | cached | 3.0 | cached | cached | best |"
    assert line in comparison_markdown(made)
    static = page(made, [], "x").split("<script")[0]
    assert static.count(">cached</td>") == 4 and "nothing was measured" in static
    (effect,) = made.effects
    assert (effect.score_pairs, effect.speed_pairs, effect.speed) == (1, 0, None)


def test_a_report_starts_with_date_device_and_versions(tmp_path: Path) -> None:
    runs = [cached_run(at, outcome("S1", 0.8, (100, 900, 1.0)), dtype=str(at)) for at in range(2)]
    for run in runs:
        run.settings["engine"]["device"] = "cpu: AMD EPYC"
    made = written(tmp_path, *runs)
    version = made.rows[0].point.facts["versions.mteb"]
    markdown, terminal, html = comparison_markdown(made), shown(made), page(made, [], "x").split("<script")[0]
    assert (
        "- date: 2026-11-24 10:00 +00:00 to 2026-11-25 10:00 +00:00\n- device: cpu: AMD EPYC\n- versions: " in markdown
    )
    assert "\nDate: 2026-11-24 10:00 +00:00 to 2026-11-25" in terminal and "\nDevice: cpu: AMD EPYC\n" in terminal
    for text in (markdown, terminal, html):
        assert f"mteb {version}" in text.split("0.80000")[0], "before the scores"
    assert ">Device: cpu: AMD EPYC</p>" in html


def test_the_recommended_configuration_comes_with_a_command_that_bash_reads_back(tmp_path: Path) -> None:
    words = ["engine.dtype=float32", "prompts.query=it's: $HOME `x`", "~prompts.document", "tasks.names=[S1, S2]"]
    run = cached_run(0, outcome("S1", 0.8, (100, 900, 1.0)))
    run.overrides = words
    made = written(tmp_path, run)
    line = recommended_command(made)
    script = f"mteb-vllm() {{ printf '%s\\n' \"$@\"; }}\n{line}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.stdout.splitlines() == words
    assert f"\n{line}\n" in comparison_markdown(made) and f"Command that repeats this run: {line}\n" in shown(made)
    assert f">{line}</pre>" in unescape(page(made, [], "x"))
    others = replace(made.rows[0].point, source="results", arguments=None)
    assert recommended_command(compare([others])) == "", "nobody knows how these were made"


@pytest.mark.parametrize(
    ("models", "tasks", "expected"),
    [
        (["org/a"], ["S1"], "org/a on S1"),
        (["org/a", "org/b"], ["S1", "S2"], "org/a, org/b on S1, S2"),
        (["a", "b", "c", "d"], ["S1"], "a, b and 2 other models on S1"),
        (["org/a"], [f"T{at}" for at in range(5)], "org/a on T0, T1 and 3 other tasks"),
    ],
)
def test_titles_name_models_and_tasks(models: list[str], tasks: list[str], expected: str) -> None:
    scores = [TaskScore(name, score=0.5) for name in tasks]
    facts = {"tasks": ", ".join(tasks)}
    points = [Point(model, Path(model), facts={"model": model, **facts}, tasks=scores) for model in models]
    assert title(compare(points)) == expected
    benchmark = [replace(point, facts=point.facts | {"tasks": "MTEB(eng, v2)"}) for point in points]
    ending = f" on MTEB(eng, v2) ({len(tasks)} tasks)"
    assert title(compare(benchmark)).endswith(ending) == (len(tasks) > 3)


def test_many_tasks_have_a_table_of_their_own() -> None:
    tasks = [TaskScore(f"T{at}", score=0.5 + at / 100) for at in range(9)]
    made = compare([Point(name, Path(name), overrides={"x": name}, tasks=tasks) for name in "ab"])
    text, markdown = shown(made, 60), comparison_markdown(made)
    assert "Scores by task" in text and all(f"\nT{at}    0.5{at}000  0.5{at}000" in text for at in range(9))
    assert markdown.index("| T8 | 0.58000 | 0.58000 |") < markdown.index("## Conclusions")


def test_scores_are_shown_where_points_share_no_task() -> None:
    made = compare(
        [
            Point("a", Path("a"), facts={"model": "a"}, tasks=[TaskScore("A", score=0.25)]),
            Point("b", Path("b"), facts={"model": "b"}, tasks=[TaskScore(f"B{at}", score=0.75) for at in range(8)]),
            Point("c", Path("c"), facts={"model": "c"}, failures=[Failure("killed", "gone")]),
        ]
    )
    html = page(made, [], "x").split("<script")[0]
    assert made.shared == [] and 'id="all-tasks"' not in html
    assert ">0.25000</td>" in html and html.count(">0.75000</td>") == 8
    for text in (shown(made), comparison_markdown(made)):
        assert "0.25000" in text and text.count("0.75000") >= 8
    others = [
        Point("1", Path("1"), failures=[Failure("killed", "gone")]),
        Point("2", Path("2"), tasks=[TaskScore("B")]),
    ]
    one = compare([Point("0", Path("0"), tasks=[TaskScore("A", score=0.5)]), *others])
    assert one.shared == [] and "0.50000" in shown(one) and ">0.50000</td>" in page(one, [], "x")


def test_settings_that_few_points_change_share_a_column() -> None:
    def ran(at: int, **overrides: str) -> Point:
        facts = {"model": f"org/m{at}"}
        return Point(str(at), Path(str(at)), overrides=overrides, facts=facts, tasks=[TaskScore("A", score=0.5)])

    runs = [ran(0), ran(1, dtype="float16"), ran(2, prompts="e5", top_k="5"), ran(3, seed="1", length="256"), ran(4)]
    made = compare(runs)
    assert made.columns == ["model", "dtype", "prompts", "top_k", "seed", "length"]
    markdown = comparison_markdown(made)
    assert "| point | model | other settings | mean |" in markdown
    assert "| 0 | org/m0 |  | 0.50000 |" in markdown and "| 2 | org/m2 | prompts=e5, top_k=5 | 0.50000 |" in markdown
    assert comparison_csv(made).startswith("point,folder,status,model,dtype,prompts,top_k,seed,length,mean,")
    # A sweep over five settings, in which no value prevails, keeps its columns.
    values = [dict(zip("vwxyz", ("1", "2") if at % 2 else ("2", "1"), strict=False)) for at in range(4)]
    assert "other settings" not in comparison_markdown(compare([ran(at, **one) for at, one in enumerate(values)]))
