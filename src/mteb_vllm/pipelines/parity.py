"""Whether an engine's numbers are a reference's: the same tasks through both, compared text by text and score by score.

The reference is through with all tasks before the engine under test opens: they need not fit into memory together. Where they
differ, the reference is varied until it makes what the engine makes: what had to be changed is the hint.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mteb_vllm.config import InstructionConfig, Names, NotNegative, PositiveInt, RunConfig, ScoreTemplateConfig
from mteb_vllm.engine import close_engines
from mteb_vllm.errors import MtebVllmError, NonFiniteError
from mteb_vllm.failures import in_one_line
from mteb_vllm.pipelines import mteb_run
from mteb_vllm.results import TaskOutcome

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

    from mteb_vllm.parity.sides import SideRunner
    from mteb_vllm.parity.verdict import Side, Tolerances
    from mteb_vllm.progress import Progress
    from mteb_vllm.store import ResultsStore
    from mteb_vllm.wrappers import VllmCrossEncoderWrapper, VllmEncoderWrapper

    Wrapper = VllmEncoderWrapper | VllmCrossEncoderWrapper

logger = logging.getLogger(__name__)

# What two right engines differ by at most, in a main score (vLLM's own tests of mteb).
SCORE_TOLERANCE = {"embed": 5e-4, "classify": 2e-3}


@dataclass(frozen=True, kw_only=True)
class SentenceTransformers:
    """The same model as its recipe and its files say, in sentence-transformers, whatever the run itself says.

    Attributes:
        engine: Its engine arguments.
        prompts: Its prompts.
        instruction: Its instruction template.
        score_template: What it reads pairs through.
    """

    is_reference: ClassVar[bool] = True

    engine: dict[str, Any] = field(default_factory=dict)
    prompts: dict[str, Any] = field(default_factory=lambda: {"from_model": True})
    instruction: InstructionConfig = field(default_factory=lambda: InstructionConfig(from_model=True))
    score_template: ScoreTemplateConfig = field(default_factory=lambda: ScoreTemplateConfig(from_model=True))

    def applied_to(self, config: RunConfig) -> RunConfig:
        """The run's configuration as it would be if all of it were the reference's."""
        return replace(
            config,
            engine=self.engine,
            prompts=self.prompts,
            instruction=self.instruction,
            score_template=self.score_template,
        )


@dataclass(frozen=True, kw_only=True)
class Stored(SentenceTransformers):
    """The scores of a run that there is, or of published results; where they differ, sentence-transformers is asked as well.

    Attributes:
        runs: A run's folder, or a folder of results in mteb's layout.
    """

    runs: Names


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Compares the engine with a reference.

    Attributes:
        tolerance: By how much a main score may differ, either way; None: 0.0005, of rerankers 0.002.
        min_cosine: The smallest cosine that a text's two embeddings may have; of rerankers, the smallest correlation of the
            scores of pairs.
        length_tolerance: By how much the ratio of their lengths may differ from 1.
        top_k: How many documents of a ranking are compared.
        candidates: How many documents of BM25's a reranker reads for each query, where a task brings no candidates.
        max_texts: How many texts, or pairs, of a task are compared.
        worst: How many of the worst texts are shown.
        window: How many different texts are handed to the engine at once.
        reference: The configuration of the reference.
    """

    model_kinds: ClassVar[tuple[str, ...]] = ("encoder", "cross_encoder")
    task_types: ClassVar[tuple[str, ...] | None] = None
    always_anew: ClassVar[bool] = True

    tolerance: NotNegative | None = None
    min_cosine: float = 0.99
    length_tolerance: NotNegative = 0.01
    top_k: PositiveInt = 10
    candidates: PositiveInt = 20
    max_texts: PositiveInt = 10_000
    worst: PositiveInt = 5
    window: PositiveInt = 8192
    reference: dict[str, Any] = field(default_factory=dict)

    def run(
        self,
        model: Wrapper,
        tasks: Sequence[AbsTask],
        store: ResultsStore,
        progress: Progress,
        *,
        reference: Wrapper,
        verdict: dict[str, Any],
    ) -> Iterator[TaskOutcome]:
        """Evaluates task by task, with the reference and then with the engine; one task's failure costs no other anything.

        Args:
            model: The engine under test.
            tasks: mteb's tasks.
            store: Beside which results are kept for the time of the comparison; nothing is read from it or written to it.
            progress: Told what is done.
            reference: The model in sentence-transformers, as its recipe says; where stored scores are the reference, it
                is asked only if these differ.
            verdict: Filled with the verdict, as a run's record holds it.

        Raises:
            ConfigError: if the stored scores cannot be had.
        """
        with store.staging() as scratch:
            comparison = _Comparison(self, scratch, model, reference, progress, [task.metadata.name for task in tasks])
            verdict.update(comparison.verdict())
            if comparison.stored is None:
                for task in tasks:
                    comparison.ask_reference(task)
                close_engines()
            for outcome in mteb_run.each_task(tasks, progress, comparison.ask_engine):
                comparison.judge(outcome)
                verdict.update(comparison.verdict())
                yield outcome
            comparison.look_for_causes({task.metadata.name: task for task in tasks})
            verdict.update(comparison.verdict())


class _Comparison:
    """Both sides of a run, and what was found out."""

    def __init__(
        self,
        how: Parity,
        scratch: Path,
        model: Wrapper,
        reference: Wrapper,
        progress: Progress,
        names: Sequence[str],
    ) -> None:
        from mteb_vllm.parity.sides import SideRunner
        from mteb_vllm.parity.stored import stored_scores
        from mteb_vllm.parity.verdict import Side, Tolerances

        def runner(one: Wrapper, name: str) -> SideRunner:
            return SideRunner(one, scratch / name, how.max_texts, how.top_k, how.candidates, scratch / "shared")

        self.how, self.progress = how, progress
        self.engine, self.reference = runner(model, "engine"), runner(reference, "reference")
        tolerance = SCORE_TOLERANCE[model.spec.convert] if how.tolerance is None else how.tolerance
        self.allowed: Tolerances = Tolerances(tolerance, how.min_cosine, how.length_tolerance)
        self.ours: dict[str, Side] = {}
        self.theirs: dict[str, Side] = {}
        self.not_finite: list[str] = []
        self.judged: list[dict[str, Any]] = []
        self.hints: list[Any] = []
        self.notes: list[str] = []
        self.stored = None
        if runs := how.reference.get("runs"):
            self.stored, scores = stored_scores([runs] if isinstance(runs, str) else runs, names)
            self.theirs = {
                name: Side(scores[name]) if name in scores else Side(failed="it holds no score of this task")
                for name in names
            }

    def ask_reference(self, task: AbsTask) -> None:
        """What the reference makes of a task; it waits on the disk."""
        from mteb_vllm.parity.verdict import Side

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
        self.theirs[name] = side
        self.reference.park(name, side)

    def ask_engine(self, task: AbsTask, wait: bool) -> TaskOutcome:
        """What the engine under test makes of a task."""
        try:
            outcome, self.ours[task.metadata.name] = self.engine.evaluate(task)
        except NonFiniteError:
            self.not_finite.append(task.metadata.name)
            raise
        return outcome

    def judge(self, outcome: TaskOutcome) -> None:
        """The verdict on a task."""
        from mteb_vllm.parity.verdict import Side, judge

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
        return [said["task"] for said in self.judged if not said["passed"]]

    def look_for_causes(self, tasks: Mapping[str, AbsTask]) -> None:
        """Finds out why tasks did not pass, by trying."""
        from mteb_vllm.parity.search import Search

        if not self.failed:
            return
        close_engines()
        self.progress.note("Looking for the cause")
        try:
            if self.stored is not None:
                self._ask_a_third(tasks)
            search = Search(self.engine, self.reference, self.not_finite)
            wrong = [said["task"] for said in self.judged if not said["passed"] and self._engine_is_off(said["task"])]
            hints, note = search.hints(wrong)
        except Exception as error:  # a verdict stands without its hints
            logger.exception("no cause can be looked for")
            hints, note = [], f"no cause could be looked for: {_said(error)}"
        self.hints += hints
        self.notes += [note] if note else []

    def _ask_a_third(self, tasks: Mapping[str, AbsTask]) -> None:
        """Stored scores differ: sentence-transformers says which of the two sides it agrees with."""
        from mteb_vllm.parity.causes import Hint

        self.third: dict[str, Side] = {}
        stored, self.third = self.theirs, {}
        for name in self.failed:
            if self.ours[name].failed is not None or stored[name].failed is not None:
                continue
            self.theirs = self.third
            self.ask_reference(tasks[name])
            self.theirs = stored
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

    def verdict(self) -> dict[str, Any]:
        """What a run's record holds."""
        passed = len(self.judged) == len(self.theirs) > 0 and not self.failed
        return {
            "passed": passed,
            "reference": self._reference(),
            "tolerances": vars(self.allowed) | {},
            "tasks": self.judged,
            "hints": [vars(hint) | {} for hint in self.hints],
            "notes": self.notes,
        }

    def _says(self) -> str:
        import importlib.metadata

        spec = self.reference.model.spec
        name = spec.backend.replace("_", "-")
        return f"{name} {importlib.metadata.version(name)} in {spec.args.get('dtype', 'auto')}"

    def _reference(self) -> dict[str, Any]:
        spec = self.reference.model.spec
        if self.stored is not None:
            facts = self.stored.facts
            says = f"scores of {facts.get('model', '?')} in {self.stored.folder}"
            return {"kind": "stored", "backend": None, "dtype": facts.get("engine.dtype"), "says": says, "engine": {}}
        engine = self.reference.model.engine_record()
        return {
            "kind": "engine",
            "backend": spec.backend,
            "dtype": (engine.get("resolved") or {}).get("dtype", spec.args.get("dtype")),
            "says": self._says(),
            "engine": engine,
        }


def _apart(one: Any, other: Any) -> float:
    """The largest difference of the main scores that both have."""
    return max(
        (
            abs(score - other[split][subset])
            for split, subsets in one.items()
            for subset, score in subsets.items()
            if score is not None and other.get(split, {}).get(subset) is not None
        ),
        default=float("inf"),
    )


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, MtebVllmError) else in_one_line(error)
