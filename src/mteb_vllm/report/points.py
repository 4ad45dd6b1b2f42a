"""A run as a comparison sees it: its settings, the scores of its tasks, and its measurements."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from mteb_vllm.results.failures import FATAL, Failure
from mteb_vllm.results.measurements import Amount, Count, Score, ThroughputRecord, Unit
from mteb_vllm.results.parity import ParityRecord

# Pipelines that measure something other than scores.
_MEASURING = ("throughput", "parity")
# The status of a task whose result was read from the results store.
CACHED: Final = "cached"
# Why a task that did not fail has no score.
NOT_A_NUMBER: Final = "not a number"
NO_SCORE: Final = "no score"
# The possible gain of a reranker below which it is rounding error.
_LEAST_GAIN = 1e-9


@dataclass(frozen=True)
class TaskScore:
    """One task of a point.

    Attributes:
        name: The task.
        type: Its type; "" where it is unknown.
        score: The main score, the mean over splits and subsets; None if the task failed, or has none for another reason.
        subsets: The splits and subsets that it is the mean over, as `describe_subsets` returns them; "" where unknown.
        failed: Whether it failed.
        without: Why it has no score although it did not fail: `NOT_A_NUMBER`, or `NO_SCORE` where none of the splits and
            subsets that count are present; "" otherwise.
        first_stage: Reranking: the first stage's main score; None where there is none or it is unknown.
        ceiling: Reranking: the score of a perfect reranker; likewise.
        unit: The unit of `computed` and `stored`: texts or pairs.
        computed: Distinct texts that the engine computed. This and the following are None where they are unknown, as for a
            cached result.
        stored: Distinct texts whose embeddings came from the embedding cache.
        tokens: Tokens that the engine was given.
        seconds: Wall time of the engine's work, without that of the embedding cache.
        cached: Whether the result was read from the results store.
    """

    name: str
    type: str = ""
    score: Score | None = None
    subsets: str = ""
    failed: bool = False
    without: Literal["", "not a number", "no score"] = ""
    first_stage: Score | None = None
    ceiling: Score | None = None
    unit: Unit = "texts"
    computed: Count | None = None
    stored: Count | None = None
    tokens: Count | None = None
    seconds: Amount | None = None
    cached: bool = False


@dataclass(frozen=True)
class Point:
    """One run in a comparison: one combination of a sweep's values, a single run, or a folder of results.

    Attributes:
        name: Its number in a sweep, or the name of its folder; unique in a comparison.
        folder: Where it was found.
        source: "run" for a run of this program, "results" for a folder of results in mteb's layout, of any origin.
        overrides: The overrides of its command line: key to value.
        arguments: The arguments of a command that repeats the run; None where there is no such command.
        facts: All its settings, flat, by dotted keys: "model", "revision", "engine.dtype", "device", "versions.vllm", ...;
            values as they are shown.
        engine: The fingerprint of its engine; "" where there is none.
        tasks: Its tasks.
        engine_seconds: Seconds that its engine took to open; None where it opened none.
        seconds: Wall time of the whole run; of results in mteb's layout, the sum of their evaluation times.
        peak_memory_mb: Peak memory of the process and of its engine's processes, in MiB; None where it opened no engine.
        failures: Its failures, with logs.
        warnings: Problems with its files that cost no score, in sentences.
        throughput: The measurements of a throughput run; None for any other.
        parity: The verdict of a parity run; None for any other.
        started: When the run began, in ISO format; "" where it is unknown.
    """

    name: str
    folder: Path
    source: Literal["run", "results"] = "run"
    overrides: dict[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] | None = None
    facts: dict[str, str] = field(default_factory=dict)
    engine: str = ""
    tasks: list[TaskScore] = field(default_factory=list)
    engine_seconds: Amount | None = None
    seconds: Amount | None = None
    peak_memory_mb: Amount | None = None
    failures: list[Failure] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    throughput: ThroughputRecord | None = None
    parity: ParityRecord | None = None
    started: str = ""

    @property
    def has_results(self) -> bool:
        """Whether it has outcomes of tasks or measurements, so that all its settings are in its record."""
        return bool(self.tasks) or self.throughput is not None

    @property
    def for_speed(self) -> bool:
        """Whether it is a run of the throughput pipeline."""
        return self.throughput is not None or self.facts.get("pipeline") == "throughput"

    @property
    def for_scores(self) -> bool:
        """Whether it was run for its scores; true where its pipeline is unknown."""
        return not self.for_speed and self.parity is None and self.facts.get("pipeline") not in _MEASURING

    @property
    def failed(self) -> bool:
        """Whether it or one of its tasks failed."""
        return bool(self.failures) or any(task.failed for task in self.tasks)

    @property
    def cut_short(self) -> bool:
        """Whether tasks may be missing because it failed as a whole."""
        names = {task.name for task in self.tasks}
        return any(
            failure.task is None or (failure.kind in FATAL and failure.task not in names) for failure in self.failures
        )

    @property
    def cached(self) -> bool:
        """Whether all of its results were read from the results store, so that no engine was at work."""
        done = [task for task in self.tasks if not task.failed]
        return self.throughput is None and bool(done) and all(task.cached for task in done)

    def total(self, figure: str) -> int | None:
        """Return the sum of a figure over its tasks, as `computed`, where it is known; None where no task has it.

        A task whose result was cached counts as 0: it is the point's own work that is summed.
        """
        figures = (0 if task.cached else getattr(task, figure) for task in self.tasks)
        known = [value for value in figures if value is not None]
        return sum(known) if known else None


def gain_share(first_stage: float | None, reranked: float | None, ceiling: float | None) -> float | None:
    """Return the share of the possible gain that a reranker realised: (reranked - first stage) / (ceiling - first stage).

    Returns:
        a share, negative where reranking lowers the score; None where a score is unknown, or where the ceiling leaves no
        room above the first stage.
    """
    if first_stage is None or reranked is None or ceiling is None or ceiling - first_stage < _LEAST_GAIN:
        return None
    return (reranked - first_stage) / (ceiling - first_stage)
