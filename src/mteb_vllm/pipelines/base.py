"""The base class of pipelines, and the context that they run in.

A pipeline is a frozen dataclass whose fields are the values of `pipeline:` in the configuration. It takes a model and tasks
and yields an outcome for each task. Nothing outside `pipelines/` and `report/` may depend on a pipeline's class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from mteb_vllm.catalogue import TaskInfo
from mteb_vllm.errors import Mistake
from mteb_vllm.util.fingerprint import callable_identity
from mteb_vllm.util.plain import JsonObject
from mteb_vllm.util.sources import find_callable_source

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask
    from mteb.models import EncoderProtocol, SearchProtocol

    from mteb_vllm.engines.base import EngineSpec
    from mteb_vllm.models.prompts import Prompts
    from mteb_vllm.models.score_templates import ScoreTemplate
    from mteb_vllm.progress import Progress
    from mteb_vllm.results.measurements import ThroughputRecord
    from mteb_vllm.results.parity import ParityRecord
    from mteb_vllm.results.record import TaskOutcome
    from mteb_vllm.results.store import ResultsStore
    from mteb_vllm.tasks.estimates import Estimate
    from mteb_vllm.wrappers import VllmEncoderWrapper


class FirstStage(Protocol):
    """A first stage of reranking: retrieves the candidates.

    Attributes:
        name: Its name in the configuration.
        spec: The specification of its engine; None if it needs none.
        encoder: The wrapper of its model; None if it has none.
        prompts: The prompts of its model; None if it has none.
    """

    @property
    def name(self) -> str:
        """Its name in the configuration."""

    @property
    def spec(self) -> EngineSpec | None:
        """The specification of its engine."""

    @property
    def encoder(self) -> VllmEncoderWrapper | None:
        """The wrapper of its model."""

    @property
    def prompts(self) -> Prompts | None:
        """The prompts of its model."""

    def settings(self, task: str) -> JsonObject:
        """Return the settings that its candidates for a task depend on, as plain values."""

    def searcher(self, task: AbsTask) -> EncoderProtocol | SearchProtocol:
        """Return an mteb model that retrieves: an encoder or a search model, with `mteb_model_meta`."""


@dataclass
class RunContext:
    """The inputs of `Pipeline.run`, and the records that some pipelines fill.

    Attributes:
        model: The wrapper of the model under test; its engine is opened on first use.
        tasks: The mteb tasks to run.
        store: The results store; results are read from it only if `reuse`.
        progress: Receives progress events.
        reuse: Whether stored results are used.
        prompts: The prompts; for a cross-encoder, its instructions.
        template: The score template of a cross-encoder; None for other models.
        input_fingerprints: Task name to the hash of its settings and effective prefixes; None if it cannot be known. A result
            of another run with the same hash is valid for this run.
        stage: The first stage, for a pipeline that reranks.
        reference: The wrapper of the reference, for a pipeline that compares with one.
        throughput: Filled by a pipeline that times the engine; kept even if the run fails.
        parity: Filled by a pipeline that compares the engine with a reference; kept even if the run fails.
        seconds_before: Filled by a pipeline with the seconds of what it does before the first task of the model under test:
            "first_stage" and "reference" to the seconds for all tasks.
    """

    model: Any
    tasks: Sequence[AbsTask]
    store: ResultsStore
    progress: Progress
    reuse: bool = True
    prompts: Prompts | None = None
    template: ScoreTemplate | None = None
    input_fingerprints: Mapping[str, str | None] = field(default_factory=dict)
    stage: FirstStage | None = None
    reference: Any = None
    throughput: ThroughputRecord | None = None
    parity: ParityRecord | None = None
    seconds_before: dict[str, float] = field(default_factory=dict)


class Pipeline(ABC):
    """One way to use a model on tasks.

    Attributes:
        task_types: The supported task types; None: all.
        cached: Whether its results are stored, and reused by runs with the same settings.
        scores_tasks: Whether it yields an outcome for each task; otherwise it measures the model itself.
        own_process: Whether each of its engines needs a fresh process.
        reranks: Whether an embedding model is passed to mteb as a reranker.
        chunk_size: The maximum number of distinct texts or pairs passed to the engine at once.
        first_stage: The configuration of its first stage; None if it has none.
        reference: The configuration of its reference; None if it has none.
    """

    task_types: ClassVar[tuple[str, ...] | None] = None
    cached: ClassVar[bool] = True
    scores_tasks: ClassVar[bool] = True
    own_process: ClassVar[bool] = False
    reranks: ClassVar[bool] = False
    chunk_size: int = 8192
    first_stage: Mapping[str, Any] | None = None
    reference: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        """Its name in records and messages."""
        return type(self).__name__.lower()

    @property
    def model_kinds(self) -> tuple[str, ...]:
        """The supported kinds of model: "encoder", "cross_encoder"."""
        return ("encoder",)

    @property
    def runs_reference(self) -> bool:
        """Whether every run of it evaluates all tasks with its reference."""
        return self.reference is not None

    @property
    def needs_tasks(self) -> bool:
        """Whether it uses the data of tasks."""
        return True

    def prompted_tasks(self, parts: Sequence[TaskInfo]) -> Sequence[TaskInfo]:
        """Return the tasks whose texts get a prompt.

        Args:
            parts: The chosen tasks; an aggregate is replaced by its parts.
        """
        return parts

    def types_for(self, kind: str) -> tuple[str, ...] | None:
        """Return the task types supported for a kind of model; None: all."""
        return self.task_types

    def check(self, max_tokens: int | None) -> list[Mistake]:
        """Return the errors in its fields that their types do not rule out.

        Args:
            max_tokens: The engine's context length in tokens; None if unknown.
        """
        return []

    def settings(self, kind: str, tasks: Sequence[str]) -> JsonObject:
        """Return the settings that its results depend on besides the model, a first stage and `code`, as plain values.

        Args:
            kind: The kind of the model.
            tasks: The names of the chosen tasks.
        """
        return {}

    @property
    def code(self) -> JsonObject:
        """The fields and the hash of the module's source for a user's own class, on both of which results depend.

        Empty for the pipelines of this package, whose changes are versioned by `METHOD`.
        """
        module, name = type(self).__module__, type(self).__qualname__
        if module.partition(".")[0] == __name__.partition(".")[0]:
            return {}
        digest = find_callable_source(f"{module}.{name}").digest or callable_identity(type(self))
        fields: JsonObject = asdict(self) if is_dataclass(self) else {}
        return {"pipeline": {"class": f"{module}.{name}", "source": digest, **fields}}

    def candidate_settings(self, stage: FirstStage, task_type: str, parts: Sequence[str]) -> JsonObject:
        """Return the settings that the candidates of a task depend on, as plain values; empty without a first stage.

        Args:
            stage: The first stage.
            task_type: The task's type.
            parts: The task's name, or the names of an aggregate's parts.

        Raises:
            FirstStageError: if saved predictions cannot be read.
        """
        return {}

    def estimate_all(self, kind: str) -> Estimate | None:
        """Return the engine's work for a pipeline that scores no tasks; None if unknown."""
        return None

    def estimate(
        self, part: TaskInfo, splits: Sequence[str] | None, kind: str, max_tokens: int | None
    ) -> Estimate | None:
        """Return the work of the engine under test for a task; None if unknown.

        Args:
            part: The task; not an aggregate.
            splits: The evaluated splits; None: the task's own.
            kind: The kind of the model.
            max_tokens: The context length in tokens; None if unknown.
        """
        from mteb_vllm.tasks.estimates import estimate

        return estimate(part, splits, max_tokens=max_tokens)

    def retrieve(self, context: RunContext) -> dict[str, Exception]:
        """Run only the first stage, for all tasks; return the errors by task name."""
        return {}

    @abstractmethod
    def run(self, context: RunContext) -> Iterator[TaskOutcome]:
        """Run task by task and yield each task's outcome; a failure of one task must not affect the others."""
