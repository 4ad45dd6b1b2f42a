"""Estimate the work of a task from mteb's descriptive statistics, without loading the task's data.

mteb ships a file of statistics for nearly every task: the numbers of texts, distinct texts and characters. Which texts are
encoded follows from its evaluators:

=============================  ========================================================================================
task                           encoded texts
=============================  ========================================================================================
retrieval, reranking           all queries and all documents
STS, pair classification       both sides
bitext mining                  both sides; in parallel corpora, each language once
summarization                  the summaries, not the source texts
clustering                     all texts, or a sample; in older tasks, each set of texts separately, so that a text in ten
                               sets is encoded ten times
classification, regression     the evaluated split, or a sample of it, and the training texts drawn by any experiment;
                               in cross-validation, all of one split
=============================  ========================================================================================

Texts are counted as an engine computes them: the distinct ones within each of these, per split and subset. For samples it is
their expected number, which is approximate for multilabel texts. The estimate is slightly too high for queries without
relevant documents, which mteb skips, and for repeated texts within a set of an older clustering task; it is too low for
repeated documents in corpora of more than 50,000 documents, which are encoded in several pieces.

Tokens are estimated from characters, by script. `CHARACTERS_PER_TOKEN` are means of two multilingual tokenizers
(XLM-RoBERTa's and Mistral's) on XQuAD and the Universal Declaration of Human Rights; `ENGLISH` is that of BERT's tokenizer on
SciFact, STS12 and others (3.9 to 4.9). A tokenizer trained on little text of a language produces two to three times as many
tokens, while BERT's replaces whole words of unsupported scripts by one token. Truncation is applied to the average text, so
the estimate is too high if only some texts are longer than the context length.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mteb_vllm.catalogue import TaskInfo
from mteb_vllm.tasks.selection import brings_candidates

ENGLISH = 4.4
OTHER_SCRIPTS = 2.7
CHARACTERS_PER_TOKEN = {
    "Arab": 3.3,
    "Armn": 3.7,
    "Code": 3.7,
    "Cyrl": 3.6,
    "Deva": 3.0,
    "Ethi": 1.0,
    "Geor": 3.2,
    "Grek": 3.1,
    "Hang": 2.0,
    "Hans": 1.3,
    "Hant": 1.3,
    "Hebr": 2.5,
    "Hira": 1.5,
    "Jpan": 1.5,
    "Kore": 2.0,
    "Latn": 3.8,
    "Mymr": 2.5,
    "Tibt": 1.0,
}

_QUERIES, _DOCUMENTS = "queries_text_statistics", "documents_text_statistics"
# Texts that are always encoded completely: the name of their statistics, and which of a subset's two languages they are in.
_COMPLETE: dict[str, slice] = {
    _QUERIES: slice(None),
    _DOCUMENTS: slice(None),
    "text1_statistics": slice(0, 1),
    "text2_statistics": slice(1, 2),
    "sentence1_statistics": slice(0, 1),
    "sentence2_statistics": slice(1, 2),
    "human_summaries_statistics": slice(None),
    "machine_summaries_statistics": slice(None),
}


@dataclass(frozen=True)
class Estimate:
    """The estimated work of an engine.

    Attributes:
        texts: The number of distinct texts, or pairs.
        tokens: Their number of tokens, without special tokens and prompts.
        unit: The unit of `texts`.
    """

    texts: int
    tokens: int
    unit: Literal["texts", "pairs"] = "texts"

    def __add__(self, other: Estimate) -> Estimate:
        if self.unit != other.unit:
            raise ValueError(f"cannot add {self.unit} and {other.unit}")
        return Estimate(self.texts + other.texts, self.tokens + other.tokens, self.unit)


class _Part(NamedTuple):
    """One split of one subset: its languages, its statistics, and those of the training split."""

    split: str
    subset: str
    languages: tuple[str, ...]
    counted: dict[str, Any]
    train: dict[str, Any]


class _Batch(NamedTuple):
    """Texts that are encoded together: the number of distinct ones, and their mean number of tokens."""

    texts: float
    tokens: float


def estimate(task: TaskInfo, splits: Sequence[str] | None = None, *, max_tokens: int | None = None) -> Estimate | None:
    """Return the estimated work of encoding a task.

    Args:
        task: The task, with the evaluated subsets.
        splits: The evaluated splits; None: the task's own.
        max_tokens: The context length in tokens; None for no limit.

    Returns:
        the estimate; None if mteb lacks statistics for one of the splits and subsets, or the task is not only of text.
    """
    parts = _parts(task, splits)
    if parts is None:
        return None
    parallel = task.sampling.get("parallel_subsets", False)
    batches: dict[tuple[str, ...], _Batch] = {}
    for part in parts:
        # A parallel corpus has one column per language, shared by all pairs of languages.
        columns = part.subset.split("-") if parallel else ()
        for at, (name, batch) in enumerate(_encoded(task, part)):
            batches[(part.split, columns[at]) if columns else (part.split, part.subset, name)] = batch
    texts = sum(batch.texts for batch in batches.values())
    tokens = sum(batch.texts * _capped(batch.tokens, max_tokens) for batch in batches.values())
    return Estimate(round(texts), round(tokens))


def estimate_pairs(
    task: TaskInfo, splits: Sequence[str] | None = None, *, top_k: int, max_tokens: int | None = None
) -> Estimate | None:
    """Return the estimated work of reranking a task: all pairs of a query and one of its candidates.

    Args:
        task: The task, with the evaluated subsets.
        splits: The evaluated splits; None: the task's own.
        top_k: The number of candidates per query; tasks with their own candidate lists use all of these.
        max_tokens: The context length of a pair in tokens; None for no limit.

    Returns:
        the estimate, in pairs; None as for `estimate`, and if the task has no queries.
    """
    parts = _parts(task, splits)
    if parts is None:
        return None
    own = brings_candidates(task.type)
    pairs = tokens = 0.0
    for part in parts:
        listed = part.counted.get("top_ranked_statistics")
        if not part.counted.get(_QUERIES) or (own and not listed):
            return None
        count = listed["num_top_ranked"] if listed else math.inf
        if not own:
            count = min(count, _rows(part.counted, _QUERIES) * min(top_k, _rows(part.counted, _DOCUMENTS)))
        length = sum(_batch(part, name).tokens for name in (_QUERIES, _DOCUMENTS))
        pairs += count
        tokens += count * _capped(length, max_tokens)
    return Estimate(round(pairs), round(tokens), "pairs")


def _parts(task: TaskInfo, splits: Sequence[str] | None) -> list[_Part] | None:
    """Return the evaluated splits and subsets; None if statistics are missing for one of them."""
    found = task.statistics or _statistics(task.type, task.name)
    if set(task.modalities) != {"text"} or not found:
        return None
    parts = []
    for split in splits or task.splits:
        for subset, languages in task.subsets.items():
            counted = _counts(found, split, subset)
            train = _counts(found, task.sampling["train_split"], subset) if "train_split" in task.sampling else {}
            if counted is None or train is None:
                return None
            parts.append(_Part(split, subset, languages, counted, train))
    return parts


def _counts(found: dict[str, Any], split: str, subset: str) -> dict[str, Any] | None:
    of_split: dict[str, Any] = found.get(split, {})
    by_subset: dict[str, Any] = of_split.get("hf_subset_descriptive_stats", {"default": of_split} if of_split else {})
    return by_subset.get(subset)


@functools.cache
def _statistics(task_type: str, name: str) -> dict[str, Any] | None:
    """Return the content of a task's statistics file; None if there is none."""
    spec = importlib.util.find_spec("mteb")  # does not import mteb
    if spec is None or spec.origin is None:
        return None
    try:
        raw = Path(spec.origin).with_name("descriptive_stats").joinpath(task_type, f"{name}.json").read_bytes()
    except FileNotFoundError:
        return None
    statistics: dict[str, Any] = json.loads(raw)
    return statistics


def _encoded(task: TaskInfo, part: _Part) -> Iterator[tuple[str, _Batch]]:
    """Yield name and batch of the texts encoded for a part."""
    complete = [name for name in _COMPLETE if part.counted.get(name)]
    if complete:
        yield from ((name, _batch(part, name)) for name in complete)
        return
    rows, sampling = _rows(part.counted), task.sampling
    if "train_split" in sampling:
        yield "texts", _sampled(part, min(rows, sampling.get("max_eval_samples") or rows))
        if not sampling["is_cross_validation"]:
            yield "training texts", _sampled(part._replace(counted=part.train), _drawn(sampling, part.train))
    elif "max_document_to_embed" in sampling:
        most, fraction = sampling["max_document_to_embed"], sampling["max_fraction_of_documents_to_embed"]
        taken = int(fraction * rows) if fraction is not None else rows if most is None else most
        yield "texts", _sampled(part, taken)
    else:
        yield "texts", _batch(part, "text_statistics")._replace(texts=rows)  # an older clustering task


def _sampled(part: _Part, taken: float) -> _Batch:
    """Return the expected distinct texts among `taken` random rows of a part, if all texts are repeated equally often."""
    batch = _batch(part, "text_statistics")
    rows = _rows(part.counted)
    return batch._replace(texts=_expected(batch.texts, taken / rows, rows / batch.texts))


def _drawn(sampling: dict[str, Any], train: dict[str, Any]) -> float:
    """Return the expected number of training rows that at least one experiment draws."""
    rows, experiments = _rows(train), sampling["n_experiments"]
    if "n_samples" in sampling:  # regression: rows have no labels
        return _expected(rows, sampling["n_samples"] / rows, experiments)
    counts: dict[str, int] = {name: label["count"] for name, label in train["label_statistics"]["labels"].items()}
    # Rows of a multilabel task without labels are never drawn; rows with several labels are drawn for each of them.
    without = counts.pop("None", 0) if "max_eval_samples" in sampling else 0
    drawn = sum(_expected(count, sampling["samples_per_label"] / count, experiments) for count in counts.values())
    return drawn * (rows - without) / sum(counts.values())


def _expected(count: float, share: float, draws: float) -> float:
    """Return the expected number of items in at least one of several draws, each of a fraction `share` of `count` items."""
    left_out: float = (1 - min(1, share)) ** draws
    return count * (1 - left_out)


def _batch(part: _Part, name: str) -> _Batch:
    statistics = part.counted[name]
    languages = part.languages[_COMPLETE.get(name, slice(None))] if len(part.languages) == 2 else part.languages
    return _Batch(statistics["unique_texts"], statistics["average_text_length"] * _tokens_per_character(languages))


def _rows(counted: dict[str, Any], name: str = "text_statistics") -> int:
    # Not `num_samples`, which counts labels in multilabel tasks; but one file lacks the total length.
    texts: dict[str, float] = counted[name]
    rows: int = counted["num_samples"]
    return round(texts["total_text_length"] / texts["average_text_length"]) if "total_text_length" in texts else rows


def _tokens_per_character(languages: Sequence[str]) -> float:
    """Return the mean over languages, given as `eng-Latn`."""
    rates = [
        1 / (ENGLISH if code == "eng-Latn" else CHARACTERS_PER_TOKEN.get(code.split("-")[-1], OTHER_SCRIPTS))
        for code in languages
    ]
    return sum(rates) / len(rates) if rates else 1 / ENGLISH


def _capped(tokens: float, most: int | None) -> float:
    return tokens if most is None else min(tokens, most)
