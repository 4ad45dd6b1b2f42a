"""How much work a task will be, before anything of it is loaded: an estimate, from mteb's descriptive statistics.

mteb brings a file of statistics for nearly every task: how many texts there are, how many different ones, how many
characters. What it does with them is known from its evaluators:

=============================  ========================================================================================
task                           what is encoded
=============================  ========================================================================================
retrieval, reranking           all queries and all documents
STS, pair classification       both sides
bitext mining                  both sides; of parallel corpora each language once
summarization                  the summaries, not the texts that they are of
clustering                     all texts, or a sample; in older tasks each set of texts by itself, where a text that
                               stands in ten sets is encoded ten times
classification, regression     the evaluated split, or a sample of it, and the training texts that any experiment draws;
                               in cross-validation all of one split
=============================  ========================================================================================

Texts are counted as an engine computes them: the different ones of each of these, for each split and subset. Of samples
it is their expected number, where texts have several labels only roughly. A few too many are counted where queries have
nothing relevant, which mteb leaves out, and where one set of an older clustering repeats a text; too few where a corpus of
more than 50,000 documents, which is encoded piece by piece, repeats some.

Tokens are estimated from characters, by script. `CHARACTERS_PER_TOKEN` are means of two multilingual tokenizers
(XLM-RoBERTa's and Mistral's) on XQuAD and the Universal Declaration of Human Rights; `ENGLISH` is BERT's on SciFact, STS12
and others (3.9 to 4.9). A tokenizer that has seen little of a language makes two or three times as many tokens, and BERT's
own hides whole words of a script that it cannot read behind one. Where texts are cut to a context, it is the average text
that is cut here: too many tokens are estimated where some texts are longer than the context and others are shorter.
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
# What is encoded whole, if it is there. A side of pairs is in one of the two languages that a subset may have.
_WHOLE: dict[str, slice] = {
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
    """About how much an engine will have to do.

    Attributes:
        texts: Different texts, or pairs of texts, that it will be given.
        tokens: Tokens in them; special tokens and prompts are not counted.
        unit: What `texts` counts.
    """

    texts: int
    tokens: int
    unit: Literal["texts", "pairs"] = "texts"

    def __add__(self, other: Estimate) -> Estimate:
        if self.unit != other.unit:
            raise ValueError(f"{self.unit} and {other.unit} do not add up")
        return Estimate(self.texts + other.texts, self.tokens + other.tokens, self.unit)


class _Part(NamedTuple):
    """One split of one subset: its languages, what mteb counts in it, and in the split that classifiers learn from."""

    split: str
    subset: str
    languages: tuple[str, ...]
    counted: dict[str, Any]
    train: dict[str, Any]


class _Batch(NamedTuple):
    """Texts that are encoded together: how many different ones, and the tokens of the average one."""

    texts: float
    tokens: float


def estimate(task: TaskInfo, splits: Sequence[str] | None = None, *, max_tokens: int | None = None) -> Estimate | None:
    """What encoding a task takes.

    Args:
        task: The task, with the subsets that are evaluated.
        splits: The splits that are; None: the task's own.
        max_tokens: The context that texts are cut to.

    Returns:
        the estimate; None where mteb has no statistics for one of these splits and subsets, or there is more than text.
    """
    parts = _parts(task, splits)
    if parts is None:
        return None
    parallel = task.sampling.get("parallel_subsets", False)
    batches: dict[tuple[str, ...], _Batch] = {}
    for part in parts:
        # A parallel corpus has one column for each language, whatever pairs are made of them.
        columns = part.subset.split("-") if parallel else ()
        for at, (name, batch) in enumerate(_encoded(task, part)):
            batches[(part.split, columns[at]) if columns else (part.split, part.subset, name)] = batch
    texts = sum(batch.texts for batch in batches.values())
    tokens = sum(batch.texts * _capped(batch.tokens, max_tokens) for batch in batches.values())
    return Estimate(round(texts), round(tokens))


def estimate_pairs(
    task: TaskInfo, splits: Sequence[str] | None = None, *, top_k: int, max_tokens: int | None = None
) -> Estimate | None:
    """What reranking for a task takes: each query with each of its candidates.

    Args:
        task: The task, with the subsets that are evaluated.
        splits: The splits that are; None: the task's own.
        top_k: How many candidates a first stage finds for each query. Tasks that bring lists of their own keep these.
        max_tokens: The context that pairs are cut to.

    Returns:
        the estimate, in pairs; None as for `estimate`, and where nothing is ranked.
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
    """What is evaluated; None where any of it is not known."""
    found = task.statistics or _statistics(task.type, task.name)
    if set(task.modalities) != {"text"} or not found:
        return None
    parts = []
    for split in splits or task.splits:
        for subset, languages in task.subsets.items():
            counted = _of(found, split, subset)
            train = _of(found, task.sampling["train_split"], subset) if "train_split" in task.sampling else {}
            if counted is None or train is None:
                return None
            parts.append(_Part(split, subset, languages, counted, train))
    return parts


def _of(found: dict[str, Any], split: str, subset: str) -> dict[str, Any] | None:
    whole: dict[str, Any] = found.get(split, {})
    by_subset: dict[str, Any] = whole.get("hf_subset_descriptive_stats", {"default": whole} if whole else {})
    return by_subset.get(subset)


@functools.cache
def _statistics(task_type: str, name: str) -> dict[str, Any] | None:
    """What the file of a task holds; None without one."""
    spec = importlib.util.find_spec("mteb")  # imports nothing
    if spec is None or spec.origin is None:
        return None
    try:
        raw = Path(spec.origin).with_name("descriptive_stats").joinpath(task_type, f"{name}.json").read_bytes()
    except FileNotFoundError:
        return None
    statistics: dict[str, Any] = json.loads(raw)
    return statistics


def _encoded(task: TaskInfo, part: _Part) -> Iterator[tuple[str, _Batch]]:
    """What is encoded of a part, each batch by its name."""
    whole = [name for name in _WHOLE if part.counted.get(name)]
    if whole:
        yield from ((name, _batch(part, name)) for name in whole)
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
        yield "texts", _batch(part, "text_statistics")._replace(texts=rows)  # an older clustering


def _sampled(part: _Part, taken: float) -> _Batch:
    """The different texts that are expected among some rows of a part, where each text is repeated equally often."""
    batch = _batch(part, "text_statistics")
    rows = _rows(part.counted)
    return batch._replace(texts=_expected(batch.texts, taken / rows, rows / batch.texts))


def _drawn(sampling: dict[str, Any], train: dict[str, Any]) -> float:
    """How many of the training rows at least one experiment is expected to draw."""
    rows, experiments = _rows(train), sampling["n_experiments"]
    if "n_samples" in sampling:  # a regression: its rows have no labels
        return _expected(rows, sampling["n_samples"] / rows, experiments)
    counts: dict[str, int] = {name: label["count"] for name, label in train["label_statistics"]["labels"].items()}
    # Rows of a multilabel task may have none, and are not drawn then; or several, and are drawn for all of these at once.
    without = counts.pop("None", 0) if "max_eval_samples" in sampling else 0
    drawn = sum(_expected(count, sampling["samples_per_label"] / count, experiments) for count in counts.values())
    return drawn * (rows - without) / sum(counts.values())


def _expected(count: float, share: float, draws: float) -> float:
    """How many are expected to be in at least one of several draws, each of a share of all."""
    left_out: float = (1 - min(1, share)) ** draws
    return count * (1 - left_out)


def _batch(part: _Part, name: str) -> _Batch:
    statistics = part.counted[name]
    languages = part.languages[_WHOLE.get(name, slice(None))] if len(part.languages) == 2 else part.languages
    return _Batch(statistics["unique_texts"], statistics["average_text_length"] * _tokens_per_character(languages))


def _rows(counted: dict[str, Any], name: str = "text_statistics") -> int:
    # `num_samples` counts labels where texts have several; one file has no total.
    texts: dict[str, float] = counted[name]
    rows: int = counted["num_samples"]
    return round(texts["total_text_length"] / texts["average_text_length"]) if "total_text_length" in texts else rows


def _tokens_per_character(languages: Sequence[str]) -> float:
    """The mean over languages, each as `eng-Latn`."""
    rates = [
        1 / (ENGLISH if code == "eng-Latn" else CHARACTERS_PER_TOKEN.get(code.split("-")[-1], OTHER_SCRIPTS))
        for code in languages
    ]
    return sum(rates) / len(rates) if rates else 1 / ENGLISH


def _capped(tokens: float, most: int | None) -> float:
    return tokens if most is None else min(tokens, most)
