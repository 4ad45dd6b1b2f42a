"""The objective of a run: the figure that a search maximises, set by `report.objective`."""

from __future__ import annotations

from mteb_vllm.results.record import RunRecord, mean

# Scores are sums of floats: the order of the terms must not decide whether a score is within the tolerance.
_ROUNDING = 1e-12


class _NoValueError(Exception):
    """A run does not have the figure; the message is the reason."""


def set_objective(record: RunRecord) -> None:
    """Set the value of a finished run's objective, or the reason why it has none; nothing if it has no objective."""
    objective = record.objective
    if objective is None:
        return
    objective.value = objective.reason = None
    try:
        if failures := [one for one in (record.failure, *(task.failure for task in record.tasks)) if one is not None]:
            raise _NoValueError(f"failed: {' '.join(str(failures[0]).split())}")
        if record.deviates:
            raise _NoValueError("the comparison with the reference did not pass")
        value = _mean_score(record) if objective.name == "mean" else _texts_per_second(record)
        _check_score(record)
        objective.value = value
    except _NoValueError as error:
        objective.reason = str(error)


def describe_objective(record: RunRecord) -> str:
    """Return a run's objective in one line; empty if it has none."""
    if (objective := record.objective) is None:
        return ""
    if objective.value is None:
        return f"{objective.name}: none ({objective.reason})"
    return f"{objective.name}: {objective.value:.6g}"


def _mean_score(record: RunRecord) -> float:
    found = mean(record.scores.values())
    if found is None:
        raise _NoValueError("the run has no scores")
    return found


def _texts_per_second(record: RunRecord) -> float:
    """Return the texts or pairs per second: of a throughput run the saturated rate, else over all tasks.

    A cached result counts with the cost that was stored when it was computed.
    """
    if record.throughput is not None:
        if record.throughput.requests_per_second is None:
            raise _NoValueError("the offline throughput was not measured")
        return record.throughput.requests_per_second
    if not record.tasks:
        raise _NoValueError("the run has measured no speed")
    computed, seconds = 0, 0.0
    for task in record.tasks:
        cost = task.measured if task.status == "cached" else task.to_measured(None)
        if cost is None or not cost.computed or not cost.seconds:
            why = "its result is cached without the time that it took" if cost is None else "it computed no texts"
            raise _NoValueError(
                f"the speed of {task.name} is unknown, because {why}: to measure it, results.reuse=none"
            )
        if cost.computed < (cost.stored or 0):
            why = "most of its embeddings came from the embedding cache"
            raise _NoValueError(
                f"the speed of {task.name} is unknown, because {why}: to measure it, results.reuse=none"
            )
        computed, seconds = computed + cost.computed, seconds + cost.seconds
    return computed / seconds


def _check_score(record: RunRecord) -> None:
    """Raise if the mean score is further below the reference score than `report.score_tolerance` allows."""
    assert record.objective is not None
    tolerance, reference = record.config["report"]["score_tolerance"], record.objective.reference_score
    if tolerance is None or reference is None:
        return
    score = _mean_score(record)
    if score < reference - tolerance - _ROUNDING:
        below = f"the mean score {score:.5f} is {reference - score:.5f} below that of the default ({reference:.5f})"
        raise _NoValueError(f"{below}, and report.score_tolerance={tolerance:g}")
