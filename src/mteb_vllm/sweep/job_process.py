"""The child process of a sweep as a job of SLURM: it gets commands and sends events through files in a shared folder.

When its sweep has ended, it finishes the current point and exits.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import stat
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from mteb_vllm.sweep.child import serve
from mteb_vllm.sweep.messages import Activity, Command, Event, RunPoint, TaskProgress
from mteb_vllm.util.mailbox import Inbox, Outbox

# Names of the files of an attempt to run a job, and of the file that the sweep keeps changing and removes at its end.
COMMANDS, EVENTS, ALIVE = "commands", "events", "alive"

# Seconds between reads of the commands, and those after which a sweep that gives no sign of life has ended.
_POLL, _GONE = 0.3, 180.0

# Seconds between two events about the same texts.
_SEND_EVERY = 1.0

# Seconds after which an event that could not be written is written again.
_RETRY_AFTER = (1.0, 5.0, 20.0)


class _Pipe:
    """The pipe to the sweep, made of files; see `child.Pipe`.

    Args:
        folder: The folder of this attempt to run the job.
    """

    def __init__(self, folder: Path) -> None:
        self._inbox: Inbox[Command] = Inbox(folder / COMMANDS)
        self._outbox: Outbox[Event] = Outbox(folder / EVENTS)
        self._alive, self._sign, self._seen = folder.parent / ALIVE, "", time.monotonic()
        self._last: tuple[TaskProgress | None, float] = (None, 0.0)

    def recv(self) -> Command:
        """Return the next command.

        Raises:
            EOFError: if the sweep has ended.
        """
        while True:
            if (command := self._inbox.receive()) is not None:
                return _on_this_node(command)
            # Compared, not read as a time, because clocks may differ.
            try:
                sign = self._alive.read_text(encoding="ascii")
            except FileNotFoundError:
                raise EOFError from None
            except OSError:
                sign = self._sign
            if sign != self._sign:
                self._sign, self._seen = sign, time.monotonic()
            if time.monotonic() > self._seen + _GONE:
                raise EOFError
            time.sleep(_POLL)

    def send(self, event: Event) -> None:
        """Send an event.

        Raises:
            OSError: if it cannot be written, even after a while; one that is only shown is left out instead.
        """
        if isinstance(event, TaskProgress):
            last, at = self._last
            now = time.monotonic()
            same = last is not None and (last.task, last.phase, last.text) == (event.task, event.phase, event.text)
            if same and now < at + _SEND_EVERY:
                return
            self._last = event, now
        for pause in (*_RETRY_AFTER, None):
            try:
                self._outbox.send(event)
                return
            except OSError:
                if isinstance(event, (TaskProgress, Activity)):
                    return  # only shown
                if pause is None:
                    raise
                time.sleep(pause)


def run(folder: str) -> None:
    """Execute commands, as a job of SLURM; a job that has been requeued begins anew.

    Args:
        folder: The job's folder, shared with the sweep.
    """
    pipe = _Pipe(attempt_folder(Path(folder)))
    faulthandler.enable(sys.stderr)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    serve(pipe)


def attempt_folder(folder: Path) -> Path:
    """Create the folder of this attempt to run the job, by how often it has been requeued."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # submitit would give up on it
    found = folder / os.environ.get("SLURM_RESTART_COUNT", "0")
    found.mkdir(exist_ok=True)
    return found


def _on_this_node(command: Command) -> Command:
    """Return a command whose point caches embeddings on this node, unless its configuration names a folder."""
    if not isinstance(command, RunPoint) or command.point.config.embedding_cache.dir is not None:
        return command
    config = command.point.config
    cache = replace(config.embedding_cache, dir=str(_node_folder()))
    return replace(command, point=replace(command.point, config=replace(config, embedding_cache=cache)))


def _node_folder() -> Path:
    """Return a folder of this user on the node's own disk, that jobs share."""
    folder = Path(os.environ.get("SLURM_TMPDIR") or tempfile.gettempdir(), f"mteb-vllm-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
            return folder
    except OSError:
        pass
    # It belongs to another user, who could have put any embeddings there.
    return Path(tempfile.mkdtemp(prefix="mteb-vllm-"))
