"""The child process of a sweep on this machine, as seen by its parent."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mteb_vllm.engines import environment
from mteb_vllm.results.failures import Ending
from mteb_vllm.sweep.messages import Command, Event
from mteb_vllm.sweep.planning import Group
from mteb_vllm.sweep.queue import Place
from mteb_vllm.util.child_process import ChildProcess
from mteb_vllm.util.machine import on_cores

# The child gets this process's import path.
START = """
import json, sys
sys.path[:], orders, lifeline = json.loads(sys.argv[1])
from mteb_vllm.sweep.child import main
main(orders, lifeline)
"""


class Child(ChildProcess[Command, Event]):
    """A process that runs points.

    Args:
        log: The file for its output outside of any point.
        variables: Environment variables for it, in addition to those of the shell.
        place: The part of the machine that it may use.
    """

    def __init__(self, log: Path, variables: Mapping[str, str], place: Place) -> None:
        self.log = log
        # Variables set by an engine that is open in this process would be taken for the shell's in the child.
        env = {**environment.outer_variables(), **place.variables, **variables}
        with on_cores(place.cores):
            super().__init__(START, log, env)

    def abort(self) -> None:
        """Kill it; may be called from any thread."""
        self.wait()

    def ending(self) -> Ending:
        """Kill the remaining processes of a child that has ended, and return how it ended."""
        return Ending(self.reap())


class ThisMachine:
    """Runs the children of a sweep on this machine.

    Args:
        folder: The sweep's folder, for their logs.
    """

    one_group_each = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def start(self, group: Group, place: Place, variables: Mapping[str, str], worker: int) -> Child:
        """See `Host.start`."""
        return Child(self._folder / (f"child-{worker}.log" if worker else "child.log"), variables, place)
