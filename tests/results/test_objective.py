"""The objective of a run: its value from the record, or the reason why there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from measured_runs import throughput

from mteb_vllm.results.counters import Measured
from mteb_vllm.results.failures import Failure
from mteb_vllm.results.objective import describe_objective, set_objective
from mteb_vllm.results.record import Objective, RunRecord, TaskOutcome, read_record, write_record


def task(
    name: str, score: float | None = 0.5, computed: int | None = 100, seconds: float = 2.0, **more: Any
) -> TaskOutcome:
    status = more.pop("status", "computed" if score is not None else "failed")
    return TaskOutcome(name, "STS", status, "spearman", score, computed=computed, seconds={"encode": seconds}, **more)


def record(name: Any, *tasks: TaskOutcome, tolerance: float | None = None, **more: Any) -> RunRecord:
    reference = more.pop("reference_score", None)
    objective = Objective(name, reference_score=reference) if name is not None else None
    config = {"report": {"score_tolerance": tolerance}}
    found = RunRecord(tasks=list(tasks), objective=objective, config=config, **more)
    set_objective(found)
    return found


def value(*args: Any, **options: Any) -> float | None:
    objective = record(*args, **options).objective
    assert objective is not None and (objective.value is None) != (objective.reason is None)
    return objective.value


def reason(*args: Any, **options: Any) -> str:
    objective = record(*args, **options).objective
    assert objective is not None and objective.value is None
    return str(objective.reason)


def test_mean_is_that_of_the_main_scores() -> None:
    assert value("mean", task("A", 0.25), task("B", 0.75)) == 0.5


def test_speed_is_over_all_tasks() -> None:
    assert value("texts_per_second", task("A", computed=100, seconds=1.0), task("B", computed=100, seconds=3.0)) == 50


def test_speed_of_a_throughput_run_is_the_offline_rate() -> None:
    assert value("texts_per_second", throughput=throughput()) == 240.0
    unmeasured = throughput()
    unmeasured.saturated = None
    assert "not measured" in reason("texts_per_second", throughput=unmeasured)


def test_a_cached_result_counts_with_the_cost_that_is_stored_with_it() -> None:
    cached = task(
        "A", computed=None, seconds=0.0, status="cached", measured=Measured(computed=90, stored=10, seconds=3.0)
    )
    assert value("texts_per_second", cached) == 30.0
    assert value("texts_per_second", cached, task("B", computed=110, seconds=1.0)) == 50.0
    without = task("A", computed=None, seconds=0.0, status="cached")
    assert "A is unknown" in (why := reason("texts_per_second", without)) and "results.reuse=none" in why
    assert value("mean", without) == 0.5


@pytest.mark.parametrize(("computed", "stored"), [(0, 100), (40, 60)])
def test_texts_from_the_embedding_cache_have_no_speed(computed: int, stored: int) -> None:
    assert "results.reuse=none" in reason("texts_per_second", task("A", computed=computed, stored=stored))


def test_a_run_without_measurements_has_no_objective() -> None:
    assert reason("mean") == "the run has no scores"
    assert reason("texts_per_second") == "the run has measured no speed"


def test_a_failed_run_has_none_and_says_why() -> None:
    failure = Failure("engine_start", "no memory\nis left")
    assert reason("mean", task("A"), failure=failure) == f"failed: {' '.join(str(failure).split())}"
    assert "ran out" in reason("mean", task("A"), task("B", None, failure=Failure("task", "it ran out")))


@pytest.mark.parametrize("name", ["mean", "texts_per_second"])
def test_a_score_too_far_below_the_reference_is_refused(name: str) -> None:
    args: dict[str, Any] = {"tolerance": 0.01, "reference_score": 0.6}
    assert value(name, task("A", 0.59), **args) is not None
    assert value(name, task("A", 0.9), **args) is not None, "a better score is welcome"
    why = reason(name, task("A", 0.58), **args)
    assert "0.58000 is 0.02000 below that of the default (0.60000)" in why and "score_tolerance=0.01" in why
    assert value(name, task("A", 0.58), reference_score=0.6) is not None, "no tolerance is set"
    assert value(name, task("A", 0.58), tolerance=0.01) is not None, "the default point itself has no reference"


def test_without_an_objective_nothing_is_set() -> None:
    found = record(None, task("A"))
    assert found.objective is None and describe_objective(found) == ""


def test_it_is_written_and_read_back(tmp_path: Path) -> None:
    found = record("mean", task("A", 0.4), tolerance=0.01, reference_score=0.6)
    write_record(found, tmp_path)
    assert read_record(tmp_path / "run.json").objective == found.objective
    assert describe_objective(found).startswith("mean: none (the mean score 0.40000")
    assert describe_objective(record("mean", task("A", 0.123456789))) == "mean: 0.123457"
