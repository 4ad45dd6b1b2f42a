"""`pipeline=evaluate`: embed the texts of each task, and let mteb score the embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mteb_vllm.config.schema import Count
from mteb_vllm.pipelines import mteb_run
from mteb_vllm.pipelines.base import Pipeline, RunContext
from mteb_vllm.results.record import TaskOutcome

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask


@dataclass(frozen=True, kw_only=True)
class Evaluate(Pipeline):
    """Evaluation of an embedding model.

    Attributes:
        chunk_size: The maximum number of distinct texts passed to the engine at once.
    """

    chunk_size: Count = 8192

    def run(self, context: RunContext) -> Iterator[TaskOutcome]:
        """Evaluate task by task; a failure of one task does not affect the others."""
        start = mteb_run.EngineStart(context.model)

        def evaluate(task: AbsTask, wait: bool) -> TaskOutcome:
            return mteb_run.evaluate_task(
                context.model,
                task,
                context.store,
                reuse=context.reuse,
                wait=wait,
                start=start,
                progress=context.progress,
                input_fingerprint=context.input_fingerprints.get(task.metadata.name),
            )

        yield from mteb_run.evaluate_tasks(context.tasks, context.progress, evaluate)
