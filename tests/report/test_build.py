"""`pipeline=report` over runs, sweeps and results of others: nothing is evaluated, and errors are reported."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mteb_vllm import run
from mteb_vllm.errors import ConfigError
from mteb_vllm.preflight.command import check
from mteb_vllm.report.comparison import Comparison
from mteb_vllm.results.record import RunRecord, TaskOutcome, write_record
from mteb_vllm.sweep.job import Job
from mteb_vllm.sweep.planning import plan_points
from mteb_vllm.util.console import Console

FILES = ["quality_speed.png", "report.csv", "report.html", "report.md", "task_differences.png"]


def record(folder: Path, point: int, dtype: str, score: float, seconds: float) -> RunRecord:
    task = TaskOutcome(
        "STS12", "STS", "computed", "cosine_spearman", score, seconds={"encode": seconds}, texts=100, computed=100, stored=0,
        tokens=1000,
    )  # fmt: skip
    made = RunRecord(
        overrides=[f"engine.dtype={dtype}"],
        point=point,
        settings={"engine": {"model": "org/name", "args": {"dtype": dtype}}},
        config={"tasks": {"names": ["STS12"]}, "pipeline": {}},
        tasks=[task],
        seconds=seconds + 1,
        started="2026-11-24T10:00:00+00:00",
        output_dir=str(folder / str(point)),
    )
    write_record(made, folder / str(point))
    return made


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    folder = tmp_path / "out" / "sweeps" / "2026-11-24" / "10-00-00"
    for at, (dtype, score, seconds) in enumerate(
        (("float32", 0.8, 2.0), ("bfloat16", 0.7995, 1.0), ("float16", 0.7, 0.5))
    ):
        record(folder, at, dtype, score, seconds)
    return folder


def test_a_report_is_written_if_stdout_is_closed(sweep: Path, tmp_path: Path) -> None:
    check([])  # makes the catalogues, where there are none yet: their making is announced on stderr
    command = f"{sys.executable} -m mteb_vllm pipeline=report runs={sweep} pipeline.dir={tmp_path}/report"
    line = f"set -o pipefail; (sleep 1; {command}) | true"  # `true` has ended before anything is printed
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (141, "")
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == FILES


def test_a_report_is_built_from_an_existing_sweep(sweep: Path, tmp_path: Path) -> None:
    made: Any = run(
        ["pipeline=report", f"runs={sweep}", f"results.dir={tmp_path}/out", "report.baseline=1"], show=False
    )
    assert isinstance(made, Comparison)
    assert (made.answer.point.name, made.baseline, made.columns) == ("1", "1", ["engine.dtype"])  # type: ignore[union-attr]
    (folder,) = (tmp_path / "out" / "reports").glob("*/*")
    assert sorted(path.name for path in folder.iterdir()) == FILES
    rows = list(csv.DictReader((folder / "report.csv").open()))
    assert [float(row["difference"]) for row in rows] == pytest.approx([0.0005, 0, -0.0995])
    strict: Any = run(["pipeline=report", f"runs={sweep}", "report.epsilon=0", f"pipeline.dir={sweep}"], show=False)
    assert strict.answer.point.name == "0" and set(FILES) < {path.name for path in sweep.iterdir()}


def test_the_end_of_a_name_is_enough_for_the_baseline(sweep: Path, tmp_path: Path) -> None:
    later = sweep.with_name("11-00-00")
    for at in range(2):
        record(later, at, "float32", 0.8, 2.0)
    words = ["pipeline=report", f"runs={sweep.parent}", f"results.dir={tmp_path}/out"]
    for baseline in ("2", "10-00-00/2"):
        made: Any = run([*words, f"report.baseline={baseline}"], show=False)
        assert (len(made.rows), made.baseline) == (5, "10-00-00/2")
    with pytest.raises(ConfigError) as caught:
        run([*words, "report.baseline=1"], show=False)
    assert "report.baseline=1: 2 points have this name\n    Names: 10-00-00/1, 11-00-00/1." in str(caught.value)
    with pytest.raises(ConfigError, match=r"report\.baseline=0/1: no point has this name") as caught:
        run([*words, "report.baseline=0/1"], show=False)
    assert "10-00-00/0, 10-00-00/1, 10-00-00/2, 11-00-00/0, 11-00-00/1." in str(caught.value)


def test_any_set_of_runs_can_be_compared(sweep: Path, tmp_path: Path) -> None:
    others = tmp_path / "others" / "org__other" / "abc"
    others.mkdir(parents=True)
    content = {
        "task_name": "STS12",
        "scores": {"test": [{"hf_subset": "default", "main_score": 0.5}]},
        "mteb_version": "2",
    }
    (others / "STS12.json").write_text(json.dumps(content))
    runs = f"runs=[{sweep}/0,'{sweep.parent}/*/2',{tmp_path}/others]"
    made: Any = run(["pipeline=report", runs, f"results.dir={tmp_path}/out"], show=False)
    assert [row.mean for row in made.rows] == [0.8, 0.7, 0.5] and made.columns == ["model", "engine.dtype"]
    single: Any = run(["pipeline=report", f"runs={sweep}/2/run.json", f"results.dir={tmp_path}/out"], show=False)
    assert len(single.rows) == 1


def test_errors_in_the_configuration_are_reported(sweep: Path, tmp_path: Path) -> None:
    def error_of(*overrides: str, multirun: bool = False) -> str:
        with pytest.raises(ConfigError) as error:
            run([f"results.dir={tmp_path}/out", *overrides], multirun=multirun, show=False)
        return str(error.value)

    assert "no runs to compare are specified" in error_of("pipeline=report")
    assert f"runs={tmp_path}/none: there is no such file or folder" in error_of(
        "pipeline=report", f"runs={tmp_path}/none"
    )
    assert "no point has this name" in error_of("pipeline=report", f"runs={sweep}", "report.baseline=7")
    assert "cannot be swept" in error_of("pipeline=report", f"runs={sweep}", "report.epsilon=0,1", multirun=True)
    assert "Add: pipeline=report" in error_of(f"runs={sweep}")
    assert "the sweep has points 0 to 1" in error_of("engine.dtype=float32,float16", "report.baseline=2", multirun=True)
    assert "must be 0 or more" in error_of("pipeline=report", f"runs={sweep}", "report.epsilon=-1")
    assert "computes no scores" in error_of("pipeline=report", f"runs={sweep}", "dry_run=true")
    (tmp_path / "file").write_text("in the way")
    assert f"pipeline.dir={tmp_path}/file" in error_of(
        "pipeline=report", f"runs={sweep}", f"pipeline.dir={tmp_path}/file"
    )
    assert not (tmp_path / "out" / "reports").exists()


def test_the_command_line_makes_a_report_without_mteb_torch_or_vllm(sweep: Path, tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from mteb_vllm.cli import main\n"
        "try:\n    main()\n"
        "finally:\n    print('loaded', *sorted({'mteb', 'torch', 'vllm'} & set(sys.modules)))\n"
    )
    words = ["pipeline=report", f"runs={sweep.parent}/*", f"pipeline.dir={tmp_path}/report"]
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Fastest of the 2 points" in done.stdout and "\nReport: report/report.html\n" in done.stdout
    assert done.stdout.splitlines()[-1] == "loaded"
    failed = subprocess.run([sys.executable, "-m", "mteb_vllm", "pipeline=report"], capture_output=True, text=True)
    assert failed.returncode == 2 and "Traceback" not in failed.stderr


def test_a_report_that_fails_does_not_fail_the_sweep(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no pictures today")

    monkeypatch.setattr("mteb_vllm.report.charts.write_charts", broken)
    console = Console(file=io.StringIO(), width=400)
    records = [record(sweep, at, "float32", 0.8, 1.0) for at in range(2)]
    Job(console, plan_points(check([])), records, sweep).end_sweep()
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "no pictures today" in text and f"runs={sweep}" in text
    assert (sweep / "report.csv").exists()
