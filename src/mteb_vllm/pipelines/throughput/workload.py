"""The texts that `pipeline=throughput` times: real English, all different, each of exactly as many tokens as asked for.

Their words are those of the docstrings of Python's standard library, in their order. A text is one word that few others
begin with, so that no prefix cache helps, a stretch of the docstrings from anywhere, and a word that makes the count right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Lengths = npt.NDArray[np.int64]

# Counts the tokens of bodies as the engine will read them: (their rows, the bodies) -> tokens of each.
_Measure = Callable[[list[int], list[str]], list[int]]

# A longer one is a ruler or an address.
_MAX_LETTERS = 20

# Texts are counted and mended at most this often; what is not right after every `_PATIENCE` is made of other words.
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
    """Lengths of texts whose mean is exactly `tokens`.

    Varied lengths are drawn, multiplied by the one factor (for uniform ones: their excess over `least`) after which they
    have the right mean between the limits, rounded, and then corrected by single tokens.

    Args:
        kind: All the same, or drawn from the distribution.
        count: How many, at least 1.
        tokens: Their mean, in tokens.
        distribution: Lognormal, or uniform from `least` to `2 * tokens - least`.
        spread: The standard deviation of a lognormal length's logarithm.
        limit: The most tokens of a text.
        least: The fewest tokens of a text.
        seed: The same seed draws the same lengths.

    Returns:
        int64 array, shape (count,), in tokens, each within [least, limit], with the sum `count * tokens`.

    Raises:
        ValueError: if `tokens` is not within [least, limit], or an argument is none of those allowed.
    """
    if not least <= tokens <= limit:
        raise ValueError(f"texts of {tokens} tokens cannot be had: this model and prompt allow {least} to {limit}")
    if count < 1 or spread < 0:
        raise ValueError(f"count must be at least 1 and spread at least 0, not {count} and {spread}")
    if kind == "fixed":
        return np.full(count, tokens, dtype=np.int64)
    if kind != "varied":
        raise ValueError(f"lengths are fixed or varied, not {kind!r}")
    draw = np.random.default_rng(seed)
    if distribution == "lognormal":
        base, drawn = 0.0, tokens * np.exp(draw.normal(-(spread**2) / 2, spread, count))
    elif distribution == "uniform":
        base, drawn = float(least), draw.uniform(0, 2 * (tokens - least), count)
    else:
        raise ValueError(f"the distribution is lognormal or uniform, not {distribution!r}")

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
    """Different texts of exactly these lengths.

    Args:
        tokenizer: A tokenizer of transformers.
        lengths: How many tokens each is to have, with the prefix and the tokenizer's special tokens.
        prefix: What will stand in front of each.
        seed: The same seed makes the same texts (with the same Python).

    Returns:
        As many texts, without the prefix: `len(tokenizer(prefix + text)["input_ids"]) == length`.

    Raises:
        ValueError: if prefix and special tokens leave no room for a word, or there are not so many different texts.
        FileNotFoundError: if this Python came without the sources of its standard library.
    """

    def measure(rows: list[int], bodies: list[str]) -> list[int]:
        return _count(tokenizer, [prefix + body for body in bodies], special=True)

    rest = f"the prefix {prefix!r} and special tokens" if prefix else "special tokens"
    return _Words(tokenizer, seed).fitted(lengths, measure, rest)


def pairs_of_length(
    count_tokens: Callable[[list[str], list[str]], list[int]],
    tokenizer: Any,
    lengths: Sequence[int] | Lengths,
    *,
    query_tokens: int = 16,
    per_query: int = 10,
    seed: int,
) -> tuple[list[str], list[str]]:
    """Queries and documents whose pairs have exactly these lengths.

    Args:
        count_tokens: (queries, documents) -> the tokens of each pair as the engine reads it, template and special tokens
            included, nothing cut.
        tokenizer: A tokenizer of transformers, the engine's.
        lengths: How many tokens each pair is to have.
        query_tokens: How many of them are the query's own, without special tokens.
        per_query: How many pairs in a row share a query.
        seed: The same seed makes the same pairs (with the same Python).

    Returns:
        queries: As many as lengths; each different one stands `per_query` times in a row.
        documents: As many, all different.

    Raises:
        ValueError: if query, template and special tokens leave no room for a word, or there are not so many different ones.
        FileNotFoundError: if this Python came without the sources of its standard library.
    """
    words = _Words(tokenizer, seed)
    different = words.fitted(
        [query_tokens] * -(-len(lengths) // per_query),
        lambda rows, bodies: _count(tokenizer, bodies, special=False),
        "nothing",
    )
    queries = [different[row // per_query] for row in range(len(lengths))]

    def measure(rows: list[int], bodies: list[str]) -> list[int]:
        return count_tokens([queries[row] for row in rows], bodies)

    return queries, words.fitted(lengths, measure, f"a query of {query_tokens} tokens, template and special tokens")


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


class _Words:
    """The words of the docstrings, in their order, and how many tokens each takes after another one."""

    def __init__(self, tokenizer: Any, seed: int) -> None:
        from mteb_vllm.tasks.demo import docstrings

        self._draw = np.random.default_rng(seed)
        texts = dict.fromkeys(docstring.text for docstring in docstrings())
        words = [word for text in texts for word in text.split() if len(word) <= _MAX_LETTERS and word.isascii()]
        different = list(dict.fromkeys(words))
        alone, *counts = _count(tokenizer, ["a", *(f"a {word}" for word in different)], special=False)
        # A word of no token is one that the tokenizer's normaliser takes away.
        cost = {word: count - alone for word, count in zip(different, counts, strict=True) if count > alone}
        self._cost = cost
        self._words = [word for word in words if word in cost]
        self._by_cost: dict[int, list[str]] = {}
        for word, count in cost.items():
            self._by_cost.setdefault(count, []).append(word)
        # What differs in case only may be the same to a tokenizer.
        self._openings = list({word.casefold(): word for word in cost if word[0].isalpha()}.values())
        self._ends = np.cumsum([0, *(cost[word] for word in self._words)])

    def fitted(self, lengths: Sequence[int] | Lengths, measure: _Measure, rest: str) -> list[str]:
        """Different bodies for which `measure` gives these lengths; `rest` says what else is in them, for messages."""
        wanted = np.asarray(lengths, dtype=np.int64)
        if not len(wanted):
            return []
        short = self._by_cost[min(self._by_cost)][0]
        least = measure([0], [short])[0]
        if least > wanted.min():
            raise ValueError(
                f"{wanted.min()} tokens leave no room for a word: {rest} take {least - self._cost[short]}, "
                f"and the shortest word {self._cost[short]}"
            )
        self._reach(int(wanted.max()))
        order = self._draw.permutation(len(self._openings))
        openings = [self._openings[order[row % len(order)]] for row in range(len(wanted))]
        starts = self._draw.integers(len(self._words), size=len(wanted))
        first_aims = np.maximum(wanted - (least - self._cost[short]), 1)
        # What a first word or a template adds is the same for nearly all: found on a few, the others need no mending.
        sample = list(range(min(64, len(wanted))))
        counts = measure(sample, [self._body(openings[row], starts[row], first_aims[row]) for row in sample])
        first_aims = np.maximum(first_aims + int(np.median(wanted[sample] - counts)), 1)
        aims, found, seen = first_aims.copy(), [""] * len(wanted), set[str]()
        left = list(range(len(wanted)))
        for attempt in range(1, _ROUNDS + 1):
            bodies = [self._body(openings[row], starts[row], aims[row]) for row in left]
            counts, again = measure(left, bodies), []
            for row, body, count in zip(left, bodies, counts, strict=True):
                fits, fresh = count == wanted[row], body.casefold() not in seen
                if fits and fresh:
                    found[row] = body
                    seen.add(body.casefold())
                    continue
                again.append(row)
                aims[row] = max(aims[row] + wanted[row] - count, 1)
                if fits or attempt % _PATIENCE == 0:
                    openings[row] = self._openings[self._draw.integers(len(self._openings))]
                    starts[row], aims[row] = self._draw.integers(len(self._words)), first_aims[row]
            if not again:
                return found
            left = again
        raise ValueError(
            f"{len(left):,} of {len(wanted):,} different texts could not be made, as one of {wanted[left[0]]} tokens "
            f"of which {rest} take {least - self._cost[short]}: ask for longer or fewer texts"
        )

    def _reach(self, tokens: int) -> None:
        """Repeats the words until a text of so many tokens can begin at any of them."""
        times = 2 + tokens // int(self._ends[-1])
        self._stream = self._words * times
        self._sums = np.concatenate([[0], *(self._ends[1:] + at * self._ends[-1] for at in range(times))])

    def _body(self, opening: str, start: int, aim: int) -> str:
        """A text of about `aim` tokens: an opening, words from `start` on, and one that makes up the difference."""
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
        """Any word of so many tokens; of the next fewer where there is none."""
        cost = max((cost for cost in self._by_cost if cost <= tokens), default=min(self._by_cost))
        return self._by_cost[cost][self._draw.integers(len(self._by_cost[cost]))]
