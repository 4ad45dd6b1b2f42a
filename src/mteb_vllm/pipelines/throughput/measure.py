"""Time an engine: single calls at each batch size, and offline (saturated) throughput."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mteb_vllm.engines.base import Engine
from mteb_vllm.engines.timing import Phases
from mteb_vllm.pipelines.throughput.requests import Requests
from mteb_vllm.results.measurements import Latency, PhaseTimes, Saturated, Step, ThroughputRecord

# Maximum number of timed calls per batch size.
_MAX_STEPS = 500


@dataclass(frozen=True)
class _Call:
    """One timed call.

    Attributes:
        seconds: Its time.
        lengths: The number of tokens of each request.
        phases: The parts of its time.
        cached: Tokens that came from the prefix cache.
        computed_by: How many requests each replica computed; empty without replicas.
    """

    seconds: float
    lengths: list[int]
    phases: Phases
    cached: int
    computed_by: list[int]


class Stopwatch:
    """Times calls of an engine with requests in turn, such that none is in its prefix cache.

    Args:
        engine: An open engine.
        requests: The requests. When they are used up, the engine's prefix cache is cleared and the last request is run once,
            untimed, to cache the prefix that all share; then they are used again.
    """

    def __init__(self, engine: Engine, requests: Requests) -> None:
        self.engine, self.requests = engine, requests
        self._next = 0
        requests.check_tokens(engine)

    def time_call(self, count: int) -> _Call:
        """Time one call with the next `count` requests."""
        if self._next + count > len(self.requests):
            self._start_over()
        rows = [(self._next + at) % len(self.requests) for at in range(count)]
        self._next += count
        cached, computed = self.engine.cached_tokens, list(self.engine.computed_by)
        with self.engine.time_phases() as phases:
            started = time.perf_counter()
            lengths = self.requests.run(self.engine, rows)
            seconds = time.perf_counter() - started
        by = [now - before for now, before in zip(self.engine.computed_by, computed, strict=True)]
        return _Call(seconds, lengths, phases, self.engine.cached_tokens - cached, by)

    def time_all(self) -> _Call:
        """Time one call with all requests."""
        self._next = len(self.requests)
        self._start_over()
        call = self.time_call(len(self.requests))
        self._next = len(self.requests)
        return call

    def _start_over(self) -> None:
        self._next = 0
        if self.engine.reset_prefix_cache():
            self.requests.run(self.engine, [len(self.requests) - 1])


def measure(
    engine: Engine,
    requests: Requests,
    figures: ThroughputRecord,
    *,
    batch_sizes: Sequence[int],
    steps: int,
    seconds: float,
    repeats: int,
    notify: Callable[[str], None],
) -> list[int]:
    """Time an engine, after a warm-up.

    Args:
        engine: An open engine.
        requests: The requests to time.
        figures: The record to fill: `warm_up_seconds`, `steps` and `saturated`, each when it is measured. Percentiles of
            the latency are interpolated linearly.
        batch_sizes: The numbers of requests per call.
        steps: The minimum number of calls per batch size.
        seconds: The minimum time spent on each batch size, up to `_MAX_STEPS` calls.
        repeats: The number of calls with all requests.
        notify: Called with a description of the next measurement.

    Returns:
        the number of tokens of each request.
    """
    watch = Stopwatch(engine, requests)
    notify("Warming up")
    started = time.perf_counter()
    for _ in range(2):
        watch.time_call(min(max(batch_sizes), len(requests), 32))
    figures.warm_up_seconds = time.perf_counter() - started
    for size in batch_sizes:
        notify(f"Timing calls at batch size {size:,}")
        watch.time_call(size)  # untimed: libraries may prepare something for each new shape
        figures.steps.append(_step(size, list(_repeat(watch, size, steps, seconds))))
    notify(f"Timing all {len(requests):,} {requests.unit} in one call")
    runs = [watch.time_all() for _ in range(repeats)]
    figures.saturated = _saturated(len(requests), runs)
    return runs[0].lengths


def _repeat(watch: Stopwatch, size: int, steps: int, seconds: float) -> Iterator[_Call]:
    spent, done = 0.0, 0
    while done < steps or (spent < seconds and done < _MAX_STEPS):
        call = watch.time_call(size)
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
        by_replica=[computed / middle for computed in nearest.computed_by],
    )


def _phases(calls: Sequence[_Call], scale: float = 1.0) -> PhaseTimes:
    """Return the sums of the calls' phases, times `scale`."""
    return PhaseTimes(
        *(scale * sum(getattr(call.phases, name) for call in calls) for name in ("tokenise", "engine", "collect"))
    )
