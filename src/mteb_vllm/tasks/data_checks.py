"""Find errors in a task's loaded data before an engine opens: missing splits, rows and columns, and nulls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
import pyarrow.compute as pc  # type: ignore[import-untyped, unused-ignore]

if TYPE_CHECKING:
    from datasets import Dataset
    from mteb.abstasks import AbsTask
    from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData

# Attributes of mteb tasks that evaluate a sample of a split. Nulls are not checked there: they matter only in sampled rows.
_SAMPLES = ("max_document_to_embed", "max_fraction_of_documents_to_embed", "max_eval_samples")
_LABELS = ("label_column_name", "relevancy_column_name")
_LISTS = ("human_summaries_column_name", "machine_summaries_column_name")


def find_problem(task: AbsTask, subset: str, split: str) -> str | None:
    """Return why a subset of a split cannot be evaluated, as a message; None if no problem is found.

    Args:
        task: A task whose data are loaded; those of a retrieval task must be in mteb's second format.
        subset: One of its subsets.
        split: One of its splits.
    """
    from datasets import Dataset
    from mteb.abstasks import AbsTaskRetrieval

    data: Any = task.dataset
    part = data.get(subset, data) if isinstance(data, Mapping) else None
    if not isinstance(part, Mapping):
        return None  # a task-specific format
    if split not in part:
        return f"there is no such split; available: {', '.join(map(str, part)) or 'none'}"
    if not _is_evaluated_generically(task):
        return None
    if isinstance(task, AbsTaskRetrieval):
        return _retrieval_problem(part[split])
    rows = part[split]
    if not isinstance(rows, Dataset):
        return None
    return _rows_problem(task, subset, rows) or _training_problem(task, part)


def _is_evaluated_generically(task: AbsTask) -> bool:
    """Return whether mteb's generic code evaluates the task; the requirements of task-specific code are unknown."""
    methods = (type(task).evaluate, type(task)._evaluate_subset)
    return all(method.__module__.startswith("mteb.abstasks.") for method in methods)


def _retrieval_problem(part: RetrievalSplitData) -> str | None:
    corpus, queries = part.get("corpus"), part.get("queries")
    judged, lists = part.get("relevant_docs"), part.get("top_ranked")
    if corpus is None or not len(corpus):
        return "there are no documents"
    if not judged or not any(judged.values()):
        return "there are no relevance judgements"
    if incomplete := [query for query, grades in judged.items() if None in grades.values() or None in grades]:
        return _count(len(incomplete), len(judged), "query", "a judgement without a score or a document", incomplete[0])
    if not any(grade > 0 for grades in judged.values() for grade in grades.values()):
        return "there are no relevant documents: no relevance judgement is above 0"
    if queries is None or not len(queries):
        return "there are no queries that have relevance judgements"
    found = (
        _column_problem(corpus, "id", "document")
        or _column_problem(corpus, "text", "document")
        or ("title" in corpus.column_names and _column_problem(corpus, "title", "document"))
        or _column_problem(queries, "id", "query")
        or _column_problem(queries, "text", "query")
    )
    if found:
        return str(found)
    if lists:
        ids = set(corpus["id"])
        unknown = [query for query, names in lists.items() if not ids.issuperset(names or ())]
        if unknown:
            return _count(len(unknown), len(lists), "query", "candidates that are not among the documents", unknown[0])
    return None


def _rows_problem(task: AbsTask, subset: str, rows: Dataset) -> str | None:
    from mteb.abstasks import AbsTaskSTS

    if not len(rows):
        return "there are no rows"
    texts = [name for name, modality in task._get_content_columns().items() if modality == "text"]
    if getattr(task, "parallel_subsets", False):
        texts = subset.split("-")
    texts += [getattr(task, name) for name in _LISTS if hasattr(task, name)]
    labels = [getattr(task, name) for name in _LABELS if hasattr(task, name)]
    labels += ["score"] if isinstance(task, AbsTaskSTS) else []
    if missing := [name for name in (*texts, *labels) if name not in rows.column_names]:
        return f"there is no column {missing[0]}; available: {', '.join(rows.column_names)}"
    if any(getattr(task, name, None) is not None for name in _SAMPLES):
        return None
    found = (_column_problem(rows, name, "row") for name in texts)
    nulls = (_column_problem(rows, name, "row", is_text=False) for name in labels)
    return next((one for one in (*found, *nulls) if one), None)


def _training_problem(task: AbsTask, part: Mapping[str, Dataset]) -> str | None:
    split = getattr(task, "train_split", None)
    if split is None or getattr(task, "is_cross_validation", False):
        return None
    if split not in part:
        return f"there is no training split {split}; available: {', '.join(map(str, part))}"
    return None if len(part[split]) else f"the training split {split} has no rows"


def _column_problem(rows: Dataset, name: str, what: str, *, is_text: bool = True) -> str | None:
    """Return the problem with a column of a data set: it is missing, has a type other than text, or contains nulls.

    Args:
        rows: The data set.
        name: The column.
        what: The noun for a row, for messages.
        is_text: Whether the column must contain texts, or lists of them.
    """
    if name not in rows.column_names:
        return f"the {_plural(what)} have no column {name}; available: {', '.join(rows.column_names)}"
    column = rows.data.column(name)
    if is_text and not _has_texts(column.type):
        return f"the column {name} of the {_plural(what)} has the type {column.type}, not text"
    if not _has_nulls(column):
        return None
    # `Dataset.select` does not change the underlying table, so nulls must be looked up in the selected rows.
    nulls = [at for at, value in enumerate(rows[name]) if _is_null(value)]
    if not nulls:
        return None
    ids = next((rows[key] for key in ("id", "_id") if key in rows.column_names), None)
    first = None if ids is None else ids[nulls[0]]
    return _count(len(nulls), len(rows), what, f"a null {name}", f"row {nulls[0]}" if first is None else first)


def _count(n: int, total: int, what: str, problem: str, first: str) -> str:
    subject = f"{n:,} of {total:,} {what if total == 1 else _plural(what)}"
    return f"{subject} {'has' if n == 1 else 'have'} {problem} (first: {first})"


def _plural(what: str) -> str:
    return {"query": "queries"}.get(what, f"{what}s")


def _has_texts(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _has_texts(kind.value_type)
    # Conversation turns are structs; a column of nulls only has the null type.
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_dictionary)
    return any(is_kind(kind) for is_kind in (*texts, pa.types.is_struct, pa.types.is_null))


def _has_nulls(column: pa.ChunkedArray) -> bool:
    while not column.null_count:
        kind = column.type
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
            return False
        column = pc.list_flatten(column)
    return True


def _is_null(value: object) -> bool:
    return value is None or (isinstance(value, Sequence) and not isinstance(value, str) and any(map(_is_null, value)))
