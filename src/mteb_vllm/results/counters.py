"""What an engine has done for a model, counted; and what computing a result took."""

from __future__ import annotations

from dataclasses import dataclass

from mteb_vllm.results.measurements import Amount, Count, Unit


@dataclass
class Work:
    """What encoding or scoring did; adds up over calls.

    Attributes:
        texts: Texts, or pairs of texts, that were asked for.
        computed: Different ones, which the engine computed.
        stored: Different ones, which came from the embedding cache.
        tokens: Tokens that the engine was given.
        cached_tokens: Those of them that it had in its prefix cache.
        blank: Of the texts asked for, those without a token, which no engine is given: their embedding is zero. Of pairs,
            likewise, with the score 0.
        truncated: Of the texts asked for, those that were longer than the context; of pairs, those whose document was cut.
        truncated_queries: Pairs, of those asked for, whose query was too long for the context by itself, and was cut.
        seconds: Wall time, without that of the embedding cache.
        store_seconds: Wall time of looking up and storing embeddings.
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
        """Adds another call's."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def since(self, before: Work) -> Work:
        """What was done after `before`."""
        return Work(**{name: value - getattr(before, name) for name, value in vars(self).items()})


@dataclass(frozen=True)
class Measured:
    """What computing a task's result took: noted beside the result, for runs that will find it.

    Attributes:
        texts: Texts, or pairs of texts, that mteb asked for.
        computed: Different ones, which the engine computed.
        stored: Different ones, which came from the embedding cache.
        tokens: Tokens that the engine was given.
        seconds: Wall time of the engine's work.
        unit: What is counted.
        engine_seconds: What opening the engine took; None where it was open.
    """

    texts: Count | None = None
    computed: Count | None = None
    stored: Count | None = None
    tokens: Count | None = None
    seconds: Amount | None = None
    unit: Unit = "texts"
    engine_seconds: Amount | None = None
