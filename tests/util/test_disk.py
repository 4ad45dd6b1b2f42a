"""Full and unwritable disks: found by the check, reported in one line, and without loss of computed results."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mteb_vllm import cli
from mteb_vllm.api import build_report, storage_errors
from mteb_vllm.config.schema import ReportConfig
from mteb_vllm.errors import ConfigError, DataError, MtebVllmError, StorageError
from mteb_vllm.preflight.command import check
from mteb_vllm.report.one_run import print_run, print_summary
from mteb_vllm.results.failures import failure_from_exception, failures_from_unwritten, load_failures, save_failures
from mteb_vllm.results.record import RunRecord, TaskOutcome, write_record
from mteb_vllm.runner import finish
from mteb_vllm.sweep.job import Job
from mteb_vllm.sweep.planning import add_task_states, plan_points
from mteb_vllm.sweep.view import View
from mteb_vllm.util import disk
from mteb_vllm.util.console import Console
from mteb_vllm.util.files import write_atomically
from mteb_vllm.util.quiet import LogFile

TASK = "StdlibDocsClassification"


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Any]:
    """A function that makes a file system of this many kB."""
    made: list[Path] = []

    def mount(kilobytes: int) -> Path:
        folder = tmp_path / f"{kilobytes}k"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("NOT TESTED: a full disk, since no file system can be mounted here (that takes root)")
        made.append(folder)
        return folder

    yield mount
    for folder in made:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # a log may still be open in it


@pytest.fixture
def full(small: Any) -> Path:
    """A full file system."""
    folder: Path = small(16)
    (folder / "fill").write_bytes(bytes(16 * 1024))
    return folder


def record_in(folder: Path, results: Path) -> RunRecord:
    task = TaskOutcome("STS12", "STS", "computed", "cosine_spearman", 0.8)
    return RunRecord(
        fingerprint="abc",
        settings={"engine": {"model": "org/name", "args": {}}},
        config={"results": {"dir": str(results)}, "tasks": {"names": ["STS12"]}, "pipeline": {}},
        tasks=[task],
        started="2026-11-24T10:00:00+00:00",
        output_dir=str(folder),
        point=0,
    )


def shown(record: RunRecord) -> str:
    out = io.StringIO()
    print_run(Console(file=out, width=160), record)
    print_summary(Console(file=out, width=160), record)
    return out.getvalue()


def test_a_full_disk_is_found_by_the_check(full: Path) -> None:
    for overrides in (
        [f"results.dir={full}/out"],
        [f"hydra.run.dir={full}/run"],
        ["hydra.mode=MULTIRUN", "engine.seed=1,2", f"hydra.sweep.dir={full}/sweep"],
        ["pipeline=report", "runs=x", f"pipeline.dir={full}/report"],
    ):
        with pytest.raises(ConfigError) as raised:
            check(overrides)
        (mistake,) = raised.value.mistakes
        assert mistake.where == overrides[-1] and str(full) in mistake.what
        assert mistake.what.endswith("no space left on device")
    assert [path.name for path in full.iterdir()] == ["fill"], "the check leaves nothing behind"


@pytest.mark.parametrize("key", ["results.dir", "hydra.run.dir", "hydra.sweep.dir"])
def test_an_unwritable_folder_is_a_configuration_error(key: str) -> None:
    mode = ["hydra.mode=MULTIRUN", "engine.seed=1,2"] if key == "hydra.sweep.dir" else []
    with pytest.raises(ConfigError, match=f"{key}=/proc/x: /proc is not writable: no such file"):
        check([*mode, f"{key}=/proc/x"])


def test_reasons_why_a_folder_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    assert disk.why_not_writable(tmp_path / "file" / "x") == f"{tmp_path / 'file'} is not a folder"
    assert disk.why_not_writable(tmp_path / "link") == f"{tmp_path / 'link'} is not a folder"
    assert disk.why_not_writable(tmp_path / ("x" * 300)) == "a folder name may have at most 255 bytes"
    assert disk.why_not_writable(tmp_path / "a" / "b") is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_an_unwritten_record_is_reported_with_its_scores_and_other_files_are_written(small: Any) -> None:
    folder = small(16)
    (folder / "fill").write_bytes(bytes(8 * 1024))  # only two blocks are left for run.json, which needs more
    record = record_in(folder / "run", folder / "out")
    record.warnings.append("x" * 20_000)
    finish(record, 0.0)
    assert record.status == "failed" and record.failure is None and record.tasks[0].status == "computed"
    (failure,) = record.unwritten
    assert failure.message == f"{folder}/run: no space left on device (run.json, report.md)" and failure.advice
    assert (folder / "run" / "scores.csv").exists() and not list(folder.rglob("*.tmp"))
    text = shown(record)
    assert f"Not written: {failure.message}" in text and "0.80000" in text and "run.json\n" not in text
    assert "Failed" not in text


def test_unwritten_files_are_grouped_by_reason_and_named_once(tmp_path: Path) -> None:
    full, quota = OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EDQUOT, "Disk quota exceeded")
    with disk.collect_unwritten() as unwritten:
        disk.note(tmp_path / "results" / "STS12.json", full)
        with disk.collect_unwritten() as inner, disk.attempt(tmp_path / "run" / "run.json"):
            raise full
        assert inner is unwritten
        disk.note(tmp_path / "failures" / "abc.json", quota)
        disk.note(tmp_path / "results" / "STS12.json", full)
    assert [failure.message for failure in failures_from_unwritten(unwritten)] == [
        f"{tmp_path}: no space left on device (STS12.json, run.json)",
        f"{tmp_path}/failures: disk quota exceeded (abc.json)",
    ]
    disk.note(tmp_path, full)  # outside a run, nothing is collected
    assert len(unwritten) == 4


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.ENAMETOOLONG]
)
def test_a_disk_error_is_a_disk_failure(number: int, tmp_path: Path) -> None:
    error = OSError(number, os.strerror(number))
    disk.locate(error, tmp_path / "not" / "there")
    failure = failure_from_exception(error)
    assert failure.kind == "disk" and failure.message.startswith(f"{tmp_path}: ") and failure.advice
    wrapped = MtebVllmError("cannot be locked")
    wrapped.__cause__ = error
    assert disk.cause(wrapped) is error and failure_from_exception(wrapped, "STS12").kind == "disk"
    assert failure_from_exception(StorageError("x")).kind == "disk"
    assert disk.cause(FileNotFoundError(errno.ENOENT, "no such file")) is None
    assert failure_from_exception(DataError("x"), "STS12").kind == "data"
    save_failures(tmp_path, "abc", {}, [failure], [])
    assert load_failures(tmp_path, "abc", {}) == {}, "disk failures are not stored"


def test_a_file_that_cannot_be_written_is_named(full: Path) -> None:
    with pytest.raises(OSError, match="No space left on device") as raised:
        write_atomically(full / "run.json", "x" * 5000)
    assert raised.value.filename == str(full / "run.json")
    assert [path.name for path in full.iterdir()] == ["fill"]


def test_a_log_on_a_full_disk_shows_no_traceback(full: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = LogFile(full / "log")
    record = logging.LogRecord("name", logging.INFO, "path", 1, "x" * 5000, (), None)
    log.handle(record)
    assert capsys.readouterr().err == ""
    log.handle(logging.LogRecord("name", logging.INFO, "path", 1, "%d", ("no number",), None))
    assert "Logging error" in capsys.readouterr().err, "other logging errors are still shown"
    with contextlib.suppress(OSError):
        log.close()


def test_a_full_disk_for_hydras_own_files_gives_a_one_line_error(
    small: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = small(8)  # enough for the check, but not for Hydra's copies of the configuration
    monkeypatch.setattr(sys, "argv", ["mteb-vllm", f"results.dir={folder}/out"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    error = capsys.readouterr().err
    assert ended.value.code == 1 and error.count("\n") == 1
    assert error.startswith(f"{folder}/out/runs/") and error.endswith(": no space left on device\n")


def test_other_errors_are_not_disk_errors() -> None:
    with pytest.raises(ZeroDivisionError), storage_errors([]):
        raise ZeroDivisionError


def test_an_unwritten_report_is_shown_and_partly_written(small: Any, tmp_path: Path) -> None:
    write_record(record_in(tmp_path / "run", tmp_path), tmp_path / "run")
    folder, out = small(16), io.StringIO()
    with pytest.raises(StorageError, match=rf"{folder}/report: no space left on device \(report.html"):
        build_report([tmp_path / "run"], folder / "report", ReportConfig(), Console(file=out, width=160))
    assert "0.80000" in out.getvalue()
    assert {"report.md", "report.csv"} <= {path.name for path in (folder / "report").iterdir()}


def test_a_sweep_shows_the_points_whose_record_could_not_be_written(full: Path, tmp_path: Path) -> None:
    out = io.StringIO()
    lost, fine = record_in(full / "1", tmp_path), record_in(tmp_path / "0", tmp_path)
    lost.point = 1
    for record in (lost, fine):
        finish(record, 0.0)
    point: Any = SimpleNamespace(config=SimpleNamespace(report=ReportConfig()))
    job = Job(Console(file=out, width=160), [point, point], [fine, lost], folder=tmp_path)
    job.end_sweep()
    assert job.reported and job.failed and (tmp_path / "report.html").exists()
    assert "Point 1, whose record could not be written:" in out.getvalue() and "Point 0" not in out.getvalue()
    assert out.getvalue().count("0.80000") >= 2
    job.folder = full / "sweep"
    job.end_sweep()
    assert not job.reported and "no space left on device" in out.getvalue()


def test_a_point_whose_record_cannot_be_written_still_has_its_score_in_the_view(full: Path, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=160)
    points = add_task_states(plan_points(check(["tasks.names=[STS12]"])))
    record = record_in(full / "0", tmp_path)
    finish(record, 0.0)
    View(console, points).ended(record)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "point 0: not written: " in text and "no space left on device" in text and "point 0: 0.80000 in" in text


@pytest.mark.parametrize("override", ["~pipeline", "hydra.launcher._target_=os.system", "hydra.run.dir='${nope}'"])
def test_errors_that_hydra_finds_only_at_run_time_are_configuration_errors(
    override: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mteb-vllm", "-m", "engine.seed=1,2", override])
    if "run.dir" in override:
        monkeypatch.setattr(sys, "argv", ["mteb-vllm", override])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2 and "1 error in the configuration:" in capsys.readouterr().err


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [8, 40, 64])
def test_a_run_that_fills_the_disk_still_prints_its_score(kilobytes: int, small: Any) -> None:
    folder = small(kilobytes)
    env = {key: value for key, value in os.environ.items() if not key.startswith("VLLM_")}
    command = [sys.executable, "-m", "mteb_vllm", f"tasks.names=[{TASK}]", f"results.dir={folder}/out"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=env, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    lines = [line for line in (done.stdout + done.stderr).splitlines() if "no space left on device" in line]
    assert len(lines) == 1 and str(folder) in lines[0]
    if kilobytes > 8:
        assert f"\n{TASK}  accuracy" in done.stdout and "Failed" not in done.stdout
