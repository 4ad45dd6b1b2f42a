"""Reports of throughput and parity: single runs, sweeps of either, and mixed sweeps."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_charts import title_of
from test_page import OUTSIDE, OVERLAPS, PALE, PLOT, WIDTHS, Opened, browser, data_of  # noqa: F401

import recompute
from measured_runs import mixed_runs, outcome, parity, parity_runs, record, throughput, throughput_runs, write_runs
from mteb_vllm import report
from mteb_vllm.config.schema import ReportConfig
from mteb_vllm.report import one_run
from mteb_vllm.report.answer import answer
from mteb_vllm.report.build import build_report
from mteb_vllm.report.charts import charts, picture, specifications, write_charts
from mteb_vllm.report.comparison import Comparison, compare
from mteb_vllm.report.formatting import BUSY_MACHINE
from mteb_vllm.report.loading import read_runs
from mteb_vllm.report.page import page
from mteb_vllm.report.tables import print_comparison
from mteb_vllm.report.throughput import throughput_lines
from mteb_vllm.results.measurements import Lengths, Memory
from mteb_vllm.results.parity import TaskVerdict
from mteb_vllm.results.record import RunRecord
from mteb_vllm.util.console import Console

Runs = Callable[[], list[RunRecord]]


def sweep(folder: Path, runs: list[RunRecord]) -> Path:
    """Write runs as a sweep, with the results of the points that were run for scores; return its folder."""
    for run in runs:
        for task in run.tasks if run.parity is None else ():
            kept = folder / "results" / "m" / "r" / "experiments" / f"settings_{run.fingerprint}"
            kept.mkdir(parents=True, exist_ok=True)
            scores = {"scores": {"test": [{"hf_subset": "default", "main_score": task.main_score}]}}
            (kept / f"{task.name}.json").write_text(json.dumps(scores))
    (folder / "results").mkdir(parents=True, exist_ok=True)
    return write_runs(folder / "sweeps" / "1", runs)


def compared(folder: Path, runs: list[RunRecord]) -> Comparison:
    return compare(read_runs([sweep(folder, runs)]))


def reported(folder: Path, runs: list[RunRecord], width: int = 250) -> tuple[Path, Comparison, str]:
    made, console = sweep(folder, runs), Console(file=io.StringIO(), width=width)
    comparison = build_report([made], made, ReportConfig(), console)
    return made, comparison, console.file.getvalue()  # type: ignore[attr-defined]


def test_replicas_are_a_setting_of_throughput_runs(tmp_path: Path) -> None:
    runs = [replace(throughput_runs()[0], point=at) for at in range(2)]
    for run, replicas in zip(runs, (1, 2), strict=True):
        assert run.engine is not None
        run.engine = replace(run.engine, replicas=replicas)
    assert compared(tmp_path, runs).columns == ["engine.replicas"]


def test_one_run_shows_the_throughput_of_each_replica() -> None:
    run = throughput_runs()[0]
    assert run.throughput is not None and run.throughput.saturated is not None
    assert not [line for line in throughput_lines(run) if "replica" in line]
    run.throughput.saturated = replace(run.throughput.saturated, by_replica=[121.26, 118.74])
    assert "Offline, by replica: 121.3, 118.7 requests/s." in throughput_lines(run)


def test_one_run_shows_its_steps_and_its_offline_throughput(tmp_path: Path) -> None:
    run = throughput_runs()[0]
    console = Console(file=io.StringIO(), width=120)
    one_run.print_run(console, run)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    one_run.write_run(run, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert all((tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in ("throughput", "roofline"))
    rows = [line.split() for line in printed.splitlines() if re.match(r" +\d+  ", line)]
    assert [int(row[0]) for row in rows] == [step.batch_size for step in run.throughput.steps]
    for row, step in zip(rows, run.throughput.steps, strict=True):
        figures = [float(cell.replace(",", "").strip("%")) for cell in row]
        assert figures[1:4] == pytest.approx(
            [step.requests_per_second, step.tokens_per_second, step.latency_ms.p50], rel=1e-2
        )
        assert sum(figures[6:9]) == pytest.approx(step.latency_ms.mean, rel=1e-2)
        assert f"| {' | '.join(row)} |" in text
    for shown in (printed, text):
        assert "240.0 requests/s, 30,720 tokens/s, the median of 3 repeats (2.13, 2.09, 2.20 s; spread 5.0%" in shown
        assert "50 GFLOP/s in float32" in shown and "46,729 tokens/s, of which the engine reaches 65.7% (MFU)" in shown
        assert "Peak memory: the process 1,200 MiB." in shown and "Engine start: 2.4 s; warm-up: 3.1 s." in shown
        assert "main score" not in shown


def test_one_run_of_parity_shows_its_scores_and_its_verdict(tmp_path: Path) -> None:
    run = parity_runs()[2]
    one_run.write_run(run, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert text.index("| STS12 |") < text.index("## Parity") and "with CLS pooling" in text
    console = Console(file=io.StringIO(), width=200)
    one_run.print_run(console, run)
    assert "with CLS pooling" in console.file.getvalue()  # type: ignore[attr-defined]
    assert [path.name for path in tmp_path.iterdir()] == ["report.md"]


def test_unknown_measurements_of_one_run_are_left_out() -> None:
    measured = throughput("float16", roofline=False)
    measured.saturated, measured.memory_mb = None, Memory(0.0, 0.0)
    text = one_run.run_markdown(record(0, throughput=measured))
    assert "Roofline: unknown (no matrix product in this dtype on this device)." in text
    assert "Offline" not in text and "memory" not in text
    failed = one_run.run_markdown(throughput_runs()[3])
    assert "engine did not start: Free memory" in failed and "throughput.png" not in failed


@pytest.mark.parametrize(
    ("lengths", "text"),
    [
        (Lengths("fixed", 512), "512 tokens each"),
        (Lengths("varied", 128, "lognormal", 128.0, 12, 256), "varied (lognormal), mean 128, 12 to 256 tokens"),
        (Lengths("varied", 128, "lognormal"), "varied (lognormal)"),
        (Lengths("tasks", mean=48.2, min=3, max=256), "the tasks' own texts, mean 48, 3 to 256 tokens"),
    ],
)
def test_lengths_in_words(lengths: Lengths, text: str) -> None:
    assert str(lengths) == text


@pytest.mark.parametrize(
    ("runs", "pictures"),
    [
        (throughput_runs, {"throughput", "roofline"}),
        (lambda: throughput_runs()[:1], {"throughput", "roofline"}),
        (parity_runs, {"reference_speed", "task_differences"}),
        (lambda: parity_runs()[:1], {"reference_speed"}),
        (mixed_runs, {"quality_speed", "reference_speed", "roofline", "task_differences", "throughput"}),
        (lambda: throughput_runs()[3:], set()),
    ],
)
def test_every_figure_of_a_report_is_that_of_the_records(runs: Runs, pictures: set[str], tmp_path: Path) -> None:
    made, comparison, _ = reported(tmp_path, runs())
    assert recompute.check(made) >= 4 * len(comparison.rows)
    assert {path.stem for path in made.glob("*.png")} == pictures


def test_a_sweep_without_scores_is_about_speed(tmp_path: Path) -> None:
    made, comparison, text = reported(tmp_path, throughput_runs())
    lines = answer(comparison)
    assert lines == [
        "1 of 4 points failed, entirely or on some tasks: point 3.",
        "Highest offline throughput: point 1 (engine.dtype=bfloat16), 440 requests/s, 56,320 tokens/s. "
        "Relative to the baseline (point 0): speed x1.83. That is 50.2% of the 112,150 tokens/s at the machine's roofline.",
        "Equally fast, within the spread of the repeats: point 2.",
        "Lowest latency of a single request: point 1 (engine.dtype=bfloat16), median 8.4 ms.",
        "engine.dtype=bfloat16 instead of float32: speed x1.83, 1 pair.",
        "engine.dtype=float16 instead of float32: speed x1.80, 1 pair.",
    ]
    assert all(line in text for line in lines) and "no best point" not in text
    head = next(line for line in text.splitlines() if line.startswith("point "))
    assert re.split(r"  +", head.strip()) == [
        "point", "engine.dtype", "requests/s", "tokens/s", "vs. baseline", "p50 at batch 1 (ms)", "MFU", "spread",
        "wall time (s)", "engine start (s)", "peak memory (MiB)",
    ]  # fmt: skip
    static = (made / "report.html").read_text().split("<script")[0]
    assert "all-MiniLM-L6-v2: throughput</h1>" in static and 'id="throughput"' in static and "0 tasks" not in static
    assert '<th scope="col" class="figure">score</th>' not in static
    console = Console(file=io.StringIO(), width=60)
    print_comparison(console, comparison)
    narrow = console.file.getvalue().split("Highest offline")[0]  # type: ignore[attr-defined]
    assert " 440" in narrow and "x1.83" not in narrow, "the columns that matter least go first"


def test_a_speed_within_the_spread_of_the_repeats_does_not_differ(tmp_path: Path) -> None:
    def ran(at: int, rate: float, spread: float) -> RunRecord:
        measured = throughput()
        measured.saturated.requests_per_second, measured.saturated.spread = rate, spread
        measured.saturated.seconds = [measured.requests / rate] * 3
        return record(at, "pipeline=throughput", f"engine.max_num_seqs={at}", throughput=measured)

    runs = [ran(0, 240.0, 0.05), ran(1, 250.0, 0.01), ran(2, 260.0, 0.01), ran(3, 232.0, 0.01), ran(4, 241.0, 0.0)]
    made, comparison, text = reported(tmp_path, runs)
    effects = {effect.value: effect for effect in comparison.effects}
    assert {value: effect.speed_differs for value, effect in effects.items()} == {
        "1": False, "2": True, "3": False, "4": False
    }  # fmt: skip
    assert "max_num_seqs=1 instead of 0: no measurable difference in speed, 1 pair." in text
    assert "max_num_seqs=2 instead of 0: speed x1.08, 1 pair." in text
    assert "| 1 | 0 | 1 |  |  |  | no measurable difference | x1.04 | x1.04 |" in (made / "report.md").read_text()
    assert ">no measurable difference</td>" in (made / "report.html").read_text()
    assert recompute.check(made) > 20


def test_an_mfu_above_100_percent_is_invalid_and_the_reason_is_given(tmp_path: Path) -> None:
    runs = throughput_runs()[:2]
    runs[1].throughput.roofline.mfu = 1.125
    runs[1].throughput.roofline.flops_per_second = 1.07e6 * 56_320 / 1.125
    runs[1].throughput.roofline.tokens_per_second = 56_320 / 1.125
    made, _, text = reported(tmp_path, runs)
    reason = "the machine was probably busy while its peak FLOP/s were measured"
    assert f"Invalid: an MFU of 112.5% (point 1) is impossible: {reason}" in text and "That is 112.5%" not in text
    row = next(line for line in (made / "report.md").read_text().splitlines() if line.startswith("| 1 |"))
    assert "| 112.5% (invalid) |" in row and ">112.5% (invalid)</td>" in (made / "report.html").read_text()
    best = next(csv.DictReader((made / "report.csv").open()))
    assert recompute.check(made) > 8 and float(best["mfu"]) == 1.125
    single = one_run.run_markdown(runs[1])
    assert f"Invalid: an MFU of 112.5% is impossible: {reason}" in single
    assert "Invalid" not in one_run.run_markdown(runs[0]) and "% (point 0)" not in text


def test_the_roofline_chart_flags_an_mfu_above_100_percent(tmp_path: Path) -> None:
    runs = throughput_runs()[:2]
    runs[1].throughput.roofline.mfu = 1.125
    made, comparison, _ = reported(tmp_path, runs)
    drawn = specifications(comparison)["roofline"]
    bars = {one["point"]: one for one in drawn["datasets"]["points"]}
    assert (
        bars["1"]["words"] == "56,320 tokens/s, MFU 112.5% (invalid)" and bars["1"]["tip"]["MFU"] == "112.5% (invalid)"
    )
    assert bars["0"]["words"] == "30,720 tokens/s, MFU 65.7%" and bars["0"]["tip"]["MFU"] == "65.7%"
    assert f"Invalid: an MFU above 100% is {BUSY_MACHINE}." in title_of(drawn)
    assert (made / "roofline.png").read_bytes() == picture(
        data_of((made / "report.html").read_text())["charts"]["roofline"]
    )


def test_a_valid_mfu_is_not_flagged_in_the_chart(tmp_path: Path) -> None:
    assert "nvalid" not in json.dumps(specifications(compared(tmp_path, throughput_runs()))["roofline"])


def test_other_texts_and_pairs_are_not_compared(tmp_path: Path) -> None:
    runs = [
        record(0, "pipeline=throughput", "pipeline.lengths=128", throughput=throughput()),
        record(1, "pipeline=throughput", "pipeline.lengths=32", throughput=throughput(tokens=32)),
        record(2, "pipeline=throughput", "pipeline.lengths=pairs", throughput=throughput(unit="pairs")),
    ]
    of_texts = compared(tmp_path / "texts", runs[:2])
    assert of_texts.fastest is of_texts.rows[1]
    assert any("texts of different lengths (32 tokens each; 128 tokens each)" in line for line in answer(of_texts))
    both = compared(tmp_path / "both", runs)
    assert both.fastest is None and [row.ratio for row in both.rows] == [1, 4, None]
    assert any("some points embed texts" in line.lower() for line in answer(both))
    assert [(effect.value, effect.speed) for effect in both.effects] == [("32", 4), ("pairs", None)]


def test_parity_names_the_points_that_passed_and_the_deviations_of_the_others(tmp_path: Path) -> None:
    made, comparison, text = reported(tmp_path, parity_runs())
    assert comparison.best is None and comparison.answer is None and not any(row.good for row in comparison.rows)
    assert comparison.passed is comparison.rows[0] and comparison.rows[0].parity_speed is comparison.rows[0].speed
    assert "Parity: 1 of 3 points passed. The reference: sentence-transformers 6.2.0 in float32." in text
    assert "Fastest that passed: point 0 (engine.dtype=float32), 4,000 tokens/s." in text
    assert (
        "Not passed: point 1 (engine.dtype=bfloat16): at worst -0.00070 in STS12, lowest cosine similarity 0.99985."
        in text
    )
    assert (
        "point 2 (engine.dtype=float16): at worst -0.01240 in STS12, lowest cosine similarity 0.41000. Pooling:" in text
        and "the lowest cosine is 0.99999.\n" in text
    )
    assert "Best:" not in text and "no best point" not in text
    rows = list(csv.DictReader((made / "report.csv").open()))
    assert [row["parity"] for row in rows] == ["True", "False", "False"]
    assert rows[2]["hint"].startswith("pooling: with CLS pooling") and rows[2]["status"] == "ok"
    static = (made / "report.html").read_text().split("<script")[0]
    assert 'id="quality_speed"' not in static and 'id="reference_speed"' in static
    assert ">not passed</td>" in static and ">fastest that passed</span>" in static


def test_the_speed_of_parity_is_that_of_throughput_on_the_same_engine(tmp_path: Path) -> None:
    of = compared(tmp_path, mixed_runs())
    speeds = {row.point.name: row.parity_speed for row in of.rows if row.parity_speed}
    assert {name: (speed.of, speed.tokens) for name, speed in speeds.items()} == {
        "2": ("5", 30720.0), "3": ("6", 56320.0), "4": ("7", 431 * 128.0)
    }  # fmt: skip
    assert of.best is of.answer is of.rows[0], "points that were run for parity or speed are neither"
    assert all(row.speed is None for row in of.rows if row.point.for_speed)
    drawn = specifications(of)["reference_speed"]["datasets"]["points"]
    assert [(one["tokens"], one["difference"], one["label"], one["verdict"], one["own"]) for one in drawn] == [
        (30720, 1e-6, "dtype=float32", "passed", False),
        (56320, pytest.approx(7e-4), "dtype=bfloat16", "not passed", False),
        (431 * 128, pytest.approx(0.0124), "dtype=float16", "not passed", False),
    ], "what is next to nothing is drawn at 1e-6"


def test_without_a_difference_or_a_speed_there_is_no_place(tmp_path: Path) -> None:
    silent = parity(0.0)
    silent.tasks = [TaskVerdict(task.task, reasons=["the engine failed: out of memory"]) for task in silent.tasks]
    silent.passed = False
    reused = replace(outcome("STS12", 0.7, 1.0), status="cached", seconds={}, computed=None, tokens=None)
    runs = [
        record(0, "pipeline=parity", parity=silent, tasks=(outcome("STS12", 0.7, 1.0),)),
        record(1, "pipeline=parity", dtype="bfloat16", parity=parity(-1e-3), tasks=(reused,)),
    ]
    of = compared(tmp_path, runs)
    assert "reference_speed" not in charts(of) and of.passed is None
    assert answer(of)[:3] == [
        "Parity: 0 of 2 points passed. The reference: sentence-transformers 6.2.0 in float32.",
        "Not passed: point 1 (engine.dtype=bfloat16): at worst -0.00100 in STS12, lowest cosine similarity 0.99990.",
        "Not passed: point 0 (engine.dtype=float32): STS12: the engine failed: out of memory.",
    ]


def test_of_many_points_all_are_drawn_and_the_fastest_have_colours_of_their_own(tmp_path: Path) -> None:
    runs = []
    for at in range(30):
        measured = throughput()
        measured.saturated.requests_per_second = measured.saturated.tokens_per_second = 100.0 + at
        run = record(at, f"engine.max_num_seqs={at}", throughput=measured)
        run.engine.fingerprint = f"engine {at}"
        runs.append(run)
    of = compared(tmp_path, runs)
    drawn = specifications(of)
    steps, bars = drawn["throughput"]["datasets"]["steps"], drawn["roofline"]["datasets"]["points"]
    assert [(one["point"], one["rate"], one["p50"]) for one in steps] == [
        (row.point.name, step.requests_per_second, step.latency_ms.p50)
        for row in reversed(of.rows)
        for step in row.point.throughput.steps
    ]
    fastest_first = [str(at) for at in reversed(range(30))]
    assert [one["point"] for one in drawn["throughput"]["datasets"]["saturated"]] == fastest_first
    assert [(one["point"], one["tokens"], round(one["roofline"])) for one in bars] == [
        (name, 100.0 + int(name), 46729) for name in fastest_first
    ]
    engines = {one["point"]: one["engine"] for one in bars}
    assert {engines[str(at)] for at in range(23)} == {"23 other engines"}
    assert [engines[str(at)] for at in range(23, 30)] == [f"max_num_seqs={at}" for at in range(23, 30)]
    assert {one["size"] for one in steps if one["wide"]} >= {"1", "64"}


def unlike_ranks() -> list[RunRecord]:
    """Parity runs, of which that with the highest scores is the furthest from the reference."""
    offs = {"float32": 0.0124, "bfloat16": -7e-4, "float16": 2e-7}
    return [
        record(
            at, "pipeline=parity", dtype=dtype, parity=parity(off),
            tasks=(outcome("STS12", 0.7237 + off, 20.0 - at), outcome("STS13", 0.8 + off / 2, 10.0)),
        )
        for at, (dtype, off) in enumerate(offs.items())
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("runs", "ranked", "bars", "columns"),
    [
        (throughput_runs, "1203", "120", ""),
        (unlike_ranks, "210", "", "21"),
        (mixed_runs, "023467518", "675", "2341"),
    ],
    ids=["throughput", "parity", "mixed"],
)
def test_tables_and_charts_have_the_same_order_the_best_first(
    tmp_path: Path, runs: Runs, ranked: str, bars: str, columns: str
) -> None:
    made, comparison, text = reported(tmp_path, runs())
    html = (made / "report.html").read_text()
    orders = {
        "CSV": [row["point"] for row in csv.DictReader((made / "report.csv").open())],
        "Markdown": re.findall(r"^\| (\d) \|", (made / "report.md").read_text().split("## ")[0], re.MULTILINE),
        "page": re.findall(r'<tr data-at="(\d)"', html),
        "terminal": re.findall(r"^(\d)  ", text.split("\n1 of ")[0].split("Parity:")[0], re.MULTILINE),
    }
    assert orders == {place: list(ranked) for place in orders}
    assert set(ranked) == {row.point.name for row in comparison.rows}
    drawn = data_of(html)["charts"]
    points = drawn["roofline"]["datasets"]["points"] if bars else []
    assert [one["point"] for one in points] == list(bars)
    if bars:
        (layer,) = (layer for layer in drawn["roofline"]["layer"] if layer.get("name") == "bars")
        assert layer["encoding"]["y"]["scale"]["domain"] == list(bars)
    cells = drawn["task_differences"]["datasets"]["cells"] if columns else []
    assert list(dict.fromkeys(one["point"] for one in cells)) == list(columns)


def test_colour_is_the_engine_and_shape_the_lengths(tmp_path: Path) -> None:
    runs = [
        record(at, f"pipeline.lengths={tokens}", dtype=dtype, throughput=throughput(dtype, tokens=tokens))
        for at, (dtype, tokens) in enumerate([("float32", 32), ("float32", 128), ("bfloat16", 32), ("bfloat16", 128)])
    ]
    drawn = specifications(compared(tmp_path, runs))["throughput"]
    kinds = {one["point"]: (one["engine"], one["lengths"]) for one in drawn["datasets"]["steps"]}
    assert kinds == {
        "0": ("dtype=float32", "32 tokens each"), "1": ("dtype=float32", "128 tokens each"),
        "2": ("dtype=bfloat16", "32 tokens each"), "3": ("dtype=bfloat16", "128 tokens each"),
    }  # fmt: skip
    (steps,) = (layer["encoding"] for layer in drawn["layer"] if layer.get("name") == "steps")
    assert steps["color"]["field"] == "engine" and steps["shape"]["field"] == "lengths"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_looks_right(browser: Any, tmp_path: Path, width: int, scheme: str) -> None:  # noqa: F811
    of = compared(tmp_path, mixed_runs())
    with Opened(browser, page(of, answer(of), "Sweep"), tmp_path, width, scheme) as opened:
        assert opened.messages == []
        assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert opened.page.evaluate(OUTSIDE) == [] and opened.page.evaluate(PALE) == []
        assert opened.page.evaluate(OVERLAPS) == []
        assert opened.page.locator("#throughput .steps_marks path").count() == 21
        assert (
            opened.page.locator("#roofline .bars_marks path").count() == 3
            and opened.page.locator("#roofline .rooflines_marks path").count() == 2
        )
        assert opened.page.locator("#reference_speed .points_marks path[fill-opacity='0']").count() == 3
        # Wherever the note's lines are broken.
        assert "Lowerrightisbetter." in "".join(opened.page.text_content("#throughput").split())
        step = opened.page.locator("#throughput .steps_marks path").nth(10)
        step.scroll_into_view_if_needed()
        box = step.bounding_box()
        opened.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        opened.page.wait_for_selector("#throughput .curves_marks path[stroke-width='3']")
        assert "Point 7" in opened.page.inner_text("#selected"), "the second best"
        opened.page.set_viewport_size({"width": 1680 - width, "height": 900})
        assert opened.page.evaluate(WIDTHS) == []
        assert opened.page.evaluate(OUTSIDE) == [] and opened.page.evaluate(OVERLAPS) == [] and opened.messages == []


@pytest.mark.parametrize("width", [1280, 400])
def test_legends_of_throughput_do_not_push_the_plot_away(browser: Any, tmp_path: Path, width: int) -> None:  # noqa: F811
    runs = []
    for at in range(30):
        run = record(at, f"engine.compilation_config={'x' * 200}{at}", throughput=throughput(tokens=2 ** (4 + at % 4)))
        run.engine.fingerprint = f"engine {at}"
        runs.append(run)
    of = compared(tmp_path, runs)
    with Opened(browser, page(of, answer(of), "Sweep"), tmp_path, width) as opened:
        assert opened.page.locator("#throughput .role-legend").count() == 2, "one for engines, one for lengths"
        across, up = opened.page.evaluate(PLOT, "#throughput .steps_voronoi")
        assert across > 250 and up > 300
        assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert opened.page.evaluate(OUTSIDE) == [] and opened.page.evaluate(OVERLAPS) == [] and opened.messages == []


def next_frame(opened: Opened) -> None:
    opened.page.evaluate("async () => { for (const _ of [1, 2]) await new Promise(requestAnimationFrame); }")


@pytest.mark.parametrize(
    ("chart", "marks", "field"), [("throughput", "steps", "engine"), ("reference_speed", "points", "verdict")]
)
def test_an_entry_of_a_legend_shows_its_marks_alone(
    browser: Any,  # noqa: F811
    tmp_path: Path,
    chart: str,
    marks: str,
    field: str,
) -> None:
    of = compared(tmp_path, mixed_runs())
    with Opened(browser, page(of, answer(of), "Sweep"), tmp_path) as opened:

        def clear() -> set[str]:
            """The values of the marks that are not faint."""
            next_frame(opened)
            script = "(all, field) => all.map(({__data__: one}) => [one.datum[field], one.opacity])"
            found = opened.page.eval_on_selector_all(f"#{chart} .{marks}_marks path", script, field)
            return {value for value, opacity in found if opacity == 1}

        entries = opened.page.locator(f"#{chart} .role-legend-label text")
        names = entries.all_text_contents()
        assert len(names) > 1 and clear() == set(names)
        opened.page.locator(f"#{chart} .role-legend-symbol path").nth(1).click(force=True)
        assert clear() == {names[1]} and opened.messages == []


def test_a_curve_goes_from_batch_size_to_batch_size(tmp_path: Path) -> None:
    run = throughput_runs()[0]
    assert run.throughput is not None
    run.throughput.steps[-1] = replace(run.throughput.steps[-1], requests_per_second=1.0)  # the largest is the slowest
    drawn = specifications(compared(tmp_path, [run]))["throughput"]
    (line,) = [layer for layer in drawn["layer"] if layer.get("name") == "curves"]
    order = line["encoding"]["order"]["field"]
    rows = sorted(drawn["datasets"]["steps"], key=lambda row: row[order])
    assert [row["size"] for row in rows] == ["1", "2", "4", "8", "16", "32", "64"]


def test_a_chart_mentions_only_what_it_shows(tmp_path: Path) -> None:
    both = compared(tmp_path / "2", throughput_runs()[:2])
    assert "Thick: selected." in title_of(specifications(both)["throughput"])
    assert "Dotted: selected." in title_of(specifications(both)["roofline"])
    run = throughput_runs()[0]
    assert run.throughput is not None
    alike = [replace(one, latency_ms=replace(one.latency_ms, p90=one.latency_ms.p50)) for one in run.throughput.steps]
    run.throughput.steps = alike
    drawn = specifications(compared(tmp_path / "1", [run]))
    assert "selected" not in title_of(drawn["throughput"]) + title_of(drawn["roofline"])
    assert "p90" in title_of(specifications(both)["throughput"]) and "p90" not in title_of(drawn["throughput"])


def test_a_click_on_a_bar_selects_its_point(browser: Any, tmp_path: Path) -> None:  # noqa: F811
    of = compared(tmp_path, mixed_runs())
    with Opened(browser, page(of, answer(of), "Sweep"), tmp_path) as opened:
        for at, name in enumerate("675"):
            bar = opened.page.locator("#roofline .bars_marks path").nth(at)
            bar.scroll_into_view_if_needed()
            box = bar.bounding_box()
            opened.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
            next_frame(opened)
            assert f"Point {name}" in opened.page.inner_text("#selected")
            assert f"Point {name}" in opened.page.inner_text("#vg-tooltip-element")
            assert opened.page.locator("#points tr[aria-current]").get_attribute("data-at") == name
        assert opened.messages == []


@pytest.mark.parametrize(
    "runs", [throughput_runs, lambda: throughput_runs()[3:], parity_runs, lambda: parity_runs()[:1]]
)
def test_pages_of_one_kind_draw_without_complaint(browser: Any, tmp_path: Path, runs: Runs) -> None:  # noqa: F811
    of = compared(tmp_path, runs())
    with Opened(browser, page(of, answer(of), "Sweep"), tmp_path, 700) as opened:
        assert opened.messages == [] and opened.page.evaluate(OUTSIDE) == [] and opened.page.evaluate(PALE) == []
        assert (opened.page.locator("#h-quality_speed").count() == 1) == of.scored
        assert not re.search("NaN|Infinity|-0<", opened.page.inner_html("main"))
        opened.page.locator("#points thead button").nth(2).click()
        opened.page.fill("#filter", "float32")
        assert opened.messages == []


def test_the_pictures_of_a_report_are_made_of_the_charts_of_its_page(tmp_path: Path) -> None:
    made, _, _ = reported(tmp_path, mixed_runs())
    on_page = data_of((made / "report.html").read_text())["charts"]
    pictures = {path.stem: path.read_bytes() for path in made.glob("*.png")}
    assert sorted(pictures) == ["quality_speed", "reference_speed", "roofline", "task_differences", "throughput"]
    assert pictures == {name: picture(one) for name, one in on_page.items()}


def test_selections_are_declared_in_the_specifications(tmp_path: Path) -> None:
    drawn = specifications(compared(tmp_path, mixed_runs()))
    declared = {
        name: {param["name"]: param for part in (one, *one["layer"]) for param in part.get("params", [])}
        for name, one in drawn.items()
    }
    assert len(declared) == 5
    for name, params in declared.items():
        picked, pointed = params["picked"]["select"], params["pointed"]["select"]
        assert (picked["type"], picked["on"], picked["fields"]) == ("point", "click", ["point"]), name
        assert (pointed["type"], pointed["on"], pointed["clear"]) == ("point", "pointerover", "pointerout"), name
        assert '"tooltip": {"expr": "' in json.dumps(drawn[name]), name
    legends = {name for name, params in declared.items() if params.get("legend", {}).get("bind") == "legend"}
    assert legends == {"quality_speed", "throughput", "reference_speed"}
    script = (Path(report.__file__).parent / "page.js").read_text()
    assert not re.search("pointer(move|over|out)|mouse|createElementNS|canvas", script), (
        "page.js only connects the charts"
    )


def test_the_title_of_the_page_names_models_and_tasks(tmp_path: Path) -> None:
    made, _, _ = reported(tmp_path, mixed_runs())
    title = "sentence-transformers/all-MiniLM-L6-v2 on STS12, STS13"
    html = (made / "report.html").read_text()
    assert f"<title>{title}</title>" in html and f"<h1>{title}</h1>" in html


def test_pictures_of_a_report_before_do_not_stay(tmp_path: Path) -> None:
    write_charts(specifications(compared(tmp_path / "mixed", mixed_runs())), tmp_path)
    assert write_charts(specifications(compared(tmp_path / "failed", throughput_runs()[3:])), tmp_path) == []
    assert list(tmp_path.glob("*.png")) == []
