"""What every pipeline has in common: what it says of itself, and what it is given to run.

A pipeline is a frozen dataclass whose fields are the values of `pipeline:` in the configuration. It takes a model and tasks
and yields an outcome for each task; it does not know Hydra. Nothing outside `pipelines/` and `report/` asks for its class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from mteb_vllm.catalogue import TaskInfo
from mteb_vllm.errors import Mistake
from mteb_vllm.util.fingerprint import identity
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
    """What retrieves candidates.

    Attributes:
        name: What it is called.
        spec: Its engine; None where it needs none.
        encoder: The wrapper of its model; None where it has none.
        prompts: The prompts of its model; likewise.
    """

    @property
    def name(self) -> str:
        """What it is called, as the configuration does."""

    @property
    def spec(self) -> EngineSpec | None:
        """Its engine."""

    @property
    def encoder(self) -> VllmEncoderWrapper | None:
        """The wrapper of its model."""

    @property
    def prompts(self) -> Prompts | None:
        """The prompts of its model."""

    def settings(self, task: str) -> JsonObject:
        """What its candidates for a task depend on, as plain values."""

    def searcher(self, task: AbsTask) -> EncoderProtocol | SearchProtocol:
        """A model of mteb's that retrieves: an encoder, or one that searches, with `mteb_model_meta`."""


@dataclass
class RunContext:
    """What a pipeline is given to run.

    Attributes:
        model: The wrapper of the model under test; its engine opens when it is needed.
        tasks: mteb's tasks, without those that are left alone.
        store: Where results are kept, and read from if `reuse`.
        progress: Is told what is done.
        reuse: Whether stored results are used.
        prompts: The prompts; of a cross-encoder, its instructions.
        template: The score template of a cross-encoder; None for other models.
        input_fingerprints: For each task the hash of what its texts are prefixed with, by which a run with other prompts has
            its result, too; None where it has none.
        stage: The first stage of a pipeline that reranks.
        reference: The wrapper of the reference of a pipeline that compares with one.
        throughput: Set by a pipeline that times the engine; what it has until it fails is kept.
        parity: Set by a pipeline that compares the engine with a reference; likewise.
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


class Pipeline(ABC):
    """One way to use a model on tasks.

    Attributes:
        task_types: The types of task that it takes; None: all.
        cached: Whether its results are kept, and found again by runs with the same settings.
        scores_tasks: Whether it yields an outcome for each task; else it measures the model itself.
        own_process: Whether each of its engines needs a process that no other has worked in.
        reranks: Whether an embedding model is given to mteb as a reranker.
        chunk_size: How many different texts or pairs are handed to the engine at once.
        first_stage: The configuration of its first stage; None where it has none.
        reference: The configuration of its reference; None where it has none.
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
        """What it is called."""
        return type(self).__name__.lower()

    @property
    def model_kinds(self) -> tuple[str, ...]:
        """The kinds of model that it takes: "encoder", "cross_encoder"."""
        return ("encoder",)

    @property
    def needs_tasks(self) -> bool:
        """Whether it works on the data of tasks."""
        return True

    def prompted(self, parts: Sequence[TaskInfo]) -> Sequence[TaskInfo]:
        """Return the tasks whose texts get a prompt.

        Args:
            parts: The chosen tasks, with the parts of an aggregate in its place.
        """
        return parts

    def types_for(self, kind: str) -> tuple[str, ...] | None:
        """Return the types of task that it takes with a model of a kind; None: all."""
        return self.task_types

    def check(self, max_tokens: int | None) -> list[Mistake]:
        """Return what is wrong with its fields, beyond their types.

        Args:
            max_tokens: The engine's context; None where it is not known.
        """
        return []

    def settings(self, kind: str, tasks: Sequence[str]) -> JsonObject:
        """Return what its results depend on besides the model, a first stage and `code`, as plain values.

        Args:
            kind: The kind of the model.
            tasks: The names of the chosen tasks.
        """
        return {}

    @property
    def code(self) -> JsonObject:
        """What results depend on where the class is a user's own: its module's source, and its fields.

        Empty for the pipelines of this package: `METHOD` counts their changes.
        """
        module, name = type(self).__module__, type(self).__qualname__
        if module.partition(".")[0] == __name__.partition(".")[0]:
            return {}
        digest = find_callable_source(f"{module}.{name}").digest or identity(type(self))
        fields: JsonObject = asdict(self) if is_dataclass(self) else {}
        return {"pipeline": {"class": f"{module}.{name}", "source": digest, **fields}}

    def candidate_settings(self, stage: FirstStage, task_type: str, parts: Sequence[str]) -> JsonObject:
        """Return what the candidates of a task depend on, as plain values; nothing without a first stage.

        Args:
            stage: The first stage.
            task_type: The task's type.
            parts: Its name, or the names of an aggregate's parts.

        Raises:
            FirstStageError: if saved predictions cannot be read.
        """
        return {}

    def estimate_all(self, kind: str) -> Estimate | None:
        """Return what an engine is given by a pipeline that scores no tasks; None where that is not known."""
        return None

    def estimate(
        self, part: TaskInfo, splits: Sequence[str] | None, kind: str, max_tokens: int | None
    ) -> Estimate | None:
        """Return what the engine of the model under test is given for a task; None where that is not known.

        Args:
            part: The task, none of an aggregate.
            splits: The splits that are evaluated; None: the task's own.
            kind: The kind of the model.
            max_tokens: The context; None where it is not known.
        """
        from mteb_vllm.tasks.estimates import estimate

        return estimate(part, splits, max_tokens=max_tokens)

    def retrieve(self, context: RunContext) -> dict[str, Exception]:
        """Run the first stage alone, for all tasks; return what went wrong: task to error."""
        return {}

    @abstractmethod
    def run(self, context: RunContext) -> Iterator[TaskOutcome]:
        """Work task by task, and yield what became of each; one task's failure costs no other anything."""
