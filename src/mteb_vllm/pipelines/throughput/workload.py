"""Generate the texts of `pipeline=throughput`: real English, all distinct, each with an exact number of tokens.

The words come from the docstrings of Python's standard library, in their order. A text starts with a word that few other
texts start with, so that a prefix cache has no effect, continues with a random passage of the docstrings, and ends with a
word that makes the number of tokens exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Lengths = npt.NDArray[np.int64]

# Counts the tokens of whole inputs, given the bodies of some: (row numbers, bodies) -> tokens of each.
_CountTokens = Callable[[list[int], list[str]], list[int]]

# Longer "words" are mostly separator lines and URLs.
_MAX_LETTERS = 20

# Maximum number of rounds of counting and correcting; after every `_PATIENCE` rounds, failing texts get other words.
_ROUNDS, _PATIENCE = 24, 4


def draw_lengths(
    kind: Literal["fixed", "varied"],
    count: int,
    tokens: int,
    *,
    distribution: Literal["lognormal", "uniform"] = "lognormal",
    spread: float = 0.75,
    limit: int,
    least: int,
    seed: int,
) -> Lengths:
    """Return lengths of texts whose mean is exactly `tokens`.

    Varied lengths are drawn at random, scaled by a common factor (for uniform ones: their excess over `least`) such that
    they have the right mean after clipping, rounded, and corrected by single tokens.

    Args:
        kind: All equal, or drawn from the distribution.
        count: The number of lengths, at least 1.
        tokens: Their mean, in tokens.
        distribution: Lognormal, or uniform from `least` to `2 * tokens - least`.
        spread: The standard deviation of the logarithm of a lognormal length.
        limit: The maximum length, in tokens.
        least: The minimum length, in tokens.
        seed: The random seed.

    Returns:
        int64 array, shape (count,), in tokens, each within [least, limit], with the sum `count * tokens`.

    Raises:
        ValueError: if `tokens` is not within [least, limit], or another argument is invalid.
    """
    if not least <= tokens <= limit:
        raise ValueError(f"texts of {tokens} tokens are not possible: this model and prompt allow {least} to {limit}")
    if count < 1 or spread < 0:
        raise ValueError(f"count must be at least 1 and spread at least 0, not {count} and {spread}")
    if kind == "fixed":
        return np.full(count, tokens, dtype=np.int64)
    if kind != "varied":
        raise ValueError(f"lengths must be fixed or varied, not {kind!r}")
    draw = np.random.default_rng(seed)
    if distribution == "lognormal":
        base, drawn = 0.0, tokens * np.exp(draw.normal(-(spread**2) / 2, spread, count))
    elif distribution == "uniform":
        base, drawn = float(least), draw.uniform(0, 2 * (tokens - least), count)
    else:
        raise ValueError(f"the distribution must be lognormal or uniform, not {distribution!r}")

    def scaled(factor: float) -> Lengths:
        return np.clip(np.rint(base + factor * drawn), least, limit).astype(np.int64)

    low, high = 0.0, 1.0
    while scaled(high).sum() < count * tokens and high < 1e9:
        high *= 2
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if scaled(middle).sum() <= count * tokens else (low, middle)
    lengths = scaled(low)
    while missing := count * tokens - int(lengths.sum()):
        step = 1 if missing > 0 else -1
        movable = np.flatnonzero(lengths < limit if step > 0 else lengths > least)
        lengths[draw.choice(movable, min(abs(missing), len(movable)), replace=False)] += step
    return lengths


def texts_of_length(tokenizer: Any, lengths: Sequence[int] | Lengths, *, prefix: str = "", seed: int) -> list[str]:
    """Return distinct texts of exactly these lengths.

    Args:
        tokenizer: A tokenizer of transformers.
        lengths: The number of tokens of each text, including the prefix and the tokenizer's special tokens.
        prefix: The prefix of every text.
        seed: The random seed; the texts also depend on the version of Python.

    Returns:
        The texts, without the prefix: `len(tokenizer(prefix + text)["input_ids"]) == length`.

    Raises:
        ValueError: if prefix and special tokens leave no room for a word, or there are not enough distinct texts.
        FileNotFoundError: if this Python was installed without the sources of its standard library.
    """

    def count_tokens(rows: list[int], bodies: list[str]) -> list[int]:
        return _count(tokenizer, [prefix + body for body in bodies], special=True)

    rest = f"the prefix {prefix!r} and special tokens" if prefix else "special tokens"
    return _TextMaker(tokenizer, seed).make(lengths, count_tokens, rest)


def pairs_of_length(
    count_tokens: Callable[[list[str], list[str]], list[int]],
    tokenizer: Any,
    lengths: Sequence[int] | Lengths,
    *,
    query_tokens: int = 16,
    per_query: int = 10,
    seed: int,
) -> tuple[list[str], list[str]]:
    """Return queries and documents whose pairs have exactly these lengths.

    Args:
        count_tokens: (queries, documents) -> the number of tokens of each pair as the engine renders it, including template
            and special tokens, without truncation.
        tokenizer: The engine's tokenizer (transformers).
        lengths: The number of tokens of each pair.
        query_tokens: The number of tokens of each query, without special tokens.
        per_query: The number of consecutive pairs that share a query.
        seed: The random seed; the pairs also depend on the version of Python.

    Returns:
        queries: One for each length; each distinct query is repeated `per_query` times.
        documents: One for each length, all distinct.

    Raises:
        ValueError: if query, template and special tokens leave no room for a word, or there are not enough distinct texts.
        FileNotFoundError: if this Python was installed without the sources of its standard library.
    """
    maker = _TextMaker(tokenizer, seed)
    distinct = maker.make(
        [query_tokens] * -(-len(lengths) // per_query),
        lambda rows, bodies: _count(tokenizer, bodies, special=False),
        "nothing",
    )
    queries = [distinct[row // per_query] for row in range(len(lengths))]

    def count_pairs(rows: list[int], bodies: list[str]) -> list[int]:
        return count_tokens([queries[row] for row in rows], bodies)

    rest = f"a query of {query_tokens} tokens, template and special tokens"
    return queries, maker.make(lengths, count_pairs, rest)


def _count(tokenizer: Any, texts: list[str], *, special: bool) -> list[int]:
    encoded = tokenizer(
        texts,
        add_special_tokens=special,
        truncation=False,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    return [len(ids) for ids in encoded["input_ids"]]


class _TextMaker:
    """Makes texts of exact lengths from the words of the docstrings and each word's number of tokens after another word."""

    def __init__(self, tokenizer: Any, seed: int) -> None:
        from mteb_vllm.tasks.demo import docstrings

        self._draw = np.random.default_rng(seed)
        texts = dict.fromkeys(docstring.text for docstring in docstrings())
        words = [word for text in texts for word in text.split() if len(word) <= _MAX_LETTERS and word.isascii()]
        distinct = list(dict.fromkeys(words))
        alone, *counts = _count(tokenizer, ["a", *(f"a {word}" for word in distinct)], special=False)
        # Leave out words without tokens, which the tokenizer's normaliser removes.
        cost = {word: count - alone for word, count in zip(distinct, counts, strict=True) if count > alone}
        self._cost = cost
        self._words = [word for word in words if word in cost]
        self._by_cost: dict[int, list[str]] = {}
        for word, count in cost.items():
            self._by_cost.setdefault(count, []).append(word)
        # Words that differ only in case may have the same tokens.
        self._openings = list({word.casefold(): word for word in cost if word[0].isalpha()}.values())
        self._ends = np.cumsum([0, *(cost[word] for word in self._words)])

    def make(self, lengths: Sequence[int] | Lengths, count_tokens: _CountTokens, rest: str) -> list[str]:
        """Return distinct bodies for which `count_tokens` returns these lengths.

        Args:
            lengths: The number of tokens of each whole input.
            count_tokens: Counts the tokens of whole inputs.
            rest: The rest of an input besides its body, for messages.

        Raises:
            ValueError: if a length leaves no room for a word, or there are not enough distinct texts.
        """
        wanted = np.asarray(lengths, dtype=np.int64)
        if not len(wanted):
            return []
        short = self._by_cost[min(self._by_cost)][0]
        least = count_tokens([0], [short])[0]
        if least > wanted.min():
            raise ValueError(
                f"{wanted.min()} tokens leave no room for a word: {rest} take {least - self._cost[short]}, "
                f"and the shortest word {self._cost[short]}"
            )
        self._extend(int(wanted.max()))
        order = self._draw.permutation(len(self._openings))
        openings = [self._openings[order[row % len(order)]] for row in range(len(wanted))]
        starts = self._draw.integers(len(self._words), size=len(wanted))
        first_aims = np.maximum(wanted - (least - self._cost[short]), 1)
        # The tokens that a first word or a template adds are nearly constant: correct all aims by the median of a sample.
        sample = list(range(min(64, len(wanted))))
        counts = count_tokens(sample, [self._body(openings[row], starts[row], first_aims[row]) for row in sample])
        first_aims = np.maximum(first_aims + int(np.median(wanted[sample] - counts)), 1)
        aims, found, seen = first_aims.copy(), [""] * len(wanted), set[str]()
        left = list(range(len(wanted)))
        for attempt in range(1, _ROUNDS + 1):
            bodies = [self._body(openings[row], starts[row], aims[row]) for row in left]
            counts, retry = count_tokens(left, bodies), []
            for row, body, count in zip(left, bodies, counts, strict=True):
                fits, fresh = count == wanted[row], body.casefold() not in seen
                if fits and fresh:
                    found[row] = body
                    seen.add(body.casefold())
                    continue
                retry.append(row)
                aims[row] = max(aims[row] + wanted[row] - count, 1)
                if fits or attempt % _PATIENCE == 0:
                    openings[row] = self._openings[self._draw.integers(len(self._openings))]
                    starts[row], aims[row] = self._draw.integers(len(self._words)), first_aims[row]
            if not retry:
                return found
            left = retry
        raise ValueError(
            f"{len(left):,} of {len(wanted):,} distinct texts could not be generated, for example one of {wanted[left[0]]} "
            f"tokens, of which {rest} take {least - self._cost[short]}: use longer or fewer texts"
        )

    def _extend(self, tokens: int) -> None:
        """Repeat the sequence of words until a text of this many tokens can start at any word of the original."""
        times = 2 + tokens // int(self._ends[-1])
        self._stream = self._words * times
        self._sums = np.concatenate([[0], *(self._ends[1:] + at * self._ends[-1] for at in range(times))])

    def _body(self, opening: str, start: int, aim: int) -> str:
        """Return a text of about `aim` tokens: the opening, words from `start` on, and a filler for the difference."""
        left = int(aim) - self._cost[opening]
        if left < 0:
            return self._filler(int(aim))
        stop = int(np.searchsorted(self._sums, self._sums[start] + left, side="right")) - 1
        left -= int(self._sums[stop] - self._sums[start])
        while left and left not in self._by_cost and stop > start:
            stop -= 1
            left += self._cost[self._stream[stop]]
        return " ".join([opening, *self._stream[start:stop], *([self._filler(left)] if left else [])])

    def _filler(self, tokens: int) -> str:
        """Return a random word of this many tokens, or of the next smaller number for which there is a word."""
        cost = max((cost for cost in self._by_cost if cost <= tokens), default=min(self._by_cost))
        return self._by_cost[cost][self._draw.integers(len(self._by_cost[cost]))]
