"""Measures of agreement between two sides: embeddings, pair scores, rankings and similarities."""

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
    """Return the cosine similarity of each pair of rows; 1 if both rows are zero, 0 if one of them is.

    Args:
        one: Shape (n, dim).
        other: Shape (n, dim).

    Returns:
        cosines: float64 array, shape (n,).
    """
    one, other = one.astype(np.float64), other.astype(np.float64)
    norms, other_norms = np.linalg.norm(one, axis=1), np.linalg.norm(other, axis=1)
    products = norms * other_norms
    found = np.einsum("ij,ij->i", one, other) / np.where(products > 0, products, 1.0)
    both_zero = (norms == 0) & (other_norms == 0)
    return np.where(both_zero, 1.0, np.clip(found, -1.0, 1.0))


def norm_ratios(one: Floats, reference: Floats) -> npt.NDArray[np.float64]:
    """Return the ratio of each row's norm to the reference's; 1 if both are zero, infinite if only the reference's is.

    Args:
        one: Shape (n, dim).
        reference: Shape (n, dim).

    Returns:
        ratios: float64 array, shape (n,).
    """
    norms = np.linalg.norm(one.astype(np.float64), axis=1)
    reference_norms = np.linalg.norm(reference.astype(np.float64), axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = norms / reference_norms
    return np.where((norms == 0) & (reference_norms == 0), 1.0, ratios)


def deviations(one: Floats, reference: Floats) -> npt.NDArray[np.float64]:
    """Return the deviation of each row from the reference's in direction and norm, |a-b|² / (2 |a| |b|).

    With r the ratio of the norms it is (r + 1/r)/2 - cosine: 1 - cosine for equal norms, more for different ones.

    Args:
        one: Shape (n, dim).
        reference: Shape (n, dim).

    Returns:
        deviations: float64 array, shape (n,), at least 0; infinite if a row of either side is zero, NaN or Inf.
    """
    one, reference = one.astype(np.float64), reference.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        squares = np.square(one - reference).sum(axis=1)
        norms = np.linalg.norm(one, axis=1) * np.linalg.norm(reference, axis=1)
        found = np.where(squares == 0, 0.0, squares / (2 * norms))
    return np.where(np.isfinite(found), found, np.inf)


def vector_agreement(one: Floats, reference: Floats) -> VectorAgreement:
    """Return the cosine similarities (minimum and quantiles) and the range of the norms' ratios.

    Args:
        one: Shape (n, dim), n at least 1.
        reference: Shape (n, dim).
    """
    found, ratios = cosines(one, reference), norm_ratios(one, reference)
    p001, p01, p10, p50 = (float(value) for value in np.quantile(found, (0.001, 0.01, 0.1, 0.5)))
    length = (float(ratios.min()), float(ratios.max()))
    return VectorAgreement(len(found), float(found.min()), p001, p01, p10, p50, length)


def score_agreement(one: Floats, reference: Floats) -> ScoreAgreement:
    """Return the absolute differences of the pairs' scores, and the Pearson correlation of the two sides.

    Args:
        one: Shape (n,), n at least 1.
        reference: Shape (n,).
    """
    differences = np.abs(one.astype(np.float64) - reference.astype(np.float64))
    p50, p99 = np.quantile(differences, (0.5, 0.99))
    correlation = similarity_agreement(one.tolist(), reference.tolist())
    pearson = correlation.pearson if correlation is not None else None  # undefined if all scores of a side are equal
    return ScoreAgreement(len(differences), float(differences.max()), float(p99), float(p50), pearson)


def ranking_agreement(one: Rankings, reference: Rankings, k: int) -> RankingAgreement | None:
    """Return the agreement of two sides' top k documents per query; None if they have no query in common.

    The overlap is the fraction of the top k that both sides share. Kendall's tau is tau-b (Kendall 1945,
    `scipy.stats.kendalltau`) over the union of both top k; documents outside a side's top k are tied behind it (as in Fagin,
    Kumar and Sivakumar, "Comparing top k lists", 2003). Both are means over queries; queries with undefined tau, since all
    documents of a side are tied, are left out of its mean.

    Args:
        one: One side.
        reference: The other side.
        k: The number of top documents.
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
    """Return the Pearson and Spearman correlations of two sides' similarities; None where they are undefined.

    Args:
        one: One side's similarity of each pair of texts.
        reference: The other side's, in the same order.
    """
    from scipy.stats import pearsonr, spearmanr

    if len(one) != len(reference) or len(one) < 2 or len(set(one)) < 2 or len(set(reference)) < 2:
        return None
    pearson, spearman = pearsonr(one, reference)[0], spearmanr(one, reference)[0]
    return SimilarityAgreement(float(pearson), float(spearman), len(one))


def _best(scores: Mapping[str, float], k: int) -> dict[str, float]:
    # Ties are broken by name, so that both sides select the same documents.
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
