"""Texts in, one float32 array out, through windows that keep the engine busy and memory bounded."""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mteb_vllm.engines.base import Engine, MakeBar
from mteb_vllm.errors import DataError, NonFiniteError
from mteb_vllm.inference.embedding_cache.cache import Space
from mteb_vllm.results.counters import Work

if TYPE_CHECKING:
    from mteb.types import BatchedInput
    from torch.utils.data import DataLoader
    from transformers import PreTrainedTokenizerBase

# A text of more characters than this for each token of the context is shortened before it is tokenised: vLLM tokenises
# a text whole before it truncates, which takes seconds for a book. Tokens of real text have 2 to 6 characters.
_LONG, _KEPT = 24, 16

_LETTER = re.compile(r"[A-Za-z0-9]")

Progress = Callable[[int, int], None]


class ProgressBar:
    """Stands where vLLM expects a tqdm bar, and passes on how many texts of a window are done."""

    n = 0
    postfix = ""

    def __init__(self, progress: Progress, done: int, n_texts: int, **_: object) -> None:
        self._progress, self._done, self._n_texts = progress, done, n_texts

    def update(self, count: int = 1) -> None:
        """Count texts that are done."""
        self.n += count
        self._progress(self._done + self.n, self._n_texts)

    def refresh(self) -> None:
        """Do nothing, where tqdm draws its bar."""

    def close(self) -> None:
        """Do nothing, where tqdm ends its bar."""


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
    """Embeds texts, each different one once.

    Held beside the result are one window of texts with the engine's outputs for them, and a hash for each different text
    (about 120 bytes with its place in a dictionary).

    A text without a token, as an empty one where the tokenizer adds no special tokens, is embedded as the zero vector: vLLM
    refuses it, and sentence-transformers gives zeros for it where it is in a batch with others.

    Args:
        engine: An open engine that embeds.
        texts: The texts; lone surrogates are read as U+FFFD, as they have no encoding.
        n_texts: How many texts there are.
        prefix: What stands in front of each.
        chunk_size: How many different texts are handed to the engine at once.
        progress: Called with (texts done, texts in all), often.
        cache: Embeddings of this engine on disk: those that are there are not computed, the others are put there.

    Returns:
        embeddings: float32 array, shape (n_texts, dim); and what it took.

    Raises:
        DataError: if one of them is no text.
        NonFiniteError: if NaN or Inf comes out.
        ValueError: if there are not `n_texts` texts.
    """
    started = time.perf_counter()
    made = _Embeddings(engine, n_texts, replace_surrogates(prefix), cache)
    stream = iter(texts)
    while batch := list(itertools.islice(stream, chunk_size)):
        chunk = made.take(batch)
        bar = progress and functools.partial(ProgressBar, progress, made.n_taken - len(chunk.texts), n_texts)
        made.encode(chunk, bar or False)
        if progress is not None:
            progress(made.n_taken, n_texts)
    if made.n_taken != n_texts:
        raise ValueError(f"{made.n_taken} texts, though {n_texts} were announced")
    made.finish()
    made.work.seconds = time.perf_counter() - started - made.work.store_seconds
    return made.out, made.work


@dataclass
class _Chunk:
    """Different texts, prompt included, with their rows among all texts and their keys."""

    texts: list[str] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)

    def only(self, chosen: Sequence[int]) -> _Chunk:
        return _Chunk(
            [self.texts[at] for at in chosen], [self.rows[at] for at in chosen], [self.keys[at] for at in chosen]
        )


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
        # Where a prompt's tokens are not pooled, the same text has another embedding with another part of it as the prompt.
        self.mark = "" if engine.pools_prompts else f"{len(prefix)} "
        self.key = cache.key if cache is not None else _digest
        if cache is not None:
            cache.refresh()

    def take(self, batch: Sequence[object]) -> _Chunk:
        """Return those texts that have to be computed: not seen before, not empty, not in the cache."""
        chunk = _Chunk()
        for text in batch:
            if not isinstance(text, str):
                raise DataError(f"text {self.n_taken} of {self.n_texts:,} is {text!r}, and not a text")
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
            raise ValueError(f"more texts than the {self.n_texts} that were announced")
        if empty := texts_without_tokens(self.engine.tokenizer, chunk.texts):
            rows = [chunk.rows[at] for at in empty]
            self.blank.update(rows)
            self.out[rows] = 0
            chunk = chunk.only([at for at in range(len(chunk.rows)) if at not in empty])
        return chunk if self.cache is None or not chunk.texts else self._skip_cached(self.cache, chunk)

    def _skip_cached(self, cache: Space, chunk: _Chunk) -> _Chunk:
        started = time.perf_counter()
        found, cut = cache.look_up(chunk.keys, self.out, chunk.rows)
        self.truncated.update(itertools.compress(chunk.rows, cut))
        self.work.stored += int(found.sum())
        self.work.store_seconds += time.perf_counter() - started
        return chunk.only(np.flatnonzero(~found).tolist())

    def encode(self, chunk: _Chunk, bar: MakeBar) -> None:
        """Compute the embeddings of a chunk, and put them into the cache."""
        if not chunk.texts:
            return
        self._compute(chunk.texts, chunk.rows, bar)
        if self.cache is not None:
            started = time.perf_counter()
            cut = np.array([row in self.truncated for row in chunk.rows])
            self.cache.add(chunk.keys, self.out[chunk.rows], cut)
            self.work.store_seconds += time.perf_counter() - started

    def _compute(self, texts: list[str], rows: list[int], bar: MakeBar) -> None:
        engine, limit = self.engine, self.engine.max_model_len
        for at, text in enumerate(texts):
            if len(text) > _LONG * limit:
                shorter = shorten(text, engine.tokenizer, limit)
                if shorter is not text:
                    self.truncated.add(rows[at])
                    texts[at] = shorter
        block, lengths = engine.embed(texts, bar, self.prefix)
        check_finite(engine, block, "embeddings")
        self.out[rows] = block
        self.work.computed += len(texts)
        self.work.tokens += sum(lengths)
        # As long as the context: it was cut, or is exactly that long.
        full = [at for at, length in enumerate(lengths) if length >= limit and rows[at] not in self.truncated]
        if full:
            whole = engine.tokenizer([texts[at] for at in full], truncation=False, verbose=False)["input_ids"]
            self.truncated.update(rows[at] for at, ids in zip(full, whole, strict=True) if len(ids) > limit)

    def finish(self) -> None:
        """Fill in repeated texts, and count."""
        for target, source in self.copies:
            self.out[target] = self.out[source]
        self.work.truncated = len(self.truncated) + sum(source in self.truncated for _, source in self.copies)
        self.work.blank = len(self.blank) + sum(source in self.blank for _, source in self.copies)


def texts_without_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> set[int]:
    """Return the places of those texts of which a tokenizer makes no token at all, special ones included.

    Only texts without any ASCII letter or digit are tokenised for it: empty ones, white space, and what a normaliser removes.
    """
    unclear = [at for at, text in enumerate(texts) if not _LETTER.search(text)]
    if not unclear:
        return set()
    ids = tokenizer([texts[at] for at in unclear], truncation=False, verbose=False)["input_ids"]
    return {at for at, tokens in zip(unclear, ids, strict=True) if not len(tokens)}


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def shorten(text: str, tokenizer: PreTrainedTokenizerBase, limit: int) -> str:
    """The beginning of a text that fills the context for certain, ending between words; the text if none does."""
    size = _KEPT * limit
    while size < len(text):
        end = max(text.rfind(" ", 0, size), text.rfind("\n", 0, size))
        if end > 0 and len(tokenizer(text[:end], truncation=False, verbose=False)["input_ids"]) > limit + 16:
            return text[:end]
        size *= 2
    return text


def replace_surrogates(text: str) -> str:
    """The text with what UTF-8 cannot hold (lone surrogates) as U+FFFD; surrogate pairs become their character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def check_finite(engine: Engine, values: npt.NDArray[np.float32], what: str) -> None:
    """Refuses NaN and Inf.

    Args:
        engine: Where the values come from.
        values: float32 array, shape (n, any).
        what: What they are, for the message.

    Raises:
        NonFiniteError: naming model, dtype and the way out.
    """
    broken = int((~np.isfinite(values)).any(axis=1).sum())
    if broken:
        way_out = (
            "engine.dtype=float32" if engine.dtype == "bfloat16" else "engine.dtype=bfloat16 or engine.dtype=float32"
        )
        raise NonFiniteError(
            f"{broken} of {len(values)} {what} of {engine.spec.model.name} in {engine.dtype} hold NaN or Inf "
            f"(overflow, most likely). The way out: {way_out}."
        )


def loader_texts(inputs: DataLoader[BatchedInput]) -> tuple[Iterator[str], int]:
    """The texts of a data loader of mteb's, and how many there are.

    The texts are read from the data set's column where that is the same thing: the loader itself collates row by row,
    which costs more than a fast engine does.
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
    """Whether a loader yields the rows of its data set in their order, and their texts as they are."""
    from mteb._create_dataloaders import _custom_collate_fn
    from torch.utils.data import BatchSampler, SequentialSampler, default_collate

    return (
        type(getattr(inputs, "batch_sampler", None)) is BatchSampler
        and type(inputs.sampler) is SequentialSampler
        and not inputs.drop_last
        and inputs.collate_fn in (default_collate, _custom_collate_fn)
    )
