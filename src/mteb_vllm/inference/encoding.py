"""Embed texts in chunks that keep the engine busy and memory bounded."""

from __future__ import annotations

import collections
import contextlib
import functools
import hashlib
import itertools
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mteb_vllm.engines.base import Engine
from mteb_vllm.errors import DataError, NonFiniteError
from mteb_vllm.inference.embedding_cache.cache import Space
from mteb_vllm.inference.token_feed import TokenBatch, TokenFeed, batches, open_feed, prefetch, text_feed
from mteb_vllm.results.counters import Work

if TYPE_CHECKING:
    from mteb.types import BatchedInput
    from torch.utils.data import DataLoader
    from transformers import PreTrainedTokenizerBase

# A text with more than _LONG characters per token of the context is shortened before tokenisation, first to _KEPT: a
# tokenizer tokenises a complete text before it truncates it, which takes seconds for a book. Tokens of real text have 2 to 6
# characters.
_LONG, _KEPT = 24, 16

_LETTER = re.compile(r"[A-Za-z0-9]")

Progress = Callable[[int, int], None]


class ProgressBar:
    """Replaces a backend's tqdm bar, and reports how many texts are done."""

    n = 0
    postfix = ""

    def __init__(self, progress: Progress, done: int, n_texts: int, **_: object) -> None:
        self._progress, self._done, self._n_texts = progress, done, n_texts

    def update(self, count: int = 1) -> None:
        """Count finished texts."""
        self.n += count
        self._progress(self._done + self.n, self._n_texts)

    def refresh(self) -> None:
        """Do nothing; part of tqdm's interface."""

    def close(self) -> None:
        """Do nothing; part of tqdm's interface."""


def encode_texts(
    engine: Engine,
    texts: Iterable[str],
    n_texts: int,
    *,
    prefix: str = "",
    chunk_size: int = 8192,
    progress: Progress | None = None,
    cache: Space | None = None,
) -> tuple[npt.NDArray[np.float32], Work]:
    """Embed texts, each distinct one once.

    Memory beyond the result: two chunks of texts, the tokens of those that the engine will compute next, and a hash for each
    distinct text (about 120 bytes with its dictionary entry).

    A text without tokens, such as an empty one if the tokenizer adds no special tokens, gets the zero vector: vLLM rejects
    it, and sentence-transformers returns zeros for it in a batch with other texts.

    Args:
        engine: An open engine that embeds.
        texts: The texts; lone surrogates become U+FFFD, as UTF-8 cannot encode them.
        n_texts: The number of texts.
        prefix: Prefix of each text.
        chunk_size: How many texts are looked up, computed and added to the cache at a time.
        progress: Called repeatedly with (texts done, texts in total).
        cache: The embeddings of this engine on disk; they are not computed again, and new ones are added.

    Returns:
        embeddings: float32 array, shape (n_texts, dim); and counters of the work.

    Raises:
        DataError: if one of them is not a string.
        EngineError: if the engine has died or failed.
        NonFiniteError: if an embedding has NaN or Inf.
        ValueError: if there are not `n_texts` texts.
    """
    started = time.perf_counter()
    made = _Embeddings(engine, n_texts, replace_surrogates(prefix), cache)
    chunks = made.chunks(iter(texts), chunk_size)
    first = next(chunks, None)
    feed = None if first is None else text_feed(engine, first.texts)
    if first is not None:
        chunks = itertools.chain([first], chunks)
    if feed is not None:
        with prefetch(_tokenize(feed, chunks)) as ready:
            made.encode_tokens(ready, progress)
            made.work.store_seconds += min(made.look_up_seconds, ready.waited)
    else:
        for chunk in chunks:
            made.encode_texts(chunk, progress)
        made.work.store_seconds += made.look_up_seconds
    made.finish()
    made.work.seconds = time.perf_counter() - started - made.work.store_seconds
    return made.out, made.work


def run_texts(engine: Engine, texts: Sequence[str]) -> list[int]:
    """Embed texts and discard the embeddings, to measure speed; return the number of tokens of each text.

    Call `text_feed` before: texts are not checked here, so that the check is not part of the measured time.

    Raises:
        EngineError: if the engine has died or failed.
    """
    feed = open_feed(engine)
    if feed is None:
        return engine.embed(list(texts))[1]
    lengths: list[int] = []

    def tokens() -> Iterator[list[int]]:
        for batch in ready:
            lengths.extend(map(len, batch.ids))
            yield from batch.ids

    with prefetch(feed.tokenize(texts[part]) for part in batches(map(len, texts))) as ready:
        collections.deque(engine.embed_tokens(tokens()), maxlen=0)
    return lengths


@dataclass
class _Chunk:
    """Distinct texts to compute, with their prompts, their rows in the result, and their keys.

    Attributes:
        n_skipped: How many other texts were requested with them, which need not be computed.
        end: How many texts were requested up to here.
        n_left: How many of its texts are not computed yet.
    """

    texts: list[str] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    n_skipped: int = 0
    end: int = 0
    n_left: int = 0

    def only(self, chosen: Sequence[int]) -> _Chunk:
        return _Chunk(
            [self.texts[at] for at in chosen], [self.rows[at] for at in chosen], [self.keys[at] for at in chosen]
        )


# A chunk, the rows of it that are tokenised, and their tokens.
_Tokenized = tuple[_Chunk, slice, TokenBatch]


def _tokenize(feed: TokenFeed, chunks: Iterable[_Chunk]) -> Iterator[_Tokenized]:
    for chunk in chunks:
        if not chunk.texts:
            yield chunk, slice(0, 0), TokenBatch([], [])
        for part in batches(map(len, chunk.texts)):
            yield chunk, part, feed.tokenize(chunk.texts[part])


class _Embeddings:
    """The embeddings of one call, filled in chunk by chunk."""

    def __init__(self, engine: Engine, n_texts: int, prefix: str, cache: Space | None) -> None:
        self.engine, self.n_texts, self.prefix, self.cache = engine, n_texts, prefix, cache
        self.out = np.empty((n_texts, engine.dim), dtype=np.float32)
        self.work = Work(texts=n_texts)
        self.n_taken = 0
        self.first_rows: dict[bytes, int] = {}
        self.copies: list[tuple[int, int]] = []  # (row, row of the same text)
        self.truncated: set[int] = set()
        self.blank: set[int] = set()
        # If a prompt's tokens are not pooled, the embedding also depends on which part of the text is the prompt.
        self.mark = "" if engine.pools_prompts else f"{len(prefix)} "
        self.key = cache.key if cache is not None else _digest
        # Chunks are made on another thread than the one that adds their embeddings to the cache.
        self.cache_lock = threading.Lock()
        self.look_up_seconds = 0.0
        if cache is not None:
            cache.refresh()

    def chunks(self, texts: Iterator[object], size: int) -> Iterator[_Chunk]:
        """Take the texts chunk by chunk, and yield those of each that are to be computed.

        Raises:
            DataError: if one of them is not a string.
            ValueError: if there are not `n_texts` texts.
        """
        while batch := list(itertools.islice(texts, size)):
            chunk = self._take(batch)
            chunk.n_skipped, chunk.n_left = len(batch) - len(chunk.texts), len(chunk.texts)
            chunk.end = self.n_taken
            self._shorten(chunk)
            yield chunk
        if self.n_taken != self.n_texts:
            raise ValueError(f"got {self.n_taken} texts, expected {self.n_texts}")

    def _take(self, batch: Sequence[object]) -> _Chunk:
        """Return the texts to compute: neither seen before, nor without tokens, nor cached."""
        chunk = _Chunk()
        for text in batch:
            if not isinstance(text, str):
                raise DataError(f"text {self.n_taken} of {self.n_texts:,} is {text!r}, not a string")
            text = self.prefix + replace_surrogates(text)
            key = self.key(self.mark + text)
            first = self.first_rows.setdefault(key, self.n_taken)
            if first == self.n_taken:
                chunk.rows.append(first)
                chunk.texts.append(text)
                chunk.keys.append(key)
            else:
                self.copies.append((self.n_taken, first))
            self.n_taken += 1
        if self.n_taken > self.n_texts:
            raise ValueError(f"got more texts than the expected {self.n_texts}")
        if empty := texts_without_tokens(self.engine.tokenizer, chunk.texts):
            rows = [chunk.rows[at] for at in empty]
            self.blank.update(rows)
            self.out[rows] = 0
            chunk = chunk.only([at for at in range(len(chunk.rows)) if at not in empty])
        return chunk if self.cache is None or not chunk.texts else self._skip_cached(self.cache, chunk)

    def _skip_cached(self, cache: Space, chunk: _Chunk) -> _Chunk:
        started = time.perf_counter()
        with self.cache_lock:
            found, cut = cache.look_up(chunk.keys, self.out, chunk.rows)
        self.truncated.update(itertools.compress(chunk.rows, cut))
        self.work.stored += int(found.sum())
        self.look_up_seconds += time.perf_counter() - started
        return chunk.only(np.flatnonzero(~found).tolist())

    def _shorten(self, chunk: _Chunk) -> None:
        for at, text in enumerate(chunk.texts):
            shorter = shorten_if_long(text, self.engine.tokenizer, self.engine.max_model_len)
            if shorter is not text:
                self.truncated.add(chunk.rows[at])
                chunk.texts[at] = shorter

    def encode_texts(self, chunk: _Chunk, progress: Progress | None) -> None:
        """Compute the embeddings of a chunk from its texts."""
        if chunk.texts:
            bar = progress and functools.partial(ProgressBar, progress, chunk.end - len(chunk.texts), self.n_texts)
            block, lengths = self.engine.embed(chunk.texts, bar or False, self.prefix)
            self.out[chunk.rows] = block
            self.work.tokens += sum(lengths)
            self._find_truncated(chunk, lengths)
            self._complete(chunk)
        if progress is not None:
            progress(chunk.end, self.n_texts)

    def _find_truncated(self, chunk: _Chunk, lengths: Sequence[int]) -> None:
        # A text as long as the context was truncated, or has exactly that length.
        limit, rows, texts = self.engine.max_model_len, chunk.rows, chunk.texts
        full = [at for at, length in enumerate(lengths) if length >= limit and rows[at] not in self.truncated]
        if full:
            whole = self.engine.tokenizer([texts[at] for at in full], truncation=False, verbose=False)["input_ids"]
            self.truncated.update(rows[at] for at, ids in zip(full, whole, strict=True) if len(ids) > limit)

    def encode_tokens(self, ready: Iterable[_Tokenized], progress: Progress | None) -> None:
        """Compute the embeddings of chunks as their tokens arrive."""
        places: dict[int, tuple[_Chunk, int]] = {}  # position among the engine's requests -> chunk, position in it
        done = 0

        def requests() -> Iterator[list[int]]:
            nonlocal done
            position = 0
            for chunk, part, batch in ready:
                if part.start == 0:
                    done += chunk.n_skipped
                    if progress is not None and not chunk.texts:
                        progress(done, self.n_texts)
                self.truncated.update(itertools.compress(chunk.rows[part], batch.truncated))
                self.work.tokens += sum(map(len, batch.ids))
                for at, ids in enumerate(batch.ids, part.start):
                    places[position] = (chunk, at)
                    position += 1
                    yield ids

        with contextlib.closing(self.engine.embed_tokens(requests())) as steps:
            for positions, block in steps:
                finished = [places.pop(position) for position in positions]
                self.out[[chunk.rows[at] for chunk, at in finished]] = block
                done += len(finished)
                for chunk, _ in finished:
                    chunk.n_left -= 1
                    if not chunk.n_left:
                        self._complete(chunk)
                if progress is not None:
                    progress(done, self.n_texts)

    def _complete(self, chunk: _Chunk) -> None:
        """Check the embeddings of a chunk, and add them to the cache."""
        check_finite(self.engine, self.out[chunk.rows], "embeddings")
        self.work.computed += len(chunk.texts)
        if self.cache is not None:
            started = time.perf_counter()
            cut = np.array([row in self.truncated for row in chunk.rows])
            with self.cache_lock:
                self.cache.add(chunk.keys, self.out[chunk.rows], cut)
            self.work.store_seconds += time.perf_counter() - started

    def finish(self) -> None:
        """Copy the embeddings of repeated texts, and complete the counters."""
        for target, source in self.copies:
            self.out[target] = self.out[source]
        self.work.truncated = len(self.truncated) + sum(source in self.truncated for _, source in self.copies)
        self.work.blank = len(self.blank) + sum(source in self.blank for _, source in self.copies)


def texts_without_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> set[int]:
    """Return the positions of the texts for which a tokenizer makes no tokens at all, not even special ones.

    Only texts without an ASCII letter or digit are tokenised to find out: empty ones, white space, and text that a
    normaliser may remove.
    """
    unclear = [at for at, text in enumerate(texts) if not _LETTER.search(text)]
    if not unclear:
        return set()
    ids = tokenizer([texts[at] for at in unclear], truncation=False, verbose=False)["input_ids"]
    return {at for at, tokens in zip(unclear, ids, strict=True) if not len(tokens)}


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def shorten_if_long(text: str, tokenizer: PreTrainedTokenizerBase, limit: int) -> str:
    """Return the beginning of a text with far more characters than fit the context; else the text."""
    return shorten(text, tokenizer, limit) if len(text) > _LONG * limit else text


def shorten(text: str, tokenizer: PreTrainedTokenizerBase, limit: int) -> str:
    """Return a beginning of the text that certainly fills the context and ends between words; else the text."""
    size = _KEPT * limit
    while size < len(text):
        end = max(text.rfind(" ", 0, size), text.rfind("\n", 0, size))
        if end > 0 and len(tokenizer(text[:end], truncation=False, verbose=False)["input_ids"]) > limit + 16:
            return text[:end]
        size *= 2
    return text


def replace_surrogates(text: str) -> str:
    """Replace lone surrogates, which UTF-8 cannot encode, by U+FFFD, and surrogate pairs by their character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def check_finite(engine: Engine, values: npt.NDArray[np.float32], what: str) -> None:
    """Raise an error if there are NaN or Inf.

    Args:
        engine: The engine that computed the values.
        values: float32 array, shape (n, any).
        what: The name of the values, for the message.

    Raises:
        NonFiniteError: with the model, its dtype and the remedy.
    """
    broken = int((~np.isfinite(values)).any(axis=1).sum())
    if broken:
        wider = ("float32",) if engine.dtype == "bfloat16" else ("bfloat16", "float32")
        remedy = " or ".join(engine.spec.names.assign("engine.dtype", dtype) for dtype in wider)
        raise NonFiniteError(
            f"{broken} of {len(values)} {what} of {engine.spec.model.name} in {engine.dtype} contain NaN or Inf "
            f"(probably overflow). Try {remedy}."
        )


def loader_texts(inputs: DataLoader[BatchedInput]) -> tuple[Iterator[str], int]:
    """Return the texts of one of mteb's data loaders, and their number.

    The texts are read from the data set's column if that gives the same result: the loader itself collates row by row,
    which can take longer than a fast engine.
    """
    dataset = getattr(inputs, "dataset", None)
    names = getattr(dataset, "column_names", None)
    if dataset is not None and names is not None and "text" in names and _keeps_row_order(inputs):
        column = dataset.select_columns(["text"])
        if all(isinstance(row["text"], str) for row in itertools.islice(column, 1)):
            batches = (column[at : at + 1024]["text"] for at in range(0, len(column), 1024))
            return itertools.chain.from_iterable(batches), len(column)
    if dataset is not None and hasattr(dataset, "__len__"):
        return (text for batch in inputs for text in batch["text"]), len(dataset)
    texts = [text for batch in inputs for text in batch["text"]]
    return iter(texts), len(texts)


def _keeps_row_order(inputs: DataLoader[BatchedInput]) -> bool:
    """Return whether a loader yields the rows of its data set in order and their texts unchanged."""
    from mteb._create_dataloaders import _custom_collate_fn
    from torch.utils.data import BatchSampler, SequentialSampler, default_collate

    return (
        type(getattr(inputs, "batch_sampler", None)) is BatchSampler
        and type(inputs.sampler) is SequentialSampler
        and not inputs.drop_last
        and inputs.collate_fn in (default_collate, _custom_collate_fn)
    )
