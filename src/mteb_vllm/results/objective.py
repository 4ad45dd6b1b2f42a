"""The objective of a run: the figure that a search maximises, set by `report.objective`."""

from __future__ import annotations

from mteb_vllm.results.record import RunRecord, mean


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
        objective.value = _mean_score(record) if objective.name == "mean" else _texts_per_second(record)
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

    As in a report, a cached result has no speed, and neither has a task whose embeddings mostly came from the cache.
    """
    if record.throughput is not None:
        if record.throughput.requests_per_second is None:
            raise _NoValueError("the offline throughput was not measured")
        return record.throughput.requests_per_second
    if not record.tasks:
        raise _NoValueError("the run has measured no speed")
    computed, seconds = 0, 0.0
    for task in record.tasks:
        encoding = task.seconds.get("encode")
        if task.status == "cached":
            why = "its result is cached"
        elif not task.computed or not encoding:
            why = "it computed no texts"
        elif task.computed < (task.stored or 0):
            why = "most of its embeddings came from the embedding cache"
        else:
            computed, seconds = computed + task.computed, seconds + encoding
            continue
        raise _NoValueError(f"{task.name} has no speed, because {why}; to measure it, set results.reuse=none")
    return computed / seconds
