"""Variants of a reranker in sentence-transformers: template, prefixes, instructions, activation, truncation, and so on."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mteb_vllm.engines.base import TokenPair
from mteb_vllm.errors import MtebVllmError, NonFiniteError
from mteb_vllm.inference.scoring import score_pairs
from mteb_vllm.models.score_templates import ScoreTemplate, render_pair
from mteb_vllm.pipelines.parity.causes import Change, Measured
from mteb_vllm.pipelines.parity.trials import SPECIAL_TOKENS, Limits, Sample, Trials, Values

logger = logging.getLogger(__name__)

# The largest difference of two equal scores in float32, as a fraction of the scores' range.
SAME = 1e-4
# The largest remaining difference that counts as explained, as a fraction of the scores' range.
ENOUGH = 0.02
_ACTIVATIONS = {
    None: "with the activation of the model's files", "sigmoid": "with a sigmoid", "none": "with the raw logit"
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PairSample(Sample):
    """Pairs with their scores on both sides.

    Attributes:
        pairs: Query and document of each pair, without prefixes.
        own: The reference's score template.
        other: The score template of the engine under test.
        own_instructions: The reference's instruction for each pair.
        other_instructions: The engine's instruction for each pair.
    """

    pairs: list[tuple[str, str]]
    own: ScoreTemplate
    other: ScoreTemplate
    own_instructions: list[str]
    other_instructions: list[str]


class PairTrials(Trials):
    """Variants of a reranker."""

    not_reproduced = "the reference did not reproduce its own scores, so no causes were tested"
    all_same = "the scores are the same: the difference arises after scoring"
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
        return [*found, *self.truncations(length), SPECIAL_TOKENS]

    def vary(self, parts: Mapping[str, Any]) -> Values | None:
        """Return the scores of a variant, shape (n,); None if the model cannot be varied so."""
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

    def compare(self, one: Values, other: Values) -> Measured:
        """Return the distance between two sides' scores, shape (n,) each."""
        differences = np.abs(one.astype(np.float64) - other.astype(np.float64))
        worst = float(differences.max()) if np.isfinite(differences).all() else float("inf")
        words = f"the largest score difference is {worst:.3g}"
        return Measured(worst, worst, float(np.median(differences)), words)

    def unvaried(self) -> tuple[Values, str]:
        """See `Trials.unvaried`."""
        try:
            return self._scores(self.sample.own, self.sample.own_instructions, None, True), ""
        except NonFiniteError as error:
            return np.empty(0, dtype=np.float32), f" also fails: {error}"

    def _scores(self, template: ScoreTemplate, instructions: list[str], length: int | None, special: bool) -> Values:
        made = np.empty(len(self.sample.pairs), dtype=np.float32)
        for instruction in dict.fromkeys(instructions):
            rows = [at for at, own in enumerate(instructions) if own == instruction]
            queries, documents = template.with_prefixes(*zip(*(self.sample.pairs[at] for at in rows), strict=True))
            text = template.with_instruction(instruction)
            if special:
                made[rows] = self._score(queries, documents, text, template, length)
            else:
                made[rows] = self._score_without_special_tokens(queries, documents, text, template)
        return made

    def _score(
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

    def _score_without_special_tokens(
        self, queries: list[str], documents: list[str], text: str | None, template: ScoreTemplate
    ) -> Values:
        tokenizer, limit, pairs = self.engine.tokenizer, self.engine.max_model_len, []
        for query, document in zip(queries, documents, strict=True):
            if text is None:
                first, second = tokenizer([query, document], add_special_tokens=False, verbose=False)["input_ids"]
                typed = "token_type_ids" in tokenizer.model_input_names
                ids = [*first, *second][:limit]
                pairs.append(TokenPair(ids, min(len(first), limit) if typed else None, False))
            else:
                rendered = render_pair(tokenizer, text, query, document)
                ids = tokenizer(rendered, add_special_tokens=False, verbose=False)["input_ids"][:limit]
                pairs.append(TokenPair(ids, None, False))
        made: Values = self.engine.score_tokens(pairs, activation=template.activation).values
        return (1 / (1 + np.exp(-made))).astype(np.float32) if template.activation == "sigmoid" else made
