"""The nodes of a cluster: their kind of device, and whether locks hold between them and the submitting machine.

Both are found by a small job before a sweep submits others.
"""

from __future__ import annotations

import contextlib
import io
import json
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from mteb_vllm.config.schema import SlurmConfig
from mteb_vllm.errors import JobError
from mteb_vllm.results.failures import last_lines
from mteb_vllm.results.locks import lock, lock_path
from mteb_vllm.sweep.job_process import EVENTS, attempt_folder
from mteb_vllm.sweep.slurm import Cluster, gpus_for, job_log
from mteb_vllm.util.files import write_atomically
from mteb_vllm.util.machine import device
from mteb_vllm.util.mailbox import Inbox, Outbox

# The time limit in minutes of the job that tests a node.
_TEST_MINUTES = 10

# Seconds between reads of its message, and those that the message may take to become visible after it has ended.
_LOOK_EVERY, _LAST_WORDS = 0.3, 2.0


@dataclass(frozen=True)
class Node:
    """A node, as seen by a job.

    Attributes:
        name: Its host name.
        device: The kind of device that vLLM uses there; see `machine.device`.
        lock_problem: Why a lock of the submitting machine does not hold there; None if it does.
    """

    name: str
    device: str
    lock_problem: str | None


def examine_node(cluster: Cluster, folder: Path, roots: Sequence[Path], show: Callable[[str], object]) -> Node:
    """Return a node as seen by a small job, which also tests whether locks of results stores hold there.

    Args:
        cluster: The cluster.
        folder: A folder for the job.
        roots: The results stores.
        show: Shows a line of text.

    Raises:
        JobError: if SLURM refuses the job, or if it fails.
    """
    folder.mkdir(parents=True, mode=0o700)
    name = f"slurm-{uuid.uuid4().hex[:12]}"
    with contextlib.ExitStack() as held:
        for root in roots:
            held.enter_context(lock(root, name))
        locks = [str(lock_path(root, name).absolute()) for root in roots]
        with contextlib.redirect_stderr(io.StringIO()):  # submitit prints what the error says
            job = cluster.submit(
                describe, str(folder.absolute()), *locks, folder=folder,
                gpus=gpus_for(cluster.settings, 1), variables={}, minutes=min(cluster.settings.time, _TEST_MINUTES),
            )  # fmt: skip
        try:
            return _wait_for_node(cluster, job, folder, show)
        except BaseException:
            cluster.cancel(job)
            raise


def _wait_for_node(cluster: Cluster, job: str, folder: Path, show: Callable[[str], object]) -> Node:
    shown, ended_at = "", None
    while True:
        for path in folder.glob(f"*/{EVENTS}"):
            if (node := Inbox[Node](path).receive()) is not None:
                return node
        state = cluster.state(job)
        if state.ended:
            ended_at = ended_at or time.monotonic()
            if time.monotonic() > ended_at + _LAST_WORDS:
                log = job_log(folder, job)
                lines = "".join(f"\n    {line}" for line in last_lines(log, 10))
                raise JobError(f"the job that tests a node failed ({cluster.ending(job, log).how}){lines}")
        text = f"Job {job}, which tests a node and its locks, is {state}"
        if text != shown and state.name in ("PENDING", "RUNNING"):
            show(text)
            shown = text
        time.sleep(_LOOK_EVERY)


class KnownNodes:
    """The kinds of device of the nodes that sweeps have used, by the parameters of their jobs.

    With it, a sweep whose results are all stored submits no job.

    Args:
        root: The results store.
    """

    def __init__(self, root: Path) -> None:
        self._path = root / "slurm" / "nodes.json"

    def device(self, settings: SlurmConfig) -> str | None:
        """Return the kind of device that jobs with these settings had; None if none is known."""
        found = self._read().get(_resources(settings))
        return found if isinstance(found, str) else None

    def remember(self, settings: SlurmConfig, device: str) -> None:
        """Store the kind of device that jobs with these settings have."""
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            content = {**self._read(), _resources(settings): device}
            write_atomically(self._path, json.dumps(content, indent=2) + "\n")

    def _read(self) -> dict[str, object]:
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def _resources(settings: SlurmConfig) -> str:
    gpus = gpus_for(settings, 1)
    return (
        f"partition={settings.partition} gpus={min(gpus, 1)} {sorted(map(str, settings.additional_parameters.items()))}"
    )


def describe(folder: str, *locks: str) -> None:
    """Send what this node is like, as a job of SLURM.

    Args:
        folder: The job's folder, shared with the sweep.
        locks: The files of locks that the sweep holds.
    """
    outbox: Outbox[Node] = Outbox(attempt_folder(Path(folder)) / EVENTS)
    problems = (lock_problem(Path(lock)) for lock in locks)
    outbox.send(Node(socket.gethostname(), device(), next(filter(None, problems), None)))


def lock_problem(path: Path) -> str | None:
    """Return why a lock that another process holds is not seen in this one; None if it is.

    Args:
        path: The file of the lock.
    """
    if not path.exists():
        return "the folder is not the same one there"
    try:
        FileLock(path).acquire(blocking=False)
    except Timeout:
        return None
    except OSError as error:
        return f"its file system has no locks there ({error.strerror or error})"
    return "a lock that one machine holds is free for another one"
