"""How well two sides agree: vectors, scores of pairs, rankings and similarities. Arrays in, plain numbers out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mteb_vllm.results.parity import RankingAgreement, ScoreAgreement, SimilarityAgreement, VectorAgreement

Floats = npt.NDArray[np.floating[Any]]
# Query to document to score.
Rankings = Mapping[str, Mapping[str, float]]


def cosines(one: Floats, other: Floats) -> npt.NDArray[np.float64]:
    """The cosine of each pair of rows; of two zero vectors 1, of one of them 0.

    Args:
        one: Shape (n, dim).
        other: Shape (n, dim).

    Returns:
        cosines: float64 array, shape (n,).
    """
    one, other = one.astype(np.float64), other.astype(np.float64)
    lengths, others = np.linalg.norm(one, axis=1), np.linalg.norm(other, axis=1)
    both = lengths * others
    found = np.einsum("ij,ij->i", one, other) / np.where(both > 0, both, 1.0)
    alike = (lengths == 0) & (others == 0)
    return np.where(alike, 1.0, np.clip(found, -1.0, 1.0))


def length_ratios(one: Floats, reference: Floats) -> npt.NDArray[np.float64]:
    """The length of each row over that of the reference's; of two zero vectors 1, infinite where only the reference's is one.

    Args:
        one: Shape (n, dim).
        reference: Shape (n, dim).

    Returns:
        ratios: float64 array, shape (n,).
    """
    lengths = np.linalg.norm(one.astype(np.float64), axis=1)
    others = np.linalg.norm(reference.astype(np.float64), axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = lengths / others
    return np.where((lengths == 0) & (others == 0), 1.0, ratios)


def deviations(one: Floats, reference: Floats) -> npt.NDArray[np.float64]:
    """How far each row is from the reference's, in direction and length: (r + 1/r)/2 - cosine, with r the lengths' ratio.

    It is |a-b|^2 / (2 |a| |b|): for vectors of one length 1 minus their cosine, and more where the lengths differ.

    Args:
        one: Shape (n, dim).
        reference: Shape (n, dim).

    Returns:
        deviations: float64 array, shape (n,), from 0; infinite where one side is zero, NaN or Inf.
    """
    one, reference = one.astype(np.float64), reference.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        apart = np.square(one - reference).sum(axis=1)
        lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(reference, axis=1)
        found = np.where(apart == 0, 0.0, apart / (2 * lengths))
    return np.where(np.isfinite(found), found, np.inf)


def vector_agreement(one: Floats, reference: Floats) -> VectorAgreement:
    """Return the cosines (minimum and quantiles) and the range of the lengths' ratios.

    Args:
        one: Shape (n, dim), n at least 1.
        reference: Shape (n, dim).
    """
    found, ratios = cosines(one, reference), length_ratios(one, reference)
    p001, p01, p10, p50 = (float(value) for value in np.quantile(found, (0.001, 0.01, 0.1, 0.5)))
    length = (float(ratios.min()), float(ratios.max()))
    return VectorAgreement(len(found), float(found.min()), p001, p01, p10, p50, length)


def score_agreement(one: Floats, reference: Floats) -> ScoreAgreement:
    """Return the absolute differences of pairs' scores, and Pearson's correlation of the two sides'.

    Args:
        one: Shape (n,), n at least 1.
        reference: Shape (n,).
    """
    apart = np.abs(one.astype(np.float64) - reference.astype(np.float64))
    p50, p99 = np.quantile(apart, (0.5, 0.99))
    alike = similarity_agreement(one.tolist(), reference.tolist())
    pearson = alike.pearson if alike is not None else None  # not defined where a side's scores are all the same
    return ScoreAgreement(len(apart), float(apart.max()), float(p99), float(p50), pearson)


def ranking_agreement(one: Rankings, reference: Rankings, k: int) -> RankingAgreement | None:
    """How alike two rankings are among the first k documents of each query; None where no query is on both sides.

    The overlap is the share of the first k that both have. Kendall's tau is tau-b (Kendall 1945, `scipy.stats.kendalltau`)
    over the union of the two first k; a document that one side does not have among its own stands behind all that it has,
    tied with the others like it (as Fagin, Kumar and Sivakumar, "Comparing top k lists", 2003, place them). Both are means
    over queries; a query where tau is not defined, since all documents of a side are tied, does not count for tau.

    Args:
        one: One side.
        reference: The other.
        k: How many documents count.
    """
    overlaps, taus = [], []
    for query in reference.keys() & one.keys():
        first, second = _best(one[query], k), _best(reference[query], k)
        if not first and not second:
            continue
        overlaps.append(len(first.keys() & second.keys()) / max(len(first), len(second)))
        if (tau := _kendall(first, second)) is not None:
            taus.append(tau)
    if not overlaps:
        return None
    kendall = math.fsum(taus) / len(taus) if taus else None
    return RankingAgreement(k, math.fsum(overlaps) / len(overlaps), kendall, len(overlaps))


def similarity_agreement(one: Sequence[float], reference: Sequence[float]) -> SimilarityAgreement | None:
    """Pearson's and Spearman's correlation of two sides' similarities; None where there are fewer than two pairs.

    Args:
        one: One similarity for each pair of texts.
        reference: The other side's, in the same order.
    """
    from scipy.stats import pearsonr, spearmanr

    if len(one) != len(reference) or len(one) < 2 or len(set(one)) < 2 or len(set(reference)) < 2:
        return None
    pearson, spearman = pearsonr(one, reference)[0], spearmanr(one, reference)[0]
    return SimilarityAgreement(float(pearson), float(spearman), len(one))


def _best(scores: Mapping[str, float], k: int) -> dict[str, float]:
    # Equal scores by name, so that both sides take the same ones.
    best = sorted(scores, key=lambda document: (-scores[document], document))[:k]
    return {document: scores[document] for document in best}


def _kendall(first: Mapping[str, float], second: Mapping[str, float]) -> float | None:
    from scipy.stats import kendalltau

    union = sorted(first.keys() | second.keys())
    if len(union) == 1:
        return 1.0
    sides = []
    for side in (first, second):
        last = min(side.values(), default=0.0) - 1.0
        sides.append([side.get(document, last) for document in union])
    if len(set(sides[0])) < 2 or len(set(sides[1])) < 2:
        return None
    return float(kendalltau(*sides)[0])
