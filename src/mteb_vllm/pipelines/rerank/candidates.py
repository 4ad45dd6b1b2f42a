"""Search models for mteb that need no index: saved predictions, random documents, and perfect rankings."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mteb_vllm.errors import FirstStageError
from mteb_vllm.results.lookup import CEILING
from mteb_vllm.util.fingerprint import METHOD, fingerprint
from mteb_vllm.util.plain import Json

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask
    from mteb.models.model_meta import ModelMeta
    from mteb.types import CorpusDatasetType, QueryDatasetType, RetrievalOutputType, TopRankedDocumentsType

# Documents retrieved per query, independent of a run's `top_k`: mteb's own depth (the largest of its tasks' k_values).
DEPTH = 1000


class _Search:
    """mteb's `SearchProtocol` without an index."""

    def __init__(self, meta: ModelMeta) -> None:
        self.mteb_model_meta = meta
        self.documents: list[str] = []
        self.present: frozenset[str] = frozenset()

    def index(self, corpus: CorpusDatasetType, **_: object) -> None:
        """Store the ids of the documents."""
        self.documents = list(corpus["id"])
        self.present = frozenset(self.documents)


class SavedSearch(_Search):
    """Candidates from a file of predictions."""

    def __init__(self, file: Path, content: Mapping[str, object], meta: ModelMeta) -> None:
        super().__init__(meta)
        self.file, self.content = file, content

    def search(self, queries: QueryDatasetType, *, hf_split: str, hf_subset: str, **_: object) -> RetrievalOutputType:
        """Return the file's rankings for these queries.

        Raises:
            FirstStageError: if the file is of another task, split or corpus, or its scores are invalid.
        """
        splits = self.content.get(hf_subset)
        found = splits.get(hf_split) if isinstance(splits, dict) else None
        where = f"{hf_subset}/{hf_split}"
        if not isinstance(found, dict):
            there = ", ".join(
                f"{subset}/{split}"
                for subset, splits in self.content.items()
                if subset not in ("mteb_model_meta", "mteb_vllm") and isinstance(splits, dict)
                for split in splits
            )
            raise FirstStageError(f"{self.file} has no predictions for {where}; it has {there or 'none'}")
        wanted = list(queries["id"])
        missing = [query for query in wanted if query not in found]
        if missing:
            raise FirstStageError(
                f"{self.file} is for a different split or task: {len(missing):,} of the {len(wanted):,} queries of {where} "
                f"are missing from it (such as {missing[0]!r})"
            )
        odd = next((query for query in wanted if not _are_scores(found[query])), None)
        if odd is not None:
            raise FirstStageError(f"{self.file} has no valid document scores for the query {odd!r} of {where}")
        # Copies, since mteb removes documents from the results.
        results: dict[str, dict[str, float]] = {query: dict(found[query]) for query in wanted}
        unknown = next((document for one in results.values() for document in one if document not in self.present), None)
        if unknown is not None:
            raise FirstStageError(
                f"{self.file} is for a different corpus: it contains document {unknown!r}, which is not in {where}"
            )
        return results


def _are_scores(found: object) -> bool:
    """Whether a value is a mapping of documents to finite scores."""
    values = found.values() if isinstance(found, dict) else [None]
    return all(isinstance(value, (int, float)) and math.isfinite(value) for value in values)


class DrawnSearch(_Search):
    """Random candidates, optionally preceded by the relevant documents."""

    def __init__(self, task: AbsTask, meta: ModelMeta, seed: int, *, relevant_first: bool) -> None:
        super().__init__(meta)
        self.task, self.seed, self.relevant_first = task, seed, relevant_first

    def search(
        self,
        queries: QueryDatasetType,
        *,
        hf_split: str,
        hf_subset: str,
        top_ranked: TopRankedDocumentsType | None = None,
        **_: object,
    ) -> RetrievalOutputType:
        """Return a ranking for each query, determined by the seed; scores are minus the rank."""
        judged = _judgements(self.task, hf_subset, hf_split) if self.relevant_first else {}
        results = {}
        for query in queries["id"]:
            pool = self.documents if top_ranked is None else top_ranked.get(query, [])
            draw = random.Random(f"{self.seed} {hf_subset} {hf_split} {query}")
            ranked = draw.sample(pool, min(DEPTH, len(pool)))
            if self.relevant_first:
                grades = {doc: grade for doc, grade in judged.get(query, {}).items() if grade > 0}
                best = sorted((doc for doc in grades if doc in self.present), key=lambda doc: -grades[doc])
                ranked = [*best, *(doc for doc in ranked if doc not in grades)][:DEPTH]
            results[query] = {document: -float(at) for at, document in enumerate(ranked)}
        return results


class Ceiling(_Search):
    """A perfect reranker, which orders the candidates by their relevance judgements.

    Args:
        task: The task, with its candidates.
        settings: The settings that the candidates depend on.
    """

    def __init__(self, task: AbsTask, settings: Mapping[str, Json]) -> None:
        super().__init__(ceiling_meta(settings))
        self.task = task

    def search(
        self,
        queries: QueryDatasetType,
        *,
        hf_split: str,
        hf_subset: str,
        top_ranked: TopRankedDocumentsType | None = None,
        **_: object,
    ) -> RetrievalOutputType:
        """Return the relevance of each candidate as its score."""
        judged = _judgements(self.task, hf_subset, hf_split)
        return {
            query: {doc: float(judged.get(query, {}).get(doc, 0)) for doc in (top_ranked or {}).get(query, [])}
            for query in queries["id"]
        }


def ceiling_meta(settings: Mapping[str, Json]) -> ModelMeta:
    """Return the metadata under which the results store keeps a ceiling."""
    return search_meta(CEILING, str(METHOD), {"kind": "ceiling", **settings})


def _judgements(task: AbsTask, subset: str, split: str) -> dict[str, dict[str, int]]:
    data: Any = task.dataset
    judged: dict[str, dict[str, int]] = data[subset][split]["relevant_docs"]
    return judged


def search_meta(name: str, revision: str, settings: Mapping[str, Json], meta: ModelMeta | None = None) -> ModelMeta:
    """Return the metadata of a search model: name, revision, and the hash of the settings that its candidates depend on."""
    from mteb.models.model_meta import ModelMeta as Meta

    made: ModelMeta = (meta or Meta.create_empty()).model_copy(
        update={
            "name": name,
            "revision": revision,
            "loader": None,
            "modalities": ["text"],
            "experiment_kwargs": {"settings": fingerprint(settings)},
        }
    )
    return made
