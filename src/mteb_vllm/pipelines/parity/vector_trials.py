"""Variants of an embedding model in sentence-transformers: pooling, normalisation, truncation, prompt, special tokens."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mteb_vllm.pipelines.parity.agreement import cosines, deviations, length_ratios
from mteb_vllm.pipelines.parity.causes import Change, Hint, Measured, explain, like

logger = logging.getLogger(__name__)

Vectors = npt.NDArray[np.float32]

POOLINGS = {"cls": "CLS", "mean": "mean", "lasttoken": "last-token", "max": "max"}
# Below this, two vectors in float32 are the same.
SAME = 1e-5
# A deviation of at most this (cosine 0.999) can be called explained.
ENOUGH = 1e-3
BATCH = 16


@dataclass(frozen=True)
class Sample:
    """Texts on which the two sides differ, and some on which they hardly do.

    Attributes:
        texts: The texts, without prompts.
        own: What the reference read in front of each.
        other: What the engine under test read in front of each.
        reference: float32 array, shape (n, dim): the reference's embeddings.
        vectors: The engine's, likewise; None where it gave none, since they are not finite.
    """

    texts: list[str]
    own: list[str]
    other: list[str]
    reference: Vectors
    vectors: Vectors | None


class VectorTrials:
    """A reference that can be varied.

    Args:
        engine: An open engine of sentence-transformers.
        sample: The texts.
    """

    def __init__(self, engine: Any, sample: Sample) -> None:
        modules = list(engine.model.children())
        names = [type(module).__name__ for module in modules]
        self.at = names.index("Pooling") if "Pooling" in names else None
        self.engine, self.sample, self.modules = engine, sample, modules
        self.normalises = "Normalize" in names
        self.pooling = _mode(modules[self.at]) if self.at is not None else "?"
        self._pooled: dict[tuple[Any, ...], dict[str, Any]] = {}

    def useless(self) -> str:
        """Why varying the reference would show nothing; empty if it would."""
        made = self.vectors({}) if self.at is not None else None
        if made is None or float(deviations(made, self.sample.reference).max()) > ENOUGH / 10:
            return "the model's parts, put together by hand, do not make the reference's embeddings: nothing was varied"
        assert self.sample.vectors is not None
        if float(deviations(made, self.sample.vectors).max()) <= SAME:
            return "the embeddings are the same: the difference comes from what is made of them"
        return ""

    def hints(self, length: int, together: int) -> list[Hint]:
        """The variants that explain it, best first.

        Args:
            length: The context of the engine under test, in tokens.
            together: How many things are varied at once, 1 or 2.
        """
        return explain(self.changes(length), self.measure, floor=SAME, enough=ENOUGH, together=together)

    def changes(self, length: int) -> list[Change]:
        """What can be varied, towards an engine with a context of `length` tokens."""
        found = [
            Change("pooling", "pooling", mode, f"with {name} pooling", "engine.pooler_config (seq_pooling_type)")
            for mode, name in POOLINGS.items()
            if mode != self.pooling
        ]
        words = "without normalisation" if self.normalises else "with normalisation"
        way = "engine.pooler_config (use_activation)"
        found.append(Change("normalisation", "normalise", not self.normalises, words, way))
        own, longest = self.engine.max_model_len, self._longest()
        for tokens in dict.fromkeys((length, own // 2, own * 2)):
            if tokens != own and min(tokens, own) < longest:
                found.append(Change("truncation", "length", tokens, f"cut at {tokens} tokens", "engine.max_model_len"))
        sample, way = self.sample, "prompts and instruction"
        if sample.own != sample.other:
            words = "with the engine's prompts" if any(sample.other) else "without prompts"
            found.append(Change("prompt", "prompts", "other", words, way))
        if any(sample.own) and any(sample.other):
            found.append(Change("prompt", "prompts", "none", "without prompts", way))
        way = "the model's tokenizer files"
        found.append(Change("special tokens", "special", False, "without special tokens", way))
        return found

    def vectors(self, parts: Mapping[str, Any]) -> Vectors | None:
        """The embeddings of a variant, shape (n, dim); None where the model cannot be varied so."""
        import torch

        reading = (
            parts.get("prompts", "own"),
            parts.get("length", self.engine.max_model_len),
            parts.get("special", True),
        )
        try:
            if reading not in self._pooled:
                self._pooled[reading] = self._pool(*reading)
            # As the reference cuts them (dimensions), which normalises anew.
            features = {"sentence_embedding": self._pooled[reading][parts.get("pooling", "own")][:, : self.engine.dim]}
            normalise = parts.get("normalise", self.normalises)
            with torch.inference_mode():
                for module in self.modules[(self.at or 0) + 1 :]:
                    if normalise or type(module).__name__ != "Normalize":
                        features = module(features)
                made = features["sentence_embedding"]
                if normalise and not self.normalises:
                    made = torch.nn.functional.normalize(made, dim=1)
        except (RuntimeError, IndexError, ValueError, KeyError) as error:
            logger.info("the reference cannot be varied by %s: %s", dict(parts), error)
            return None
        array: Vectors = made.float().cpu().numpy()
        return array

    def measure(self, parts: Mapping[str, Any]) -> Measured | None:
        """How far a variant is from the engine under test."""
        made = self.vectors(parts)
        assert self.sample.vectors is not None
        if made is None or made.shape != self.sample.vectors.shape:
            return None
        return measured(made, self.sample.vectors)

    def _longest(self) -> int:
        """The tokens of the longest text: where both limits are beyond it, none of the two cuts anything."""
        sample = self.sample
        sides = (sample.own, sample.other)
        texts = [prefix + text for side in sides for prefix, text in zip(side, sample.texts, strict=True)]
        return max(map(len, self.engine.tokenizer(texts, truncation=False, verbose=False)["input_ids"]))

    def _pool(self, prompts: str, length: int, special: bool) -> dict[str, Any]:
        """The embeddings of the sample as each pooling makes them, before what comes after pooling."""
        import torch

        sample = self.sample
        prefixes = {"own": sample.own, "other": sample.other, "none": [""] * len(sample.texts)}[prompts]
        texts = [prefix + text for prefix, text in zip(prefixes, sample.texts, strict=True)]
        found: dict[str, list[Any]] = {mode: [] for mode in ("own", *POOLINGS)}
        model, tokenizer = self.engine.model, self.engine.tokenizer
        assert self.at is not None
        order = sorted(range(len(texts)), key=lambda at: len(texts[at]))  # short ones need not be as long as long ones
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
                    found[mode].append(_pooled(tokens, mask, mode))
        back = np.argsort(order)
        return {mode: torch.cat(parts)[back] for mode, parts in found.items()}


def measured(one: Vectors, other: Vectors) -> Measured:
    """How far embeddings are from others, shape (n, dim) both."""
    away, found, ratios = deviations(one, other), cosines(one, other), length_ratios(one, other)
    worst, median = float(found.min()), float(np.median(found))
    says = f"the worst cosine is {worst:.5f}"
    low, high = float(ratios.min()), float(ratios.max())
    if max(abs(low - 1), abs(high - 1)) > 0.01:
        says += f" and the lengths are {low:.3g} to {high:.3g} times the engine's"
    return Measured(float(away.max()), worst, median, says)


def dtype_hint(other: Any, sample: Sample, dtype: str) -> Hint | None:
    """Whether the engine's dtype explains it.

    Args:
        other: The reference, opened in that dtype.
        sample: Texts with the reference's embeddings, and the engine's where these are finite.
        dtype: The dtype.
    """
    texts = [prefix + text for prefix, text in zip(sample.own, sample.texts, strict=True)]
    made = np.concatenate([other.embed(texts[at : at + BATCH], False)[0] for at in range(0, len(texts), BATCH)])
    broken = ~np.isfinite(made).all(axis=1)
    way = "See engine.dtype."
    if broken.any():
        if sample.vectors is not None:
            return None
        says = f"in {dtype} the reference, too, gives NaN or Inf, for {broken.sum()} of {len(texts)} texts"
        return Hint("dtype", f"{says}; in its own dtype for none. {way}", 0.0, 0.0)
    if sample.vectors is None:
        return None
    own, observed = measured(made, sample.reference), measured(sample.vectors, sample.reference)
    if not like(own, observed):
        return None
    says = f"in {dtype} the reference is as far from itself: {own.says}; of the engine {observed.says}. {way}"
    return Hint("dtype", says, own.worst, own.median)


def _mode(pooling: Any) -> str:
    """The pooling of sentence-transformers' module, by its own name; several, joined by "+"."""
    mode = getattr(pooling, "pooling_mode", None)
    if mode is None and hasattr(pooling, "get_pooling_mode_str"):  # before sentence-transformers 6
        mode = pooling.get_pooling_mode_str()
    return mode if isinstance(mode, str) else "+".join(mode or ())


def _pooled(tokens: Any, mask: Any, mode: str) -> Any:
    """One embedding a text of those of its tokens: shapes (n, tokens, dim) and (n, tokens) to (n, dim)."""
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
