"""Base class for varying the reference until it reproduces the engine under test; shared by embeddings and pair scores."""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from mteb_vllm.engines.sentence_transformers import SentenceTransformersEngine
from mteb_vllm.pipelines.parity.causes import Change, Measured, explain, is_similar
from mteb_vllm.results.parity import Hint

Values = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Inputs on which the two sides differ, and some on which they hardly differ.

    Attributes:
        reference: float32 array: the reference's embeddings, shape (n, dim), or scores, shape (n,).
        observed: The values of the engine under test, of the same shape; None if they are not finite.
    """

    reference: Values
    observed: Values | None


class Limits(NamedTuple):
    """The largest deviations that count as none.

    Attributes:
        reproduced: Between the reference's values and its own values in a second run.
        same: Between two equal values in float32.
        enough: Between the engine and a variant that explains it.
    """

    reproduced: float
    same: float
    enough: float


class Trials(abc.ABC):
    """Variants of the reference.

    Args:
        engine: An open engine of sentence-transformers.
        sample: The inputs, with both sides' values.
    """

    # Messages for the reasons why varying the reference would show nothing.
    not_reproduced: ClassVar[str]
    all_same: ClassVar[str]

    def __init__(self, engine: SentenceTransformersEngine, sample: Sample) -> None:
        self.engine, self.sample = engine, sample

    @abc.abstractmethod
    def vary(self, parts: Mapping[str, Any]) -> Values | None:
        """Return the values of a variant, given as part to value; None if the model cannot be varied so."""

    @abc.abstractmethod
    def changes(self, length: int) -> list[Change]:
        """Return the possible changes, towards an engine with a context length of `length` tokens."""

    @abc.abstractmethod
    def compare(self, one: Values, other: Values) -> Measured:
        """Return the distance between two sides' values of the same shape."""

    @abc.abstractmethod
    def limits(self) -> Limits:
        """Return the largest deviations that count as none for this sample."""

    @abc.abstractmethod
    def unvaried(self) -> tuple[Values, str]:
        """Return the values of the unvaried engine, and a message if it failed; empty if it did not."""

    @property
    def observed(self) -> Values:
        """The values of the engine under test."""
        assert self.sample.observed is not None
        return self.sample.observed

    def obstacle(self) -> str:
        """Return why varying the reference would show nothing; empty if nothing speaks against it."""
        made, limits = self.vary({}), self.limits()
        if made is None or self.compare(made, self.sample.reference).deviation > limits.reproduced:
            return self.not_reproduced
        return self.all_same if self.compare(made, self.observed).deviation <= limits.same else ""

    def hints(self, length: int, together: int) -> list[Hint]:
        """Return the variants that explain the difference, best first.

        Args:
            length: The context length of the engine under test, in tokens.
            together: The number of simultaneous changes, 1 or 2.
        """
        _, same, enough = self.limits()
        return explain(self.changes(length), self.measure, floor=same, enough=enough, together=together)

    def measure(self, parts: Mapping[str, object]) -> Measured | None:
        """Return the distance between a variant and the engine under test; None if there is no such variant."""
        made = self.vary(parts)
        return None if made is None or made.shape != self.observed.shape else self.compare(made, self.observed)

    def truncations(self, length: int, longest: float = float("inf")) -> list[Change]:
        """Return the changes of the context length: to that of the engine under test, and to half and twice the own.

        Args:
            length: The context length of the engine under test, in tokens.
            longest: The tokens of the longest input: longer limits truncate nothing.
        """
        own, most = self.engine.max_model_len, self.engine.positions or math.inf
        return [
            Change("truncation", "length", tokens, f"truncated to {tokens} tokens", "engine.max_model_len")
            for tokens in dict.fromkeys((length, own // 2, own * 2))
            # Reading beyond the last position embedding would leave a GPU unusable for this process.
            if tokens != own and min(tokens, own) < longest and tokens <= most
        ]

    def dtype_hint(self, dtype: str) -> Hint | None:
        """Return a hint if a dtype explains the difference; the reference must be open in that dtype here."""
        made, failed = self.unvaried()
        if failed:
            finite = self.sample.observed is not None
            return None if finite else Hint("dtype", f"in {dtype}, the reference{failed}", 0.0, 0.0)
        if self.sample.observed is None:
            return None
        own, observed = self.compare(made, self.sample.reference), self.compare(self.observed, self.sample.reference)
        if not is_similar(own, observed):
            return None
        words = (
            f"the reference, run in {dtype}, differs from its original result by about as much as the engine does: "
            f"{own.words}; for the engine, {observed.words}."
        )
        return Hint("dtype", f"{words} See engine.dtype.", own.worst, own.median)


SPECIAL_TOKENS = Change("special tokens", "special", False, "without special tokens", "the model's tokenizer files")
