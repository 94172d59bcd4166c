from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from funnel.budget import Budget
from funnel.errors import BudgetError, InputError
from funnel.plan import FLAT, Plan
from funnel.planning.bounds import betting_lower_bound, fixed_sequence
from funnel.planning.calibration import UNCERTIFIED
from funnel.planning.costs import Held, Latency
from funnel.planning.planner import Choice, Planner
from funnel.planning.run import StorageCost
from tests.funnel.planning.made_up import DIM, PLANS, K, hits_of, make_calibration, make_planner

RECALLS = (0.998, 0.985, 0.96, 0.91, 0.80)


def choose(
    recalls: tuple[float, ...], budget: Budget, queries: int = 2000, batch: int = 1, real: bool = True
) -> Choice:
    return make_planner(make_calibration(recalls, queries, real)).choose(budget, K, batch)


@pytest.mark.parametrize(
    ("recall", "plan"),
    [(0.99, PLANS[0]), (0.97, PLANS[1]), (0.95, PLANS[2]), (0.90, PLANS[3]), (0.5, PLANS[4])],
)
def test_the_cheapest_plan_that_passes_is_served(recall: float, plan: Plan) -> None:
    choice = choose(RECALLS, Budget(recall))
    assert choice.plan == plan
    certificate = choice.certificate
    assert certificate.certified
    assert certificate.lower_bound >= recall
    assert certificate.estimate == pytest.approx(RECALLS[PLANS.index(plan)], abs=1e-3)
    assert str(certificate).startswith("certified on 2,000 real queries")


def test_the_cheapest_is_not_always_the_last_that_passes() -> None:
    plans = (PLANS[0], PLANS[3], PLANS[2])  # effort 400, 50, 100
    calibration = make_calibration((0.999, 0.98, 0.98), plans=plans)
    assert make_planner(calibration).choose(Budget(0.9), K, 1).plan == PLANS[3]


def test_a_plan_after_the_first_failure_is_not_served() -> None:
    choice = choose((0.998, 0.985, 0.90, 0.999, 0.999), Budget(0.95))
    assert choice.plan == PLANS[1]


def test_flat_search_is_served_where_it_is_cheapest() -> None:
    calibration = make_calibration(RECALLS)
    calibration.costs.flat[1] = 0.001
    choice = make_planner(calibration).choose(Budget(0.9), K, 1)
    assert choice.plan == FLAT
    assert choice.certificate.certified
    assert "cheapest plan that holds the recall" in str(choice.certificate)


def test_with_too_few_queries_flat_search_is_served_and_the_number_needed_is_said() -> None:
    choice = choose(RECALLS, Budget(0.99), queries=100)
    assert choice.plan == FLAT
    needed = choice.certificate.queries_needed
    assert needed is not None
    assert 100 < needed < 2000  # 2,000 queries certify it, see above
    assert re.search(
        rf"100 queries are too few to certify recall 0\.99; about {needed:,} would do", str(choice.certificate)
    )
    assert choose(RECALLS, Budget(0.99), queries=2 * needed).plan == PLANS[0]


def test_where_no_plan_is_good_enough_no_number_is_said() -> None:
    choice = choose((0.97, 0.96, 0.95, 0.94, 0.93), Budget(0.98))
    assert choice.plan == FLAT
    assert choice.certificate.queries_needed is None
    assert "recall above 0.98" in str(choice.certificate)


def test_flat_search_is_not_called_cheapest_where_the_head_of_the_sequence_failed() -> None:
    """The second plan would pass alone, but testing stops at the first: nothing is certified."""
    choice = choose((0.90, 0.999, 0.9, 0.9, 0.9), Budget(0.95))
    assert choice.plan == FLAT
    assert "cheapest" not in str(choice.certificate)
    assert choice.certificate.queries_needed is None  # more queries of this kind would fail the head again


def test_recall_one_is_flat_search() -> None:
    choice = choose((1.0,) * 5, Budget(1.0))
    assert choice.plan == FLAT
    assert choice.certificate.certified
    assert choice.certificate.lower_bound == 1.0


@given(
    st.lists(st.floats(0.5, 1), min_size=5, max_size=5).map(lambda values: tuple(sorted(values, reverse=True))),
    st.floats(0.5, 0.999),
    st.floats(0.5, 0.999),
    st.sampled_from([50, 300]),
)
def test_asking_for_more_recall_never_gives_less(
    recalls: tuple[float, ...], one: float, other: float, queries: int
) -> None:
    low, high = sorted((one, other))
    samples = [row / K for row in hits_of(recalls, queries)]
    assert fixed_sequence(samples, high, 0.05) <= fixed_sequence(samples, low, 0.05)
    chosen_low, chosen_high = (choose(recalls, Budget(r), queries) for r in (low, high))
    assert chosen_high.certificate.lower_bound >= min(chosen_low.certificate.lower_bound, high)
    for wanted, choice in ((low, chosen_low), (high, chosen_high)):
        assert choice.certificate.certified
        assert choice.certificate.lower_bound >= wanted
    cost = {FLAT: math.inf, **{plan: plan.effort for plan in PLANS}}
    assert cost[chosen_high.plan] >= cost[chosen_low.plan]


def test_more_confidence_is_dearer() -> None:
    calibration = make_calibration((0.998, 0.985, 0.956, 0.91, 0.80), 1000)
    planner = make_planner(calibration)
    assert planner.choose(Budget(0.95, confidence=0.6), K, 1).plan == PLANS[2]
    assert planner.choose(Budget(0.95, confidence=0.999), K, 1).plan == PLANS[1]


def test_the_batch_size_decides_what_is_cheapest() -> None:
    calibration = make_calibration(RECALLS)
    calibration.costs.coarse[256][PLANS[2].effort] = 1e6
    planner = make_planner(calibration)
    assert planner.choose(Budget(0.95), K, 1).plan == PLANS[2]
    assert planner.choose(Budget(0.95), K, 200).plan == PLANS[1]


def test_a_choice_is_remembered_for_its_batch_class() -> None:
    planner = make_planner(make_calibration(RECALLS))
    first = planner.choose(Budget(0.95), K, 5)
    assert planner.choose(Budget(0.95), K, 32) is first
    assert planner.choose(Budget(0.95), K, 33) is not first
    assert planner.choose(Budget(0.9), K, 5) is not first


def test_latency_alone_gets_the_most_recall_within_it() -> None:
    # Predicted and measured 4, 2, 1, .5 and .25 ms; flat takes 10.
    assert choose(RECALLS, Budget(latency_ms=100)).plan == FLAT
    assert choose(RECALLS, Budget(latency_ms=5)).plan == PLANS[0]
    choice = choose(RECALLS, Budget(latency_ms=1.5))
    assert choice.plan == PLANS[2]
    assert not choice.certificate.certified
    assert choice.certificate.estimate == pytest.approx(0.96, abs=1e-3)


def test_latency_is_of_the_batch() -> None:
    assert choose(RECALLS, Budget(latency_ms=5), batch=20).plan == PLANS[3]  # ten times as dear
    with pytest.raises(BudgetError, match="no plan answers 256 queries for k=10 within 5 ms"):
        choose(RECALLS, Budget(latency_ms=5), batch=256)


def test_what_is_measured_counts_not_what_was_predicted() -> None:
    slow = PLANS[0]
    planner = make_planner(make_calibration(RECALLS), lambda plan, _: 50.0 if plan == slow else plan.effort / 100)
    assert planner.choose(Budget(latency_ms=5), K, 1).plan == PLANS[1]


def test_a_plan_predicted_far_too_slow_is_not_tried() -> None:
    calls: list[Plan] = []
    planner = make_planner(make_calibration(RECALLS), calls=calls)
    planner.choose(Budget(latency_ms=0.6), K, 1)
    assert calls == [PLANS[3]]
    planner.choose(Budget(latency_ms=0.61), K, 1)
    assert calls == [PLANS[3]]  # measured once


def test_both_budgets_are_met() -> None:
    choice = choose(RECALLS, Budget(0.95, 3))
    assert choice.plan == PLANS[2]
    assert choice.certificate.lower_bound >= 0.95


def test_a_dearer_plan_is_taken_where_the_cheapest_is_measured_too_slow() -> None:
    planner = make_planner(make_calibration(RECALLS), lambda plan, _: 9.0 if plan == PLANS[2] else plan.effort / 100)
    assert planner.choose(Budget(0.95, 3), K, 1).plan == PLANS[1]


def test_where_both_cannot_be_met_the_error_names_both_sides() -> None:
    with pytest.raises(BudgetError) as caught:
        choose(RECALLS, Budget(0.99, 1.2))
    said = str(caught.value)
    assert "no plan meets recall 0.99 and latency 1.2 ms for one query at k=10" in said
    assert f"the cheapest that holds the recall ({PLANS[0]}) takes 4 ms" in said
    assert f"within 1.2 ms the best ({PLANS[2]}) has recall 0.96" in said


def test_where_nothing_is_fast_enough_the_error_names_the_fastest() -> None:
    with pytest.raises(BudgetError) as caught:
        choose(RECALLS, Budget(latency_ms=0.01))
    assert f"the fastest ({PLANS[4]}) takes 0.25 ms at the 95th percentile" in str(caught.value)
    with pytest.raises(BudgetError) as caught:
        choose(RECALLS, Budget(0.95, 0.01))
    said = str(caught.value)
    assert f"({PLANS[2]}) takes 1 ms" in said
    assert f"the fastest ({PLANS[4]}) takes 0.25 ms" in said


def test_too_few_queries_for_both_names_the_number_that_would_do() -> None:
    with pytest.raises(BudgetError, match=r"about [\d,]+ real queries would certify it"):
        choose(RECALLS, Budget(0.99, 5), queries=100)


def test_the_number_is_of_the_plan_that_is_fast_enough() -> None:
    with pytest.raises(BudgetError, match=r"about ([\d,]+) real queries") as caught:
        choose(RECALLS, Budget(0.95, 1.2), queries=60)  # .96 on these queries, which is no proof of .95
    said = re.search(r"about ([\d,]+) real queries", str(caught.value))
    assert said is not None
    assert choose(RECALLS, Budget(0.95, 1.2), queries=2 * int(said[1].replace(",", ""))).plan == PLANS[2]


def test_no_number_is_said_where_the_fast_enough_plan_is_too_weak() -> None:
    with pytest.raises(BudgetError) as caught:
        choose(RECALLS, Budget(0.99, 1.2), queries=100)
    assert "real queries would certify" not in str(caught.value)


@given(
    st.lists(st.floats(0.5, 1), min_size=5, max_size=5).map(tuple),
    st.floats(0.1, 20),
    st.floats(0.1, 20),
    st.sampled_from([None, 0.8]),
)
def test_more_time_never_gives_less(recalls: tuple[float, ...], one: float, other: float, recall: float | None) -> None:
    less, more = sorted((one, other))
    try:
        with_less = choose(recalls, Budget(recall, less), queries=100)
    except BudgetError:
        return
    with_more = choose(recalls, Budget(recall, more), queries=100)
    assert with_more.certificate.certified == with_less.certificate.certified or recall is None
    if recall is None:
        assert with_more.certificate.estimate >= with_less.certificate.estimate
    else:
        assert with_more.certificate.lower_bound >= recall


def test_what_was_promised_is_a_record() -> None:
    planner = make_planner(make_calibration(RECALLS))
    choice = planner.choose(Budget(0.95), K, 1)
    assert planner.promised() == [
        {"batch": 1, "plan": choice.plan.to_json(), "certificate": choice.certificate.to_json()}
    ]


def test_a_sequence_is_tested_once_whatever_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    planner, tested = make_planner(make_calibration(RECALLS)), []

    def counting(samples: object, r: float, delta: float) -> int:
        tested.append((r, delta))
        return fixed_sequence(samples, r, delta)  # type: ignore[arg-type]

    monkeypatch.setattr("funnel.planning.planner.fixed_sequence", counting)
    for batch in (1, 32, 256):
        assert planner.choose(Budget(0.95), K, batch).plan == PLANS[2]
    assert tested == [(0.95, pytest.approx(0.05))]  # type: ignore[comparison-overlap]


def test_what_storage_costs_is_taken_off_where_truth_is_of_stored_rows() -> None:
    calibration = make_calibration(RECALLS)
    before = make_planner(calibration).choose(Budget(0.95), K, 1)
    truth = np.tile(np.linspace(0.9, 0.5, K, dtype=np.float32), (1_000, 1))
    found = truth.copy()
    found[:500, -1] = 0.1  # half of the queries lose one of ten
    calibration.storage = StorageCost(found, truth)
    after = make_planner(calibration).choose(Budget(0.95), K, 1)
    assert after.plan.is_flat or RECALLS[PLANS.index(after.plan)] > RECALLS[PLANS.index(before.plan)]
    told = make_planner(calibration).certificate(before.plan, Budget(0.95), K)
    assert not told.certified
    assert told.estimate == pytest.approx(before.certificate.estimate - 0.05)
    assert told.lower_bound < before.certificate.lower_bound - 0.05
    calibration.as_given = True  # the truth on record is that of the rows as given: nothing more to take off
    assert make_planner(calibration).choose(Budget(0.95), K, 1).plan == before.plan


def test_flat_search_over_rows_that_lost_much_is_not_called_exact() -> None:
    calibration = make_calibration(RECALLS)
    calibration.as_given = True
    truth = np.tile(np.linspace(0.9, 0.5, K, dtype=np.float32), (1_000, 1))
    found = truth.copy()
    found[:500, -1] = 0.1
    calibration.storage = StorageCost(found, truth)
    told = make_planner(calibration).choose(Budget(1.0), K, 1)
    assert told.plan.is_flat
    assert not told.certificate.certified
    assert told.certificate.estimate == pytest.approx(0.95)
    assert "keeps 0.9500 of the true top 10 of the rows as given" in str(told.certificate)
    calibration.storage = StorageCost(truth, truth)
    assert str(make_planner(calibration).choose(Budget(1.0), K, 1).certificate).startswith("exact: flat search")


def test_what_else_a_call_takes_counts_in_its_latency() -> None:
    planner = make_planner(make_calibration(RECALLS))
    assert planner.choose(Budget(latency_ms=2.6), K, 1).plan == PLANS[1]
    assert planner.choose(Budget(latency_ms=2.6), K, 1, beside_ms=2.0).plan == PLANS[3]
    with pytest.raises(BudgetError, match=r"within 0\.1 ms"):
        planner.choose(Budget(latency_ms=2.1), K, 1, beside_ms=2.0)
    assert planner.choose(Budget(0.95), K, 1, beside_ms=2.0).plan == PLANS[2]


def test_without_real_queries_the_plan_works_and_is_uncertified() -> None:
    choice = choose(RECALLS, Budget(0.95), real=False)
    assert choice.plan == PLANS[2]
    assert not choice.certificate.certified
    assert choice.certificate.query_kind == UNCERTIFIED
    assert str(choice.certificate) == UNCERTIFIED
    assert choose(RECALLS, Budget(0.95), queries=20, real=False).plan == FLAT


def test_k_beyond_the_record() -> None:
    planner = make_planner(make_calibration(RECALLS, depth=100))
    with pytest.raises(InputError, match="k is 101; this index is calibrated for k up to 100"):
        planner.choose(Budget(0.95), 101, 1)
    exact = planner.choose(Budget(1.0), 101, 1)
    assert exact.plan == FLAT
    assert exact.certificate.certified
    # Fewer rows than the record is deep: flat search costs nothing there.
    few = make_planner(make_calibration(RECALLS, depth=60)).choose(Budget(0.95), 61, 1)
    assert few.plan == FLAT


def test_certificates_of_plans_that_the_user_names() -> None:
    planner = make_planner(make_calibration(RECALLS))
    weak = planner.certificate(PLANS[4], Budget(0.95), K)
    assert not weak.certified
    assert "recall 0.95 is not certified for this plan" in str(weak)
    assert weak.lower_bound == pytest.approx(betting_lower_bound(hits_of(RECALLS, 2000)[4] / K, 0.05), abs=1e-9)
    unknown = planner.certificate(Plan(7, 7), Budget(0.95), K)
    assert not unknown.certified
    assert math.isnan(unknown.estimate)
    assert planner.certificate(FLAT, Budget(0.95), K).lower_bound == 1.0


def test_latencies_measured_on_the_same_machine_are_taken_over() -> None:
    calibration = make_calibration(RECALLS)
    calls: list[Plan] = []
    planner = make_planner(calibration, calls=calls)
    planner.latencies.of(PLANS[0], K, 1)
    calibration.latencies = planner.latencies.records()
    again = make_planner(calibration, calls=calls)
    assert again.latencies.of(PLANS[0], K, 1) == planner.latencies.of(PLANS[0], K, 1)
    assert calls == [PLANS[0]]
    calibration.latencies[0][1] = K + 1  # of another k
    make_planner(calibration, calls=calls).latencies.of(PLANS[0], K, 1)
    assert calls == [PLANS[0], PLANS[0]]


def test_latencies_of_another_machine_are_measured_again() -> None:
    calibration = make_calibration(RECALLS)
    calls: list[Plan] = []
    planner = make_planner(calibration, calls=calls)
    planner.latencies.of(PLANS[0], K, 1)
    calibration.latencies = planner.latencies.records()
    here = replace(calibration.costs, machine={"processor": "another"})
    measured = Planner(calibration, here, lambda *_: Latency(1.0, 3.0))
    assert measured.latencies.of(PLANS[0], K, 1) == Latency(1.0, 3.0)
    with pytest.raises(BudgetError, match="takes 3 ms at the 95th percentile"):
        measured.choose(Budget(latency_ms=2.9), K, 1)


def test_where_no_plan_finds_k_candidates_flat_search_is_served() -> None:
    calibration = make_calibration((), plans=())
    calibration.costs.coarse.clear()
    planner = make_planner(calibration)
    choice = planner.choose(Budget(0.95), K, 1)
    assert choice.plan == FLAT
    assert "no plan that finds 10 candidates" in str(choice.certificate)
    assert planner.choose(Budget(latency_ms=20), K, 1).plan == FLAT
    with pytest.raises(BudgetError, match=r"the fastest \(flat\) takes 10 ms"):
        planner.choose(Budget(latency_ms=2), K, 1)
    with pytest.raises(BudgetError, match=r"\(flat\) takes 10 ms"):
        planner.choose(Budget(0.9, 2), K, 1)


def test_where_a_latency_is_not_held_the_next_plan_tried_is_cheaper_by_as_much() -> None:
    """Windows twice as slow as single figures: few plans are measured for seconds, and one that holds is found."""
    calibration = make_calibration(RECALLS)
    held: list[Plan] = []

    def hold(plan: Plan, _k: int, batch: int, _allowed: float | None) -> Held:
        held.append(plan)
        ms = 2 * calibration.costs.predict(plan, batch, DIM)
        return Held(ms, ms, 19)

    def measure(plan: Plan, _k: int, batch: int) -> Latency:
        ms = calibration.costs.predict(plan, batch, DIM)
        return Latency(ms, ms)

    planner = Planner(calibration, calibration.costs, measure, hold)
    assert planner.choose(Budget(latency_ms=2.1), K, 1).plan == PLANS[2]  # 1 ms, 2 ms held
    assert held == [PLANS[1], PLANS[2]]
    held.clear()
    with pytest.raises(BudgetError, match=r"takes 0\.5 ms at the 95th percentile, the largest of 19 windows"):
        planner.choose(Budget(latency_ms=0.3), K, 1)
    assert held == [PLANS[4]]
    with pytest.raises(BudgetError, match="the cheapest that holds the recall"):
        planner.choose(Budget(0.95, 1.5), K, 1)
