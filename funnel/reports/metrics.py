"""Quality of what a search returned: recall against flat search, and ranking against judgements."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from funnel.errors import InputError, MissingPackageError

# Scores of equal rows differ by rounding alone: float32 sums of unit vectors agree to about 1e-7.
TIE_TOLERANCE = 1e-6

# What grades with fractions are scaled to: rounds by 1e-5, and trec_eval keeps a table of so many grades.
LARGEST_GRADE = 50_000

# Our name of a measure, pytrec_eval's name to ask for it, and its name in the answer.
RANKING_MEASURES = (
    ("ndcg@10", "ndcg_cut.10", "ndcg_cut_10"),
    ("recall@100", "recall.100", "recall_100"),
)


def recall_at_k(
    returned_scores: NDArray[Any], true_scores: NDArray[Any], k: int, tolerance: float = TIE_TOLERANCE
) -> NDArray[np.float32]:
    """Share of the true top k that each query got, ties counted in its favour.

    A returned row counts if its true score is within the tolerance of the k-th true score, or above
    it, so that exchanging duplicates of one document costs nothing; at most k rows count.

    Args:
        returned_scores: float [n_queries, n_returned], the *true* score (exact, full width) of every
            row returned, in any order, each row once; NaN or −inf where fewer were returned.
        true_scores: float [n_queries, at least k], the best scores of flat search, in any order.
        k: how many were asked for.
        tolerance: how far below the k-th true score still counts as a tie.

    Returns:
        float32 [n_queries], from 0 to 1.

    Raises:
        InputError: k is below 1 or above the true scores given, the shapes do not fit, a true score
            is not finite, or the tolerance is negative.
    """
    _check_recall_arguments(returned_scores, true_scores, k, tolerance)
    true = true_scores.astype(np.float64)
    position = true.shape[1] - k
    kth = np.partition(true, position, axis=1)[:, position]
    counted = (returned_scores.astype(np.float64) >= kth[:, None] - tolerance).sum(axis=1)
    share: NDArray[np.float32] = (np.minimum(counted, k) / k).astype(np.float32)
    return share


def ranking_metrics(
    run: Mapping[str, Mapping[str, float]], qrels: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    """nDCG@10 and recall@100 by trec_eval, averaged over the judged queries.

    The average is that of `trec_eval -c`: over every query with at least one relevant document; one
    that is missing from the run counts as 0.

    Args:
        run: query id → document id → score.
        qrels: query id → document id → relevance; above 0 is relevant, fractions too.

    Returns:
        {"ndcg@10": …, "recall@100": …}.

    Raises:
        InputError: no query has a relevant document; a relevance is not finite.
        MissingPackageError: pytrec_eval is not installed.
    """
    judged = {
        str(query): _whole({str(document): float(relevance) for document, relevance in documents.items()})
        for query, documents in qrels.items()
        if any(relevance > 0 for relevance in documents.values())
    }
    if not judged:
        raise InputError(f"none of the {len(qrels)} judged queries has a relevant document; check the qrels file")
    scored = {
        str(query): {str(document): float(score) for document, score in documents.items()}
        for query, documents in run.items()
        if documents
    }
    answers = _trec_eval(scored, judged)
    return {name: sum(answer[key] for answer in answers.values()) / len(judged) for name, _, key in RANKING_MEASURES}


def _whole(grades: dict[str, float]) -> dict[str, int]:
    """Grades as trec_eval takes them: where some have fractions, all times one factor, which changes no measure."""
    if not all(map(math.isfinite, grades.values())):
        raise InputError("the qrels hold a grade that is not finite; give numbers")
    if all(grade.is_integer() for grade in grades.values()):
        return {document: int(grade) for document, grade in grades.items()}
    factor = LARGEST_GRADE / max(map(abs, grades.values()))
    return {document: max(1, round(grade * factor)) if grade > 0 else 0 for document, grade in grades.items()}


def _trec_eval(run: dict[str, dict[str, float]], qrels: dict[str, dict[str, int]]) -> dict[str, dict[str, float]]:
    try:
        import pytrec_eval
    except ImportError as error:
        raise MissingPackageError(
            "ranking metrics need pytrec_eval; install it with: pip install 'funnel-retrieval[beir]'"
        ) from error
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, {measure for _, measure, _ in RANKING_MEASURES})
    answers: dict[str, dict[str, float]] = evaluator.evaluate(run)
    return answers


def _check_recall_arguments(returned: NDArray[Any], true: NDArray[Any], k: int, tolerance: float) -> None:
    if returned.ndim != 2 or true.ndim != 2 or len(returned) != len(true):
        raise InputError(
            f"returned_scores has shape {returned.shape} and true_scores {true.shape}; both must be "
            "two-dimensional with one row a query"
        )
    if not 1 <= k <= true.shape[1]:
        raise InputError(f"k is {k}; it must be from 1 to {true.shape[1]}, the true scores given for a query")
    if not np.isfinite(true).all():
        raise InputError("true_scores holds values that are not finite; pass the scores of flat search")
    if not tolerance >= 0:
        raise InputError(f"tolerance is {tolerance}; it must be 0 or more")
