"""Where the time of an engine's calls goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

Phase = Literal["tokenise", "engine", "collect"]


@dataclass
class Phases:
    """Wall time in seconds of what a caller waits for; the three add up to the whole.

    Attributes:
        tokenise: Waiting for texts to become tokens; an engine in a process of its own may work on earlier ones meanwhile.
        engine: The model at work, and what schedules it.
        collect: The rest: sorting, gathering, handing back.
    """

    tokenise: float = 0.0
    engine: float = 0.0
    collect: float = 0.0
    _since: float = field(default_factory=lambda: time.perf_counter(), repr=False)

    def add(self, phase: Phase) -> None:
        """Counts the time since the last call of this as one phase's."""
        now = time.perf_counter()
        setattr(self, phase, getattr(self, phase) + now - self._since)
        self._since = now

    @contextmanager
    def measure(self, phase: Phase, before: Phase = "collect") -> Iterator[None]:
        """Counts the time in here as one phase's, and what lies between this and the last one as another's."""
        self.add(before)
        try:
            yield
        finally:
            self.add(phase)


@contextmanager
def replace_attributes(thing: object, **attributes: object) -> Iterator[None]:
    """Lets an object have other attributes of its own for a while."""
    before = {name: vars(thing)[name] for name in attributes if name in vars(thing)}
    try:
        for name, value in attributes.items():
            setattr(thing, name, value)
        yield
    finally:
        for name in attributes:
            if name in before:
                setattr(thing, name, before[name])
            else:
                delattr(thing, name)
