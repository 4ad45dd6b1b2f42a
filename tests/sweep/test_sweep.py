"""Sweeps on real vLLM: each engine opens once, points are isolated from each other, and a repeated command resumes.

The faults are real ones (tests/faults.py): the child is killed, runs out of address space, touches memory that is not its
own, hangs.
"""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

import faults
import other_words
import recompute
from mteb_vllm import run
from mteb_vllm.preflight.command import check
from mteb_vllm.sweep import child, process
from mteb_vllm.sweep.messages import Activity, PointFailed, RunPoint, TaskProgress
from mteb_vllm.sweep.planning import plan_points
from mteb_vllm.sweep.worker import _StepState
from mteb_vllm.util.phase import Phase
from tiny_models import tiny_overrides

pytestmark = pytest.mark.vllm

TASK = "StdlibDocsClassification"
AXES = ["engine.max_num_seqs=32,64", "prompts=none,e5"]  # two engines, two points each
# A tiny model, and most texts are truncated: these tests compare scores only with each other.
BASE = [f"tasks.names=[{TASK}]", "engine.max_model_len=16"]

# fault, when, point, kind: the first point of an engine is the one that loads it.
SHORT = [("killed", "encoding", 1, "killed")]
LONG = [
    ("out of memory", "loading", 2, "out_of_memory_loading"),
    ("out of memory", "encoding", 1, "out_of_memory_encoding"),
    ("killed soon", "loading", 2, "killed"),
    ("killed soon", "encoding", 0, "killed"),
    ("killed", "writing", 1, "killed"),
    ("terminated", "encoding", 1, "killed"),
    ("segmentation fault", "encoding", 1, "segmentation_fault"),
    ("hang", "encoding", 1, "timeout"),
    ("hang", "loading", 2, "timeout"),
    ("exception", "scoring", 1, "task"),
]


# Resume in this process, which has imported everything already: any launcher finds cached results.
HERE = "hydra/launcher=basic"


def sweep(folder: Path, *more: str, axes: list[str] = AXES) -> Any:
    return run([f"results.dir={folder}", *tiny_overrides(), *BASE, *axes, *more], multirun=True, show=False)


def summary_of(records: Any) -> dict[str, Any]:
    """Return the sweep's `sweep.json`."""
    content: dict[str, Any] = json.loads((Path(records[0].output_dir).parent / "sweep.json").read_text())
    return content


def statuses(records: Any) -> list[str]:
    return [task.status for record in records for task in record.tasks]


def nothing_is_left(folder: Path) -> None:
    assert not list(folder.glob(".writing-*")) and not list((folder / ".locks").glob("*"))
    children = psutil.Process().children(recursive=True)
    assert not [one for one in children if "mteb_vllm.sweep.child" in " ".join(one.cmdline())]


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The records of a sweep without a fault."""
    return sweep(tmp_path_factory.mktemp("control"))


def test_each_engine_opens_once_and_records_are_in_point_order(control: Any) -> None:
    assert [record.point for record in control] == [0, 1, 2, 3] and statuses(control) == ["computed"] * 4
    assert control[0].scores == control[2].scores != control[1].scores, "max_num_seqs changes no score here, prompts do"
    about = summary_of(control)
    assert (about["engines_opened"], about["children"]) == (2, 1)
    assert [engine["points"] for engine in about["engines"]] == [[0, 1], [2, 3]]
    assert [record.engine.opened for record in control] == [1, 0, 1, 0]
    assert [point["fingerprint"] for point in about["points"]] == [record.fingerprint for record in control]
    folder = Path(control[1].output_dir)
    assert folder.name == "1" and (folder / "run.json").exists() and (folder / ".hydra" / "config.yaml").exists()
    assert (
        "prefix 'query: '" in (folder / "mteb_vllm.log").read_text()
        and "query: <text>" in (folder / "output.txt").read_text()
    )
    nothing_is_left(folder.parents[3])


def test_more_points_compute_only_what_is_missing(control: Any) -> None:
    axes = ["engine.max_num_seqs=16,32", "prompts=none,e5"]
    more = sweep(Path(control[0].config["results"]["dir"]), HERE, axes=axes)
    assert statuses(more) == ["computed", "computed", "cached", "cached"]
    assert [record.scores for record in more[2:]] == [record.scores for record in control[:2]]


@pytest.mark.parametrize(
    ("fault", "when", "point", "kind"), [*SHORT, *(pytest.param(*one, marks=pytest.mark.slow) for one in LONG)]
)
def test_a_fault_in_one_point_does_not_affect_others(
    fault: str, when: str, point: int, kind: str, control: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "START", faults.start(fault, when, point, tmp_path / "happened"))
    timeout = ["hydra.launcher.point_timeout=90"] if kind == "timeout" else []
    records = sweep(tmp_path / "out", *timeout)
    assert (tmp_path / "happened").read_text() == f"{fault} {when}"
    (failure,) = records[point].failures
    assert (failure.kind, failure.task) in ((kind, TASK), (kind, None)) and records[point].status == "failed"
    assert failure.message and failure.advice and failure.log
    if kind == "timeout":
        assert any("faults.py" in line and "_hang" in line for line in failure.log), "the log shows where it hung"
    others = [at for at in range(4) if at != point]
    assert [records[at].scores for at in others] == [control[at].scores for at in others]
    assert [record.point for record in records] == [0, 1, 2, 3]
    about = summary_of(records)
    assert about["points"][point]["failures"][0]["kind"] == kind
    assert about["children"] == (1 if kind == "task" else 2)
    written = json.loads((Path(records[point].output_dir) / "run.json").read_text())
    assert written["status"] == "failed"
    report = (Path(records[0].output_dir).parent / "report.md").read_text().splitlines()
    last = [line for line in report if line.startswith("| ")][5]
    assert last.startswith(f"| {point} |") and "failed" in last, "best first, failures last"
    assert recompute.check(Path(records[0].output_dir).parent) > 20
    later = [HERE] if kind == SHORT[0][-1] else []
    left = sweep(tmp_path / "out", "retry_failed=false", *later)
    assert [record.status for record in left] == ["failed" if at == point else "ok" for at in range(4)]
    assert "computed" not in statuses(left) and not any(record.engine for record in left)
    assert left[point].failures == [replace(failure, task=TASK, tried=False)], "the stored failure, unchanged"
    again = sweep(tmp_path / "out", *later)
    assert statuses(again) == ["computed" if at == point else "cached" for at in range(4)]
    assert [record.scores for record in again] == [record.scores for record in control]
    nothing_is_left(tmp_path / "out")


def on_cores(folder: Path) -> str:
    """Return the start code of a child that notes the cores it runs on, in a file of the folder."""
    note = (
        f"import os, pathlib; pathlib.Path({str(folder)!r}, str(os.getpid())).write_text(repr(os.sched_getaffinity(0)))"
    )
    return process.START.replace("from mteb_vllm.sweep.child", f"{note}\nfrom mteb_vllm.sweep.child")


TWO_WORKERS = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="NOT TESTED: two workers need two cores")


@TWO_WORKERS
@pytest.mark.slow
def test_two_workers_divide_the_cores_and_give_the_same_results(
    control: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cores").mkdir()
    monkeypatch.setattr(process, "START", on_cores(tmp_path / "cores"))
    records = sweep(tmp_path / "out", "hydra.launcher.workers=2")
    assert [record.point for record in records] == [0, 1, 2, 3] and statuses(records) == ["computed"] * 4
    assert [record.scores for record in records] == [record.scores for record in control]
    assert [record.fingerprint for record in records] == [record.fingerprint for record in control]
    about = summary_of(records)
    assert (about["engines_opened"], about["children"]) == (2, 2)
    first, second = (ast.literal_eval(file.read_text()) for file in (tmp_path / "cores").iterdir())
    assert first | second == os.sched_getaffinity(0) and not first & second
    began = [datetime.fromisoformat(records[at].started).timestamp() for at in (0, 2)]
    assert began[1] < began[0] + records[0].seconds + records[1].seconds, (
        "the second engine opens before the first is done"
    )
    again = sweep(tmp_path / "out", HERE)
    assert statuses(again) == ["cached"] * 4
    nothing_is_left(tmp_path / "out")


@TWO_WORKERS
@pytest.mark.slow
def test_two_workers_run_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    axes = ["engine=sentence_transformers", "engine.batch_size=16,32"]
    (tmp_path / "cores").mkdir()
    monkeypatch.setattr(process, "START", on_cores(tmp_path / "cores"))
    records = sweep(tmp_path / "out", "hydra.launcher.workers=2", axes=axes)
    assert [record.point for record in records] == [0, 1] and statuses(records) == ["computed"] * 2
    assert records[0].scores == records[1].scores, "batch_size changes no score here"
    assert summary_of(records)["children"] == 2
    first, second = (ast.literal_eval(file.read_text()) for file in (tmp_path / "cores").iterdir())
    assert first | second == os.sched_getaffinity(0) and not first & second
    began = [datetime.fromisoformat(record.started).timestamp() for record in records]
    assert abs(began[1] - began[0]) < min(record.seconds for record in records)
    nothing_is_left(tmp_path / "out")


@TWO_WORKERS
@pytest.mark.slow
def test_a_fault_in_one_of_two_workers(control: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "START", faults.start("killed", "encoding", 2, tmp_path / "happened"))
    records = sweep(tmp_path / "out", "hydra.launcher.workers=2")
    assert [[failure.kind for failure in record.failures] for record in records] == [[], [], ["killed"], []]
    assert [records[at].scores for at in (0, 1, 3)] == [control[at].scores for at in (0, 1, 3)]
    assert summary_of(records)["children"] == 3
    again = sweep(tmp_path / "out", "hydra.launcher.workers=2")
    assert statuses(again) == ["cached", "cached", "computed", "cached"]
    nothing_is_left(tmp_path / "out")


@pytest.mark.slow
def test_an_engine_that_never_opens_is_tried_twice_and_others_still_run(tmp_path: Path) -> None:
    axes = ["engine.gpu_memory_utilization=1.0,0.3", "+prompts.Classification=a,b,c"]
    records = sweep(tmp_path, axes=axes)
    assert [record.status for record in records] == ["failed"] * 3 + ["ok"] * 3
    assert {failure.kind for record in records for failure in record.failures} == {"out_of_memory_loading"}
    assert "lower engine.gpu_memory_utilization" in records[0].failures[0].message
    assert ["not tried" in record.failures[0].message for record in records[:3]] == [False, False, True]
    about = summary_of(records)
    assert about["children"] == 3 and about["engines_opened"] == 1, "each attempt in a new process"
    left = sweep(tmp_path, "retry_failed=false", HERE, axes=axes)
    assert [record.status for record in left] == ["failed"] * 3 + ["ok"] * 3
    assert [record.failures[0].tried for record in left[:3]] == [False, False, True], (
        "the third had not been tried before"
    )
    # A failure from an earlier run does not count as a failed attempt to open the engine.
    again = sweep(tmp_path, "retry_failed=false", axes=axes)
    assert [record.status for record in again] == ["failed"] * 3 + ["ok"] * 3 and summary_of(again)["children"] == 1


@pytest.mark.slow
def test_no_decision_depends_on_the_text_of_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failure kinds, giving up on an engine, time-outs and exit are the same with random message texts."""
    other_words.install(monkeypatch.setattr)
    axes = ["engine.gpu_memory_utilization=1.0,0.3", "+prompts.Classification=a,b,c"]
    code = faults.start("hang", "loading", 3, tmp_path / "happened")
    monkeypatch.setattr(process, "START", other_words.start(code))
    records = sweep(tmp_path / "out", "hydra.launcher.point_timeout=90", axes=axes)
    kinds = [[failure.kind for failure in record.failures] for record in records]
    assert kinds == [["out_of_memory_loading"]] * 3 + [["timeout"], [], []]
    assert [record.failures[0].tried for record in records[:3]] == [True, True, False]
    assert records[3].failures[0].phase is Phase.OPENING_ENGINE
    assert "open" not in records[3].failures[0].message
    assert [record.status for record in records] == ["failed"] * 4 + ["ok"] * 2
    again = sweep(tmp_path / "out", "retry_failed=false", axes=axes)
    assert [record.status for record in again] == ["failed"] * 4 + ["ok"] * 2 and summary_of(again)["children"] == 1


@pytest.mark.slow
def test_a_fault_in_a_prefetched_first_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["pipeline=rerank", "model=minilm", "pipeline.scoring=cosine", "tasks=demo_retrieval", "engine.dtype=bfloat16",
             "pipeline/first_stage=dense", "model@pipeline.first_stage.model=minilm", "pipeline.top_k=5,10",
             f"results.dir={tmp_path / 'out'}"]  # fmt: skip
    monkeypatch.setattr(process, "START", faults.start("killed", "encoding", 0, tmp_path / "happened"))
    records: Any = run(words, multirun=True, show=False)
    (failure,) = records[0].failures
    assert (failure.kind, failure.task) == ("killed", "StdlibDocsRetrieval") and "first stage" in failure.message
    assert records[1].status == "ok" and records[1].first_stage.work.computed > 2000, (
        "the second first stage was prefetched"
    )
    again: Any = run(words, multirun=True, show=False)
    assert statuses(again) == ["computed", "cached"] and summary_of(again)["engines_opened"] == 1


def test_a_point_that_cannot_start_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (point,) = plan_points(check([]))
    event = child._execute(RunPoint(point, None, None, None, tmp_path / "file" / "0"), None)
    assert isinstance(event, PointFailed) and "NotADirectoryError" in event.failure.message


def test_waiting_for_another_run_does_not_count_towards_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 2.0, 62.0, 69.0, 71.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    running = _StepState()
    running.update(TaskProgress("STS12", Phase.ENCODING, "texts", 1, 2))
    assert (running.doing, running.task, running.waits_since) == ("working on STS12 (texts)", "STS12", None)
    running.update(Activity(Phase.WAITING, "Waiting for another run that computes STS12"))
    assert running.waits_since == 2.0 and not running.is_overdue(10.0)
    running.update(Activity(Phase.OPENING_ENGINE, "Opening vLLM: org/name"))
    assert (running.waited, running.waits_since) == (60.0, None)
    assert (running.doing, running.task) == ("opening vLLM: org/name", None)
    assert [running.is_overdue(10.0), running.is_overdue(10.0), running.is_overdue(None)] == [False, True, False]


@pytest.mark.slow
def test_data_that_cannot_be_loaded_is_a_data_failure(tmp_path: Path, control: Any) -> None:
    records = sweep(tmp_path, axes=["tasks.names=[NFCorpus],[StdlibDocsClassification]", "prompts=none,e5"])
    assert [[failure.kind for failure in record.failures] for record in records] == [["data"], ["data"], [], []]
    assert statuses(records[2:]) == ["computed"] * 2, "these settings do not occur in the control sweep"


@pytest.mark.slow
def test_a_killed_engine_process_is_detected(tmp_path: Path, control: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "START", faults.start("core killed", "encoding", 1, tmp_path / "happened"))
    apart = ["+engine.env.VLLM_ENABLE_V1_MULTIPROCESSING=1", "engine.max_num_seqs=32"]
    records = sweep(tmp_path / "out", *apart, axes=["+prompts.Classification=a,b,c"])
    assert [[failure.kind for failure in record.failures] for record in records] == [[], ["engine_died"], []]
    assert summary_of(records)["children"] == 2
    again = sweep(tmp_path / "out", *apart, axes=["+prompts.Classification=a,b,c"])
    assert statuses(again) == ["cached", "computed", "cached"]
    nothing_is_left(tmp_path / "out")


# From the command line


def command(folder: Path, *words: str) -> subprocess.Popen[str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith("VLLM_")}
    return subprocess.Popen(
        [sys.executable, "-m", "mteb_vllm", "-m", f"results.dir={folder}", *tiny_overrides(), *BASE, *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder.parent, env=env,
    )  # fmt: skip


def wait_for(pattern: str, folder: Path, text: str = "", seconds: float = 300) -> None:
    """Wait for a file that contains a text."""
    deadline = time.monotonic() + seconds
    while not any(text in path.read_text() for path in folder.glob(pattern)):
        assert time.monotonic() < deadline, f"{pattern} never came"
        time.sleep(0.005)


def have_ended(family: list[psutil.Process]) -> None:
    """Check that processes have ended; those that were killed may need a moment on a busy machine."""
    assert not psutil.wait_procs(family, timeout=20)[1]


@pytest.mark.slow
def test_a_terminated_sweep_lists_what_is_not_done_and_can_be_resumed(tmp_path: Path, control: Any) -> None:
    running = command(tmp_path / "out", *AXES)
    wait_for(f"results/*/*/experiments/*/{TASK}.json", tmp_path / "out")
    wait_for("sweeps/*/*/1/mteb_vllm.log", tmp_path / "out", "prefix 'query: '")  # it is encoding
    family = psutil.Process(running.pid).children(recursive=True)
    assert family
    running.send_signal(signal.SIGTERM)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 128 + signal.SIGTERM and "Traceback" not in err
    assert "Not done: 3 of 4 points (1, 2, 3)." in out and f"{control[0].scores[TASK]:.5f}" in out
    have_ended(family)
    assert (
        json.loads(next((tmp_path / "out").glob("sweeps/*/*/1/run.json")).read_text())["failure"]["kind"]
        == "interrupted"
    )
    again = sweep(tmp_path / "out", HERE)
    assert statuses(again)[0] == "cached" and [record.scores for record in again] == [
        record.scores for record in control
    ]
    nothing_is_left(tmp_path / "out")


@TWO_WORKERS
@pytest.mark.slow
def test_ctrl_c_ends_all_workers(tmp_path: Path, control: Any) -> None:
    running = command(tmp_path / "out", *AXES, "hydra.launcher.workers=2")
    for point in (0, 2):
        wait_for(f"sweeps/*/*/{point}/mteb_vllm.log", tmp_path / "out", "opened in")
    family = psutil.Process(running.pid).children(recursive=True)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 128 + signal.SIGINT and "Traceback" not in err
    assert "Not done:" in out, out
    have_ended(family)
    again = sweep(tmp_path / "out")
    assert [record.scores for record in again] == [record.scores for record in control]
    nothing_is_left(tmp_path / "out")


@pytest.mark.slow
def test_two_concurrent_sweeps_share_the_work(tmp_path: Path, control: Any) -> None:
    both = [command(tmp_path / "out", *AXES) for _ in range(2)]
    for one in both:
        out, err = one.communicate(timeout=400)
        assert one.returncode == 0, out + err
    records = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("sweeps/*/*/?/run.json")]
    assert len(records) == 8
    computed = [record["overrides"] for record in records for task in record["tasks"] if task["status"] == "computed"]
    assert len(computed) == 4, "each point is computed by only one of them"
    again = sweep(tmp_path / "out")
    assert set(statuses(again)) == {"cached"} and [record.scores for record in again] == [
        record.scores for record in control
    ]
    nothing_is_left(tmp_path / "out")
