"""A sweep's child process, seen from outside: started, told, listened to, ended."""

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

# The child imports from where this process does.
START = """
import json, sys
sys.path[:], orders, lifeline = json.loads(sys.argv[1])
from mteb_vllm.sweep.child import main
main(orders, lifeline)
"""

# How long a child may take to end by itself, in seconds: an engine closes, a record is written.
_END_WITHIN = 30.0


class Child:
    """A process that runs points.

    Args:
        log: Where goes what it writes outside of any point.
        variables: Environment variables that it starts with, beside those of the shell.
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
                # Variables of an engine that is open here would count as settings of the shell's there.
                env={**environment.outer(), **variables},
                # Ctrl-C goes to the sweep, which ends its child in order; and the child's processes can be ended with it.
                start_new_session=True,
            )
        theirs.close()
        os.close(end)

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def send(self, order: Command) -> None:
        """Gives it something to do."""
        with contextlib.suppress(BrokenPipeError):  # that it has ended, listening says
            self._pipe.send(order)

    def receive(self, seconds: float) -> Event | None:
        """What it says next; None if it says nothing for so long.

        Raises:
            EOFError: if it has ended.
        """
        try:
            if not self._pipe.poll(seconds):
                if self._process.poll() is not None:
                    raise EOFError  # somebody whom it forked may still hold its end
                return None
            event: Event = self._pipe.recv()
            return event
        except (EOFError, ConnectionError):
            raise EOFError from None

    def dump_stacks(self) -> None:
        """Lets it write into its log where it is."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGUSR1)
        time.sleep(1)

    def end(self) -> None:
        """Asks it to end, and ends it if it does not."""
        try:
            self._process.terminate()
            deadline = time.monotonic() + _END_WITHIN
            # It may still be saying something, and would wait to be heard.
            with contextlib.suppress(EOFError):
                while time.monotonic() < deadline:
                    self.receive(0.2)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(max(0.1, deadline - time.monotonic()))
        finally:
            self.kill()

    def kill(self) -> int:
        """Ends it and all of its processes; returns its exit status as `subprocess` has it."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        status = self._process.wait()
        self._pipe.close()
        with contextlib.suppress(OSError):
            os.close(self._lifeline)
        self._lifeline = -1
        return status

    def reap(self) -> int:
        """The exit status of a child that has ended by itself; what it leaves of its processes is ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        return self.kill()
