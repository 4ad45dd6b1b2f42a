"""The points of a search: which are rejected, which is the best, and what Optuna learns from each."""

from __future__ import annotations

import math

import pytest
from test_objective import record, task

from mteb_vllm.results.failures import Failure
from mteb_vllm.results.record import RunRecord
from mteb_vllm.results.search import Search


def measured(point: int, scores: tuple[float, float], seconds: float = 1.0) -> RunRecord:
    first, second = scores
    return record(
        "texts_per_second", task("A", first, seconds=seconds), task("B", second, seconds=seconds), point=point
    )


def search(tolerance: float | None = 0.01) -> Search:
    return Search(("engine.dtype",), tolerance, default=measured(0, (0.5, 0.6)))


def test_optuna_learns_the_objective() -> None:
    assert search().add(measured(1, (0.5, 0.6), seconds=4.0)) == 25


@pytest.mark.parametrize("scores", [(0.511, 0.6), (0.489, 0.6), (0.511, 0.589)])
def test_a_point_that_changes_a_score_is_rejected_in_either_direction(scores: tuple[float, float]) -> None:
    """Also where the differences cancel each other out in the mean."""
    found = search()
    assert found.add(measured(1, scores)) == -math.inf
    assert f"A {scores[0]:.5f} instead of 0.50000" in found.rejected[1] and found.best is None
    assert ("B" in found.rejected[1]) == (scores[1] != 0.6)


def test_a_difference_of_the_tolerance_is_not_rejected() -> None:
    found = search()
    assert found.add(measured(1, (0.51, 0.59))) == 100 and not found.rejected
    assert search(None).add(measured(1, (0.9, 0.1))) == 100, "without a tolerance, nothing is rejected"
    assert Search((), 0.01).add(measured(1, (0.9, 0.1))) == 100, "Hydra's own launcher runs no default"


def test_a_point_without_an_objective_is_worse_than_all_others() -> None:
    found = search()
    assert found.add(record("texts_per_second", task("A", None, failure=Failure("task", "no")), point=1)) == -math.inf
    assert found.best is None and not found.rejected


def test_the_best_is_the_fastest_that_is_not_rejected() -> None:
    found = search()
    for point, score, seconds in ((1, 0.5, 4.0), (2, 0.7, 1.0), (3, 0.5, 2.0), (4, 0.5, 2.0)):
        found.add(measured(point, (score, 0.6), seconds))
    found.add(record("texts_per_second", failure=Failure("engine_start", "no"), point=5))
    assert found.best is found.trials[2], "the first of two equal ones"
