"""Score query-document pairs; each distinct pair is computed once."""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from mteb_vllm.engines.base import Engine, MakeBar, Scores, TokenPair
from mteb_vllm.inference.encoding import ProgressBar, check_finite, replace_surrogates, texts_without_tokens
from mteb_vllm.inference.pairs import PairTokenizer
from mteb_vllm.inference.token_feed import TokenFeed, batches, open_feed, prefetch
from mteb_vllm.models.score_templates import Activation
from mteb_vllm.results.counters import Work

Progress = Callable[[int, int], None]

# How many of the first pairs, and of those with the shortest and the longest documents, are tokenised both ways.
_CHECKED = 4


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
        chunk_size: How many distinct pairs are passed at once to an engine that gets text.
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
    reader = PairTokenizer(engine, template)
    pairs = _Pairs(reader, query_texts, document_texts, codes)
    feed = reader.feed(*pairs.sample())
    if feed is not None:
        scores = _score_tokens(engine, pairs, feed, activation, work, progress)
    else:
        pairs.find_long()
        scores = np.empty(len(codes), dtype=np.float32)
        for at in range(0, len(codes), chunk_size):
            block = slice(at, min(at + chunk_size, len(codes)))
            bar = progress and functools.partial(ProgressBar, progress, at, len(codes))
            scores[block] = _score_chunk(engine, pairs, block, template, activation, work, bar or False)
            if progress is not None:
                progress(block.stop, len(codes))
    if activation == "sigmoid":
        scores = np.where(pairs.blank, np.float32(0), _sigmoid(scores))
    work.computed = len(codes) - int(pairs.blank.sum())
    work.blank = int(pairs.blank[places].sum())
    work.truncated = int(pairs.cut[places].sum())
    work.truncated_queries = int(pairs.query_cut[pairs.queries][places].sum())
    check_finite(engine, scores[:, None], "scores")
    work.seconds = time.perf_counter() - started
    return scores[places], work


def run_pairs(engine: Engine, queries: Sequence[str], documents: Sequence[str], template: str | None) -> list[int]:
    """Score pairs that fit the context and discard the scores, to measure speed; return the number of tokens of each pair.

    Call `PairTokenizer.feed` before: pairs are not checked here, so that the check is not part of the measured time.

    Raises:
        EngineError: if the engine has died or failed.
    """
    reader = PairTokenizer(engine, template)
    feed = open_feed(engine)
    if feed is None:
        return engine.score(list(queries), list(documents), template=template).lengths
    lengths: list[int] = []

    def pairs() -> Iterator[TokenPair]:
        for pair in itertools.chain.from_iterable(ready):
            lengths.append(len(pair.tokens))
            yield pair

    sizes = map(len, map(str.__add__, queries, documents))
    with prefetch(reader.tokenize(feed, queries[part], documents[part]) for part in batches(sizes)) as ready:
        collections.deque(engine.score_arriving(pairs()), maxlen=0)
    return lengths


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
        self.room = room
        self.document_texts = [reader.shorten(document) for document in documents]
        self.queries, self.documents = codes // len(documents), codes % len(documents)
        self.long = np.zeros(len(codes), dtype=bool)
        self.cut = np.zeros(len(codes), dtype=bool)
        self.blank = np.zeros(len(codes), dtype=bool)
        if reader.joins_pairs and reader.template is None:
            no_query, no_document = (
                list(texts_without_tokens(reader.tokenizer, texts)) for texts in (queries, documents)
            )
            self.blank = np.isin(self.queries, no_query) & np.isin(self.documents, no_document)

    def find_long(self) -> None:
        """Find the pairs that may be too long, or that the engine's front end would tokenise in another way."""
        reader, documents, room = self.reader, self.document_texts, self.room
        lengths = np.array([len(text.encode()) for text in documents], dtype=np.int64)
        suspects = reader.may_exceed(lengths[self.documents], room[self.queries])
        long_documents = np.unique(self.documents[suspects])
        if len(long_documents):
            lengths[long_documents] = reader.lengths([documents[at] for at in long_documents])
        self.long = suspects & reader.may_exceed(lengths[self.documents], room[self.queries])
        if not reader.joins_pairs:
            # vLLM would tokenise a pair with an empty document as one text; sentence-transformers tokenises it as a pair.
            self.long |= np.isin(self.documents, [at for at, text in enumerate(documents) if not text])

    def sample(self) -> tuple[list[str], list[str]]:
        """Return the queries and the documents of some pairs: the first ones, and those with the longest documents."""
        by_length = np.argsort([len(self.document_texts[at]) for at in self.documents])
        chosen = [*range(min(_CHECKED, len(self.queries))), *by_length[:_CHECKED], *by_length[-_CHECKED:]]
        pairs = [self.texts(at) for at in chosen if not self.blank[at]]
        return [query for query, _ in pairs], [document for _, document in pairs]

    def texts(self, at: int) -> tuple[str, str]:
        return self.query_texts[self.queries[at]], self.document_texts[self.documents[at]]

    def tokens(self, at: int) -> TokenPair:
        pair = self.reader.cut(*self.texts(at))
        self.cut[at] = pair.cut
        return pair


def _score_tokens(
    engine: Engine,
    pairs: _Pairs,
    feed: TokenFeed,
    activation: Activation | None,
    work: Work,
    progress: Progress | None,
) -> npt.NDArray[np.float32]:
    """Score pairs as their tokens arrive from a background thread."""
    rows = np.flatnonzero(~pairs.blank).tolist()
    scores = np.zeros(len(pairs.blank), dtype=np.float32)
    cached, done = engine.cached_tokens, int(pairs.blank.sum())

    def tokenized() -> Iterator[list[TokenPair]]:
        sizes = (sum(map(len, pairs.texts(at))) for at in rows)
        for part in batches(sizes):
            queries, documents = zip(*(pairs.texts(at) for at in rows[part]), strict=True)
            yield pairs.reader.tokenize(feed, queries, documents)

    def requests() -> Iterator[TokenPair]:
        for row, pair in zip(rows, itertools.chain.from_iterable(ready), strict=True):
            pairs.cut[row] = pair.cut
            work.tokens += len(pair.tokens)
            yield pair

    with (
        prefetch(tokenized()) as ready,
        contextlib.closing(engine.score_arriving(requests(), activation=activation)) as steps,
    ):
        for positions, values in steps:
            scores[[rows[position] for position in positions]] = values
            done += len(positions)
            if progress is not None:
                progress(done, len(scores))
    work.cached_tokens += engine.cached_tokens - cached
    return scores


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
    return scores


def _store(scores: npt.NDArray[np.float32], rows: npt.NDArray[np.int64], answer: Scores, work: Work) -> None:
    scores[rows] = answer.values
    work.tokens += sum(answer.lengths)
    work.cached_tokens += answer.cached


def _sigmoid(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    # In float64, so that the result is rounded only once.
    with np.errstate(over="ignore"):  # for very negative logits the exponential is infinite, and the sigmoid 0
        return (1 / (1 + np.exp(-logits.astype(np.float64)))).astype(np.float32)
