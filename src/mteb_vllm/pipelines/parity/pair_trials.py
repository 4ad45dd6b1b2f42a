"""Variants of a reranker in sentence-transformers: its template, prefixes, instruction, activation, truncation, and so on."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mteb_vllm.engines.base import LongPair
from mteb_vllm.errors import MtebVllmError, NonFiniteError
from mteb_vllm.inference.scoring import score_pairs
from mteb_vllm.models.score_templates import ScoreTemplate, render_pair
from mteb_vllm.pipelines.parity.causes import Change, Measured
from mteb_vllm.pipelines.parity.trials import SPECIAL_TOKENS, Limits, Sample, Trials, Values

logger = logging.getLogger(__name__)

# Up to this share of the scores' range, two scores in float32 are the same.
SAME = 1e-4
# A difference of at most this share of the scores' range can be called explained.
ENOUGH = 0.02
_ACTIVATIONS = {
    None: "with the activation of the model's files", "sigmoid": "with a sigmoid", "none": "with the raw logit"
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PairSample(Sample):
    """Pairs, and their scores on both sides.

    Attributes:
        pairs: Query and document of each, without prefixes.
        own: What the reference reads them through.
        other: What the engine under test reads them through.
        own_instructions: The reference's instruction for each.
        other_instructions: The engine's, likewise.
    """

    pairs: list[tuple[str, str]]
    own: ScoreTemplate
    other: ScoreTemplate
    own_instructions: list[str]
    other_instructions: list[str]


class PairTrials(Trials):
    """A reranker that can be varied: template, prefixes, instruction, activation, truncation, special tokens."""

    not_reproduced = "the reference does not score the pairs again as it did: nothing was varied"
    all_same = "the scores are the same: the difference comes from what is made of them"
    sample: PairSample

    def limits(self) -> Limits:
        """See `Trials.limits`."""
        spread = float(np.ptp(np.concatenate([self.observed, self.sample.reference])))
        return Limits(reproduced=SAME * spread, same=SAME * spread, enough=ENOUGH * spread)

    def changes(self, length: int) -> list[Change]:
        """See `Trials.changes`."""
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
        return [*found, *self.lengths(length), SPECIAL_TOKENS]

    def vary(self, parts: Mapping[str, Any]) -> Values | None:
        """Return the scores of a variant, shape (n,); None where the model cannot be varied so."""
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

    def measured(self, one: Values, other: Values) -> Measured:
        """Return how far scores are from others, shape (n,) both."""
        apart = np.abs(one.astype(np.float64) - other.astype(np.float64))
        worst = float(apart.max()) if np.isfinite(apart).all() else float("inf")
        return Measured(worst, worst, float(np.median(apart)), f"the largest difference of a score is {worst:.3g}")

    def as_is(self) -> tuple[Values, str]:
        """See `Trials.as_is`."""
        try:
            return self._scores(self.sample.own, self.sample.own_instructions, None, True), ""
        except NonFiniteError as error:
            return np.empty(0, dtype=np.float32), f" fails, too: {error}"

    def _scores(self, template: ScoreTemplate, instructions: list[str], length: int | None, special: bool) -> Values:
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
    ) -> Values:
        engine, model = self.engine, self.engine.model
        before = model.max_seq_length
        if length is not None:
            engine = copy.copy(engine)
            engine.max_model_len = model.max_seq_length = length
        try:
            return score_pairs(engine, queries, documents, template=text, activation=template.activation)[0]
        finally:
            model.max_seq_length = before

    def _bare(self, queries: list[str], documents: list[str], text: str | None, template: ScoreTemplate) -> Values:
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
        made: Values = self.engine.score_tokens(pairs, activation=template.activation).values
        return (1 / (1 + np.exp(-made))).astype(np.float32) if template.activation == "sigmoid" else made
