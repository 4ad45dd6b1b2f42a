"""One side of a comparison: evaluate a model with mteb, and collect its embeddings or scores and its rankings."""

from __future__ import annotations

import heapq
import json
import random
from collections.abc import MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mteb_vllm.pipelines import mteb_run
from mteb_vllm.pipelines.parity.capture import Captured, Recorder
from mteb_vllm.pipelines.parity.verdict import MainScores, Side
from mteb_vllm.pipelines.rerank.first_stages import BM25
from mteb_vllm.pipelines.rerank.pipeline import set_candidates
from mteb_vllm.results.record import TaskOutcome
from mteb_vllm.results.store import ResultsStore
from mteb_vllm.tasks.loading import Unit
from mteb_vllm.tasks.selection import brings_candidates

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask
    from mteb.models.model_meta import ModelMeta

    from mteb_vllm.wrappers import Wrapper


class SideRunner:
    """Evaluates a model, with its own, empty results store.

    Args:
        model: A wrapper of this package.
        folder: A folder for this side's results, deleted after the comparison.
        limit: The maximum number of texts or pairs kept per task.
        depth: The number of top documents kept per ranking.
        candidates: The number of candidates per query for a reranker, in tasks without their own candidates.
        shared: A folder for data that both sides use.
    """

    def __init__(self, model: Wrapper, folder: Path, limit: int, depth: int, candidates: int, shared: Path) -> None:
        self.model, self.folder, self.limit, self.depth = model, folder, limit, depth
        self.candidates, self.shared = candidates, ResultsStore(shared)
        self.store = ResultsStore(folder / "results")
        self.start = mteb_run.EngineStart(model)

    def evaluate(self, task: AbsTask) -> tuple[TaskOutcome, Side]:
        """Evaluate a task and return its outcome, and the data to compare."""
        from mteb.abstasks import AbsTaskRetrieval, AbsTaskSTS

        parts = mteb_run.parts_of(task)
        ranked = all(isinstance(part, AbsTaskRetrieval) for part in parts)
        similar = all(isinstance(part, AbsTaskSTS) for part in parts)
        lists = {} if self.model.spec.convert == "embed" else self._candidates(parts)

        def prepare(part: AbsTask, broken: MutableMapping[Unit, Exception]) -> None:
            if (retrieved_by := lists.get(part.metadata.name)) is not None:
                set_candidates(part, self.shared, retrieved_by, self.candidates, broken)

        for part in parts:
            _reset_random_state(part)
        self.model.recorder = recorder = Recorder(self.limit)
        try:
            outcome = mteb_run.computed_outcome(
                self.model,
                task,
                self.store,
                reuse=False,
                start=self.start,
                prepare=prepare,
                predictions=ranked or similar,
            )
        finally:
            self.model.recorder = None
        side = Side(main_scores(outcome), recorder.captured())
        for part in parts if ranked or similar else []:
            self._read_predictions(part, side, ranked)
        return outcome, side

    def save_captured(self, task: str, side: Side) -> None:
        """Move the recorded embeddings or scores of a task from memory to disk."""
        if side.captured is not None:
            side.captured.save(self.folder / "captured" / task)
            side.captured = None

    def load_captured(self, task: str) -> Captured | None:
        """Load the file written by `save_captured`; None if there is none."""
        folder = self.folder / "captured" / task
        return Captured.load(folder) if folder.exists() else None

    def _candidates(self, parts: list[AbsTask]) -> dict[str, ModelMeta]:
        """Retrieve candidates with BM25, once for both sides, for tasks without their own; return BM25's metadata by task."""
        found = {}
        for part in parts:
            if brings_candidates(part.metadata.type):
                continue
            searcher = BM25().searcher(part)
            meta = searcher.mteb_model_meta
            if self.shared.predictions(part, meta) is None:
                mteb_run.compute(searcher, part, self.shared, reuse=True, predictions=True)
            found[part.metadata.name] = meta
        return found

    def _read_predictions(self, part: AbsTask, side: Side, ranked: bool) -> None:
        path = self.store.predictions_path(part, self.model.mteb_model_meta)
        content = json.loads(path.read_bytes())
        path.unlink()
        for subset in part.hf_subsets:
            for split in part.eval_splits:
                found, key = content.get(subset, {}).get(split), f"{part.metadata.name}/{subset}/{split}"
                if found is None:
                    continue
                if ranked:
                    # Ties are broken by name, so that both sides keep the same documents.
                    side.rankings[key] = {
                        query: dict(heapq.nsmallest(self.depth, scores.items(), key=lambda item: (-item[1], item[0])))
                        for query, scores in found.items()
                    }
                else:
                    side.similarities[key] = found["cosine_scores"]


def _reset_random_state(task: AbsTask) -> None:
    """Reset the random state of a task, and of the process, to that of a new task.

    Clustering samples texts with the task's random state: otherwise the same embeddings would get another score.
    """
    from transformers import set_seed

    set_seed(task.seed)
    task.rng_state, task.np_rng = random.Random(task.seed), np.random.default_rng(task.seed)


def main_scores(outcome: TaskOutcome) -> MainScores:
    """Return the main scores of an outcome: split to subset to score."""
    return {
        split: {subset: entry.get("main_score") for subset, entry in subsets.items()}
        for split, subsets in outcome.scores.items()
    }
