from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from funnel.budget import Budget
from funnel.errors import BudgetError, InputError
from funnel.plan import FLAT
from funnel.planning.bounds import betting_lower_bound, fixed_sequence
from funnel.planning.calibration import UNCERTIFIED, Calibration
from funnel.planning.frontier import Frontier, build_frontier, hits_needed, tail_of
from funnel.planning.planner import Planner
from tests.funnel.planning.conftest import DIM, Recorded
from tests.funnel.planning.made_up import PLANS, K, make_calibration, make_planner
from tests.funnel.planning.test_frontier import costs_for

NEEDED = 9

Recording = Callable[[str], Recorded]


@pytest.fixture(params=["hnsw-sq8", "ivf-sq8"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


MADE: dict[str, tuple[Frontier, Frontier]] = {}


def made(recording: Recording, name: str) -> tuple[Frontier, Frontier]:
    if name not in MADE:
        _, corpus, real = recording(name)
        costs = costs_for(corpus)
        uniform = build_frontier(K, corpus, real, costs, name.startswith("hnsw"), DIM)
        MADE[name] = uniform, tail_of(uniform, NEEDED)
    return MADE[name]


@given(st.integers(1, 100), st.integers(1, 100), st.integers(1, 100))
def test_hits_needed_are_the_fewest_that_reach_the_recall(k: int, over: int, under: int) -> None:
    recall = min(over, under) / max(over, under)
    needed = hits_needed(recall, k)
    assert needed / k >= recall - 1e-9
    assert needed == 1 or (needed - 1) / k < recall


def test_hits_needed_of_round_numbers() -> None:
    assert [hits_needed(recall, 10) for recall in (0.3, 0.7, 0.9, 0.91, 0.95, 1.0)] == [3, 7, 9, 10, 10, 10]
    assert [hits_needed(recall, 100) for recall in (0.29, 0.57, 0.95, 0.999)] == [29, 57, 95, 100]
    assert hits_needed(1e-12, 10) == 1


def test_order_is_by_held_out_rows_alone(recorded: Recording, name: str) -> None:
    uniform, tail = made(recorded, name)
    assert sorted(tail.plans, key=str) == sorted(uniform.plans, key=str)
    worth = np.clip((tail.corpus_hits.astype(float) - NEEDED + 1) / (K - NEEDED + 1), 0, 1).mean(axis=1)
    assert (np.diff(worth) <= 1e-12).all()
    blind = tail_of(replace(uniform, query_hits=np.zeros_like(uniform.hits)), NEEDED)  # queries that find nothing
    assert blind.plans == tail.plans
    assert not blind.hits.any()
    none = tail_of(replace(uniform, query_hits=None), NEEDED)
    assert none.plans == tail.plans
    assert none.hits is none.corpus_hits
    at = uniform.plans.index(tail.plans[0])
    np.testing.assert_array_equal(tail.hits[0], uniform.hits[at])


def test_without_plans_there_is_none() -> None:
    nothing = np.empty((0, 9), np.uint8)
    assert tail_of(Frontier(K, (), nothing, nothing), NEEDED).plans == ()


def test_what_is_tested_is_whether_a_query_got_enough(recorded: Recording, name: str) -> None:
    _, made_tail = made(recorded, name)
    for i in range(0, len(made_tail.plans), 5):
        np.testing.assert_array_equal(made_tail.recalls(i), made_tail.hits[i] >= NEEDED)


# ---- from a budget to a plan -------------------------------------------------------------------------------------


def planner_over(recording: Recording, name: str, real: bool = True) -> Planner:
    _, corpus, queries = recording(name)
    calibration = Calibration(
        costs=costs_for(corpus),
        by_effort=name.startswith("hnsw"),
        dim=DIM,
        date="2026-01-02T03:04:05+00:00",
        n_queries=len(queries.queries) if real else 0,
        n_corpus_rows=len(corpus.queries),
        depth=100,
        corpus=corpus,
        queries=queries if real else None,
    )
    return make_planner(calibration)


def test_the_cheapest_that_passes_is_served_and_certified(recorded: Recording, name: str) -> None:
    planner = planner_over(recorded, name)
    budget = Budget(0.9, share=0.6)
    choice = planner.choose(budget, K, 1)
    frontier = planner.frontier(budget, K)
    assert frontier is not None
    assert frontier.needed == NEEDED
    passed = frontier.plans[: fixed_sequence((frontier.recalls(i) for i in range(len(frontier.plans))), 0.6, 0.05)]
    assert choice.plan in passed
    costs = planner.costs
    least = min(costs.predict(plan, 1, DIM) for plan in passed)
    assert costs.predict(choice.plan, 1, DIM) == least
    certificate = choice.certificate
    at = frontier.plans.index(choice.plan)
    assert certificate.certified
    assert (certificate.recall, certificate.share) == (0.9, 0.6)
    assert certificate.estimate == (frontier.hits[at] >= NEEDED).mean()
    assert certificate.lower_bound == betting_lower_bound(frontier.recalls(at), 0.05) >= 0.6
    assert certificate.mean_recall == pytest.approx(frontier.hits[at].mean() / K)
    assert planner.mean_recall(choice.plan, K) == certificate.mean_recall
    assert "recall@10 ≥ 0.9 for at least 60 % of queries, with confidence 0.95" in str(certificate)


def test_more_is_asked_of_more_queries_never_by_a_cheaper_plan(recorded: Recording, name: str) -> None:
    planner = planner_over(recorded, name)
    for batch in (1, 256):
        costs = [
            planner.costs.predict(planner.choose(Budget(0.9, share=share), K, batch).plan, batch, DIM)
            for share in (0.3, 0.5, 0.6, 0.7, 0.8, 0.99)
        ]
        assert costs == sorted(costs)


def test_of_every_query_only_flat_search_is_sure(recorded: Recording) -> None:
    choice = planner_over(recorded, "ivf-sq8").choose(Budget(0.9, share=1.0), K, 1)
    assert choice.plan == FLAT
    assert choice.certificate.certified


def test_with_too_few_queries_flat_search_is_served_and_the_number_needed_is_said(recorded: Recording) -> None:
    planner = planner_over(recorded, "ivf-sq8")
    frontier = planner.frontier(Budget(0.9, share=0.5), K)
    assert frontier is not None
    share = round(float(frontier.recalls(0).mean()) - 0.002, 3)
    choice = planner.choose(Budget(0.9, share=share), K, 1)
    assert choice.plan == FLAT
    assert choice.certificate.queries_needed is not None
    assert choice.certificate.queries_needed > 120
    assert f"120 queries are too few to certify recall 0.9 for {share * 100:g} % of queries" in str(choice.certificate)
    beyond = planner.choose(Budget(0.9, share=share + 0.02), K, 1).certificate
    assert beyond.queries_needed is None
    assert "has a recall of 0.9 for no more than" in str(beyond)


def test_share_and_latency_that_cannot_both_be_met(recorded: Recording) -> None:
    planner = planner_over(recorded, "hnsw-sq8")
    with pytest.raises(BudgetError) as caught:
        planner.choose(Budget(0.9, latency_ms=1e-3, share=0.6), K, 1)
    assert "no plan meets recall 0.9 for 60 % of queries and latency 0.001 ms" in str(caught.value)
    cheapest = planner.choose(Budget(0.9, share=0.6), K, 1).plan
    needs = planner.latencies.of(cheapest, K, 1).p95
    within = planner.choose(Budget(0.9, latency_ms=needs, share=0.6), K, 1)
    assert within.plan == cheapest
    assert within.certificate.certified
    frontier = planner.frontier(Budget(0.9, share=0.6), K)
    assert frontier is not None
    fastest = min(planner.latencies.of(plan, K, 1).p95 for plan in frontier.plans)
    assert fastest < needs
    with pytest.raises(BudgetError, match=r"has that recall for [\d.]+ % of queries"):
        planner.choose(Budget(0.9, latency_ms=(fastest + needs) / 2, share=0.6), K, 1)


def test_without_real_queries_it_works_uncertified(recorded: Recording, name: str) -> None:
    choice = planner_over(recorded, name, real=False).choose(Budget(0.9, share=0.6), K, 1)
    assert not choice.plan.is_flat
    assert not choice.certificate.certified
    assert str(choice.certificate) == UNCERTIFIED


def test_k_beyond_the_record_is_refused_as_for_the_mean() -> None:
    planner = make_planner(make_calibration((0.99,) * len(PLANS)))
    with pytest.raises(InputError, match="k is 101"):
        planner.choose(Budget(0.9, share=0.95), 101, 1)
    assert planner.choose(Budget(0.9, share=1.0), 101, 1).plan == FLAT


@pytest.mark.parametrize(("count", "share"), [(60, 0.7), (200, 0.8)])
def test_what_is_certified_holds_for_all_queries(recorded: Recording, count: int, share: float) -> None:
    """Certifying queries are drawn from a pool: the plan then served holds over the pool, 19 times of 20."""
    truth = made(recorded, "hnsw-sq8")[1]
    met = np.array([truth.recalls(i).mean() for i in range(len(truth.plans))])
    generator = np.random.default_rng(0)
    trials, broken, certified = 120, 0, 0
    assert truth.query_hits is not None
    for _ in range(trials):
        drawn = generator.integers(0, truth.query_hits.shape[1], count)
        sample = replace(truth, query_hits=truth.query_hits[:, drawn])
        passed = fixed_sequence((sample.recalls(i) for i in range(len(met))), share, 0.05)
        if passed:
            certified += 1
            broken += met[:passed].min() < share  # whichever of them is then served
    assert certified > trials / 2
    assert broken <= 0.05 * trials + 3 * math.sqrt(0.05 * 0.95 * trials)
