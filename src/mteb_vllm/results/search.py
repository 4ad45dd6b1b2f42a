"""A search: the points that Optuna chose while it ran, and the default point that they are compared with."""

from __future__ import annotations

from dataclasses import dataclass, field

from mteb_vllm.results.record import RunRecord

# Scores are means of floats: the order of the terms must not decide whether a score is within the tolerance.
_ROUNDING = 1e-12


@dataclass
class Search:
    """The points of a search and the best of them.

    Attributes:
        searched: The keys whose values the search chooses.
        tolerance: The largest difference between a point's score on a task and the default's; None: any.
        default: The default point, i.e. the command without the searched keys; None if it has not been run.
        trials: The chosen points that have ended.
        rejected: For each chosen point whose scores differ too much from the default's, its number and how they differ.
        pairs: The default and the best point, measured again after the search.
    """

    searched: tuple[str, ...]
    tolerance: float | None = None
    default: RunRecord | None = None
    trials: list[RunRecord] = field(default_factory=list)
    rejected: dict[int | None, str] = field(default_factory=dict)
    pairs: list[tuple[RunRecord, RunRecord]] = field(default_factory=list)

    def add(self, record: RunRecord) -> float:
        """Add a chosen point that has ended, and return its value for Optuna.

        Returns:
            its objective; minus infinity if it has none or is rejected, so that the search turns away from its values.
        """
        self.trials.append(record)
        value = objective_value(record)
        if value is not None and (how := self._deviation(record)):
            self.rejected[record.point] = how
        return float("-inf") if value is None or record.point in self.rejected else value

    @property
    def best(self) -> RunRecord | None:
        """The chosen point with the highest objective, the first of several; None if none has an objective."""
        found = [
            (value, record)
            for record in self.trials
            if record.point not in self.rejected and (value := objective_value(record)) is not None
        ]
        return max(found, key=lambda one: one[0])[1] if found else None

    def _deviation(self, record: RunRecord) -> str:
        """Return on which tasks a point's score differs from the default's by more than the tolerance; "" for none."""
        if self.tolerance is None or self.default is None:
            return ""
        scores = self.default.scores
        return ", ".join(
            f"{name} {score:.5f} instead of {reference:.5f}"
            for name, score in record.scores.items()
            if score is not None
            and (reference := scores.get(name)) is not None
            and abs(score - reference) > self.tolerance + _ROUNDING
        )


def objective_value(record: RunRecord) -> float | None:
    """Return the value of a run's objective; None if it has none."""
    return record.objective.value if record.objective is not None else None
