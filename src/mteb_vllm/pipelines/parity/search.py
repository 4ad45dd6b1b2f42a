"""The search for a cause: which texts are tried with which variants of the reference, and in which order."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mteb_vllm.engines.base import Engine, open_engine
from mteb_vllm.engines.sentence_transformers import SentenceTransformersEngine
from mteb_vllm.pipelines.parity.capture import Captured
from mteb_vllm.pipelines.parity.pair_trials import PairSample, PairTrials
from mteb_vllm.pipelines.parity.sides import SideRunner
from mteb_vllm.pipelines.parity.trials import Sample, Trials
from mteb_vllm.pipelines.parity.vector_trials import TextSample, VectorTrials
from mteb_vllm.pipelines.parity.verdict import is_pairs, sample_rows
from mteb_vllm.results.parity import Hint
from mteb_vllm.wrappers import VllmCrossEncoderWrapper, Wrapper

logger = logging.getLogger(__name__)

# Number of texts tried: those that differ most, and others.
WORST, ORDINARY = 32, 16
# Number of texts tried if the engine gave NaN or Inf, which may concern few of them.
MANY = 256


class Search:
    """The search for the cause of tasks that did not pass.

    Args:
        engine: The side under test; its engine is closed.
        reference: The reference; its engine is closed.
        not_finite: The tasks for which the engine gave NaN or Inf.
    """

    def __init__(self, engine: SideRunner, reference: SideRunner, not_finite: Sequence[str]) -> None:
        self.engine, self.reference, self.not_finite = engine, reference, not_finite

    def hints(self, tasks: Sequence[str]) -> tuple[list[Hint], str]:
        """Return the causes found.

        Args:
            tasks: The tasks that did not pass.

        Returns:
            hints: The causes, best explanation first.
            note: Why there are none; empty if there are.
        """
        under_test = self.engine.model.last_engine
        if under_test is None or not tasks:
            return [], ""
        if any(name in self.not_finite for name in tasks):
            captured = self._reference_texts([name for name in tasks if name in self.not_finite])
            if captured is None:
                return [], "the reference embedded none of these texts, so the dtype could not be tested as the cause"
            hint = self._dtype_hint(self._sample(captured, None), under_test.dtype)
            if hint is not None:
                return [hint], ""
            if under_test.dtype == self.reference.model.spec.args.get("dtype"):
                return [], f"the reference has the same dtype, {under_test.dtype}, and produces no NaN or Inf"
            return [], f"the texts that were tried do not show whether {under_test.dtype} is the cause"
        mine, theirs = self._differing(tasks)
        if mine is None or theirs is None:
            return [], ""
        sample = self._sample(theirs, mine)
        hint = self._dtype_hint(sample, under_test.dtype)
        trials = _trials(self.reference.model.engine, sample)
        note = trials.obstacle()
        found = [] if note else trials.hints(under_test.max_model_len, 1)
        if not found and hint is not None:
            return [hint], ""
        if not found and not note:
            found = trials.hints(under_test.max_model_len, 2)
        if not found and not note:
            tried = dict.fromkeys([change.cause for change in trials.changes(under_test.max_model_len)] + ["dtype"])
            note = f"none of {', '.join(tried)} explains it, alone or in pairs"
        return found, note

    def _differing(self, tasks: Sequence[str]) -> tuple[Captured | None, Captured | None]:
        """Return, for both sides, the texts of all tasks that differ most, and some others."""
        both = []
        for name in tasks:
            one, other = self.engine.load_captured(name), self.reference.load_captured(name)
            if one is not None and other is not None:
                one, other = one.common(other)
                if one.keys and one.values.shape == other.values.shape:
                    rows = sample_rows(one, other, WORST, ORDINARY)
                    both.append((one.only(rows), other.only(rows)))
        if not both:
            return None, None
        mine, theirs = _concatenate([one for one, _ in both]), _concatenate([other for _, other in both])
        rows = sample_rows(mine, theirs, WORST, ORDINARY)
        return mine.only(rows), theirs.only(rows)

    def _reference_texts(self, tasks: Sequence[str]) -> Captured | None:
        """Return up to `MANY` texts of the reference: the longest, and others of all lengths."""
        found = [captured for name in tasks if (captured := self.reference.load_captured(name)) is not None]
        if not found:
            return None
        captured = _concatenate(found)
        # Overflow that does not affect all texts is most likely in long ones.
        order = sorted(range(len(captured.keys)), key=lambda row: -sum(map(len, captured.items[row][2])))
        return captured.only(order[: MANY // 2] + order[MANY // 2 :: max(2 * len(order) // MANY, 1)][: MANY // 2])

    def _sample(self, theirs: Captured, mine: Captured | None) -> Sample:
        reference, under_test = self.reference.model, self.engine.model
        own = [self._prefix(reference, task, side) for task, side, _ in theirs.items]
        other = [self._prefix(under_test, task, side) for task, side, _ in theirs.items]
        if is_pairs(theirs):
            assert isinstance(reference, VllmCrossEncoderWrapper) and isinstance(under_test, VllmCrossEncoderWrapper)
            return PairSample(
                pairs=[(texts[0], texts[1]) for _, _, texts in theirs.items],
                own=reference.template,
                other=under_test.template,
                own_instructions=own,
                other_instructions=other,
                reference=theirs.values[:, 0],
                observed=None if mine is None else mine.values[:, 0],
            )
        texts = [texts[0] for _, _, texts in theirs.items]
        observed = None if mine is None else mine.values
        return TextSample(texts=texts, own=own, other=other, reference=theirs.values, observed=observed)

    def _prefix(self, model: Wrapper, task: str, side: str) -> str:
        """Return the prefix that a model used for a side's texts; for pairs, their instruction."""
        applied = model.applied.get((task, None if side == "texts" else side)) or {}
        return applied.get("prefix") or ""

    def _dtype_hint(self, sample: Sample, dtype: str) -> Hint | None:
        """Return a hint if the dtype of the engine under test is the cause, tested by opening the reference in that dtype."""
        spec = self.reference.model.spec
        if dtype == spec.args.get("dtype"):
            return None
        try:
            other = open_engine(replace(spec, args={**spec.args, "dtype": dtype}))
            hint = _trials(other, sample).dtype_hint(dtype)
        except Exception as error:  # the device may not support the dtype
            logger.info("the reference cannot be opened in %s: %s", dtype, error)
            return None
        return hint


def _trials(engine: Engine, sample: Sample) -> Trials:
    assert isinstance(engine, SentenceTransformersEngine)
    if isinstance(sample, PairSample):
        return PairTrials(engine, sample)
    assert isinstance(sample, TextSample)
    return VectorTrials(engine, sample)


def _concatenate(some: Sequence[Captured]) -> Captured:
    """Concatenate several tasks' texts, leaving out tasks whose embeddings differ in dimension from the first one's."""
    fitting = [one for one in some if one.values.shape[1] == some[0].values.shape[1]]
    return Captured(
        [key for one in fitting for key in one.keys],
        [item for one in fitting for item in one.items],
        np.concatenate([one.values for one in fitting]),
    )
