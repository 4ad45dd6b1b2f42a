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


def record(name: Any, *tasks: TaskOutcome, **more: Any) -> RunRecord:
    found = RunRecord(tasks=list(tasks), objective=Objective(name) if name is not None else None, **more)
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


def test_a_cached_result_has_a_score_but_no_speed() -> None:
    """Not even the one of the run that computed it, which may have been on another machine."""
    cost = Measured(computed=90, stored=10, seconds=3.0)
    cached = task("A", computed=None, seconds=0.0, status="cached", measured=cost)
    for tasks in ([cached], [cached, task("B")], [task("B"), cached]):
        why = reason("texts_per_second", *tasks)
        assert why == "A has no speed, because its result is cached; to measure it, set results.reuse=none"
    assert value("mean", cached) == 0.5


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


def test_without_an_objective_nothing_is_set() -> None:
    found = record(None, task("A"))
    assert found.objective is None and describe_objective(found) == ""


def test_it_is_written_and_read_back(tmp_path: Path) -> None:
    for found, text in (
        (record("mean", task("A", 0.123456789)), "mean: 0.123457"),
        (record("texts_per_second"), "texts_per_second: none (the run has measured no speed)"),
    ):
        write_record(found, tmp_path)
        assert read_record(tmp_path / "run.json").objective == found.objective
        assert describe_objective(found) == text
