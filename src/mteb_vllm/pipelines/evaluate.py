"""Embedding evaluation: every text of every task through the encoder, scored by mteb, task by task."""

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
    """Evaluates an embedding model.

    Attributes:
        chunk_size: How many different texts are handed to the engine at once.
    """

    chunk_size: Count = 8192

    def run(self, context: RunContext) -> Iterator[TaskOutcome]:
        """Evaluate task by task; one task's failure costs no other anything."""
        start = mteb_run.EngineStart(context.model)

        def evaluate(task: AbsTask, wait: bool) -> TaskOutcome:
            return mteb_run.evaluated(
                context.model,
                task,
                context.store,
                reuse=context.reuse,
                wait=wait,
                start=start,
                progress=context.progress,
                input_fingerprint=context.input_fingerprints.get(task.metadata.name),
            )

        yield from mteb_run.each_task(context.tasks, context.progress, evaluate)
