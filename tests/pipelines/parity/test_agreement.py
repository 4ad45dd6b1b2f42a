"""Measures of agreement against values computed by hand, the selection of texts, and verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mteb_vllm.pipelines.parity.agreement import (
    cosines,
    deviations,
    norm_ratios,
    ranking_agreement,
    score_agreement,
    similarity_agreement,
    vector_agreement,
)
from mteb_vllm.pipelines.parity.capture import Captured, Recorder
from mteb_vllm.pipelines.parity.verdict import Side, judge, sample_rows
from mteb_vllm.results.parity import (
    DifferingText,
    RankingAgreement,
    ScoreAgreement,
    SimilarityAgreement,
    TaskVerdict,
    Tolerances,
)

ONE = np.array([[3, 4], [1, 0], [0, 0], [0, 0], [2, 0]], dtype=np.float32)
OTHER = np.array([[4, 3], [0, 1], [0, 0], [1, 0], [1, 0]], dtype=np.float32)
ALLOWED = Tolerances(score=5e-4, cosine=0.99, length=0.01)


def test_cosines_norms_and_deviations() -> None:
    assert cosines(ONE, OTHER).tolist() == pytest.approx([24 / 25, 0, 1, 0, 1])
    assert norm_ratios(ONE, OTHER).tolist() == pytest.approx([1, 1, 1, 0, 2])
    # (r + 1/r)/2 - cosine: for twice the norm, 1.25 - 1.
    assert deviations(ONE, OTHER).tolist() == pytest.approx([1 / 25, 1, 0, np.inf, 0.25])
    broken = np.array([[np.nan, 1]], dtype=np.float32)
    assert deviations(broken, OTHER[:1]).tolist() == [np.inf]


def test_vectors_and_scores() -> None:
    found = vector_agreement(ONE[[0, 1, 4]], OTHER[[0, 1, 4]])
    assert (found.texts, found.min, found.length) == (3, 0, (1, 2))
    assert found.p50 == pytest.approx(0.96) and found.p10 == pytest.approx(0.192)
    scores = score_agreement(np.array([1.0, 2.0, 3.0]), np.array([1.5, 2.0, 1.0]))
    assert scores == ScoreAgreement(3, 2.0, pytest.approx(1.97), 0.5, pytest.approx(-0.5))


def test_rankings() -> None:
    reference = {"q1": {"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0}, "q2": {"a": 1.0}, "q3": {"x": 1.0}}
    swapped = {"q1": {"b": 4.0, "a": 3.0, "c": 2.0, "d": 1.0}, "q2": {"a": 7.0}}
    found = ranking_agreement(swapped, reference, 3)
    # One of the pairs ab, ac, bc is reversed: (2 - 1) / 3.
    assert found == RankingAgreement(3, 1.0, pytest.approx((1 / 3 + 1) / 2), 2)
    # Tops {a, b} and {c, d}: of the union's pairs ab and cd are tied on one side each, and the other four are opposite.
    apart = ranking_agreement({"q1": {"c": 2.0, "d": 1.0}}, {"q1": {"a": 2.0, "b": 1.0}}, 2)
    assert apart == RankingAgreement(2, 0.0, pytest.approx(-4 / 5), 1)
    tied = ranking_agreement({"q": {"a": 1.0, "b": 1.0}}, {"q": {"a": 2.0, "b": 1.0}}, 2)
    assert tied == RankingAgreement(2, 1.0, None, 1)
    assert ranking_agreement({"q": {"a": 1.0}}, {}, 2) is None


def test_similarities() -> None:
    found = similarity_agreement([1.0, 2.0, 4.0], [2.0, 4.0, 3.0])
    assert found == SimilarityAgreement(pytest.approx(0.3273268), pytest.approx(0.5), 3)
    assert similarity_agreement([1.0, 1.0], [1.0, 2.0]) is None


def record_numbers(texts: list[str], limit: int, *, chunk_size: int = 3) -> Captured:
    """Return what a recorder keeps of texts that are numbers, with the number as embedding."""
    recorder = Recorder(limit)
    for at in range(0, len(texts), chunk_size):
        part = texts[at : at + chunk_size]
        assert list(recorder.watch("task", None, part)) == part
        recorder.take(np.array([[float(text)] for text in part], dtype=np.float32))
    found = recorder.captured()
    assert found is not None
    return found


def test_both_sides_keep_the_same_texts_whatever_their_order(tmp_path: Path) -> None:
    texts = [str(number) for number in range(100)]
    one, other = record_numbers([*texts, *texts[:7]], 10), record_numbers(texts[::-1], 10, chunk_size=40)
    assert len(one.keys) == 10 and one.keys == other.keys and one.items == other.items
    assert all(float(item[2][0]) == value for item, value in zip(one.items, one.values[:, 0], strict=True))
    one.save(tmp_path / "kept")
    again = Captured.load(tmp_path / "kept")
    assert again.items == one.items and np.array_equal(again.values, one.values)
    few, same = record_numbers(texts[:50], 100).common(record_numbers(texts[30:], 100))
    assert len(few.keys) == 20 and few.items == same.items and np.array_equal(few.values, same.values)
    assert Recorder(3).captured() is None


def test_pairs_are_kept_with_their_scores() -> None:
    recorder = Recorder(100)
    for _ in range(2):  # the first call fails before its scores are recorded
        assert list(recorder.watch_pairs("task", ["q", "q", "r"])) == ["q", "q", "r"]
        assert list(recorder.watch_pairs("task", ["a", "b", "a"])) == ["a", "b", "a"]
    recorder.take_pairs(np.array([1, 2, 3], dtype=np.float32))
    found = recorder.captured()
    assert found is not None
    kept = {item[2]: float(value) for item, value in zip(found.items, found.values[:, 0], strict=True)}
    assert kept == {("q", "a"): 1, ("q", "b"): 2, ("r", "a"): 3}


def captured(values: Any) -> Captured:
    keys = [f"{at:02}" for at in range(len(values))]
    return Captured(keys, [("T", "texts", (f"text {key}",)) for key in keys], np.array(values, dtype=np.float32))


def verdict(one: Side, other: Side) -> TaskVerdict:
    return judge("T", "accuracy", one, other, ALLOWED, k=10, worst=1)


def test_a_verdict_gives_its_reasons() -> None:
    scores = {"test": {"default": 0.5, "en": 0.25}}
    vectors = captured([[1, 0], [0, 1]])
    fine = verdict(Side(scores, vectors), Side({"test": {"default": 0.5004, "en": 0.25}}, vectors))
    assert fine.passed and not fine.reasons and [row.passed for row in fine.splits] == [True, True]
    assert fine.splits[0].difference == pytest.approx(-0.0004) and fine.cosine.min == 1
    better = verdict(Side({"test": {"default": 0.51}}), Side(scores))
    assert not better.passed, "two-sided"
    assert better.reasons == ["the main score differs from the reference's by +0.01000, tolerance 0.0005"]
    turned = verdict(Side(scores, captured([[1, 0], [1, 1]])), Side(scores, vectors))
    assert turned.reasons == [
        "1 of 2 texts have a cosine similarity below 0.99; the lowest is 0.70711",
        "the embeddings' norms are 1 to 1.4142 times the reference's, but the tolerance is 0.01",
    ]
    assert turned.worst == [DifferingText("text 01", "texts", pytest.approx(0.7071068))]
    pairs = Captured(["0", "1", "2"], [("T", "pair", ("q", "d"))] * 3, np.array([[1], [2], [4]], dtype=np.float32))
    assert verdict(Side(scores, pairs), Side(scores, pairs)).passed
    other = verdict(Side(scores, pairs), Side(scores, Captured(pairs.keys, pairs.items, pairs.values[[1, 2, 0]])))
    assert "correlation of the pairs' scores is -0.5" in other.reasons[0] and not other.passed
    shorter = verdict(Side(scores, captured([[1], [1]])), Side(scores, vectors))
    assert "have dimension 1, the reference's 2" in shorter.reasons[0]
    unknown = verdict(Side({"test": {"default": None}}), Side(scores))
    assert not unknown.passed and "not a number" in unknown.reasons[0]
    failed = verdict(Side(failed="out of memory"), Side(scores))
    assert failed.reasons == ["the engine failed: out of memory"] and not failed.passed
    assert not verdict(Side({"dev": {"default": 0.5}}), Side(scores)).passed, "nothing in common"


def test_the_sample_contains_the_worst_rows_and_some_others() -> None:
    angles = np.linspace(0, 1, 40)
    turned = captured(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    rows = sample_rows(turned, captured([[1, 0]] * 40), 3, 4)
    assert rows == [39, 38, 37, 36, 27, 18, 9]
    assert sample_rows(turned, captured([[1, 0]] * 40), 100, 4) == list(range(39, -1, -1))
