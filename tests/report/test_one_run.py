"""The report of one run: failures first, cached results marked, prompts escaped."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from measured_runs import parity
from mteb_vllm.errors import EngineStartError
from mteb_vllm.models.prompts import Prompts
from mteb_vllm.progress import Progress
from mteb_vllm.report import one_run
from mteb_vllm.report.parity import print_parity
from mteb_vllm.results.counters import Measured
from mteb_vllm.results.failures import Failure
from mteb_vllm.results.measurements import EngineRecord
from mteb_vllm.results.parity import DifferingText
from mteb_vllm.results.record import RunRecord, TaskOutcome, write_record
from mteb_vllm.util.console import Console

FINE = TaskOutcome(
    "STS12", "STS", "computed", "cosine_spearman", 0.72369,
    scores={"test": {"default": {"main_score": 0.72369, "cosine_spearman": 0.72369, "odd": float("nan")}}},
    seconds={"load": 1.0, "encode": 4.0, "score": 0.5}, texts=900, computed=800, tokens=8_000,
    prompts={"texts": {"prefix": "a|b\n", "key": "STS", "example": "a|b\n`text` [red]"}},
)  # fmt: skip
FAILED = TaskOutcome(
    "NFCorpus", "Retrieval", "failed", "ndcg_at_10", failure=Failure("data", "ConnectionError: no [bold]network", "NFCorpus")
)  # fmt: skip
REUSED = TaskOutcome("SciFact", "Retrieval", "cached", "ndcg_at_10", 0.64508)


def record(*tasks: TaskOutcome, overrides: tuple[str, ...] = (), point: int | None = None) -> RunRecord:
    status: Any = "failed" if any(task.status == "failed" for task in tasks) else "ok"
    return RunRecord(
        status=status,
        fingerprint="0123456789abcdef",
        overrides=list(overrides),
        point=point,
        settings={"engine": {"model": "org/name"}},
        tasks=list(tasks),
    )


def shown(show: Any, *args: Any) -> str:
    console = Console(file=io.StringIO(), width=160)
    show(console, *args)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_failures_come_first_and_cached_results_have_no_speed() -> None:
    _, rows = one_run.task_table(record(FINE, REUSED, FAILED))
    assert [row[0] for row in rows] == ["NFCorpus", "STS12", "SciFact", "mean score of 2 of 3 tasks / total"]
    assert rows[1][2:] == ("0.72369", "200", "2,000", "5.5", "")
    assert rows[2][3:] == ("cached", "", "", "")
    assert rows[3][2] == "0.68439"


def test_a_reranking_run_shows_both_stages_and_the_ceiling() -> None:
    pair = {"pair": {"key": None, "example": "a b"}}
    one = TaskOutcome(
        "SciFact", "Retrieval", "computed", "ndcg_at_10", 0.75, seconds={"encode": 2.0}, texts=20, computed=10, tokens=100,
        prompts=pair, candidates="first stage", first_stage=0.5, ceiling=0.875,
    )  # fmt: skip
    own = TaskOutcome("AskUbuntu", "Reranking", "cached", "map_at_1000", 0.25, candidates="own", ceiling=1.0)
    columns, (first, second, mean) = one_run.task_table(record(one, own))
    assert columns[2:9] == (
        "first stage", "reranked", "gain", "ceiling", "share of ceiling", "share of possible gain", "pairs/s"
    )  # fmt: skip
    assert first[2:10] == ("0.50000", "0.75000", "+0.25000", "0.87500", "85.7%", "66.7%", "5", "50")
    assert second[2:9] == ("own candidates", "0.25000", "", "1.00000", "25.0%", "", "cached")
    assert mean[2:8] == ("", "0.50000", "", "0.93750", "55.4%", ""), "a mean is of all tasks, or of none"
    assert "| first stage | reranked | gain |" in one_run.run_markdown(record(one, own))


def test_user_text_is_not_parsed_as_markup() -> None:
    text = shown(one_run.print_run, record(FINE, FAILED))
    assert "[bold]network" in text
    task = SimpleNamespace(name="STS12", type="STS", prompt=None, sides=("",))
    text = shown(one_run.print_prompts, Prompts({"STS": "[red]x\n", "query": "q"}, source="mine"), [task])
    assert r"[red]x\n<text>" in text
    assert "Prompt keys that no task uses: query" in text


def test_markdown_survives_pipes_and_line_breaks() -> None:
    lines = [line for line in one_run.run_markdown(record(FINE, FAILED)).splitlines() if line.startswith("|")]
    for line in lines:
        columns = line.replace("\\|", "").count("|")
        assert columns in (5, 8), line
    assert any("a&#124;b" in line for line in lines)


def test_a_record_is_valid_json_with_any_scores(tmp_path: Path) -> None:
    write_record(record(FINE, FAILED), tmp_path)
    content = json.loads(
        (tmp_path / "run.json").read_text(), parse_constant=lambda word: (_ for _ in ()).throw(ValueError(word))
    )
    assert content["tasks"][0]["scores"]["test"]["default"]["odd"] is None
    csv = (tmp_path / "scores.csv").read_text().splitlines()
    assert csv[1] == "STS12,STS,test,default,cosine_spearman,0.72369,1,computed"
    assert csv[-1] == "NFCorpus,Retrieval,,,ndcg_at_10,,,failed"


def test_progress_is_plain_lines_when_piped_and_a_bar_on_a_terminal() -> None:
    for terminal in (False, True):
        console = Console(file=io.StringIO(), width=120, force_terminal=terminal, color_system=None)
        with Progress(console, 3) as progress:
            for outcome in (FINE, REUSED, FAILED):
                progress.start_task(outcome.name)
                for done in range(0, 101):
                    progress.encoded("texts", done, 100)
                progress.end_task(outcome)
        text = console.file.getvalue()  # type: ignore[attr-defined]
        assert "[1/3] STS12: cosine_spearman 0.72369 in 5.5 s, 200 texts/s" in text
        assert "[2/3] SciFact: ndcg_at_10 0.64508 (cached)" in text
        assert "[3/3] NFCorpus: failed: ConnectionError: no [bold]network" in text
        if not terminal:
            assert text.count("\n") == 3 and "\x1b" not in text


def test_the_report_names_model_and_tasks_and_starts_with_date_device_and_versions() -> None:
    made = record(FINE, REUSED)
    made.settings["engine"] |= {"device": "cpu: AMD EPYC", "versions": {"vllm": "0.32.0"}}
    made.versions, made.started, made.seconds = {"mteb": "2.26.24"}, "2026-11-24T10:00:07+00:00", 61.25
    lines = one_run.run_markdown(made).splitlines()
    assert lines[0] == "# org/name on STS12, SciFact"
    assert lines[2:6] == [
        "- status: ok",
        "- date: 2026-11-24 10:00 +00:00, 61.2 s",
        "- device: cpu: AMD EPYC",
        "- versions: mteb 2.26.24, vllm 0.32.0",
    ]


def test_the_summary_counts_cached_results() -> None:
    made = record(FINE, REUSED)
    made.config = {"results": {"dir": "outputs"}}
    assert "1 of 2 results was cached; to recompute: results.reuse=none" in shown(one_run.print_summary, made)


@pytest.mark.parametrize(
    ("tasks", "text"),
    [
        ((REUSED,), "The result was cached; to recompute: results.reuse=none"),
        ((REUSED, REUSED), "All results were cached; to recompute: results.reuse=none"),
        ((FINE, REUSED, REUSED), "2 of 3 results were cached; to recompute: results.reuse=none"),
    ],
)
def test_the_summary_of_cached_results_is_grammatical(tasks: tuple[TaskOutcome, ...], text: str) -> None:
    made = record(*tasks)
    made.config = {"results": {"dir": "outputs"}}
    assert text in shown(one_run.print_summary, made)


@pytest.mark.parametrize(
    ("unit", "count", "text"),
    [
        ("texts", 1, "1 of 900 texts (0.1%) exceeds the context length of 8 tokens and was truncated."),
        ("texts", 9, "9 of 900 texts (1.0%) exceed the context length of 8 tokens and were truncated."),
        ("pairs", 1, "1 of 900 pairs (0.1%) exceeds the context length of 8 tokens and lost the end of its document."),
        ("pairs", 9, "9 of 900 pairs (1.0%) exceed the context length of 8 tokens and lost the end of their document."),
    ],
)
def test_one_truncated_text_is_singular(unit: Any, count: int, text: str) -> None:
    task = replace(FINE, truncated=count, prompts={"pair": {}} if unit == "pairs" else {})
    engine = EngineRecord("vllm", "vllm_cpu", "aaaa", 1, 0.5, {"max_model_len": 8})
    assert list(one_run.truncation_notes(task, engine)) == [f"STS12: {text}"]
    cached = replace(FINE, status="cached", texts=None, computed=None, measured=task.to_measured(engine))
    assert list(one_run.truncation_notes(cached, None)) == [f"STS12: {text}"], (
        "a run that reuses the result repeats the note"
    )
    assert not list(one_run.truncation_notes(replace(cached, measured=Measured(texts=900, truncated=1)), None))


def test_the_record_is_shown_relative_to_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = record(FINE)
    made.config = {"results": {"dir": "outputs"}}
    made.output_dir = str(tmp_path / "outputs" / "runs" / "1")
    write_record(made, Path(made.output_dir))
    monkeypatch.chdir(tmp_path)
    assert shown(one_run.print_summary, made).splitlines()[-1] == "Record: outputs/runs/1/run.json"
    monkeypatch.chdir(tmp_path / "outputs" / "runs" / "1")
    assert shown(one_run.print_summary, made).splitlines()[-1] == "Record: run.json"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    # A console breaks long lines.
    assert "".join(shown(one_run.print_summary, made).split()).endswith(f"Record:{made.output_dir}/run.json")


def test_the_first_score_names_what_ran_before_the_engine() -> None:
    made = record(FINE)
    made.config = {"results": {"dir": "outputs"}}
    made.first_score = {"start": 1.0, "import": 2.0, "reference": 57.8, "engine": 20.0, "load": 0.01, "encode": 4.0}
    expected = (
        "First score after 84.8 s: 1.0 s starting, 2.0 s importing mteb, 57.8 s for the reference, 20.0 s opening"
    )
    assert expected in shown(one_run.print_summary, made)


def test_the_texts_that_differ_most_are_quoted_with_their_side() -> None:
    verdict = parity(-0.0124, cosine=0.41)
    verdict.tasks[0].worst = [DifferingText("Set up\na server", "texts", 0.38128), DifferingText("how?", "query", 0.5)]
    text = shown(print_parity, verdict)
    assert 'STS12: cosine similarity 0.38128: "Set up a server"\n' in text
    assert 'STS12: cosine similarity 0.50000, query: "how?"\n' in text


def test_advice_ends_with_one_full_stop() -> None:
    for advice in ("repair the data", "repair the data."):
        failure = Failure("data", "no such split", "STS12", advice=advice)
        assert "What to try: repair the data.\n" in shown(one_run.print_failure, failure)
        assert one_run.failure_lines(failure)[2] == "What to try: repair the data."
        assert str(EngineStartError("it did not open", advice)).endswith("What to try: repair the data.")


def test_no_number_is_wrapped_on_a_narrow_terminal() -> None:
    task = TaskOutcome(
        "StdlibDocsRetrieval", "Retrieval", "computed", "ndcg_at_10", 0.75, seconds={"encode": 2.0}, texts=20, computed=10,
        tokens=100, candidates="first stage", first_stage=0.5, ceiling=0.875, prompts={"pair": {"key": None}},
    )  # fmt: skip
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    one_run.print_run(console, record(task))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    line = next(line for line in text.splitlines() if line.startswith("StdlibDocsRetrieval"))
    assert line.split() == ["StdlibDocsRetrieval", "ndcg_at_10", "0.50000", "0.75000", "+0.25000", "0.87500", "66.7%"]
    left_out = "Only in report.md: the columns tokens/s, share of ceiling, seconds, pairs/s"
    assert left_out in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80
