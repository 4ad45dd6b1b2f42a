"""A comparison at work: both sides asked, task by task, judged, and the cause of a difference looked for."""

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

# What two right engines differ by at most, in a main score (vLLM's own tests of mteb).
SCORE_TOLERANCE = {"embed": 5e-4, "classify": 2e-3}


@dataclass(frozen=True)
class Options:
    """What is compared, and what may differ; see `Parity`, whose fields these are."""

    tolerance: float | None
    min_cosine: float
    length_tolerance: float
    top_k: int
    candidates: int
    max_texts: int
    worst: int
    runs: Sequence[str] = ()


class Comparison:
    """Both sides of a run, and what was found out."""

    def __init__(
        self,
        how: Options,
        scratch: Path,
        model: Wrapper,
        reference: Wrapper,
        progress: Progress,
        names: Sequence[str],
    ) -> None:
        def runner(one: Wrapper, name: str) -> SideRunner:
            return SideRunner(one, scratch / name, how.max_texts, how.top_k, how.candidates, scratch / "shared")

        self.how, self.progress = how, progress
        self.engine, self.reference = runner(model, "engine"), runner(reference, "reference")
        tolerance = SCORE_TOLERANCE[model.spec.convert] if how.tolerance is None else how.tolerance
        self.allowed = Tolerances(tolerance, how.min_cosine, how.length_tolerance)
        self.ours: dict[str, Side] = {}
        self.theirs: dict[str, Side] = {}
        # Where the scores are stored ones: what sentence-transformers says of those that differ.
        self.third: dict[str, Side] = {}
        self.not_finite: list[str] = []
        self.judged: list[TaskVerdict] = []
        self.hints: list[Hint] = []
        self.notes: list[str] = []
        self.stored = None
        if how.runs:
            self.stored, scores = stored_scores(how.runs, names)
            self.theirs = {
                name: Side(scores[name]) if name in scores else Side(failed="it holds no score of this task")
                for name in names
            }

    def ask_reference(self, task: AbsTask) -> Side:
        """What the reference makes of a task; its embeddings wait on the disk."""
        name = task.metadata.name
        self.progress.start_task(name, "reference")
        try:
            outcome, side = self.reference.evaluate(task)
        except Exception as error:
            logger.exception("the reference failed for %s", name)
            side = Side(failed=_said(error))
            self.progress.line(f"Reference: {name} failed: {side.failed}")
        else:
            score, metric = outcome.main_score or 0.0, outcome.metric
            self.progress.line(f"Reference: {name} {metric} {score:.5f} ({outcome.total_seconds:.1f} s)")
        self.reference.park(name, side)
        return side

    def ask_engine(self, task: AbsTask, wait: bool) -> TaskOutcome:
        """What the engine under test makes of a task."""
        try:
            outcome, self.ours[task.metadata.name] = self.engine.evaluate(task)
        except Exception as error:
            if any(isinstance(one, NonFiniteError) for one in error_chain(error)):
                self.not_finite.append(task.metadata.name)
            raise
        return outcome

    def judge(self, outcome: TaskOutcome) -> None:
        """The verdict on a task."""
        ours = self.ours.setdefault(outcome.name, Side(failed=outcome.reason))
        theirs = self.theirs[outcome.name]
        theirs.captured = self.reference.parked(outcome.name)
        self.judged.append(
            judge(outcome.name, outcome.metric, ours, theirs, self.allowed, k=self.how.top_k, worst=self.how.worst)
        )
        theirs.captured = None
        self.engine.park(outcome.name, ours)

    @property
    def failed(self) -> list[str]:
        """The tasks that did not pass."""
        return [verdict.task for verdict in self.judged if not verdict.passed]

    def look_for_causes(self, tasks: Mapping[str, AbsTask]) -> None:
        """Finds out why tasks did not pass, by trying."""
        if not self.failed:
            return
        close_engines()
        self.progress.note(Phase.LOOKING_FOR_CAUSES, "Looking for the cause")
        try:
            if self.stored is not None:
                self._ask_a_third(tasks)
            search = Search(self.engine, self.reference, self.not_finite)
            wrong = [name for name in self.failed if self._engine_is_off(name)]
            hints, note = search.hints(wrong)
        except Exception as error:  # a verdict stands without its hints
            logger.exception("no cause can be looked for")
            hints, note = [], f"no cause could be looked for: {_said(error)}"
        self.hints += hints
        self.notes += [note] if note else []

    def _ask_a_third(self, tasks: Mapping[str, AbsTask]) -> None:
        """Stored scores differ: sentence-transformers says which of the two sides it agrees with."""
        for name in self.failed:
            if self.ours[name].failed is not None or self.theirs[name].failed is not None:
                continue
            self.third[name] = self.ask_reference(tasks[name])
            if self.third[name].failed is None:
                says, apart = self._third_says(name)
                self.hints.append(Hint("reference", says, apart, apart))

    def _third_says(self, name: str) -> tuple[str, float]:
        third, stored = self.third[name].scores, self.theirs[name].scores
        engine = _apart(self.ours[name].scores, third)
        other = _apart(stored, third)
        limit = self.allowed.score
        which = {
            (True, False): "the engine agrees with it, the stored scores do not",
            (False, True): "the stored scores agree with it, the engine does not",
            (True, True): "it lies between the two, and agrees with both",
            (False, False): "neither of the two agrees with it",
        }[engine <= limit, other <= limit]
        who = self._says()
        return f"{name}: {which} ({who} is {engine:.5f} from the engine and {other:.5f} from the stored scores)", engine

    def _engine_is_off(self, name: str) -> bool:
        if self.stored is None:
            return True
        third = self.third.get(name)
        return third is not None and third.failed is None and (
            _apart(self.ours[name].scores, third.scores) > self.allowed.score
        )  # fmt: skip

    def verdict(self) -> ParityRecord:
        """Return what was found out so far."""
        passed = len(self.judged) == len(self.theirs) > 0 and not self.failed
        return ParityRecord(passed, self._reference(), self.allowed, self.judged, self.hints, self.notes)

    def _says(self) -> str:
        spec = self.reference.model.spec
        version = versions(spec.backend)[spec.backend.replace("_", "-")]
        return f"{spec.backend_name} {version} in {spec.args.get('dtype', 'auto')}"

    def _reference(self) -> ReferenceRecord:
        spec = self.reference.model.spec
        if self.stored is not None:
            facts = self.stored.facts
            says = f"scores of {facts.get('model', '?')} in {self.stored.folder}"
            return ReferenceRecord("stored", says, dtype=facts.get("engine.dtype"))
        engine = self.reference.model.engine_record()
        dtype = (engine.resolved if engine is not None else {}).get("dtype", spec.args.get("dtype"))
        return ReferenceRecord("engine", self._says(), spec.backend, dtype, engine)


def _apart(one: MainScores, other: MainScores) -> float:
    """The largest difference of the main scores that both have."""
    return max(
        (
            abs(score - theirs)
            for split, subsets in one.items()
            for subset, score in subsets.items()
            if score is not None and (theirs := other.get(split, {}).get(subset)) is not None
        ),
        default=float("inf"),
    )


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, MtebVllmError) else one_line_message(error)
