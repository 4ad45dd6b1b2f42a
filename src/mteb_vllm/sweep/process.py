"""The child process of a sweep, as seen by its parent."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mteb_vllm.engines import environment
from mteb_vllm.sweep.messages import Command, Event
from mteb_vllm.util.child_process import ChildProcess

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
    """

    def __init__(self, log: Path, variables: Mapping[str, str]) -> None:
        # Variables set by an engine that is open in this process would be taken for the shell's in the child.
        super().__init__(START, log, {**environment.outer_variables(), **variables})
