"""Times an engine: one call at each batch size, and everything at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mteb_vllm.engines.base import Engine
from mteb_vllm.engines.timing import Phases
from mteb_vllm.pipelines.throughput.requests import Requests
from mteb_vllm.results.measurements import Latency, PhaseTimes, Saturated, Step, ThroughputRecord

# A batch size is timed no more often than this: more says nothing new.
_MOST_STEPS = 500


@dataclass(frozen=True)
class _Call:
    """One timed call."""

    seconds: float
    lengths: list[int]
    phases: Phases
    cached: int


class Stopwatch:
    """Asks an engine for requests that it has not seen of late, and times it.

    Args:
        engine: An open engine.
        requests: What it is asked for, over and over; before an engine that keeps prefixes gets the same again, it forgets
            them, and is asked for one of them, so that it has again what all share.
    """

    def __init__(self, engine: Engine, requests: Requests) -> None:
        self.engine, self.requests = engine, requests
        self._next = 0

    def ask(self, count: int) -> _Call:
        """Asks for `count` requests in one call."""
        if self._next + count > len(self.requests):
            self._begin_again()
        rows = [(self._next + at) % len(self.requests) for at in range(count)]
        self._next += count
        before = self.engine.cached_tokens
        with self.engine.time_phases() as phases:
            started = time.perf_counter()
            lengths = self.requests.ask(self.engine, rows)
            seconds = time.perf_counter() - started
        return _Call(seconds, lengths, phases, self.engine.cached_tokens - before)

    def ask_all(self) -> _Call:
        """Asks for all of them in one call."""
        self._next = len(self.requests)
        self._begin_again()
        call = self.ask(len(self.requests))
        self._next = len(self.requests)
        return call

    def _begin_again(self) -> None:
        self._next = 0
        if self.engine.reset_prefix_cache():
            self.requests.ask(self.engine, [len(self.requests) - 1])


def measure(
    engine: Engine,
    requests: Requests,
    figures: ThroughputRecord,
    *,
    batch_sizes: Sequence[int],
    steps: int,
    seconds: float,
    repeats: int,
    tell: Callable[[str], None],
) -> list[int]:
    """Times an engine, warmed up.

    Args:
        engine: An open engine.
        requests: What it is asked for.
        figures: Its `warm_up_seconds`, `steps` and `saturated` are filled as it goes. Percentiles of the latency are
            interpolated linearly between the nearest two.
        batch_sizes: Requests in one call, each to be timed.
        steps: How often each is timed at least.
        seconds: For how long each is timed about, if that is more.
        repeats: How often everything at once is timed.
        tell: Told what is being timed.

    Returns:
        the tokens of each request.
    """
    watch = Stopwatch(engine, requests)
    tell("warming up")
    started = time.perf_counter()
    for _ in range(2):
        watch.ask(min(max(batch_sizes), len(requests), 32))
    figures.warm_up_seconds = time.perf_counter() - started
    for size in batch_sizes:
        tell(f"{size:,} at a time")
        watch.ask(size)  # what a library prepares for each new shape
        figures.steps.append(_step(size, list(_repeated(watch, size, steps, seconds))))
    tell(f"all {len(requests):,} at once")
    runs = [watch.ask_all() for _ in range(repeats)]
    figures.saturated = _saturated(len(requests), runs)
    return runs[0].lengths


def _repeated(watch: Stopwatch, size: int, steps: int, seconds: float) -> Iterator[_Call]:
    spent, done = 0.0, 0
    while done < steps or (spent < seconds and done < _MOST_STEPS):
        call = watch.ask(size)
        spent, done = spent + call.seconds, done + 1
        yield call


def _step(size: int, calls: Sequence[_Call]) -> Step:
    latency = np.array([call.seconds for call in calls]) * 1e3
    total = latency.sum() / 1e3
    low, middle, high = np.percentile(latency, [25, 50, 75])
    return Step(
        batch_size=size,
        steps=len(calls),
        requests_per_second=size * len(calls) / float(total),
        tokens_per_second=sum(sum(call.lengths) for call in calls) / float(total),
        latency_ms=Latency(float(latency.mean()), *(float(np.percentile(latency, at)) for at in (50, 90, 99))),
        phases_ms=_phases(calls, 1e3 / len(calls)),
        spread=float((high - low) / middle),
    )


def _saturated(count: int, runs: Sequence[_Call]) -> Saturated:
    seconds = [run.seconds for run in runs]
    middle = float(np.median(seconds))
    nearest = min(runs, key=lambda run: abs(run.seconds - middle))
    return Saturated(
        repeats=len(runs),
        seconds=seconds,
        requests_per_second=count / middle,
        tokens_per_second=sum(nearest.lengths) / middle,
        spread=(max(seconds) - min(seconds)) / middle,
        cached_share=nearest.cached / sum(nearest.lengths),
        phases_s=_phases([nearest]),
    )


def _phases(calls: Sequence[_Call], scale: float = 1.0) -> PhaseTimes:
    """Return the sums of the calls' parts, times `scale`."""
    return PhaseTimes(
        *(scale * sum(getattr(call.phases, name) for call in calls) for name in ("tokenise", "engine", "collect"))
    )
