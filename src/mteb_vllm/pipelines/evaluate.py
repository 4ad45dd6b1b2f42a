"""Embedding evaluation: every text of every task through the encoder, scored by mteb, task by task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mteb_vllm.pipelines import mteb_run
from mteb_vllm.results import TaskOutcome

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

    from mteb_vllm.progress import Progress
    from mteb_vllm.store import ResultsStore
    from mteb_vllm.wrappers import VllmEncoderWrapper


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Evaluates an embedding model.

    Attributes:
        window: How many different texts are handed to the engine at once.
    """

    model_kinds: ClassVar[tuple[str, ...]] = ("encoder",)
    task_types: ClassVar[tuple[str, ...] | None] = None

    window: int = 8192

    def run(
        self,
        model: VllmEncoderWrapper,
        tasks: Sequence[AbsTask],
        store: ResultsStore,
        progress: Progress,
        *,
        reuse: bool = True,
    ) -> Iterator[TaskOutcome]:
        """Evaluates task by task; one task's failure costs no other anything.

        Args:
            model: The encoder.
            tasks: mteb's tasks.
            store: Where results are kept, and read from if `reuse`.
            progress: Told what is done.
            reuse: Whether known results are used.
        """
        start = mteb_run.EngineStart(model)

        def evaluate(task: AbsTask, wait: bool) -> TaskOutcome:
            return mteb_run.evaluated(model, task, store, reuse=reuse, wait=wait, start=start, progress=progress)

        yield from mteb_run.each_task(tasks, progress, evaluate)
