"""A reference that is varied until it gives what the engine under test gave: what embeddings and scores have in common."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from mteb_vllm.engines.sentence_transformers import SentenceTransformersEngine
from mteb_vllm.pipelines.parity.causes import Change, Measured, explain, like
from mteb_vllm.results.parity import Hint

Values = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Inputs on which the two sides differ, and some on which they hardly do.

    Attributes:
        reference: float32 array: the reference's embeddings, shape (n, dim), or scores, shape (n,).
        observed: Those of the engine under test, likewise; None where they are not finite.
    """

    reference: Values
    observed: Values | None


class Limits(NamedTuple):
    """Bounds of deviations.

    Attributes:
        reproduced: Up to which the reference has given its own values again.
        same: Up to which two values in float32 are the same.
        enough: Up to which a difference can be called explained.
    """

    reproduced: float
    same: float
    enough: float


class Trials(abc.ABC):
    """A reference that can be varied.

    Args:
        engine: An open engine of sentence-transformers.
        sample: The inputs, and what came of them.
    """

    # Why varying the reference would show nothing.
    not_reproduced: ClassVar[str]
    all_same: ClassVar[str]

    def __init__(self, engine: SentenceTransformersEngine, sample: Sample) -> None:
        self.engine, self.sample = engine, sample

    @abc.abstractmethod
    def vary(self, parts: Mapping[str, Any]) -> Values | None:
        """Return the values of a variant, by (part to value); None where the model cannot be varied so."""

    @abc.abstractmethod
    def changes(self, length: int) -> list[Change]:
        """Return what can be varied, towards an engine with a context of `length` tokens."""

    @abc.abstractmethod
    def measured(self, one: Values, other: Values) -> Measured:
        """Return how far values are from others of the same shape."""

    @abc.abstractmethod
    def limits(self) -> Limits:
        """Return the bounds of deviations of this sample."""

    @abc.abstractmethod
    def as_is(self) -> tuple[Values, str]:
        """Return the values of the engine that is not varied, and how it failed, in words; empty if it did not."""

    @property
    def observed(self) -> Values:
        """What the engine under test gave."""
        assert self.sample.observed is not None
        return self.sample.observed

    def useless(self) -> str:
        """Return why varying the reference would show nothing; empty if it would."""
        made, limits = self.vary({}), self.limits()
        if made is None or self.measured(made, self.sample.reference).deviation > limits.reproduced:
            return self.not_reproduced
        return self.all_same if self.measured(made, self.observed).deviation <= limits.same else ""

    def hints(self, length: int, together: int) -> list[Hint]:
        """Return the variants that explain the difference, best first.

        Args:
            length: The context of the engine under test, in tokens.
            together: How many things are varied at once, 1 or 2.
        """
        _, same, enough = self.limits()
        return explain(self.changes(length), self.measure, floor=same, enough=enough, together=together)

    def measure(self, parts: Mapping[str, object]) -> Measured | None:
        """Return how far a variant is from the engine under test."""
        made = self.vary(parts)
        return None if made is None or made.shape != self.observed.shape else self.measured(made, self.observed)

    def lengths(self, length: int, longest: float = float("inf")) -> list[Change]:
        """Return the changes of the context: to the other engine's, to half and to twice the own.

        Args:
            length: The context of the engine under test, in tokens.
            longest: Tokens of the longest input: limits beyond it cut nothing.
        """
        own = self.engine.max_model_len
        return [
            Change("truncation", "length", tokens, f"cut at {tokens} tokens", "engine.max_model_len")
            for tokens in dict.fromkeys((length, own // 2, own * 2))
            if tokens != own and min(tokens, own) < longest
        ]

    def dtype_hint(self, dtype: str) -> Hint | None:
        """Return whether a dtype, in which the reference is open here, explains the difference."""
        made, failed = self.as_is()
        if failed:
            finite = self.sample.observed is not None
            return None if finite else Hint("dtype", f"in {dtype} the reference{failed}", 0.0, 0.0)
        if self.sample.observed is None:
            return None
        own, observed = self.measured(made, self.sample.reference), self.measured(self.observed, self.sample.reference)
        if not like(own, observed):
            return None
        says = f"in {dtype} the reference is as far from itself: {own.says}; of the engine {observed.says}."
        return Hint("dtype", f"{says} See engine.dtype.", own.worst, own.median)


SPECIAL_TOKENS = Change("special tokens", "special", False, "without special tokens", "the model's tokenizer files")
