"""Escalating plans that are really run, against what the record says of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from funnel.escalation import ease, hard, looked_at
from funnel.plan import Escalation, Plan, Stage
from funnel.planning.calibration import Run, hits
from funnel.planning.costs import BATCH_SIZES
from funnel.planning.escalating import best_scores, expected_stages_ms, judging_ms, mean_ms, weights_of
from tests.funnel.planning.conftest import Recorded
from tests.funnel.planning.made_up import DIM, costs_of
from tests.funnel.planning.test_calibration import run_and_count

K = 10
FAMILIES = ("flat", "hnsw-sq8", "ivf-sq8")
WEIGHTS = (1.0, 2.0)

Recording = Callable[[str], Recorded]


def weak_and_strong(name: str, run: Run) -> tuple[Plan, Plan]:
    """A plan that misses much, and one that misses little."""
    least, most = run.efforts[0], run.efforts[-1]
    if name == "flat":
        return Plan(least, 24, (Stage(32, 16),)), Plan(least, 300, (Stage(48, 60),))
    if name == "ivf-sq8":
        return Plan(least, 64, (Stage(32, 24),)), Plan(most, 200)
    some = next(effort for effort in run.efforts if run.largest(effort) >= 16)
    return Plan(some, 16), Plan(most, 200, (Stage(48, 40),))


def goes_on(run: Run, plan: Plan) -> np.ndarray:
    """Which queries of a record a plan sends on: bool [q]."""
    if plan.escalation is None:
        return np.zeros(len(run.queries), dtype=np.bool_)
    return hard(plan.escalation, best_scores(run, plan, plan.escalation.k))


@pytest.fixture(params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("rate", [0.1, 0.4])
def test_what_the_record_predicts_is_what_running_it_finds(recorded: Recording, name: str, rate: float) -> None:
    cascade, corpus, real = recorded(name)
    first, second = weak_and_strong(name, real)
    judged = ease(best_scores(corpus, first, K), K, *WEIGHTS)
    plan = replace(
        first, escalation=Escalation(K, *WEIGHTS, float(np.quantile(judged[np.isfinite(judged)], rate)), second)
    )
    plan.check(real.widths)
    gone = goes_on(real, plan)
    assert 0 < gone.sum() < len(gone)
    scores = cascade.run(real.queries, first, looked_at(first.survivors, K))[0]
    assert plan.escalation is not None
    np.testing.assert_array_equal(hard(plan.escalation, scores), gone)
    of_first, of_second = hits(real, [first, second], K)
    predicted = np.where(gone, of_second, of_first)
    np.testing.assert_array_equal(run_and_count(cascade, real.queries, plan, K), predicted)
    assert of_first.sum() < predicted.sum() <= np.maximum(of_first, of_second).sum()


def test_scores_on_the_record_are_those_of_the_run(recorded: Recording, name: str) -> None:
    cascade, _, real = recorded(name)
    for plan in weak_and_strong(name, real):
        scores = cascade.run(real.queries, plan, looked_at(plan.survivors, K))[0]
        np.testing.assert_allclose(best_scores(real, plan, K), scores, atol=2e-6)


def test_weights_tell_what_was_missed() -> None:
    """Where misses depend on closeness alone, in the sense of one signal, the weights say so."""
    generator = np.random.default_rng(0)
    closeness, gap = generator.random(2_000), generator.random(2_000)
    scores = np.stack([closeness, closeness - gap], axis=1).astype(np.float32)  # k = 1: closeness and margin
    missed = generator.random(2_000) > 1 / (1 + np.exp(-12 * (closeness - 0.4)))
    weights = weights_of(scores, missed, 1)
    assert weights is not None
    assert weights[0] == pytest.approx(12, rel=0.15)
    assert abs(weights[1]) < 0.6
    both = generator.random(2_000) > 1 / (1 + np.exp(-6 * (closeness - 0.5) - 4 * (gap - 0.5)))
    weights = weights_of(scores, both, 1)
    assert weights is not None
    assert weights == (pytest.approx(6, rel=0.15), pytest.approx(4, rel=0.15))


def test_where_nearly_nothing_was_missed_there_is_nothing_to_learn() -> None:
    scores = np.random.default_rng(0).random((100, 2), dtype=np.float32)
    missed = np.zeros(100, dtype=np.bool_)
    missed[:7] = True
    assert weights_of(scores, missed, 1) is None
    assert weights_of(scores, ~missed, 1) is None
    missed[7] = True
    assert weights_of(scores, missed, 1) is not None
    scores[:5] = -np.inf  # those that are missing candidates go on anyway, and teach nothing
    assert weights_of(scores, missed, 1) is None
    assert weights_of(np.ones((100, 2), dtype=np.float32), np.arange(100) < 50, 1) == (0.0, 0.0)


@given(st.floats(0, 1), st.floats(0, 1), st.sampled_from([*BATCH_SIZES, 1024]))
def test_cost_rises_with_the_rate(one: float, other: float, batch: int) -> None:
    low, high = sorted((one, other))
    costs, first, second = costs_of(), Plan(25, 100), Plan(400, 100)

    def cost(rate: float) -> float:
        return mean_ms(costs, replace(first, escalation=Escalation(K, 1, 1, 0, second, rate)), batch, DIM)

    least = costs.predict(first, batch, DIM) + judging_ms(batch, looked_at(100, K), K)
    assert least <= cost(low) + 1e-9
    assert cost(low) <= cost(high) + 1e-9
    assert cost(0.0) == pytest.approx(least)
    assert cost(1.0) == pytest.approx(least + costs.predict(second, batch, DIM))


def test_cost_of_a_smaller_batch_of_hard_queries() -> None:
    costs, second = costs_of(), Plan(400, 100)  # 4 ms, 40 ms and 400 ms for 1, 32 and 256 queries
    once = sum(expected_stages_ms(costs, Escalation(K, 1, 1, 0, second, 0.1), 1, DIM))
    assert once == pytest.approx(0.1 * 4)
    half = sum(expected_stages_ms(costs, Escalation(K, 1, 1, 0, second, 0.5), 256, DIM))
    assert half == pytest.approx(40 + (400 - 40) * (128 - 32) / (256 - 32))
    assert sum(expected_stages_ms(costs, Escalation(K, 1, 1, 0, second, 0.5), 1024, DIM)) == pytest.approx(4 * half)
    assert mean_ms(costs, second, 32, DIM) == costs.predict(second, 32, DIM)
