"""Variants of a reranker in sentence-transformers: its template, prefixes, instruction, activation, truncation, and so on."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mteb_vllm.engines.base import LongPair
from mteb_vllm.errors import MtebVllmError
from mteb_vllm.inference.scoring import score_pairs
from mteb_vllm.models.score_templates import ScoreTemplate, render_pair
from mteb_vllm.pipelines.parity.causes import Change, Hint, Measured, explain, like

logger = logging.getLogger(__name__)

Scores = npt.NDArray[np.float32]

# Up to this share of the scores' range, two scores in float32 are the same.
SAME = 1e-4
# A difference of at most this share of the scores' range can be called explained.
ENOUGH = 0.02
_ACTIVATIONS = {
    None: "with the activation of the model's files", "sigmoid": "with a sigmoid", "none": "with the raw logit"
}  # fmt: skip


@dataclass(frozen=True)
class PairSample:
    """Pairs on which the two sides differ, and some on which they hardly do.

    Attributes:
        pairs: Query and document of each, without prefixes.
        own: What the reference reads them through.
        other: What the engine under test reads them through.
        own_instructions: The reference's instruction for each.
        other_instructions: The engine's, likewise.
        reference: float32 array, shape (n,): the reference's scores.
        scores: The engine's, likewise; None where it gave none, since they are not finite.
    """

    pairs: list[tuple[str, str]]
    own: ScoreTemplate
    other: ScoreTemplate
    own_instructions: list[str]
    other_instructions: list[str]
    reference: Scores
    scores: Scores | None


class PairTrials:
    """A reference that can be varied.

    Args:
        engine: An open engine of sentence-transformers.
        sample: The pairs.
    """

    def __init__(self, engine: Any, sample: PairSample) -> None:
        self.engine, self.sample = engine, sample

    @property
    def spread(self) -> float:
        """The range of both sides' scores."""
        assert self.sample.scores is not None
        return float(np.ptp(np.concatenate([self.sample.scores, self.sample.reference])))

    def useless(self) -> str:
        """Why varying the reference would show nothing; empty if it would."""
        made = self.scores({})
        if made is None or measured(made, self.sample.reference).deviation > SAME * self.spread:
            return "the reference does not score the pairs again as it did: nothing was varied"
        assert self.sample.scores is not None
        if measured(made, self.sample.scores).deviation <= SAME * self.spread:
            return "the scores are the same: the difference comes from what is made of them"
        return ""

    def hints(self, length: int, together: int) -> list[Hint]:
        """The variants that explain it, best first.

        Args:
            length: The context of the engine under test, in tokens.
            together: How many things are varied at once, 1 or 2.
        """
        limits = {"floor": SAME * self.spread, "enough": ENOUGH * self.spread}
        return explain(self.changes(length), self.measure, together=together, **limits)

    def changes(self, length: int) -> list[Change]:
        """What can be varied, towards an engine with a context of `length` tokens."""
        own, other, found = self.sample.own, self.sample.other, []
        way = "score_template"
        if own.text != other.text:
            words = "without the score template" if other.text is None else "with the engine's score template"
            found.append(Change("template", "template", vars(other), words, way))
        if own.text is not None and other.text is not None:
            found.append(Change("template", "template", {"text": None}, "without the score template", way))
        prefixes = {"query_prefix": other.query_prefix, "document_prefix": other.document_prefix}
        if (own.query_prefix, own.document_prefix) != (other.query_prefix, other.document_prefix):
            words = "with the engine's prefixes" if any(prefixes.values()) else "without prefixes"
            found.append(Change("prompt", "prefixes", prefixes, words, f"{way}.query_prefix and document_prefix"))
        if self.sample.own_instructions != self.sample.other_instructions:
            found.append(Change("prompt", "instructions", "other", "with the engine's instructions", "prompts"))
        for activation, words in _ACTIVATIONS.items():
            if activation != own.activation:
                change = {"activation": activation}
                found.append(Change("activation", "activation", change, words, f"{way}.activation"))
        limit = self.engine.max_model_len
        for tokens in dict.fromkeys((length, limit // 2, limit * 2)):
            if tokens != limit:
                found.append(Change("truncation", "length", tokens, f"cut at {tokens} tokens", "engine.max_model_len"))
        way = "the model's tokenizer files"
        found.append(Change("special tokens", "special", False, "without special tokens", way))
        return found

    def scores(self, parts: Mapping[str, Any]) -> Scores | None:
        """The scores of a variant, shape (n,); None where the model cannot be varied so."""
        template = self.sample.own
        for part in ("template", "prefixes", "activation"):
            template = replace(template, **parts.get(part, {}))
        other = parts.get("instructions") == "other"
        instructions = self.sample.other_instructions if other else self.sample.own_instructions
        try:
            return self._scores(template, instructions, parts.get("length"), parts.get("special", True))
        except (MtebVllmError, RuntimeError, IndexError, ValueError) as error:
            logger.info("the reference cannot be varied by %s: %s", dict(parts), error)
            return None

    def measure(self, parts: Mapping[str, Any]) -> Measured | None:
        """How far a variant is from the engine under test."""
        made = self.scores(parts)
        assert self.sample.scores is not None
        return None if made is None else measured(made, self.sample.scores)

    def _scores(self, template: ScoreTemplate, instructions: list[str], length: int | None, special: bool) -> Scores:
        made = np.empty(len(self.sample.pairs), dtype=np.float32)
        for instruction in dict.fromkeys(instructions):
            rows = [at for at, own in enumerate(instructions) if own == instruction]
            queries, documents = template.with_prefixes(*zip(*(self.sample.pairs[at] for at in rows), strict=True))
            text = template.with_instruction(instruction)
            if special:
                made[rows] = self._whole(queries, documents, text, template, length)
            else:
                made[rows] = self._bare(queries, documents, text, template)
        return made

    def _whole(
        self, queries: list[str], documents: list[str], text: str | None, template: ScoreTemplate, length: int | None
    ) -> Scores:
        engine, model = self.engine, self.engine.model
        before = model.max_seq_length
        if length is not None:
            engine = copy.copy(engine)
            engine.max_model_len = model.max_seq_length = length
        try:
            return score_pairs(engine, queries, documents, template=text, activation=template.activation)[0]
        finally:
            model.max_seq_length = before

    def _bare(self, queries: list[str], documents: list[str], text: str | None, template: ScoreTemplate) -> Scores:
        """Without special tokens."""
        tokenizer, limit, pairs = self.engine.tokenizer, self.engine.max_model_len, []
        for query, document in zip(queries, documents, strict=True):
            if text is None:
                first, second = tokenizer([query, document], add_special_tokens=False, verbose=False)["input_ids"]
                typed = "token_type_ids" in tokenizer.model_input_names
                ids = [*first, *second][:limit]
                pairs.append(LongPair(ids, min(len(first), limit) if typed else None, False))
            else:
                rendered = render_pair(tokenizer, text, query, document)
                ids = tokenizer(rendered, add_special_tokens=False, verbose=False)["input_ids"][:limit]
                pairs.append(LongPair(ids, None, False))
        made: Scores = self.engine.score_tokens(pairs, activation=template.activation).values
        return (1 / (1 + np.exp(-made))).astype(np.float32) if template.activation == "sigmoid" else made


def measured(one: Scores, other: Scores) -> Measured:
    """How far scores are from others, shape (n,) both."""
    apart = np.abs(one.astype(np.float64) - other.astype(np.float64))
    worst = float(apart.max()) if np.isfinite(apart).all() else float("inf")
    return Measured(worst, worst, float(np.median(apart)), f"the largest difference of a score is {worst:.3g}")


def dtype_hint(other: Any, sample: PairSample, dtype: str) -> Hint | None:
    """Whether the engine's dtype explains it.

    Args:
        other: The reference, opened in that dtype.
        sample: Pairs with the reference's scores, and the engine's where these are finite.
        dtype: The dtype.
    """
    from mteb_vllm.errors import NonFiniteError

    try:
        made = PairTrials(other, sample)._scores(sample.own, sample.own_instructions, None, True)
    except NonFiniteError as error:
        if sample.scores is not None:
            return None
        return Hint("dtype", f"in {dtype} the reference fails, too: {error}", 0.0, 0.0)
    if sample.scores is None:
        return None
    own, observed = measured(made, sample.reference), measured(sample.scores, sample.reference)
    if not like(own, observed):
        return None
    says = (
        f"in {dtype} the reference is as far from itself: {own.says}; of the engine {observed.says}. See engine.dtype."
    )
    return Hint("dtype", says, own.worst, own.median)
