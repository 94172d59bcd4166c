from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from funnel.errors import BudgetError, InputError
from funnel.plan import FLAT, Plan
from funnel.planning import tail
from funnel.planning.bounds import betting_lower_bound, fixed_sequence
from funnel.planning.budget import Budget
from funnel.planning.calibration import Run, hits
from funnel.planning.costs import BATCH_SIZES, Costs
from funnel.planning.escalating import mean_ms
from funnel.planning.frontier import Frontier, build_frontier
from funnel.planning.planner import ESCALATION_CAUTION, Planner
from funnel.planning.records import UNCERTIFIED, Calibration
from funnel.planning.tail import TailFrontier, build_tail, hits_needed
from tests.funnel.planning.conftest import DIM, Recorded
from tests.funnel.planning.made_up import PLANS, K, make_calibration, make_planner
from tests.funnel.planning.test_escalating import goes_on
from tests.funnel.planning.test_frontier import costs_for

NEEDED = 9

Recording = Callable[[str], Recorded]


@pytest.fixture(params=["hnsw-sq8", "ivf-sq8"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


MADE: dict[str, tuple[Frontier, TailFrontier]] = {}


def made(recording: Recording, name: str) -> tuple[Frontier, TailFrontier]:
    if name not in MADE:
        _, corpus, real = recording(name)
        costs = costs_for(corpus)
        uniform = build_frontier(K, corpus, real, costs, name.startswith("hnsw"), DIM)
        MADE[name] = uniform, build_tail(uniform, NEEDED, corpus, real, costs, DIM)
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


def test_uniform_plans_stay_and_pairs_of_them_join(recorded: Recording, name: str) -> None:
    uniform, made_tail = made(recorded, name)
    alone = [plan for plan in made_tail.plans if plan.escalation is None]
    assert set(alone) == set(uniform.plans)
    assert len(set(made_tail.plans)) == len(made_tail.plans) == len(made_tail.hits)
    joined = [plan for plan in made_tail.plans if plan.escalation is not None]
    assert joined
    for plan in joined:
        assert set(plan.parts) <= set(uniform.plans)
        plan.check(recorded(name)[1].widths)


def test_hits_and_rates_are_those_of_the_parts(recorded: Recording, name: str) -> None:
    _, made_tail = made(recorded, name)
    _, corpus, real = recorded(name)
    for run, known in ((corpus, made_tail.corpus_hits), (real, made_tail.query_hits)):
        assert known is not None
        for plan, row in zip(made_tail.plans, known, strict=True):
            gone = goes_on(run, plan)
            parts = hits(run, plan.parts, K)
            np.testing.assert_array_equal(row, np.where(gone, parts[-1], parts[0]))
            if run is real and plan.escalation is not None:
                assert plan.escalation.rate == gone.mean()


def test_what_is_tested_is_whether_a_query_got_enough(recorded: Recording, name: str) -> None:
    _, made_tail = made(recorded, name)
    for i in range(0, len(made_tail.plans), 5):
        np.testing.assert_array_equal(made_tail.recalls(i), made_tail.hits[i] >= NEEDED)


def test_uniform_and_escalating_plans_are_tested_apart(recorded: Recording, name: str) -> None:
    _, made_tail = made(recorded, name)
    apart = [[i for i, p in enumerate(made_tail.plans) if (p.escalation is None) == alone] for alone in (True, False)]
    expected = set()
    for places, level in zip(apart, (0.045, 0.005), strict=True):
        expected |= set(places[: fixed_sequence((made_tail.recalls(i) for i in places), 0.6, level)])
    assert made_tail.passed(0.6, 0.05) == expected
    # Escalating plans that serve no query end no test of uniform ones, nor the other way round.
    for lost, other in (apart, apart[::-1]):
        hits_of_none = made_tail.hits.copy()
        hits_of_none[lost] = 0
        assert replace(made_tail, query_hits=hits_of_none).passed(0.6, 0.05) == expected & set(other)
    uniform = replace(made_tail, plans=tuple(made_tail.plans[i] for i in apart[0]), query_hits=made_tail.hits[apart[0]])
    assert len(uniform.passed(0.6, 0.05)) == fixed_sequence((made_tail.recalls(i) for i in apart[0]), 0.6, 0.05)


def test_order_is_by_held_out_rows_alone(recorded: Recording, name: str) -> None:
    uniform, made_tail = made(recorded, name)
    worth = np.clip((made_tail.corpus_hits.astype(float) - NEEDED + 1) / (K - NEEDED + 1), 0, 1).mean(axis=1)
    assert (np.diff(worth) <= 1e-12).all()
    _, corpus, real = recorded(name)
    # Queries that find nothing, as different as can be.
    lost = replace(real, candidate_scores=np.full_like(real.candidate_scores, -1.0))
    blind = replace(uniform, query_hits=np.zeros_like(uniform.query_hits))
    other = build_tail(blind, NEEDED, corpus, lost, costs_for(corpus), DIM)
    assert other.plans == made_tail.plans
    np.testing.assert_array_equal(other.corpus_hits, made_tail.corpus_hits)
    none = build_tail(replace(uniform, query_hits=None), NEEDED, corpus, None, costs_for(corpus), DIM)
    assert none.plans == made_tail.plans
    assert none.hits is none.corpus_hits


def test_every_pair_is_cheaper_than_uniform_plans_as_good_at_some_batch(recorded: Recording, name: str) -> None:
    uniform, _ = made(recorded, name)
    _, corpus, _ = recorded(name)
    costs = costs_for(corpus)
    rows = build_tail(replace(uniform, query_hits=None), NEEDED, corpus, None, costs, DIM)  # costs by the rates of rows
    worth = np.clip((rows.corpus_hits.astype(float) - NEEDED + 1) / (K - NEEDED + 1), 0, 1).mean(axis=1)
    alone = np.array([plan.escalation is None for plan in rows.plans])
    table = np.array([[mean_ms(costs, plan, batch, DIM) for plan in rows.plans] for batch in BATCH_SIZES])
    for i in np.flatnonzero(~alone):
        as_good = alone & (worth >= worth[i])
        assert (table[:, as_good] > table[:, [i]]).all(axis=1).any(), rows.plans[i]


def test_no_plans_and_plans_that_miss_nothing_have_no_pairs(recorded: Recording) -> None:
    _, corpus, real = recorded("ivf-sq8")
    empty = Frontier(K, (), np.empty((0, len(corpus.queries)), np.uint8), np.empty((0, len(real.queries)), np.uint8))
    assert build_tail(empty, NEEDED, corpus, real, costs_for(corpus), DIM).plans == ()
    strongest = max(corpus.efforts)
    plans = (Plan(strongest, 200),)
    full = np.full((1, len(corpus.queries)), K, np.uint8)
    perfect = Frontier(K, plans, full, np.full((1, len(real.queries)), K, np.uint8))
    assert build_tail(perfect, NEEDED, corpus, real, costs_for(corpus), DIM).plans == plans


# ---- from a budget to a plan -------------------------------------------------------------------------------------


def cautious_ms(costs: Costs, plan: Plan, batch: int) -> float:
    """What plans are served by: an escalating one must be cheaper by as much as predictions of it may be wrong."""
    return mean_ms(costs, plan, batch, DIM) * (ESCALATION_CAUTION if plan.escalation else 1.0)


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
    assert isinstance(frontier, TailFrontier)
    passed = [frontier.plans[i] for i in frontier.passed(0.6, 0.05)]
    assert choice.plan in passed
    costs = planner.costs
    least = min(cautious_ms(costs, plan, 1) for plan in passed)
    assert cautious_ms(costs, choice.plan, 1) == least
    certificate = choice.certificate
    at = frontier.plans.index(choice.plan)
    assert certificate.certified
    assert (certificate.recall, certificate.share) == (0.9, 0.6)
    assert certificate.estimate == (frontier.hits[at] >= NEEDED).mean()
    assert certificate.lower_bound == betting_lower_bound(frontier.recalls(at), 0.05) >= 0.6
    assert certificate.mean_recall == pytest.approx(frontier.hits[at].mean() / K)
    assert planner.mean_recall(choice.plan, K) == certificate.mean_recall
    assert "recall@10 ≥ 0.9 for at least 60 % of queries, with confidence 0.95" in str(certificate)
    assert planner.frontier(budget, K) is frontier  # worked out once


def test_more_is_asked_of_more_queries_never_by_a_cheaper_plan(recorded: Recording, name: str) -> None:
    planner = planner_over(recorded, name)
    for batch in (1, 256):
        costs = [
            cautious_ms(planner.costs, planner.choose(Budget(0.9, share=share), K, batch).plan, batch)
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
    needs = planner.latency(cheapest, K, 1).p95
    within = planner.choose(Budget(0.9, latency_ms=needs, share=0.6), K, 1)
    assert within.plan == cheapest
    assert within.certificate.certified
    frontier = planner.frontier(Budget(0.9, share=0.6), K)
    assert frontier is not None
    fastest = min(planner.latency(plan, K, 1).p95 for plan in frontier.plans)
    assert fastest < needs
    with pytest.raises(BudgetError, match=r"has that recall for [\d.]+ % of queries"):
        planner.choose(Budget(0.9, latency_ms=(fastest + needs) / 2, share=0.6), K, 1)


def test_latency_is_of_calls_that_are_measured_not_of_the_mean(recorded: Recording) -> None:
    """A call that goes on takes both plans: at batch 1 the mean is far below the 95th percentile."""
    planner = planner_over(recorded, "hnsw-sq8")
    frontier = planner.frontier(Budget(0.9, share=0.6), K)
    assert frontier is not None
    tried: list[Plan] = []
    slow = make_planner(planner.calibration, lambda plan, _: 1e6 if plan.escalation else 1.0, tried)
    choice = slow.choose(Budget(0.9, latency_ms=1e5, share=0.6), K, 1)
    assert choice.plan.escalation is None


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


def test_an_escalating_plan_is_not_certified_for_the_mean(recorded: Recording, name: str) -> None:
    planner = planner_over(recorded, name)
    frontier = planner.frontier(Budget(0.9, share=0.6), K)
    assert frontier is not None
    plan = next(plan for plan in frontier.plans if plan.escalation)
    certificate = planner.certificate(plan, Budget(0.9), K)
    assert not certificate.certified
    assert math.isnan(certificate.estimate)


def test_latencies_of_escalating_plans_are_remembered_across_openings(recorded: Recording) -> None:
    planner = planner_over(recorded, "hnsw-sq8")
    frontier = planner.frontier(Budget(0.9, share=0.6), K)
    assert frontier is not None
    plan = next(plan for plan in frontier.plans if plan.escalation)
    measured = planner.latency(plan, K, 1)
    planner.calibration.latencies = planner.latencies.records()
    calls: list[Plan] = []
    again = make_planner(planner.calibration, calls=calls)
    assert again.latency(plan, K, 1) == measured
    assert not calls


# ---- validity ----------------------------------------------------------------------------------------------------


def resampled(run: Run, places: np.ndarray) -> Run:
    return replace(
        run,
        queries=run.queries[places],
        own_rows=run.own_rows[places],
        truth=run.truth[places],
        candidates=run.candidates[places],
        candidate_scores=run.candidate_scores[places],
        places={effort: found[places] for effort, found in run.places.items()},
    )


@pytest.mark.parametrize(("count", "share"), [(60, 0.7), (200, 0.8)])
def test_what_is_certified_holds_for_all_queries(recorded: Recording, count: int, share: float) -> None:
    """Certifying queries are drawn from a pool: the plan then served holds over the pool, 19 times of 20."""
    _, corpus, pool = recorded("hnsw-sq8")
    costs = costs_for(corpus)
    uniform, _ = made(recorded, "hnsw-sq8")
    truth = build_tail(uniform, NEEDED, corpus, pool, costs, DIM)
    met = np.array([truth.recalls(i).mean() for i in range(len(truth.plans))])
    generator = np.random.default_rng(0)
    trials, broken, certified = 120, 0, 0
    assert truth.query_hits is not None
    for _ in range(trials):
        drawn = generator.integers(0, len(pool.queries), count)
        sample = replace(truth, query_hits=truth.query_hits[:, drawn])
        passed = sorted(sample.passed(share, 0.05))
        if passed:
            certified += 1
            broken += met[passed].min() < share  # whichever of them is then served
    assert certified > trials / 2
    assert broken <= 0.05 * trials + 3 * math.sqrt(0.05 * 0.95 * trials)


def test_choosing_does_not_depend_on_which_queries_are_drawn(recorded: Recording) -> None:
    _, corpus, pool = recorded("ivf-sq8")
    uniform, whole = made(recorded, "ivf-sq8")
    drawn = np.random.default_rng(1).integers(0, len(pool.queries), 50)
    assert uniform.query_hits is not None
    part = replace(uniform, query_hits=uniform.query_hits[:, drawn])
    sample = build_tail(part, NEEDED, corpus, resampled(pool, drawn), costs_for(corpus), DIM)
    assert sample.plans == whole.plans
    assert whole.query_hits is not None
    np.testing.assert_array_equal(sample.query_hits, whole.query_hits[:, drawn])


def test_rates_rise_to_half_of_the_rows() -> None:
    assert list(tail.RATES) == sorted(tail.RATES)
    assert tail.RATES[0] == 0.01
    assert 0.4 < tail.RATES[-1] < 0.6
