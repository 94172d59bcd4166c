"""What an index promises, and serves: recall, shares of queries, explanations, explicit plans."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from funnel import FLAT, Budget, BudgetError, FunnelIndex, Plan, Stage
from funnel.errors import InputError
from tests.funnel.corpora import DIM, brute_force, funnel_plan, recall


def test_recall_of_unseen_queries(graph: FunnelIndex, rows: np.ndarray, unseen: np.ndarray) -> None:
    truth, _ = brute_force(rows, unseen, 10)
    found, scores = graph.search_vectors(unseen, 10, plan=funnel_plan(graph))
    positions = np.array([[int(id_.split()[1]) for id_ in row] for row in found])
    # Three standard errors of 300 queries whose recall varies by .1.
    assert recall(positions, truth) >= 0.9 - 3 * 0.1 / np.sqrt(300)
    own = np.einsum("qd,qkd->qk", unseen, rows[positions])
    assert_allclose(scores, own, atol=2e-6)
    assert (np.diff(scores, axis=1) <= 0).all()
    served, _ = graph.search_vectors(unseen, 10, recall=0.9)
    positions = np.array([[int(id_.split()[1]) for id_ in row] for row in served])
    assert recall(positions, truth) >= 0.9 - 3 * 0.1 / np.sqrt(300)


def test_recall_one_is_exact(graph: FunnelIndex, rows: np.ndarray, unseen: np.ndarray) -> None:
    truth, cosines = brute_force(rows, unseen, 10)
    found, scores = graph.search_vectors(unseen, 10, recall=1.0)
    assert_allclose(scores, cosines, atol=2e-6)
    same = np.array([[f"row {i}" for i in row] for row in truth]) == found
    assert same.mean() > 0.99  # but for neighbours closer than float32 tells apart


def test_explain_is_what_search_runs(graph: FunnelIndex, unseen: np.ndarray) -> None:
    explained = graph.explain(10, recall=0.9)
    assert explained.recall_lower_bound >= 0.9
    assert explained.recall >= explained.recall_lower_bound
    assert explained.certificate.certified
    assert 0 < explained.p50_ms <= explained.p95_ms
    assert explained.stages[0].name == ("flat" if explained.plan.is_flat else "coarse")
    assert explained.stages[-1].width == DIM
    assert explained.stages[-1].candidates_out == 10
    for given in (explained, explained.plan):
        one = graph.search_vectors(unseen[:1], 10, plan=given)
        assert_array_equal(one[0], graph.search_vectors(unseen[:1], 10, recall=0.9)[0])
    assert json.loads(json.dumps(explained.to_json()))["plan"] == explained.plan.to_json()
    assert str(explained.plan) in str(explained)


def test_answers_say_how_they_were_found(graph: FunnelIndex, unseen: np.ndarray) -> None:
    explained = graph.explain(recall=0.9, batch=256)
    answers = graph.search_vectors(unseen[:200], recall=0.9)
    assert answers.served.plan == explained.plan
    assert answers.served.estimated_recall == pytest.approx(explained.recall)
    assert graph.search(unseen[0], plan=FLAT).served.estimated_recall == 1.0


def test_a_share_of_queries_gets_the_recall(graph: FunnelIndex, rows: np.ndarray, unseen: np.ndarray) -> None:
    explained = graph.explain(10, recall=0.9, share=0.8, batch=256)
    assert explained.certificate.certified
    assert explained.certificate.share == 0.8
    assert explained.share is not None
    assert explained.share_lower_bound is not None
    assert 0.8 <= explained.share_lower_bound <= explained.share
    assert "for 80 % of queries at k=10" in str(explained)
    assert json.loads(json.dumps(explained.to_json(), allow_nan=False))["share"] == explained.share
    assert graph.explain(10, recall=0.9).share is None
    answers = graph.search_vectors(unseen[:256], recall=0.9, share=0.8)
    assert answers.served.plan == explained.plan
    assert answers.served.estimated_recall == pytest.approx(explained.recall)
    _, scores = brute_force(rows, unseen[:256], 10)
    met = (answers.scores >= scores[:, [9]] - 1e-6).sum(axis=1) >= 9
    assert met.mean() >= 0.8 - 2 * (0.8 * 0.2 / 256) ** 0.5
    hits = graph.search(unseen[0], recall=0.9, share=0.8)
    assert hits.served.plan.check(graph.searcher.widths) is None


def test_explicit_plans(graph: FunnelIndex, rows: np.ndarray, unseen: np.ndarray) -> None:
    truth, _ = brute_force(rows, unseen[:20], 10)
    flat, _ = graph.search_vectors(unseen[:20], 10, plan=FLAT)
    assert flat.tolist() == [[f"row {i}" for i in row] for row in truth]
    staged = Plan(64, 64, (Stage(48, 20),))
    found, scores = graph.search_vectors(unseen[:20], 10, plan=staged)
    assert len({*found[0]}) == 10
    assert np.isfinite(scores).all()
    for wrong in (Plan(64, 64, (Stage(40, 20),)), Plan(64, 64, (Stage(48, 65),)), Plan(0, 0, (Stage(48, 5),))):
        with pytest.raises(InputError):
            graph.search_vectors(unseen[:1], 10, plan=wrong)
    with pytest.raises(InputError, match="either a plan or a budget"):
        graph.search(unseen[0], 10, plan=FLAT, recall=0.9)
    with pytest.raises(InputError, match="expected a Plan"):
        graph.search(unseen[0], 10, plan=3)  # type: ignore[call-overload]


def test_budgets(graph: FunnelIndex, unseen: np.ndarray) -> None:
    same = Budget(recall=0.9)
    assert_array_equal(
        graph.search_vectors(unseen[:9], 5, budget=same)[0], graph.search_vectors(unseen[:9], 5, recall=0.9)[0]
    )
    assert len(graph.search(unseen[0], 5, latency_ms=1000, recall=0.9)) == 5
    assert len(graph.search(unseen[0], 5, latency_ms=1000)) == 5
    with pytest.raises(BudgetError, match="95th percentile"):
        graph.search(unseen[0], 5, latency_ms=1e-6)
    with pytest.raises(InputError, match="not both"):
        graph.search(unseen[0], 5, budget=same, recall=0.9)
    assert graph.explain(10).budget == "recall 0.95"


def test_without_real_queries_nothing_is_certified(texts: FunnelIndex) -> None:
    assert texts.certification == "uncertified: calibrated on corpus rows"
    assert "uncertified" in repr(texts)
    explained = texts.explain(10, recall=0.9)
    assert "uncertified" in str(explained.certificate)
    assert "lower bound" not in str(explained)
    told = json.loads(json.dumps(explained.to_json(), allow_nan=False))
    if not explained.plan.is_flat:  # which is exact; of so few rows it may be the fastest
        assert math.isnan(explained.recall_lower_bound)
        assert told["recall_lower_bound"] is None
        assert told["certificate"]["lower_bound"] is None
    share = texts.explain(10, recall=0.9, share=0.8)
    assert "lower bound" not in str(share)
    assert share.plan.is_flat or share.share_lower_bound is None
