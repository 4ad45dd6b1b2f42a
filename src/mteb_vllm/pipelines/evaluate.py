"""Embedding evaluation: every text of every task through the encoder, scored by mteb, task by task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mteb_vllm.config.schema import Count
from mteb_vllm.pipelines import mteb_run
from mteb_vllm.results.record import TaskOutcome

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

    from mteb_vllm.progress import Progress
    from mteb_vllm.results.store import ResultsStore
    from mteb_vllm.wrappers import VllmEncoderWrapper


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Evaluates an embedding model.

    Attributes:
        window: How many different texts are handed to the engine at once.
    """

    model_kinds: ClassVar[tuple[str, ...]] = ("encoder",)
    always_anew: ClassVar[bool] = False
    task_types: ClassVar[tuple[str, ...] | None] = None

    window: Count = 8192

    def run(
        self,
        model: VllmEncoderWrapper,
        tasks: Sequence[AbsTask],
        store: ResultsStore,
        progress: Progress,
        *,
        reuse: bool = True,
        read_as: Mapping[str, str | None] | None = None,
    ) -> Iterator[TaskOutcome]:
        """Evaluates task by task; one task's failure costs no other anything.

        Args:
            model: The encoder.
            tasks: mteb's tasks.
            store: Where results are kept, and read from if `reuse`.
            progress: Told what is done.
            reuse: Whether known results are used.
            read_as: For each task the hash of how its texts are read, by which a run with other prompts has its result, too.
        """
        start = mteb_run.EngineStart(model)

        def evaluate(task: AbsTask, wait: bool) -> TaskOutcome:
            said = (read_as or {}).get(task.metadata.name)
            return mteb_run.evaluated(
                model, task, store, reuse=reuse, wait=wait, start=start, progress=progress, read_as=said
            )

        yield from mteb_run.each_task(tasks, progress, evaluate)
