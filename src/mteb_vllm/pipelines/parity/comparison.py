"""The comparison of an engine with a reference: run both sides, judge each task, and search for causes of differences."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mteb_vllm.engines.base import close_engines
from mteb_vllm.errors import MtebVllmError, NonFiniteError
from mteb_vllm.pipelines.parity.search import Search
from mteb_vllm.pipelines.parity.sides import SideRunner
from mteb_vllm.pipelines.parity.stored import stored_scores
from mteb_vllm.pipelines.parity.verdict import MainScores, Side, judge
from mteb_vllm.results.failures import error_chain, one_line_message
from mteb_vllm.results.parity import Hint, ParityRecord, ReferenceRecord, TaskVerdict, Tolerances
from mteb_vllm.results.record import TaskOutcome
from mteb_vllm.util.machine import versions
from mteb_vllm.util.phase import Phase

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

    from mteb_vllm.progress import Progress
    from mteb_vllm.wrappers import VllmCrossEncoderWrapper, VllmEncoderWrapper

    Wrapper = VllmEncoderWrapper | VllmCrossEncoderWrapper

logger = logging.getLogger(__name__)

# The largest difference of main scores between two correct engines (as in vLLM's own mteb tests).
SCORE_TOLERANCE = {"embed": 5e-4, "classify": 2e-3}


@dataclass(frozen=True)
class Options:
    """The options of a comparison; see the fields of `Parity`."""

    tolerance: float | None
    min_cosine: float
    norm_tolerance: float
    top_k: int
    candidates: int
    max_texts: int
    worst: int
    runs: Sequence[str] = ()


class Comparison:
    """Both sides of a comparison, and its findings so far.

    Args:
        options: The options.
        scratch: A folder for both sides' files.
        model: The wrapper of the model under test.
        reference: The wrapper of the reference.
        progress: Receives progress events.
        names: The names of the tasks.
    """

    def __init__(
        self,
        options: Options,
        scratch: Path,
        model: Wrapper,
        reference: Wrapper,
        progress: Progress,
        names: Sequence[str],
    ) -> None:
        def runner(one: Wrapper, name: str) -> SideRunner:
            folder, shared = scratch / name, scratch / "shared"
            return SideRunner(one, folder, options.max_texts, options.top_k, options.candidates, shared)

        self.options, self.progress = options, progress
        self.engine, self.reference = runner(model, "engine"), runner(reference, "reference")
        tolerance = SCORE_TOLERANCE[model.spec.convert] if options.tolerance is None else options.tolerance
        self.allowed = Tolerances(tolerance, options.min_cosine, options.norm_tolerance)
        self.engine_sides: dict[str, Side] = {}
        self.reference_sides: dict[str, Side] = {}
        # With stored scores as the reference: sentence-transformers on the tasks whose scores differ.
        self.third_sides: dict[str, Side] = {}
        self.not_finite: list[str] = []
        self.verdicts: list[TaskVerdict] = []
        self.hints: list[Hint] = []
        self.notes: list[str] = []
        self.stored = None
        if options.runs:
            self.stored, scores = stored_scores(options.runs, names)
            self.reference_sides = {
                name: Side(scores[name]) if name in scores else Side(failed="it has no score for this task")
                for name in names
            }

    def run_reference(self, task: AbsTask) -> Side:
        """Run the reference on a task and return its side; embeddings are saved to disk."""
        name = task.metadata.name
        self.progress.start_task(name, "reference")
        try:
            outcome, side = self.reference.evaluate(task)
        except Exception as error:
            logger.exception("the reference failed for %s", name)
            side = Side(failed=_message(error))
            self.progress.line(f"Reference: {name} failed: {side.failed}")
        else:
            score, metric = outcome.main_score or 0.0, outcome.metric
            self.progress.line(f"Reference: {name} {metric} {score:.5f} ({outcome.total_seconds:.1f} s)")
        self.reference.save_captured(name, side)
        return side

    def run_engine(self, task: AbsTask, wait: bool) -> TaskOutcome:
        """Run the engine under test on a task and return its outcome; `wait` is unused, as no results are shared."""
        try:
            outcome, self.engine_sides[task.metadata.name] = self.engine.evaluate(task)
        except Exception as error:
            if any(isinstance(one, NonFiniteError) for one in error_chain(error)):
                self.not_finite.append(task.metadata.name)
            raise
        return outcome

    def judge(self, outcome: TaskOutcome) -> None:
        """Compare the two sides of a task and store the verdict."""
        engine = self.engine_sides.setdefault(outcome.name, Side(failed=outcome.reason))
        reference = self.reference_sides[outcome.name]
        reference.captured = self.reference.load_captured(outcome.name)
        how = {"k": self.options.top_k, "worst": self.options.worst}
        self.verdicts.append(judge(outcome.name, outcome.metric, engine, reference, self.allowed, **how))
        reference.captured = None
        self.engine.save_captured(outcome.name, engine)

    @property
    def failed(self) -> list[str]:
        """The names of the tasks that did not pass."""
        return [verdict.task for verdict in self.verdicts if not verdict.passed]

    def search_causes(self, tasks: Mapping[str, AbsTask]) -> None:
        """Search for the causes of differences in tasks that did not pass, and add hints and notes."""
        if not self.failed:
            return
        close_engines()
        self.progress.note(Phase.LOOKING_FOR_CAUSES, "Searching for the cause")
        try:
            if self.stored is not None:
                self._run_third_side(tasks)
            search = Search(self.engine, self.reference, self.not_finite)
            wrong = [name for name in self.failed if self._engine_differs(name)]
            hints, note = search.hints(wrong)
        except Exception as error:  # the verdict is valid without hints
            logger.exception("the search for a cause failed")
            hints, note = [], f"the search for a cause failed: {_message(error)}"
        self.hints += hints
        self.notes += [note] if note else []

    def _run_third_side(self, tasks: Mapping[str, AbsTask]) -> None:
        """Run sentence-transformers where stored scores differ, and add a hint on which side it agrees with."""
        for name in self.failed:
            if self.engine_sides[name].failed is not None or self.reference_sides[name].failed is not None:
                continue
            self.third_sides[name] = self.run_reference(tasks[name])
            if self.third_sides[name].failed is None:
                text, difference = self._compare_third_side(name)
                self.hints.append(Hint("reference", text, difference, difference))

    def _compare_third_side(self, name: str) -> tuple[str, float]:
        third, stored = self.third_sides[name].scores, self.reference_sides[name].scores
        engine = _max_difference(self.engine_sides[name].scores, third)
        other = _max_difference(stored, third)
        limit, who = self.allowed.score, self._reference_name()
        which = {
            (True, False): f"the engine agrees with {who}, but the stored scores do not",
            (False, True): f"the stored scores agree with {who}, but the engine does not",
            (True, True): f"{who} lies between the engine and the stored scores, and agrees with both",
            (False, False): f"neither the engine nor the stored scores agree with {who}",
        }[engine <= limit, other <= limit]
        text = f"{name}: {which} (differences: {engine:.5f} for the engine, {other:.5f} for the stored scores)"
        return text, engine

    def _engine_differs(self, name: str) -> bool:
        if self.stored is None:
            return True
        third = self.third_sides.get(name)
        return third is not None and third.failed is None and (
            _max_difference(self.engine_sides[name].scores, third.scores) > self.allowed.score
        )  # fmt: skip

    def verdict(self) -> ParityRecord:
        """Return the record of all findings so far."""
        passed = len(self.verdicts) == len(self.reference_sides) > 0 and not self.failed
        return ParityRecord(passed, self._reference(), self.allowed, self.verdicts, self.hints, self.notes)

    def _reference_name(self) -> str:
        spec = self.reference.model.spec
        version = versions(spec.backend)[spec.backend.replace("_", "-")]
        return f"{spec.backend_name} {version} in {spec.args.get('dtype', 'auto')}"

    def _reference(self) -> ReferenceRecord:
        spec = self.reference.model.spec
        if self.stored is not None:
            facts = self.stored.facts
            text = f"scores of {facts.get('model', '?')} in {self.stored.folder}"
            return ReferenceRecord("stored", text, dtype=facts.get("engine.dtype"))
        engine = self.reference.model.engine_record()
        dtype = (engine.resolved if engine is not None else {}).get("dtype", spec.args.get("dtype"))
        return ReferenceRecord("engine", self._reference_name(), spec.backend, dtype, engine)


def _max_difference(one: MainScores, other: MainScores) -> float:
    """Return the largest absolute difference of main scores that both sides have; infinity if they have none in common."""
    return max(
        (
            abs(score - other_score)
            for split, subsets in one.items()
            for subset, score in subsets.items()
            if score is not None and (other_score := other.get(split, {}).get(subset)) is not None
        ),
        default=float("inf"),
    )


def _message(error: Exception) -> str:
    return str(error) if isinstance(error, MtebVllmError) else one_line_message(error)
