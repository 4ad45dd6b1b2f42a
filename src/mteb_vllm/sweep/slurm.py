"""Jobs of SLURM that run the points of a sweep, through submitit.

A job runs the program of a sweep's child process (`job_process`), so it differs from a child on this machine only in how its
messages travel. Its state comes from `squeue` and `scontrol`, and from `sacct` only for a job that those no longer list,
because a cluster may have no accounting.
"""

from __future__ import annotations

import contextlib
import getpass
import itertools
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mteb_vllm.config.schema import SlurmConfig
from mteb_vllm.errors import JobError
from mteb_vllm.results.failures import Ending, Kind, describe_exit, last_lines
from mteb_vllm.sweep import job_process
from mteb_vllm.sweep.messages import (
    Activity,
    Command,
    EnginesClosed,
    Event,
    FirstStageDone,
    PointDone,
    PointFailed,
    Restarted,
)
from mteb_vllm.sweep.planning import Group
from mteb_vllm.sweep.process import Child
from mteb_vllm.sweep.queue import Place, gpus_of
from mteb_vllm.sweep.worker import ChildHandle
from mteb_vllm.util.files import write_atomically
from mteb_vllm.util.machine import DEVICE_VARIABLE, cpu_build
from mteb_vllm.util.mailbox import Inbox, Outbox
from mteb_vllm.util.phase import Phase

logger = logging.getLogger(__name__)

# Seconds between two queries of SLURM, between reads of a job's events, and between signs of life to a job.
_ASK_EVERY, _LOOK_EVERY, _SIGN_EVERY = 3.0, 0.3, 20.0

# Seconds that an idle job may take to exit, a cancelled one to end, and one that has ended to show its last messages.
_EXIT_WITHIN, _CANCEL_WITHIN, _LAST_WORDS = 60.0, 120.0, 2.0

# States of a job that has ended, with the kind of failure that they mean; None: the exit status says it.
_ENDED: Mapping[str, Kind | None] = {
    "COMPLETED": None, "FAILED": None, "TIMEOUT": "time_limit", "DEADLINE": "time_limit", "CANCELLED": "cancelled",
    "PREEMPTED": "cancelled", "REVOKED": "cancelled", "OUT_OF_MEMORY": "out_of_memory_encoding", "NODE_FAIL": "node_down",
    "BOOT_FAIL": "node_down", "LAUNCH_FAILED": "node_down",
}  # fmt: skip

# Text that SLURM adds to a job's output when the job uses more memory than it has.
_OVER_MEMORY = re.compile(r"slurmstepd.*(exceeded .*memory limit|oom.kill)", re.IGNORECASE)

# SLURM queues a job again that could not be started on its node, and holds it: it stays in the queue until somebody acts.
_HELD_AFTER_FAILED_LAUNCH = "launch failed requeued held"

# The state of a job that SLURM no longer lists.
_FORGOTTEN = "forgotten"

# Events after which a job waits for the next command.
_FINAL = (PointDone, PointFailed, FirstStageDone, EnginesClosed)


@dataclass(frozen=True)
class JobState:
    """The state of a job, as SLURM names it.

    Attributes:
        name: As PENDING, RUNNING or TIMEOUT.
        reason: Why it is in this state.
        exit_code: Exit status and signal, as `0:9`.
    """

    name: str
    reason: str = ""
    exit_code: str = "0:0"

    @property
    def ended(self) -> bool:
        """Whether it will not run again."""
        return self.name in _ENDED or self.name == _FORGOTTEN

    def __str__(self) -> str:
        reason = f" ({self.reason})" if self.reason not in ("", "None") else ""
        return f"{self.name.lower().replace('_', ' ')}{reason}"


class Cluster:
    """Submits jobs, and queries their states; every method may be called from any thread.

    Args:
        settings: The launcher's settings.
    """

    def __init__(self, settings: SlurmConfig) -> None:
        self.settings = settings
        self._states: dict[str, JobState] = {}
        self._asked = 0.0
        self._lock = threading.Lock()

    def submit(
        self,
        function: Callable[..., None],
        *arguments: str,
        folder: Path,
        gpus: int,
        variables: Mapping[str, str],
        minutes: int,
    ) -> str:
        """Submit a job; return its id.

        Args:
            function: The function of a module that it runs.
            arguments: The function's arguments.
            folder: The folder for its script and its log.
            gpus: The number of its GPUs.
            variables: Environment variables for it.
            minutes: Its time limit.

        Raises:
            JobError: if SLURM refuses it.
        """
        import submitit

        given, settings = dict(self.settings.additional_parameters), self.settings
        if settings.memory is not None:
            given["mem"] = settings.memory
        # The same packages and the same source as here, whatever the shell of the node finds.
        path = os.pathsep.join(str(Path(one).absolute()) for one in sys.path)
        exports = {"PYTHONPATH": path, **variables}
        # `exec`, so that the job's signals reach the process itself.
        executor = submitit.SlurmExecutor(folder=folder, python=f"exec {shlex.quote(sys.executable)}")
        executor.update_parameters(
            job_name="mteb-vllm",
            time=minutes,
            partition=settings.partition,
            account=settings.account,
            cpus_per_task=settings.cpus,
            gpus_per_node=gpus or None,
            setup=[
                *(f"module load {shlex.quote(name)}" for name in settings.modules),
                *settings.setup,
                f"unset {DEVICE_VARIABLE}",
                *(f"export {key}={shlex.quote(value)}" for key, value in exports.items()),
            ],
            stderr_to_stdout=True,
            use_srun=False,
            wckey=None,
            additional_parameters=given,
        )
        try:
            job = executor.submit(function, *arguments)
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError, OSError) as error:
            raise JobError(f"SLURM refuses the job: {str(error).strip()}") from error
        found = str(job.job_id)
        with self._lock:
            self._states[found] = JobState("PENDING")
        return found

    def state(self, job: str) -> JobState:
        """Return a job's state; while SLURM does not answer, the last known one."""
        with self._lock:
            if time.monotonic() > self._asked + _ASK_EVERY:
                self._ask()
                self._asked = time.monotonic()
            return self._states[job]

    def _ask(self) -> None:
        """Update the states of all jobs that have not ended."""
        open_jobs = [job for job, state in self._states.items() if not state.ended]
        if not open_jobs:
            return
        answer = _call("squeue", "--user", getpass.getuser(), "--states=all", "--noheader", "--format=%i|%T|%r")
        if answer is None:
            return
        rows = [line.split("|", 2) for line in answer.splitlines() if line.count("|") >= 2]
        listed = {job: JobState(name, reason) for job, name, reason in rows}
        for job in open_jobs:
            found = listed.get(job)
            # Jobs that have ended are listed for a few minutes only, and without their exit status.
            if found is None or found.ended:
                found = _ended_state(job) or found
            if found is not None and found.reason.replace("_", " ") == _HELD_AFTER_FAILED_LAUNCH:
                _call("scancel", job)
                found = JobState("LAUNCH_FAILED", found.reason)
            if found is not None:
                self._states[job] = found

    def ending(self, job: str, log: Path) -> Ending:
        """Return how a job ended.

        Args:
            job: The job.
            log: The file with its output, to which SLURM adds why it has killed it.
        """
        state = self._states[job]
        if state.exit_code.endswith(f":{signal.SIGKILL.value}") and any(map(_OVER_MEMORY.search, last_lines(log))):
            state = replace(state, name="OUT_OF_MEMORY")  # SLURM says so itself only where it limits memory by cgroups
        code, _, number = state.exit_code.partition(":")
        status = -int(number) if number.isdigit() and int(number) else int(code) if code.isdigit() else 1
        if status > 128:  # a shell's word for a signal
            status = 128 - status
        words = {
            "TIMEOUT": f"reached its time limit of {self.settings.time} min",
            "DEADLINE": "reached its deadline",
            "CANCELLED": "was cancelled",
            "PREEMPTED": "was preempted by another job",
            "REVOKED": "was revoked",
            "OUT_OF_MEMORY": f"used more than its memory{f' of {self.settings.memory}' if self.settings.memory else ''}",
            "NODE_FAIL": "lost its node",
            "BOOT_FAIL": "got a node that did not start",
            "LAUNCH_FAILED": "could not be started on its node",
            _FORGOTTEN: "has ended, and SLURM no longer lists its exit status",
        }
        how = words.get(state.name, describe_exit(status))
        return Ending(status, _ENDED.get(state.name), f"job {job}{':' if state.name not in words else ''} {how}")

    def cancel(self, job: str) -> None:
        """Cancel a job."""
        _call("scancel", job)
        self.forget_answers()

    def send_signal(self, job: str, name: str) -> None:
        """Send a signal to a job's process."""
        _call("scancel", f"--signal={name}", "--batch", job)

    def forget_answers(self) -> None:
        """Ask again when a state is needed next."""
        with self._lock:
            self._asked = 0.0

    def wait(self, job: str, seconds: float) -> bool:
        """Wait for the end of a job; return whether it has ended."""
        deadline = time.monotonic() + seconds
        while not self.state(job).ended:
            if time.monotonic() > deadline:
                return False
            time.sleep(_LOOK_EVERY)
        return True


def _ended_state(job: str) -> JobState | None:
    """Return the state of a job that is no longer queued; None if SLURM does not answer."""
    answer = _call("scontrol", "--oneliner", "show", "job", job)
    if answer is not None and "JobState=" in answer:
        fields = dict(re.findall(r"(\w+)=(\S*)", answer))
        return JobState(fields["JobState"], fields.get("Reason", ""), fields.get("ExitCode", "0:0"))
    answer = _call("sacct", "--jobs", job, "--allocations", "--noheader", "--parsable2", "--format=State,ExitCode")
    if answer:
        name, _, exit_code = answer.splitlines()[0].partition("|")
        return JobState(name.split()[0], "", exit_code)
    # If the controller answers at all, it has forgotten the job.
    return JobState(_FORGOTTEN) if _call("squeue", "--noheader") is not None else None


def _call(*command: str) -> str | None:
    """Return the output of a command of SLURM's; None if it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def job_log(folder: Path, job: str) -> Path:
    """Return the file with a job's output, which submitit names."""
    return folder / f"{job}_0_log.out"


class JobChild:
    """A child process of a sweep that is a job of SLURM.

    Args:
        cluster: The cluster.
        folder: The job's folder, which the node sees as well.
        gpus: The number of its GPUs.
        variables: Environment variables for it.

    Raises:
        JobError: if SLURM refuses the job.
    """

    def __init__(self, cluster: Cluster, folder: Path, gpus: int, variables: Mapping[str, str]) -> None:
        folder.mkdir(parents=True, mode=0o700)
        self._cluster, self._folder = cluster, folder
        self._signs, self._signed = itertools.count(), 0.0
        self._attempt = -1
        self._inbox: Inbox[Event] | None = None
        self._outbox: Outbox[Command] | None = None
        self._command: Command | None = None  # that it has not answered
        self._sent = False
        self._shown: JobState | None = None
        self._last_words: float | None = None
        self._sign()
        self.job = cluster.submit(
            job_process.run, str(folder.absolute()), folder=folder, gpus=gpus, variables=variables,
            minutes=cluster.settings.time,
        )  # fmt: skip

    @property
    def log(self) -> Path:
        """The file with its output."""
        return job_log(self._folder, self.job)

    def send(self, message: Command) -> None:
        """Send a command; the job gets it when it has started."""
        self._command, self._sent = message, False
        self._deliver()

    def _deliver(self) -> None:
        """Send the current command if the job has started; if it cannot be written, it is sent later."""
        if self._command is not None and self._outbox is not None and not self._sent:
            try:
                self._outbox.send(self._command)
                self._sent = True
            except OSError as error:
                logger.warning("a command of job %s cannot be written now: %s", self.job, error)

    def receive(self, seconds: float) -> Event | None:
        """Return the next event; None if there is none within so many seconds.

        Raises:
            EOFError: if the job has ended.
        """
        deadline = time.monotonic() + seconds
        while True:
            self._sign()
            if (event := self._look()) is not None:
                return event
            state = self._cluster.state(self.job)
            if state.ended:
                if self._last_words is None:
                    self._last_words = time.monotonic() + _LAST_WORDS
                elif time.monotonic() > self._last_words:
                    raise EOFError
            elif state != self._shown:
                self._shown = state
                if state.name != "RUNNING":
                    return Activity(Phase.WAITING, f"Job {self.job} is {state}")
            if time.monotonic() > deadline:
                return None
            time.sleep(_LOOK_EVERY)

    def _sign(self) -> None:
        """Let the job know that this process is alive."""
        if time.monotonic() > self._signed + _SIGN_EVERY or not self._signed:
            with contextlib.suppress(OSError):  # the job waits for a while
                write_atomically(self._folder / job_process.ALIVE, str(next(self._signs)))
            self._signed = time.monotonic()

    def _look(self) -> Event | None:
        """Return an event that has arrived; if the job has been started or restarted, its command is sent again."""
        if (newest := self._newest_attempt()) > self._attempt:
            folder = self._folder / str(newest)
            try:
                self._outbox = Outbox(folder / job_process.COMMANDS)
            except OSError as error:  # tried again at the next look
                logger.warning("the mailbox of job %s cannot be opened now: %s", self.job, error)
                return None
            self._inbox, self._sent = Inbox(folder / job_process.EVENTS), False
            restarted, self._attempt = self._attempt >= 0, newest
            self._deliver()
            return Restarted() if restarted else Activity(Phase.STARTING, f"Job {self.job} has started")
        self._deliver()
        event = self._inbox.receive() if self._inbox is not None else None
        if isinstance(event, _FINAL):
            self._command = None
        return event

    def _newest_attempt(self) -> int:
        try:
            started = self._folder.glob(f"*/{job_process.EVENTS}")
            return max((int(path.parent.name) for path in started), default=-1)
        except OSError:
            return -1

    def dump_stacks(self) -> None:
        """Make the job write the stacks of its threads to its log."""
        self._cluster.send_signal(self.job, "USR1")
        time.sleep(_LAST_WORDS)

    def end(self) -> None:
        """Let an idle job exit, and cancel any other."""
        try:
            if self._command is None:
                with contextlib.suppress(OSError):
                    (self._folder / job_process.ALIVE).unlink()
                self._cluster.wait(self.job, _EXIT_WITHIN)
        finally:
            self.kill()

    def abort(self) -> None:
        """Cancel it; may be called from any thread."""
        self._cluster.cancel(self.job)

    def kill(self) -> None:
        """Cancel it if it has not ended, wait for its end, and remove its messages."""
        if not self._cluster.state(self.job).ended:
            self._cluster.cancel(self.job)
            self._cluster.wait(self.job, _CANCEL_WITHIN)
        remove_messages(self._folder)

    def ending(self) -> Ending:
        """Return how a job that has ended did so, and remove its messages."""
        remove_messages(self._folder)
        return self._cluster.ending(self.job, self.log)


def remove_messages(folder: Path) -> None:
    """Remove everything but the log and the script from the folder of a job that has ended: messages may hold secrets."""
    with contextlib.suppress(OSError):  # there is no such job, or the file system is not reachable at the moment
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.suffix == ".pkl" or path.name == job_process.ALIVE:
                path.unlink(missing_ok=True)


class ClusterHost:
    """Runs the children of a sweep as jobs, except one that needs no engine.

    Args:
        cluster: The cluster.
        folder: The sweep's folder.
        numbers: Numbers the folders of jobs.
    """

    one_group_each = True

    def __init__(self, cluster: Cluster, folder: Path, numbers: Iterator[int]) -> None:
        self._cluster, self._folder, self._numbers = cluster, folder, numbers

    def start(self, group: Group, place: Place, variables: Mapping[str, str], worker: int) -> ChildHandle:
        """See `Host.start`.

        Raises:
            JobError: if SLURM refuses the job.
        """
        if group.engine is None:
            return Child(self._folder / "child.log", variables, place)
        folder = self._folder / "jobs" / str(next(self._numbers))
        return JobChild(self._cluster, folder, gpus_for(self._cluster.settings, gpus_of(group)), variables)


def gpus_for(settings: SlurmConfig, needed: int) -> int:
    """Return the number of GPUs of a job."""
    if settings.gpus is not None:
        return settings.gpus
    return 0 if cpu_build() else needed
