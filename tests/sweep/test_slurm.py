"""Sweeps as jobs of a real SLURM: the same results as without, and every way in which a job can end early.

Tests that submit jobs need the package submitit, and the SLURM that `SLURM_CONF` names, whose node has two cores, or one
that can be started here (tests/slurm_node.py).
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from filelock import FileLock

import slurm_node
from mteb_vllm import run
from mteb_vllm.config.schema import SlurmConfig
from mteb_vllm.errors import ConfigError
from mteb_vllm.preflight import command
from mteb_vllm.preflight.command import check
from mteb_vllm.results.failures import Ending, failure_from_exit
from mteb_vllm.sweep import job_process
from mteb_vllm.sweep import slurm as cluster_jobs
from mteb_vllm.sweep.messages import Activity, CloseEngines, EnginesClosed, RunPoint, TaskProgress
from mteb_vllm.sweep.nodes import KnownNodes
from mteb_vllm.sweep.planning import plan_points
from mteb_vllm.sweep.slurm import Cluster, JobState
from mteb_vllm.util.machine import assume_device, device
from mteb_vllm.util.mailbox import Inbox, Outbox
from mteb_vllm.util.phase import Phase
from tiny_models import tiny_overrides

SLURM = ["hydra/launcher=slurm", "hydra.launcher.cpus=1", "hydra.launcher.memory=4G"]
ONE_AT_A_TIME = "hydra.launcher.max_jobs=1"
# Two engines that open quickly, two points each that take some seconds: a test has to act before they are done.
AXES = ["engine=sentence_transformers", "engine.batch_size=1,2", "prompts=none,e5"]


def needs_slurm(function: Any) -> Any:
    absent = slurm_node.missing()
    for mark in (
        pytest.mark.slurm,
        pytest.mark.slow,
        pytest.mark.skipif(absent is not None, reason=f"NOT TESTED: jobs of SLURM, since {absent}"),
        pytest.mark.usefixtures("no_jobs"),
    ):
        function = mark(function)
    return function


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A SLURM; skips if submitit is not installed."""
    pytest.importorskip("submitit", reason="NOT TESTED: jobs of SLURM, since submitit is not installed")
    with slurm_node.single_node(tmp_path_factory.mktemp("slurm")):
        yield


@dataclass(frozen=True)
class Sweeps:
    """Sweeps with a tiny model, the same task and the same results store."""

    folder: Path

    def words(self, *more: str) -> list[str]:
        task = ["tasks.names=[StdlibDocsClassification]", "engine.max_model_len=16"]
        return [f"results.dir={self.folder}", *tiny_overrides(), *task, *more]

    def run(self, *more: str) -> Any:
        """Run one in this process."""
        return run(self.words(*more), multirun=True, show=False)

    def start(self, *more: str) -> subprocess.Popen[str]:
        """Start one as a command."""
        env = {key: value for key, value in os.environ.items() if not key.startswith("VLLM_")}
        return subprocess.Popen(
            [sys.executable, "-m", "mteb_vllm", "-m", *self.words(*more)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=self.folder.parent, env=env,
        )  # fmt: skip

    def records(self) -> list[Any]:
        """Return the records of the newest one."""
        newest = max(self.folder.glob("sweeps/*/*"))
        return [json.loads(path.read_text()) for path in sorted(newest.glob("*/run.json"))]

    def kinds(self) -> list[str | None]:
        """Return the kinds of the failures of the newest one's points."""
        return [record["failure"] and record["failure"]["kind"] for record in self.records()]

    def has_opened(self, point: int) -> bool:
        """Whether a point of the newest one has opened its engine, or has found it open."""
        logs = sorted(self.folder.glob(f"sweeps/*/*/{point}/mteb_vllm.log"))
        return bool(logs) and (point % 2 == 1 or "opened in" in logs[-1].read_text())

    def complete(self, expected: Any, computed: list[int]) -> None:
        """Run the same command again: only these points are computed now."""
        finish(self.start(*AXES, *SLURM))
        statuses = [record["tasks"][0]["status"] for record in self.records()]
        assert [at for at, status in enumerate(statuses) if status == "computed"] == computed
        assert self.kinds() == [None] * 4
        again = self.run(*AXES, "hydra/launcher=basic")
        assert [record.scores for record in again] == expected and not jobs()


@pytest.fixture
def sweeps(tmp_path: Path) -> Sweeps:
    return Sweeps(tmp_path / "out")


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The scores of the four points without SLURM."""
    here = Sweeps(tmp_path_factory.mktemp("expected") / "out").run(*AXES, "hydra/launcher=basic")
    return [record.scores for record in here]


def slurm(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def jobs(*states: str) -> list[str]:
    chosen = [f"--states={','.join(states)}"] if states else []
    return slurm("squeue", "--noheader", "--format=%i", *chosen).split()


def wait_for(what: str, found: Any, seconds: float = 400) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, f"{what} never came"
        time.sleep(0.1)
    return value


def running_programs() -> set[str]:
    return {one.info["name"] for one in psutil.process_iter(["name"])}  # skips those that end meanwhile


def finish(running: subprocess.Popen[str], seconds: float = 900) -> str:
    out, _ = running.communicate(timeout=seconds)
    assert "Traceback" not in out, out
    return out


@pytest.fixture
def no_jobs(cluster: None) -> Iterator[None]:
    """End all jobs after a test, and put the node back into service."""
    yield
    subprocess.run(["scancel", "--user", slurm("id", "-un").strip()], check=False)
    resume()
    wait_for("the end of all jobs", lambda: not jobs())


def resume() -> None:
    """Put the node back into service, unless it has come back by itself."""
    subprocess.run(["scontrol", "update", f"nodename={node()}", "state=RESUME"], check=False, capture_output=True)
    wait_for("the node", lambda: slurm("sinfo", "--noheader", "--format=%t").split()[0] in ("idle", "mix", "alloc"))


def node() -> str:
    return slurm("sinfo", "--noheader", "--format=%n").split()[0]


# With jobs


@needs_slurm
@pytest.mark.vllm
def test_six_points_in_two_jobs_at_a_time_give_the_same_results(sweeps: Sweeps, tmp_path: Path) -> None:
    axes = ["engine.max_num_seqs=16,32,64", "prompts=none,e5"]
    running = sweeps.start(*axes, *SLURM, "hydra.launcher.max_jobs=2")
    most = 0
    while running.poll() is None:
        most = max(most, len(jobs("RUNNING")))
        time.sleep(0.5)
    out = finish(running)
    assert running.returncode == 0, out
    found = sweeps.records()
    assert [record["tasks"][0]["status"] for record in found] == ["computed"] * 6 and most == 2
    again = sweeps.run(*axes, *SLURM)
    assert {task.status for record in again for task in record.tasks} == {"cached"}
    here = Sweeps(tmp_path / "here").run(*axes)
    assert [record.scores for record in again] == [record.scores for record in here]
    assert [record.fingerprint for record in again] == [record.fingerprint for record in here]
    first, last = sorted(sweeps.folder.glob("sweeps/*/*"))
    about = json.loads((first / "sweep.json").read_text())
    assert (about["engines_opened"], about["children"]) == (3, 3)
    assert len(list(first.glob("jobs/*/*_0_log.out"))) == 4, "three engines, and the test of the node"
    # The same folder again, as where hydra.sweep.dir is set: its jobs have other folders, and the node is tested anew.
    (known,) = (sweeps.folder / "slurm").iterdir()
    known.unlink()
    repeated = sweeps.run("prompts=none", *SLURM, f"hydra.sweep.dir={first}", "results.reuse=none")
    assert [record.scores for record in repeated] == [here[0].scores]
    assert len(list(first.glob("jobs/*/*_0_log.out"))) == 6
    assert not (last / "jobs").exists(), "cached points are not submitted"
    assert not list(first.glob("jobs/*/*/events")) and not list(first.glob("jobs/*/*.pkl")), "messages may hold secrets"
    assert found[0]["embedding_cache"]["folder"].startswith(("/tmp", os.environ.get("TMPDIR", "/tmp")))
    assert (first / "report.md").exists()


@needs_slurm
def test_a_cancelled_job(sweeps: Sweeps, expected: Any) -> None:
    running = sweeps.start(*AXES, *SLURM, ONE_AT_A_TIME)
    wait_for("point 0", lambda: sweeps.has_opened(0))
    slurm("scancel", *jobs("RUNNING"))
    out = finish(running)
    assert running.returncode == 1, out
    assert sweeps.kinds() == ["cancelled", "cancelled", None, None]
    assert [record["failure"]["tried"] for record in sweeps.records()[:2]] == [True, False]
    sweeps.complete(expected, [0, 1])


@needs_slurm
def test_a_time_limit(sweeps: Sweeps, expected: Any) -> None:
    # Only the jobs of engines: when they start, the job that tests the node has been remembered.
    wait = f"hydra.launcher.setup=['test -e {sweeps.folder}/slurm && sleep 300']"
    running = sweeps.start(*AXES[:2], "prompts=none", *SLURM, "hydra.launcher.time=1", wait)
    out = finish(running)
    assert running.returncode == 1, out
    assert sweeps.kinds() == ["time_limit"] * 2
    assert "reached its time limit of 1 min" in sweeps.records()[0]["failure"]["message"]
    sweeps.complete(expected, [0, 1, 2, 3])


@needs_slurm
def test_a_point_that_others_left_too_little_time_gets_a_job_of_its_own(sweeps: Sweeps) -> None:
    running = sweeps.start("engine=sentence_transformers", "engine.batch_size=1", "prompts=none,e5", *SLURM)
    wait_for("point 1", lambda: sweeps.has_opened(1))
    (job,) = jobs("RUNNING")
    slurm("scancel", "--signal=STOP", "--batch", job)  # its time goes on
    slurm("scontrol", "update", f"jobid={job}", "timelimit=1")
    out = finish(running)
    assert running.returncode == 0 and "point 1: the job's time limit was reached" in out, out
    assert sweeps.kinds() == [None, None]
    assert [record["tasks"][0]["status"] for record in sweeps.records()] == ["computed"] * 2
    assert "JobState=TIMEOUT" in slurm("scontrol", "show", "job", job)


@needs_slurm
def test_a_job_that_runs_out_of_memory(sweeps: Sweeps, expected: Any) -> None:
    small = [word.replace("4G", "500M") for word in SLURM]
    running = sweeps.start(*AXES, *small)
    out = finish(running)
    assert running.returncode == 1, out
    assert set(sweeps.kinds()) <= {"out_of_memory_loading", "out_of_memory_encoding"}
    assert "500M" in sweeps.records()[0]["failure"]["message"]
    sweeps.complete(expected, [0, 1, 2, 3])


@needs_slurm
def test_a_requeued_job_continues(sweeps: Sweeps, expected: Any) -> None:
    running = sweeps.start(*AXES, *SLURM, ONE_AT_A_TIME)
    wait_for("point 1", lambda: sweeps.has_opened(1))
    (job,) = jobs("RUNNING")
    slurm("scontrol", "requeue", job)
    wait_for("the queue", lambda: job in jobs("PENDING"))
    slurm("scontrol", "update", f"jobid={job}", "starttime=now")
    out = finish(running)
    assert running.returncode == 0, out
    assert sweeps.kinds() == [None] * 4
    assert [record["tasks"][0]["status"] for record in sweeps.records()] == ["computed"] * 4
    assert "Restarts=1" in slurm("scontrol", "show", "job", job) and "its job was queued again" in out
    sweeps.complete(expected, [])


@needs_slurm
@pytest.mark.parametrize("requeued", [True, False])
def test_a_node_that_is_down(requeued: bool, sweeps: Sweeps, expected: Any) -> None:
    more = [] if requeued else ["+hydra.launcher.additional_parameters.no-requeue=true"]
    running = sweeps.start(*AXES, *SLURM, ONE_AT_A_TIME, *more)
    wait_for("point 0", lambda: sweeps.has_opened(0))
    slurm("scontrol", "update", f"nodename={node()}", "state=DOWN", "reason=test")
    wait_for("the end of the job", lambda: not jobs("RUNNING", "COMPLETING"))
    # A node refuses a job whose earlier process has not quite ended.
    wait_for("the end of its process", lambda: "slurmstepd" not in running_programs())
    if not requeued:
        wait_for("the next job", lambda: jobs("PENDING"))
    resume()
    if requeued:
        slurm("scontrol", "update", f"jobid={jobs()[0]}", "starttime=now")
    out = finish(running)
    assert running.returncode == (0 if requeued else 1), out
    assert sweeps.kinds() == [None if requeued else "node_down", None, None, None]
    sweeps.complete(expected, [] if requeued else [0])


@needs_slurm
def test_a_job_that_is_rejected_while_others_run(sweeps: Sweeps, expected: Any) -> None:
    running = sweeps.start(*AXES, *SLURM, ONE_AT_A_TIME)
    wait_for("point 0", lambda: sweeps.has_opened(0))
    partition = "partitionname=" + slurm("sinfo", "--noheader", "--format=%R").split()[0]
    slurm("scontrol", "update", partition, "state=DRAIN")
    try:
        out = finish(running)
    finally:
        slurm("scontrol", "update", partition, "state=UP")
    assert running.returncode == 1, out
    assert sweeps.kinds() == [None, None, "not_submitted", "not_submitted"]
    assert [record["failure"]["tried"] for record in sweeps.records()[2:]] == [True, False]
    sweeps.complete(expected, [2, 3])


@needs_slurm
def test_ctrl_c_cancels_jobs_that_run_and_that_wait(sweeps: Sweeps, expected: Any) -> None:
    whole = [word.replace("cpus=1", "cpus=2") for word in SLURM]  # so that one of them waits
    running = sweeps.start(*AXES, *whole)
    wait_for("a point", lambda: sweeps.has_opened(0) or sweeps.has_opened(2))
    assert len(jobs("RUNNING")) == len(jobs("PENDING")) == 1
    running.send_signal(signal.SIGINT)
    out = finish(running, 120)
    assert running.returncode == 128 + signal.SIGINT and "Not done:" in out
    assert not jobs("RUNNING", "PENDING")
    wait_for("the end of cancelled jobs", lambda: not jobs(), 60)
    sweeps.complete(expected, [0, 1, 2, 3])


@needs_slurm
def test_a_file_system_without_locks_is_refused(sweeps: Sweeps, tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("NOT TESTED: a file system without locks, since there is no C compiler")
    (tmp_path / "free.c").write_text("int flock(int fd, int operation) { return 0; }\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", "free.so", "free.c"], cwd=tmp_path, check=True)
    preload = f"hydra.launcher.setup=['export LD_PRELOAD={tmp_path}/free.so']"
    running = sweeps.start(*AXES, *SLURM, preload)
    out = finish(running)
    assert "file locks do not work between this machine and " in out, out
    assert running.returncode == 2 and "a lock that one machine holds is free for another one" in out, out
    assert not list(sweeps.folder.glob("sweeps/*/*/*/run.json")) and not jobs()


@needs_slurm
def test_what_sbatch_rejects_is_an_error_of_the_configuration(sweeps: Sweeps) -> None:
    running = sweeps.start(*AXES, *SLURM, "hydra.launcher.partition=nowhere")
    out = finish(running)
    assert running.returncode == 2 and "hydra.launcher: SLURM refuses the job" in out and "partition" in out, out


# Without jobs


def test_what_is_missing_is_said_before_anything_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)  # type: ignore[arg-type]
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError) as caught:
        check(["hydra/launcher=slurm", "tasks=sts12", "engine.max_num_seqs=8,16"], multirun=True)
    package, program = map(str, caught.value.mistakes)
    assert package.startswith("submitit: is required") and "pip install 'mteb-vllm[slurm]'" in package
    assert program.startswith("hydra/launcher=slurm: there is no sbatch here")
    with pytest.raises(ConfigError) as caught:
        check(["hydra/launcher=slurm", "tasks=sts12"])
    assert "Make it a sweep: add -m." in str(caught.value)


def test_wrong_settings_are_mistakes() -> None:
    wrong = {"time": "soon", "gpus": "-1", "cpus": "0", "max_jobs": "0", "partition": "[a]"}
    words = ["hydra/launcher=slurm", *(f"hydra.launcher.{key}={value}" for key, value in wrong.items())]
    with pytest.raises(ConfigError) as caught:
        check([*words, "tasks=sts12", "engine.max_num_seqs=8,16"], multirun=True)
    assert {f"hydra.launcher.{key}" for key in wrong} <= {mistake.key for mistake in caught.value.mistakes}


def test_a_lock_is_tested_from_another_process(tmp_path: Path) -> None:
    held, free, absent = (tmp_path / name for name in ("held", "free", "absent"))
    free.touch()
    code = (
        "import sys; from pathlib import Path; from mteb_vllm.sweep.nodes import lock_problem\n"
        "for path in sys.argv[1:]: print(lock_problem(Path(path)))"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(held), str(free), str(absent)]
    with FileLock(held):
        found = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.splitlines()
    assert found[0] == "None" and "is free for another one" in found[1] and "not the same" in found[2]


def test_a_job_gets_commands_through_its_folder_and_ends_with_its_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = tmp_path / "0"
    attempt.mkdir()
    (tmp_path / job_process.ALIVE).write_text("0")
    pipe = job_process._Pipe(attempt)
    (point,) = plan_points(check([f"results.dir={tmp_path}"]))
    Outbox[Any](attempt / job_process.COMMANDS).send(RunPoint(point, None, None, None, tmp_path / "out"))
    got = pipe.recv()
    assert isinstance(got, RunPoint)
    own = got.point.config.embedding_cache.dir
    assert own is not None and Path(own).stat().st_mode & 0o077 == 0 and str(tmp_path) not in own
    (chosen,) = plan_points(check([f"results.dir={tmp_path}", f"embedding_cache.dir={tmp_path}"]))
    Outbox[Any](attempt / job_process.COMMANDS).send(RunPoint(chosen, None, None, None, tmp_path / "out"))
    got = pipe.recv()
    assert isinstance(got, RunPoint) and got.point.config.embedding_cache.dir == str(tmp_path)
    # Of many messages about the same texts only some are sent, and all others are.
    for done in range(100):
        pipe.send(TaskProgress("STS12", Phase.ENCODING, "texts", done, 100))
    pipe.send(TaskProgress("STS12", Phase.SCORING, "scoring"))
    pipe.send(Activity(Phase.WAITING, "Waiting"))
    inbox: Inbox[Any] = Inbox(attempt / job_process.EVENTS)
    events = [inbox.receive() for _ in range(4)]
    assert [type(event) for event in events] == [TaskProgress, TaskProgress, Activity, type(None)]
    monkeypatch.setattr(job_process, "_GONE", 0.5)
    with pytest.raises(EOFError):
        pipe.recv()  # the sweep gives no sign of life
    (tmp_path / job_process.ALIVE).unlink()
    with pytest.raises(EOFError):
        pipe.recv()


def test_a_folder_of_somebody_else_is_not_used_for_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path))
    own = job_process._node_folder()
    assert own.parent == tmp_path and job_process._node_folder() == own
    own.rmdir()
    own.mkdir(mode=0o777)
    own.chmod(0o777)
    assert job_process._node_folder() != own
    own.rmdir()
    own.symlink_to(tmp_path)
    assert job_process._node_folder() != own


def test_known_nodes_are_remembered_by_their_resources(tmp_path: Path) -> None:
    known, gpu = KnownNodes(tmp_path), SlurmConfig(partition="gpu", gpus=4)
    assert known.device(gpu) is None
    known.remember(gpu, "cuda: NVIDIA H200")
    assert KnownNodes(tmp_path).device(SlurmConfig(partition="gpu", gpus=1, time=5)) == "cuda: NVIDIA H200"
    assert known.device(SlurmConfig(partition="cpu", gpus=4)) is None
    assert known.device(SlurmConfig(partition="gpu", gpus=0)) is None
    (tmp_path / "slurm" / "nodes.json").write_text("{")
    assert known.device(gpu) is None


def test_a_dry_run_notes_that_the_device_of_the_nodes_is_unknown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "slurm_mistakes", lambda swept: [])
    words = ["tasks=sts12", "engine.max_num_seqs=8,16", "dry_run=true", f"results.dir={tmp_path}"]

    def dry_run(*more: str) -> str:
        run([*words, *more], multirun=True)
        return " ".join(capsys.readouterr().out.split())

    note = "Note: No sweep has used such nodes yet, so their device is unknown, and this dry run assumes that of this "
    note += f"machine ({device()})."
    assert note in dry_run("hydra/launcher=slurm") and "Note" not in dry_run()
    KnownNodes(tmp_path).remember(SlurmConfig(), "cuda: NVIDIA H200")
    assert "Note" not in dry_run("hydra/launcher=slurm")


def test_fingerprints_can_be_those_of_another_machine() -> None:
    words = ["tasks=sts12", "engine=vllm"]
    (own,) = plan_points(check(words))
    with assume_device("cuda: NVIDIA H200"):
        assert device() == "cuda: NVIDIA H200"
        (other,) = plan_points(check(words))
    assert device() != "cuda: NVIDIA H200" and own.fingerprint != other.fingerprint
    assert other.plan is not None and other.plan.settings["engine"]["device"] == "cuda: NVIDIA H200"


def test_the_end_of_a_job_is_a_typed_failure() -> None:
    limit = failure_from_exit(
        Ending(0, "time_limit", "job 7 reached its time limit of 1 min"), Phase.ENCODING, "encoding"
    )
    assert limit.kind == "time_limit" and "job 7 reached" in limit.message and "hydra.launcher.time" in limit.advice
    memory = Ending(-9, "out_of_memory_encoding", "job 7 used more than its memory")
    assert failure_from_exit(memory, Phase.ENCODING, "encoding").kind == "out_of_memory_encoding"
    assert failure_from_exit(memory, Phase.OPENING_ENGINE, "opening").kind == "out_of_memory_loading"
    assert (
        failure_from_exit(Ending(-11, None, "job 7: SIGSEGV"), Phase.ENCODING, "encoding").kind == "segmentation_fault"
    )


def test_a_job_that_is_held_after_a_failed_launch_has_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """SLURM would keep it in the queue for ever."""
    called: list[tuple[str, ...]] = []

    def call(*command: str) -> str:
        called.append(command)
        return "31|PENDING|launch failed requeued held\n"

    monkeypatch.setattr(cluster_jobs, "_call", call)
    cluster = Cluster(SlurmConfig())
    cluster._states["31"] = JobState("PENDING")
    assert cluster.state("31") == JobState("LAUNCH_FAILED", "launch failed requeued held") and cluster.state("31").ended
    assert ("scancel", "31") in called
    ending = cluster.ending("31", tmp_path / "log")
    assert (ending.kind, ending.how) == ("node_down", "job 31 could not be started on its node")


def test_a_command_that_cannot_be_written_is_sent_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk costs time, but neither the point nor the sweep."""
    running = SimpleNamespace(
        settings=SlurmConfig(), submit=lambda *_, **__: "7", state=lambda job: JobState("RUNNING")
    )  # fmt: skip
    child = cluster_jobs.JobChild(running, tmp_path / "0", 0, {})  # type: ignore[arg-type]
    child.send(CloseEngines())
    attempt = tmp_path / "0" / "0"
    attempt.mkdir()
    events, commands = Outbox[Any](attempt / job_process.EVENTS), Inbox[Any](attempt / job_process.COMMANDS)
    full = OSError(errno.ENOSPC, "No space left on device")
    whole, opened = Outbox.send, Outbox.__init__

    def fail(*_: object) -> None:
        raise full

    monkeypatch.setattr(Outbox, "__init__", fail)
    assert child.receive(0) is None and commands.receive() is None
    monkeypatch.setattr(Outbox, "__init__", opened)
    monkeypatch.setattr(Outbox, "send", fail)
    started = child.receive(0)
    assert isinstance(started, Activity) and "has started" in started.text and commands.receive() is None
    assert child.receive(0) is None and commands.receive() is None
    monkeypatch.setattr(Outbox, "send", whole)
    assert child.receive(0) is None
    assert child.receive(0) is None
    assert isinstance(commands.receive(), CloseEngines) and commands.receive() is None, "it is sent once"
    events.send(EnginesClosed(0.0, 0))
    assert isinstance(child.receive(0), EnginesClosed)


def test_an_event_that_cannot_be_written_is_tried_again_unless_it_is_only_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_process, "_RETRY_AFTER", (0.0, 0.0))
    pipe, tries = job_process._Pipe(tmp_path), []

    def fail(_: object, event: object) -> None:
        tries.append(event)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Outbox, "send", fail)
    pipe.send(Activity(Phase.WAITING, "Waiting"))
    assert len(tries) == 1
    with pytest.raises(OSError, match="No space left"):
        pipe.send(EnginesClosed(0.0, 0))
    assert len(tries) == 4
