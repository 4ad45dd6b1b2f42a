"""Tokenise inputs in batches on a background thread, ahead of the engine.

An engine's own front end tokenises one text at a time, and a fast engine waits for it. Here the same tokenizer, called with
the front end's own arguments, tokenises batches while the engine computes earlier ones; both release the interpreter lock.
Token ids are used only if they are those of the front end: that is checked on samples, and otherwise the engine gets text.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar, cast

from mteb_vllm.engines.base import Engine, Tokenization, TokensRefusedError

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Characters that are tokenised in one call: some milliseconds of work, and enough to fill several steps of an engine.
_BATCH = 1 << 17

# How many of the shortest, of the longest and of the first texts of each call are tokenised both ways.
_CHECKED = 4

# Texts on which tokenizers, and settings that are lost on the way to them, differ.
SAMPLE = (
    "", " ", "a", "The quick brown Fox", "  two  spaces\tand\nlines \n", "naïve CAFÉ Ünïcode", "ﬁne ①② ㎏ İstanbul ẞ",
    "e\u0301 \u00e9", "мама мыла раму", "深度学习模型", "한국어 텍스트", "العربية", "🙂🙃 👩‍👩‍👧",
    "a\ufffdb \x00\x01 \u200b\u2003", "[CLS] [SEP] <s> </s> <mask> <|endoftext|>", "x" * 300, "1 2 3,4.5e-6 " * 20,
)  # fmt: skip


class TokenBatch(NamedTuple):
    """Token ids of texts, and for each whether it was truncated."""

    ids: list[list[int]]
    truncated: list[bool]


class TokenFeed:
    """Tokenises inputs as the front end of an engine does, but in batches.

    Args:
        tokenizer: A fast tokenizer.
        how: How the front end calls it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, how: Tokenization) -> None:
        self._tokenizer, self._how = tokenizer, how

    def tokenize(self, texts: Sequence[str]) -> TokenBatch:
        """Tokenise texts in one call of the tokenizer, truncated to the context."""
        encoded = self.encode(texts, return_token_type_ids=False)
        return TokenBatch(encoded["input_ids"], self.lost_tokens(encoded))

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None, **arguments: object) -> BatchEncoding:
        """Call the tokenizer with the front end's arguments, except for those that are given here."""
        if self._how.lower_case:
            texts = [text.lower() for text in texts]
        chosen = {**self._how.arguments, "return_attention_mask": False, "verbose": False, **arguments}
        encoded: BatchEncoding = self._tokenizer(list(texts), None if pairs is None else list(pairs), **chosen)
        return encoded

    def lost_tokens(self, encoded: BatchEncoding) -> list[bool]:
        """Return for each input whether it was truncated."""
        rows = zip(encoded["input_ids"], encoded.encodings or (), strict=True)
        return [len(ids) >= self._how.limit and bool(encoding.overflowing) for ids, encoding in rows]


def text_feed(engine: Engine, texts: Sequence[str]) -> TokenFeed | None:
    """Return the tokeniser of texts for an engine, checked on a sample of them; None: the engine gets text."""
    feed = open_feed(engine)
    if feed is None:
        return None
    by_length = sorted(texts, key=len)
    return feed if agrees(engine, feed, [*by_length[:_CHECKED], *by_length[-_CHECKED:], *texts[:_CHECKED]]) else None


def open_feed(engine: Engine) -> TokenFeed | None:
    """Return the token feed of an engine; None if it gets text, for the reason `engine.takes_text`.

    On the first call for an engine that embeds, it is checked on texts on which tokenizers differ.
    """
    if engine.takes_text is None and engine.feed is None:
        try:
            how = engine.tokenization()
            if not getattr(engine.tokenizer, "is_fast", False):
                raise TokensRefusedError("its tokenizer has no fast implementation")
            engine.feed = feed = TokenFeed(engine.tokenizer, how)
        except TokensRefusedError as error:
            use_text(engine, error)
        else:
            if engine.spec.convert == "embed":
                agrees(engine, feed, [*SAMPLE, "word " * engine.max_model_len, "ab" * 2 * engine.max_model_len])
    return cast("TokenFeed | None", engine.feed)


def agrees(engine: Engine, feed: TokenFeed, texts: Sequence[str]) -> bool:
    """Return whether the token ids of texts are those of the engine's own front end; if not, it gets text from now on."""
    if distinct := list(dict.fromkeys(texts)):
        try:
            compare(distinct, feed.tokenize(distinct).ids, engine.tokenize(distinct))
        except TokensRefusedError as error:
            use_text(engine, error)
            return False
    return True


def use_text(engine: Engine, why: TokensRefusedError) -> None:
    """Let an engine get text from now on."""
    engine.feed, engine.takes_text = None, str(why)
    logger.warning("%s gets text instead of token ids: %s", engine.spec.model.name, why)


def compare(inputs: Sequence[object], ours: Sequence[object], of_engine: Sequence[object]) -> None:
    """Compare our tokens with those of the engine's own front end.

    Raises:
        TokensRefusedError: if they differ, with the first such input.
    """
    for one, our, its in zip(inputs, ours, of_engine, strict=True):
        if our != its:
            raise TokensRefusedError(f"batched tokenisation differs from the engine's own for {str(one)[:60]!r}")


def batches(sizes: Iterable[int]) -> Iterator[slice]:
    """Divide inputs into consecutive batches of about the same number of characters, each of one input or more.

    Args:
        sizes: The number of characters of each input.
    """
    start = end = total = 0
    for end, size in enumerate(sizes, 1):
        total += size
        if total >= _BATCH:
            yield slice(start, end)
            start, total = end, 0
    if start < end:
        yield slice(start, end)


@dataclass
class Prefetched(Generic[T]):
    """An iterator whose items a background thread makes.

    Attributes:
        waited: Seconds that the consumer has waited for items.
    """

    take: Callable[[], T]
    waited: float = 0.0

    def __iter__(self) -> Iterator[T]:
        while True:
            started = time.perf_counter()
            try:
                item = self.take()
            except StopIteration:
                return
            finally:
                self.waited += time.perf_counter() - started
            yield item


@contextlib.contextmanager
def prefetch(items: Iterable[T], ahead: int = 2) -> Iterator[Prefetched[T]]:
    """Iterate on a background thread, at most `ahead` items ahead; the thread has ended when the block is left.

    Errors of the iteration are raised where its items are used.
    """
    thread = ThreadPoolExecutor(1, "mteb-vllm token feed")
    iterator = iter(items)
    waiting = deque(thread.submit(next, iterator) for _ in range(ahead))

    def take() -> T:
        item = waiting.popleft().result()
        waiting.append(thread.submit(next, iterator))
        return item

    try:
        yield Prefetched(take)
    finally:
        thread.shutdown(cancel_futures=True)
