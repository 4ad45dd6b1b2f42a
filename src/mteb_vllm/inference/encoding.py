"""Texts in, one float32 array out, through windows that keep the engine busy and memory bounded."""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mteb_vllm.engines.base import Engine
from mteb_vllm.errors import DataError, NonFiniteError
from mteb_vllm.inference.embedding_cache.cache import Space
from mteb_vllm.results.counters import Work

# A text of more characters than this for each token of the context is shortened before it is tokenised: vLLM tokenises
# a text whole before it truncates, which takes seconds for a book. Tokens of real text have 2 to 6 characters.
_LONG, _KEPT = 24, 16

_LETTER = re.compile(r"[A-Za-z0-9]")

Progress = Callable[[int, int], None]


class Counter:
    """Stands where vLLM expects a tqdm bar, and passes on how many texts of a window are done."""

    n = 0
    postfix = ""

    def __init__(self, progress: Progress, done: int, n_texts: int, **_: Any) -> None:
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
    window: int = 8192,
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
        window: How many different texts are handed to the engine at once.
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
    stats = Work(texts=n_texts)
    out = np.empty((n_texts, engine.dim), dtype=np.float32)
    first_rows: dict[bytes, int] = {}
    copies: list[tuple[int, int]] = []  # (row, row of the same text)
    truncated: set[int] = set()
    blank: set[int] = set()
    row = 0
    prefix = readable(prefix)
    stream = iter(texts)
    key = cache.key if cache is not None else _digest
    # Where a prompt's tokens are not pooled, the same text has another embedding with another part of it as the prompt.
    mark = "" if engine.pools_prompts else f"{len(prefix)} "
    if cache is not None:
        cache.refresh()
    while batch := list(itertools.islice(stream, window)):
        rows, unique, digests = [], [], []
        for text in batch:
            if not isinstance(text, str):
                raise DataError(f"text {row} of {n_texts:,} is {text!r}, and not a text")
            text = prefix + readable(text)
            digest = key(mark + text)
            first = first_rows.setdefault(digest, row)
            if first == row:
                rows.append(row)
                unique.append(text)
                digests.append(digest)
            else:
                copies.append((row, first))
            row += 1
        if row > n_texts:
            raise ValueError(f"more texts than the {n_texts} that were announced")
        if empty := texts_without_tokens(engine.tokenizer, unique):
            blank.update(rows[at] for at in empty)
            out[[rows[at] for at in empty]] = 0
            chosen = [at not in empty for at in range(len(unique))]
            unique = list(itertools.compress(unique, chosen))
            rows, digests = list(itertools.compress(rows, chosen)), list(itertools.compress(digests, chosen))
        if cache is not None and unique:
            unique, rows, digests = _look_up(cache, unique, rows, digests, out, stats, truncated)
        if unique:
            bar = progress and functools.partial(Counter, progress, row - len(unique), n_texts)
            _encode_window(engine, unique, rows, out, stats, truncated, bar or False, prefix)
            if cache is not None:
                ended = time.perf_counter()
                cut = np.array([at in truncated for at in rows])
                cache.add(digests, out[rows], cut)
                stats.store_seconds += time.perf_counter() - ended
        if progress is not None:
            progress(row, n_texts)
    if row != n_texts:
        raise ValueError(f"{row} texts, though {n_texts} were announced")
    for target, source in copies:
        out[target] = out[source]
    stats.truncated = len(truncated) + sum(source in truncated for _, source in copies)
    stats.blank = len(blank) + sum(source in blank for _, source in copies)
    stats.seconds = time.perf_counter() - started - stats.store_seconds
    return out, stats


def texts_without_tokens(tokenizer: Any, texts: Sequence[str]) -> set[int]:
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


def _look_up(
    cache: Space,
    texts: list[str],
    rows: list[int],
    digests: list[bytes],
    out: npt.NDArray[np.float32],
    stats: Work,
    truncated: set[int],
) -> tuple[list[str], list[int], list[bytes]]:
    """Fills in what is known; returns the texts that are not, with their rows and digests."""
    started = time.perf_counter()
    found, cut = cache.look_up(digests, out, rows)
    truncated.update(itertools.compress(rows, cut))
    stats.stored += int(found.sum())
    missing = np.flatnonzero(~found).tolist()
    stats.store_seconds += time.perf_counter() - started
    return [texts[at] for at in missing], [rows[at] for at in missing], [digests[at] for at in missing]


def _encode_window(
    engine: Engine,
    texts: list[str],
    rows: list[int],
    out: npt.NDArray[np.float32],
    stats: Work,
    truncated: set[int],
    bar: Any,
    prefix: str,
) -> None:
    limit = engine.max_model_len
    for at, text in enumerate(texts):
        if len(text) > _LONG * limit:
            shorter = shorten(text, engine.tokenizer, limit)
            if shorter is not text:
                truncated.add(rows[at])
                texts[at] = shorter
    block, lengths = engine.embed(texts, bar, prefix)
    check_finite(engine, block, "embeddings")
    out[rows] = block
    stats.computed += len(texts)
    stats.tokens += sum(lengths)
    # As long as the context: it was cut, or is exactly that long.
    full = [at for at, length in enumerate(lengths) if length >= limit and rows[at] not in truncated]
    if full:
        whole = engine.tokenizer([texts[at] for at in full], truncation=False, verbose=False)["input_ids"]
        truncated.update(rows[at] for at, ids in zip(full, whole, strict=True) if len(ids) > limit)


def shorten(text: str, tokenizer: Any, limit: int) -> str:
    """The beginning of a text that fills the context for certain, ending between words; the text if none does."""
    size = _KEPT * limit
    while size < len(text):
        end = max(text.rfind(" ", 0, size), text.rfind("\n", 0, size))
        if end > 0 and len(tokenizer(text[:end], truncation=False, verbose=False)["input_ids"]) > limit + 16:
            return text[:end]
        size *= 2
    return text


def readable(text: str) -> str:
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


def texts_of(inputs: Any) -> tuple[Iterator[str], int]:
    """The texts of a data loader of mteb's, and how many there are.

    The texts are read from the data set's column where that is the same thing: the loader itself collates row by row,
    which costs more than a fast engine does.
    """
    dataset = getattr(inputs, "dataset", None)
    names = getattr(dataset, "column_names", None)
    if dataset is not None and names is not None and "text" in names and _plain(inputs):
        column = dataset.select_columns(["text"])
        if all(isinstance(row["text"], str) for row in itertools.islice(column, 1)):
            batches = (column[at : at + 1024]["text"] for at in range(0, len(column), 1024))
            return itertools.chain.from_iterable(batches), len(column)
    if dataset is not None and hasattr(dataset, "__len__"):
        return (text for batch in inputs for text in batch["text"]), len(dataset)
    texts = [text for batch in inputs for text in batch["text"]]
    return iter(texts), len(texts)


def _plain(inputs: Any) -> bool:
    """Whether a loader yields the rows of its data set in their order, and their texts as they are."""
    from mteb._create_dataloaders import _custom_collate_fn
    from torch.utils.data import BatchSampler, SequentialSampler, default_collate

    return (
        type(getattr(inputs, "batch_sampler", None)) is BatchSampler
        and type(inputs.sampler) is SequentialSampler
        and not inputs.drop_last
        and inputs.collate_fn in (default_collate, _custom_collate_fn)
    )
