"""Child processes that end with their parent, whatever ends it, and a pipe between the two.

The parent holds the other end of a second pipe, the lifeline, which closes when the parent ends: the child then kills its
process group, which it leads, and removes its shared memory.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Generic, TypeVar

from mteb_vllm.util.streams import open_standard_streams

Sent = TypeVar("Sent")
Received = TypeVar("Received")

# Seconds that a child may take to exit, which includes closing an engine and writing a record.
_END_WITHIN = 30.0

# A segment's file in the memory map of a process, proc(5). The prefix is that of `multiprocessing.shared_memory`.
_SEGMENT = re.compile(r" (/dev/shm/psm_\w+)$", re.MULTILINE)


class ChildProcess(Generic[Sent, Received]):
    """A child process, as seen by its parent.

    Args:
        start: The code that it runs; `sys.argv[1]` holds the import path of this process and the two file descriptors for
            `connect`, as JSON.
        log: The file for its output.
        env: Its environment variables.
    """

    def __init__(self, start: str, log: Path, env: Mapping[str, str]) -> None:
        self._pipe, theirs = Pipe()
        end, self._lifeline = os.pipe()
        descriptors = (theirs.fileno(), end)
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-c", start, json.dumps([list(map(str, sys.path)), *descriptors])],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                pass_fds=descriptors,
                env=dict(env),
                # Ctrl-C reaches only the parent, which then ends the child cleanly; and the child's processes form one group.
                start_new_session=True,
            )
        theirs.close()
        os.close(end)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def send(self, message: Sent) -> None:
        """Send a message."""
        with contextlib.suppress(OSError):  # `receive` will report that the child has ended
            self._pipe.send(message)

    def receive(self, seconds: float) -> Received | None:
        """Return the next message; None if there is none within this many seconds.

        Raises:
            EOFError: if the child has ended.
        """
        try:
            if not self._pipe.poll(seconds):
                if self._process.poll() is not None:
                    raise EOFError  # a process that it forked may still hold its end of the pipe
                return None
            message: Received = self._pipe.recv()
            return message
        except (EOFError, ConnectionError):
            raise EOFError from None

    def dump_stacks(self) -> None:
        """Make the child write the stacks of its threads to its log."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGUSR1)
        time.sleep(1)

    def terminate(self) -> None:
        """Send the child SIGTERM."""
        self._process.terminate()

    def end(self) -> None:
        """Terminate the child, and kill it if it does not exit in time."""
        try:
            self.terminate()
            deadline = time.monotonic() + _END_WITHIN
            # Keep reading, because the child may block while sending.
            with contextlib.suppress(EOFError):
                while time.monotonic() < deadline:
                    self.receive(0.2)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(max(0.1, deadline - time.monotonic()))
        finally:
            self.kill()

    def wait(self, seconds: float = 0.0) -> int:
        """Wait so long for the child to exit, and kill what remains of its processes; return its exit status."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        _kill_group(self.pid)
        return self._process.wait()

    def close(self) -> None:
        """Close the pipes to a child that has ended."""
        self._pipe.close()
        lifeline, self._lifeline = self._lifeline, -1
        if lifeline >= 0:
            os.close(lifeline)

    def kill(self) -> int:
        """Kill the child and all of its processes; return its exit status as in `subprocess`."""
        status = self.wait()
        self.close()
        return status

    def reap(self) -> int:
        """Kill the remaining processes of a child that has ended, and return its exit status."""
        status = self.wait(10)
        self.close()
        return status


def connect(orders: int, lifeline: int) -> Connection:
    """Return the pipe to the parent, in a child that has just started, and end with the parent from now on.

    Args:
        orders: File descriptor of the pipe.
        lifeline: File descriptor of the pipe that closes when the parent ends.
    """
    for descriptor in (orders, lifeline):
        os.set_inheritable(descriptor, False)  # processes of the child must not hold them open
    open_standard_streams()
    # Write stacks to standard error, which is the child's log, on a crash and on SIGUSR1.
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    threading.Thread(target=_die_with_parent, args=(lifeline,), daemon=True).start()
    return Connection(orders)


def _die_with_parent(lifeline: int) -> None:
    while os.read(lifeline, 1):
        pass
    _kill_group(os.getpgid(0))


def _kill_group(leader: int) -> None:
    """Kill a process group and remove its shared memory."""
    try:
        # Python's resource tracker would remove it, but belongs to the group, and is killed too.
        for segment in _shared_memory(leader):
            with contextlib.suppress(OSError):  # its owner has removed it
                segment.unlink()
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader, signal.SIGKILL)


def _shared_memory(leader: int) -> set[Path]:
    """Return the segments of `multiprocessing.shared_memory` that a process group uses, where the system is Linux."""
    found: set[Path] = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # a process that has ended, or of another user
            if os.getpgid(int(folder.name)) == leader:
                maps = (folder / "maps").read_text(encoding="utf-8", errors="surrogateescape")
                found.update(map(Path, _SEGMENT.findall(maps)))
    return found
