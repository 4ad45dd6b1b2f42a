"""Counters of the work that an engine does for a model, and what is recorded of it for each result."""

from __future__ import annotations

from dataclasses import dataclass

from mteb_vllm.results.measurements import Amount, Count, Unit


@dataclass
class Work:
    """Counts of encoding or scoring work, summed over calls.

    Attributes:
        texts: Requested texts, or pairs of texts.
        computed: Distinct ones that the engine computed.
        stored: Distinct ones that came from the embedding cache.
        tokens: Tokens passed to the engine.
        cached_tokens: Those of them found in the engine's prefix cache.
        blank: Requested texts without a token, which are not passed to the engine: their embedding is zero. Pairs without a
            token get the score 0.
        truncated: Requested texts longer than the context length; of pairs, those whose document was truncated.
        truncated_queries: Requested pairs whose query alone exceeds the context and was truncated.
        seconds: Wall time, without that of the embedding cache.
        store_seconds: Wall time of reading and writing the embedding cache.
    """

    texts: int = 0
    computed: int = 0
    stored: int = 0
    tokens: int = 0
    cached_tokens: int = 0
    blank: int = 0
    truncated: int = 0
    truncated_queries: int = 0
    seconds: float = 0.0
    store_seconds: float = 0.0

    def add(self, other: Work) -> None:
        """Add the counts of another call."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def since(self, before: Work) -> Work:
        """Return the difference to an earlier state of these counts."""
        return Work(**{name: value - getattr(before, name) for name, value in vars(self).items()})


@dataclass(frozen=True)
class Measured:
    """The cost of computing a task's result, and what became of its texts, stored with the result for runs that reuse it.

    Attributes, each None if it was not recorded:
        texts: Texts, or pairs of texts, requested by mteb.
        computed: Distinct ones that the engine computed.
        stored: Distinct ones that came from the embedding cache.
        tokens: Tokens passed to the engine.
        seconds: Wall time of the engine's work.
        unit: Whether texts or pairs are counted.
        engine_seconds: Time to open the engine; None if it was already open.
        max_model_len: The context length, in tokens.
        blank: Texts or pairs without a token; this and the next two as in `Work`.
        truncated: Texts longer than the context length; of pairs, those whose document was truncated.
        truncated_queries: Pairs whose query alone exceeds the context and was truncated.
        subsets: The splits and subsets whose texts are counted; "" if it was not recorded, or if others of the same task had
            been computed before.
    """

    texts: Count | None = None
    computed: Count | None = None
    stored: Count | None = None
    tokens: Count | None = None
    seconds: Amount | None = None
    unit: Unit = "texts"
    engine_seconds: Amount | None = None
    max_model_len: Count | None = None
    blank: Count | None = None
    truncated: Count | None = None
    truncated_queries: Count | None = None
    subsets: str = ""
