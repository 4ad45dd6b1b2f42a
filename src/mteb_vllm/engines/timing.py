"""Measure how much time an engine's calls spend in each phase."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

Phase = Literal["tokenise", "engine", "collect"]


@dataclass
class Phases:
    """Wall time in seconds by phase, as seen by the caller; the three add up to the total.

    Attributes:
        tokenise: Waiting for tokenisation; an engine in a separate process may compute earlier texts meanwhile.
        engine: The model and its scheduler.
        collect: The rest: sorting, gathering and returning results.
    """

    tokenise: float = 0.0
    engine: float = 0.0
    collect: float = 0.0
    _since: float = field(default_factory=lambda: time.perf_counter(), repr=False)

    def add(self, phase: Phase) -> None:
        """Add the time since the previous call to a phase."""
        now = time.perf_counter()
        setattr(self, phase, getattr(self, phase) + now - self._since)
        self._since = now

    @contextmanager
    def measure(self, phase: Phase, before: Phase = "collect") -> Iterator[None]:
        """Add the time inside the block to `phase`, and the time since the previous measurement to `before`."""
        self.add(before)
        try:
            yield
        finally:
            self.add(phase)
