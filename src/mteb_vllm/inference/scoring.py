"""Score query-document pairs; each distinct pair is computed once."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from mteb_vllm.engines.base import Engine, LongPair, MakeBar, Scores
from mteb_vllm.inference.encoding import ProgressBar, check_finite, replace_surrogates, texts_without_tokens
from mteb_vllm.inference.pairs import PairTokenizer
from mteb_vllm.models.score_templates import Activation
from mteb_vllm.results.counters import Work

Progress = Callable[[int, int], None]


def score_pairs(
    engine: Engine,
    queries: Iterable[str],
    documents: Iterable[str],
    *,
    template: str | None = None,
    activation: Activation | None = None,
    chunk_size: int = 8192,
    progress: Progress | None = None,
) -> tuple[npt.NDArray[np.float32], Work]:
    """Score pairs, each distinct one once; a query's pairs are consecutive, so that they share a cached prefix.

    A pair without tokens, such as two empty texts joined to one, has the score 0, since engines reject it.

    Args:
        engine: An open engine that scores pairs.
        queries: The first text of each pair; lone surrogates become U+FFFD.
        documents: The second text of each pair.
        template: The jinja template that renders a pair; None if the model joins the two texts itself.
        activation: Activation of the logit: "sigmoid", "none", or None for that of the model's files.
        chunk_size: How many distinct pairs are passed to the engine at once.
        progress: Called repeatedly with (distinct pairs done, distinct pairs in total).

    Returns:
        scores: float32 array, shape (n_pairs,); and counters of the work.

    Raises:
        NonFiniteError: if a score is NaN or Inf.
        EngineError: if the engine has died or failed.
        TemplateError: if the template leaves no room for a document.
        ValueError: if the numbers of queries and documents differ, or `chunk_size` is less than 1.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size}: must be 1 or more")
    started = time.perf_counter()
    query_rows, query_texts = deduplicate(queries)
    document_rows, document_texts = deduplicate(documents)
    if len(query_rows) != len(document_rows):
        raise ValueError(f"{len(query_rows)} queries, but {len(document_rows)} documents")
    work = Work(texts=len(query_rows))
    if not len(query_rows):
        return np.empty(0, dtype=np.float32), work
    # Sorted by query, in the order in which queries first appear.
    codes, places = np.unique(query_rows * len(document_texts) + document_rows, return_inverse=True)
    pairs = _Pairs(PairTokenizer(engine, template), query_texts, document_texts, codes)
    scores = np.empty(len(codes), dtype=np.float32)
    for at in range(0, len(codes), chunk_size):
        block = slice(at, min(at + chunk_size, len(codes)))
        bar = progress and functools.partial(ProgressBar, progress, at, len(codes))
        scores[block] = _score_chunk(engine, pairs, block, template, activation, work, bar or False)
        if progress is not None:
            progress(block.stop, len(codes))
    work.computed = len(codes) - int(pairs.blank.sum())
    work.blank = int(pairs.blank[places].sum())
    work.truncated = int(pairs.cut[places].sum())
    work.truncated_queries = int(pairs.query_cut[pairs.queries][places].sum())
    check_finite(engine, scores[:, None], "scores")
    work.seconds = time.perf_counter() - started
    return scores[places], work


def deduplicate(texts: Iterable[str]) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Return for each text its index among the distinct texts, and those in the order of their first appearance."""
    numbers: dict[str, int] = {}
    rows = [numbers.setdefault(replace_surrogates(text), len(numbers)) for text in texts]
    return np.array(rows, dtype=np.int64), list(numbers)


class _Pairs:
    """The distinct pairs of a call, and which of them may be too long."""

    def __init__(
        self, reader: PairTokenizer, queries: Sequence[str], documents: Sequence[str], codes: npt.NDArray[np.int64]
    ) -> None:
        self.reader = reader
        self.query_texts, room, query_cut = reader.fit_queries(queries)
        self.query_cut = np.array(query_cut, dtype=bool)
        self.document_texts = documents
        self.queries, self.documents = codes // len(documents), codes % len(documents)
        lengths = np.array([len(text.encode()) for text in documents], dtype=np.int64)
        suspects = reader.may_exceed(lengths[self.documents], room[self.queries])
        long_documents = np.unique(self.documents[suspects])
        if len(long_documents):
            lengths[long_documents] = reader.lengths([documents[at] for at in long_documents])
        self.long = suspects & reader.may_exceed(lengths[self.documents], room[self.queries])
        if not reader.joins_pairs:
            # vLLM would tokenise a pair with an empty document as one text; sentence-transformers tokenises it as a pair.
            self.long |= np.isin(self.documents, [at for at, text in enumerate(documents) if not text])
        self.cut = np.zeros(len(codes), dtype=bool)
        self.blank = np.zeros(len(codes), dtype=bool)
        if reader.joins_pairs and reader.template is None:
            no_query, no_document = (
                list(texts_without_tokens(reader.tokenizer, texts)) for texts in (queries, documents)
            )
            self.blank = np.isin(self.queries, no_query) & np.isin(self.documents, no_document)

    def texts(self, at: int) -> tuple[str, str]:
        return self.query_texts[self.queries[at]], self.document_texts[self.documents[at]]

    def tokens(self, at: int) -> LongPair:
        pair = self.reader.cut(*self.texts(at))
        self.cut[at] = pair.cut
        return pair


def _score_chunk(
    engine: Engine,
    pairs: _Pairs,
    block: slice,
    template: str | None,
    activation: Activation | None,
    work: Work,
    bar: MakeBar,
) -> npt.NDArray[np.float32]:
    rows = np.arange(block.start, block.stop)
    blank = pairs.blank[block]
    fitting, long = list(rows[~pairs.long[block] & ~blank]), list(rows[pairs.long[block]])
    scores = np.zeros(len(rows), dtype=np.float32)
    if fitting:
        queries, documents = zip(*(pairs.texts(at) for at in fitting), strict=True)
        answer = engine.score(list(queries), list(documents), template=template, activation=activation, bar=bar)
        _store(scores, np.array(fitting) - block.start, answer, work)
        # Pairs as long as the context despite having few bytes: their tokenizer makes more tokens than there are bytes.
        long += [at for at, length in zip(fitting, answer.lengths, strict=True) if length >= pairs.reader.limit]
    if long:
        cut = [pairs.tokens(at) for at in long]
        answer = engine.score_tokens(cut, activation=activation, bar=bar if not fitting else False)
        _store(scores, np.array(long) - block.start, answer, work)
    return np.where(blank, np.float32(0), _sigmoid(scores)) if activation == "sigmoid" else scores


def _store(scores: npt.NDArray[np.float32], rows: npt.NDArray[np.int64], answer: Scores, work: Work) -> None:
    scores[rows] = answer.values
    work.tokens += sum(answer.lengths)
    work.cached_tokens += answer.cached


def _sigmoid(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    # In float64, so that the result is rounded only once.
    with np.errstate(over="ignore"):  # for very negative logits the exponential is infinite, and the sigmoid 0
        return (1 / (1 + np.exp(-logits.astype(np.float64)))).astype(np.float32)
