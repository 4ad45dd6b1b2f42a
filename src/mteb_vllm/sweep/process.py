"""The child process of a sweep, as seen by its parent."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from multiprocessing import Pipe
from pathlib import Path

from mteb_vllm.engines import environment
from mteb_vllm.sweep.messages import Command, Event

# The child gets this process's import path.
START = """
import json, sys
sys.path[:], orders, lifeline = json.loads(sys.argv[1])
from mteb_vllm.sweep.child import main
main(orders, lifeline)
"""

# Seconds that a child may take to exit, which includes closing an engine and writing a record.
_END_WITHIN = 30.0


class Child:
    """A process that runs points.

    Args:
        log: The file for its output outside of any point.
        variables: Environment variables for it, in addition to those of the shell.
    """

    def __init__(self, log: Path, variables: Mapping[str, str]) -> None:
        self._pipe, theirs = Pipe()
        end, self._lifeline = os.pipe()
        descriptors = (theirs.fileno(), end)
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-c", START, json.dumps([list(map(str, sys.path)), *descriptors])],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                pass_fds=descriptors,
                # Variables set by an engine that is open in this process would be taken for the shell's in the child.
                env={**environment.outer_variables(), **variables},
                # Ctrl-C reaches only the sweep, which then ends the child cleanly; and the child's processes form one group.
                start_new_session=True,
            )
        theirs.close()
        os.close(end)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def send(self, command: Command) -> None:
        """Send a command."""
        with contextlib.suppress(BrokenPipeError):  # `receive` will report that the child has ended
            self._pipe.send(command)

    def receive(self, seconds: float) -> Event | None:
        """Return the next event; None if there is none within this many seconds.

        Raises:
            EOFError: if the child has ended.
        """
        try:
            if not self._pipe.poll(seconds):
                if self._process.poll() is not None:
                    raise EOFError  # a process that it forked may still hold its end of the pipe
                return None
            event: Event = self._pipe.recv()
            return event
        except (EOFError, ConnectionError):
            raise EOFError from None

    def dump_stacks(self) -> None:
        """Make the child write the stacks of its threads to its log."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGUSR1)
        time.sleep(1)

    def end(self) -> None:
        """Terminate the child, and kill it if it does not exit in time."""
        try:
            self._process.terminate()
            deadline = time.monotonic() + _END_WITHIN
            # Keep reading, because the child may block while sending events.
            with contextlib.suppress(EOFError):
                while time.monotonic() < deadline:
                    self.receive(0.2)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(max(0.1, deadline - time.monotonic()))
        finally:
            self.kill()

    def kill(self) -> int:
        """Kill the child and all of its processes; return its exit status as in `subprocess`."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        status = self._process.wait()
        self._pipe.close()
        with contextlib.suppress(OSError):
            os.close(self._lifeline)
        self._lifeline = -1
        return status

    def reap(self) -> int:
        """Kill the remaining processes of a child that has ended, and return its exit status."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        return self.kill()
