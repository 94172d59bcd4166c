import math
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from funnel.errors import InputError, MissingPackageError
from funnel.reports.bench import ranking_metrics, recall_at_k

TRUE = np.array([[0.9, 0.8, 0.7, 0.6]], np.float32)


def recall(returned: list[float], k: int, true: np.ndarray = TRUE, **options: float) -> float:
    return float(recall_at_k(np.array([returned], np.float32), true, k, **options)[0])


def test_hand_values() -> None:
    assert recall([0.9, 0.8], 2) == 1.0
    assert recall([0.9, 0.7], 2) == 0.5
    assert recall([0.5, 0.4], 2) == 0.0
    assert recall([0.9, 0.7, 0.6], 3) == pytest.approx(2 / 3)


def test_each_query_has_its_own_value() -> None:
    true = np.array([[0.9, 0.8], [0.5, 0.4]], np.float32)
    returned = np.array([[0.9, 0.3], [0.5, 0.4]], np.float32)
    shares = recall_at_k(returned, true, 2)
    assert shares.dtype == np.float32
    np.testing.assert_array_equal(shares, [0.5, 1.0])


def test_duplicates_of_the_kth_count() -> None:
    tied = np.array([[0.9, 0.8, 0.8, 0.8]], np.float32)
    assert recall([0.9, 0.8], 2, tied) == 1.0
    assert recall([0.8, 0.8], 2, tied) == 1.0


def test_ties_are_within_the_tolerance_and_no_further() -> None:
    true = np.array([[0.5]])
    assert recall_at_k(np.array([[0.5 - 0.9e-6]]), true, 1)[0] == 1.0
    assert recall_at_k(np.array([[0.5 - 1.1e-6]]), true, 1)[0] == 0.0
    assert recall_at_k(np.array([[0.4]]), true, 1, tolerance=0.2)[0] == 1.0


def test_at_most_k_count() -> None:
    assert recall([0.9, 0.8, 0.7], 1) == 1.0


def test_rows_above_the_kth_count_even_if_flat_missed_them() -> None:
    assert recall([0.95, 0.9], 2) == 1.0


@pytest.mark.parametrize("filler", [np.nan, -np.inf])
def test_fillers_do_not_count(filler: Any) -> None:
    assert recall([0.9, filler], 2) == 0.5


def test_nothing_returned_is_zero() -> None:
    np.testing.assert_array_equal(recall_at_k(np.empty((2, 0)), np.ones((2, 3)), 2), [0.0, 0.0])


def test_the_order_of_the_true_scores_does_not_matter() -> None:
    assert recall([0.9, 0.7], 2, TRUE[:, ::-1]) == 0.5


@given(
    scores=st.lists(st.integers(-50, 50), min_size=1, max_size=30, unique=True),
    data=st.data(),
)
def test_without_ties_it_is_the_share_of_the_top_k(scores: Any, data: Any) -> None:
    k = data.draw(st.integers(1, len(scores)))
    returned = data.draw(st.lists(st.sampled_from(scores), unique=True, max_size=k))
    top = set(sorted(scores, reverse=True)[:k])
    expected = len(top & set(returned)) / k
    array = np.array([returned], np.float64).reshape(1, -1) / 50
    assert recall_at_k(array, np.array([scores]) / 50, k)[0] == pytest.approx(expected)


def test_ranking_by_hand() -> None:
    qrels = {"q1": {"a": 2, "b": 1, "c": 0}, "q2": {"d": 1}}
    run = {"q1": {"x": 0.9, "a": 0.8, "b": 0.7}, "q2": {"d": 0.5, "y": 0.4}}
    # Gain is the relevance, discount log2(rank + 1): the graded form of trec_eval.
    gained = 2 / math.log2(3) + 1 / math.log2(4)
    ideal = 2 + 1 / math.log2(3)
    metrics = ranking_metrics(run, qrels)
    assert set(metrics) == {"ndcg@10", "recall@100"}
    assert metrics["ndcg@10"] == pytest.approx((gained / ideal + 1) / 2)
    assert metrics["recall@100"] == pytest.approx(1.0)


def test_ranking_is_cut_at_10_and_at_100() -> None:
    run = {"q": {f"d{rank:03}": -float(rank) for rank in range(1, 151)}}
    assert ranking_metrics(run, {"q": {"d010": 1}})["ndcg@10"] == pytest.approx(1 / math.log2(11))
    assert ranking_metrics(run, {"q": {"d011": 1}})["ndcg@10"] == 0.0
    assert ranking_metrics(run, {"q": {"d100": 1, "d101": 1}})["recall@100"] == pytest.approx(0.5)


def test_a_judged_query_that_is_missing_counts_as_zero() -> None:
    qrels = {"q1": {"a": 1}, "q2": {"a": 1}, "q3": {"a": 1}, "q4": {"a": 0}}
    run = {"q1": {"a": 1.0}, "q2": {}, "q9": {"a": 1.0}}
    assert ranking_metrics(run, qrels)["ndcg@10"] == pytest.approx(1 / 3)


def test_judgements_without_a_relevant_document_are_refused() -> None:
    with pytest.raises(InputError, match="none of the 1 judged queries"):
        ranking_metrics({"q": {"a": 1.0}}, {"q": {"a": 0}})


def test_numpy_scores_are_taken() -> None:
    run = {"q": {"a": np.float32(1.0)}}
    assert ranking_metrics(run, {"q": {"a": np.int64(1)}})["ndcg@10"] == 1.0  # type: ignore[arg-type, dict-item]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytrec_eval", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'funnel-retrieval\[beir\]'"):
        ranking_metrics({"q": {"a": 1.0}}, {"q": {"a": 1}})


def test_grades_between_0_and_1_are_relevant() -> None:
    run = {"q": {"a": 3.0, "b": 2.0, "c": 1.0}}
    halves = ranking_metrics(run, {"q": {"b": 0.5, "c": 1.0, "a": 0.0}})
    assert halves == pytest.approx(ranking_metrics(run, {"q": {"b": 1, "c": 2, "a": 0}}), abs=1e-4)
    with pytest.raises(InputError, match="not finite"):
        ranking_metrics(run, {"q": {"b": float("nan"), "c": 1}})
