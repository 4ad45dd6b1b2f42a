"""Variants of an embedding model in sentence-transformers: pooling, normalisation, truncation, prompts, special tokens."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mteb_vllm.engines.sentence_transformers import SentenceTransformersEngine
from mteb_vllm.pipelines.parity.agreement import cosines, deviations, norm_ratios
from mteb_vllm.pipelines.parity.causes import Change, Measured
from mteb_vllm.pipelines.parity.trials import SPECIAL_TOKENS, Limits, Sample, Trials, Values

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

POOLINGS = {"cls": "CLS", "mean": "mean", "lasttoken": "last-token", "max": "max"}
# For vectors of equal norm, a deviation of 1e-3 is a cosine similarity of 0.999.
LIMITS = Limits(reproduced=1e-4, same=1e-5, enough=1e-3)
BATCH = 16


@dataclass(frozen=True, kw_only=True)
class TextSample(Sample):
    """Texts with their embeddings on both sides.

    Attributes:
        texts: The texts, without prompts.
        own: The reference's prompt for each text.
        other: The prompt of the engine under test for each text.
    """

    texts: list[str]
    own: list[str]
    other: list[str]


class VectorTrials(Trials):
    """Variants of an embedding model."""

    not_reproduced = "running the model's modules one by one did not reproduce the reference, so no causes were tested"
    all_same = "the embeddings are the same: the difference arises after embedding"
    sample: TextSample

    def __init__(self, engine: SentenceTransformersEngine, sample: TextSample) -> None:
        super().__init__(engine, sample)
        modules = list(engine.model.children())
        names = [type(module).__name__ for module in modules]
        self.at = names.index("Pooling") if "Pooling" in names else None
        self.modules = modules
        self.normalises = "Normalize" in names
        self.pooling = _pooling_mode(modules[self.at]) if self.at is not None else "?"
        self._pooled: dict[tuple[str, int, bool], dict[str, torch.Tensor]] = {}

    def limits(self) -> Limits:
        """See `Trials.limits`."""
        return LIMITS

    def changes(self, length: int) -> list[Change]:
        """See `Trials.changes`."""
        found = [
            Change("pooling", "pooling", mode, f"with {name} pooling", "engine.pooler_config (seq_pooling_type)")
            for mode, name in POOLINGS.items()
            if mode != self.pooling
        ]
        words = "without normalisation" if self.normalises else "with normalisation"
        way = "engine.pooler_config (use_activation)"
        found.append(Change("normalisation", "normalise", not self.normalises, words, way))
        found += self.truncations(length, self._longest())
        sample, way = self.sample, "prompts and instruction"
        if sample.own != sample.other:
            words = "with the engine's prompts" if any(sample.other) else "without prompts"
            found.append(Change("prompt", "prompts", "other", words, way))
        if any(sample.own) and any(sample.other):
            found.append(Change("prompt", "prompts", "none", "without prompts", way))
        return [*found, SPECIAL_TOKENS]

    def vary(self, parts: Mapping[str, Any]) -> Values | None:
        """Return the embeddings of a variant, shape (n, dim); None if the model cannot be varied so."""
        import torch

        if self.at is None:
            return None
        inputs = (
            parts.get("prompts", "own"),
            parts.get("length", self.engine.max_model_len),
            parts.get("special", True),
        )
        try:
            if inputs not in self._pooled:
                self._pooled[inputs] = self._pool(*inputs)
            features = {"sentence_embedding": self._pooled[inputs][parts.get("pooling", "own")]}
            normalise = parts.get("normalise", self.normalises)
            with torch.inference_mode():
                for module in self.modules[self.at + 1 :]:
                    if normalise or type(module).__name__ != "Normalize":
                        features = module(features)
                made = features["sentence_embedding"][:, : self.engine.dim]
                if normalise and (not self.normalises or self.engine.renormalizes):
                    made = torch.nn.functional.normalize(made, dim=1)
        except (RuntimeError, IndexError, ValueError, KeyError) as error:
            logger.info("the reference cannot be varied by %s: %s", dict(parts), error)
            return None
        array: Values = made.float().cpu().numpy()
        return array

    def compare(self, one: Values, other: Values) -> Measured:
        """Return the distance between two sides' embeddings, shape (n, dim) each."""
        apart, found, ratios = deviations(one, other), cosines(one, other), norm_ratios(one, other)
        worst, median = float(found.min()), float(np.median(found))
        words = f"the lowest cosine similarity is {worst:.5f}"
        low, high = float(ratios.min()), float(ratios.max())
        if max(abs(low - 1), abs(high - 1)) > 0.01:
            words += f" and the norms are {low:.3g} to {high:.3g} times the engine's"
        return Measured(float(apart.max()), worst, median, words)

    def unvaried(self) -> tuple[Values, str]:
        """See `Trials.unvaried`."""
        texts = [prefix + text for prefix, text in zip(self.sample.own, self.sample.texts, strict=True)]
        starts = range(0, len(texts), BATCH)
        made = np.concatenate([self.engine.embed(texts[at : at + BATCH], False)[0] for at in starts])
        broken = ~np.isfinite(made).all(axis=1)
        if not broken.any():
            return made, ""
        words = (
            f" also produces NaN or Inf, for {broken.sum()} of {len(texts)} texts; in its own dtype it produces none"
        )
        return made, f"{words}. See engine.dtype."

    def _longest(self) -> int:
        """Return the number of tokens of the longest text with either side's prompt."""
        sample = self.sample
        sides = (sample.own, sample.other)
        texts = [prefix + text for side in sides for prefix, text in zip(side, sample.texts, strict=True)]
        return max(map(len, self.engine.tokenizer(texts, truncation=False, verbose=False)["input_ids"]))

    def _pool(self, prompts: str, length: int, special: bool) -> dict[str, torch.Tensor]:
        """Return the sample's pooled embeddings for each pooling mode, before the modules that follow pooling."""
        import torch

        sample = self.sample
        prefixes = {"own": sample.own, "other": sample.other, "none": [""] * len(sample.texts)}[prompts]
        texts = [prefix + text for prefix, text in zip(prefixes, sample.texts, strict=True)]
        found: dict[str, list[torch.Tensor]] = {mode: [] for mode in ("own", *POOLINGS)}
        model, tokenizer = self.engine.model, self.engine.tokenizer
        assert self.at is not None
        order = sorted(range(len(texts)), key=lambda at: len(texts[at]))  # batches of similar length need less padding
        with torch.inference_mode():
            for start in range(0, len(texts), BATCH):
                features = tokenizer(
                    [texts[at] for at in order[start : start + BATCH]],
                    padding=True,
                    truncation=True,
                    max_length=length,
                    add_special_tokens=special,
                    return_tensors="pt",
                )
                features = {name: value.to(model.device) for name, value in features.items()}
                for module in self.modules[: self.at]:
                    features = module(features)
                tokens, mask = features["token_embeddings"], features["attention_mask"]
                found["own"].append(self.modules[self.at](dict(features))["sentence_embedding"])
                for mode in POOLINGS:
                    found[mode].append(_pool_tokens(tokens, mask, mode))
        back = np.argsort(order)
        return {mode: torch.cat(parts)[back] for mode, parts in found.items()}


def _pooling_mode(pooling: object) -> str:
    """Return the mode of a sentence-transformers pooling module, by its own name; several are joined by "+"."""
    mode = getattr(pooling, "pooling_mode", None)
    if mode is None and hasattr(pooling, "get_pooling_mode_str"):  # before sentence-transformers 6
        mode = pooling.get_pooling_mode_str()
    return mode if isinstance(mode, str) else "+".join(mode or ())


def _pool_tokens(tokens: torch.Tensor, mask: torch.Tensor, mode: str) -> torch.Tensor:
    """Pool token embeddings.

    Args:
        tokens: Shape (n, tokens, dim).
        mask: Attention mask, shape (n, tokens).
        mode: A key of `POOLINGS`.

    Returns:
        embeddings: Shape (n, dim).
    """
    import torch

    rows = torch.arange(len(tokens), device=tokens.device)
    if mode == "cls":
        return tokens[rows, mask.int().argmax(dim=1)]
    if mode == "lasttoken":
        return tokens[rows, mask.shape[1] - 1 - mask.int().flip(1).argmax(dim=1)]
    wide = mask.unsqueeze(-1)
    if mode == "max":
        return tokens.masked_fill(wide == 0, float("-inf")).max(dim=1).values
    return (tokens * wide).sum(dim=1) / wide.sum(dim=1).clamp(min=1)
