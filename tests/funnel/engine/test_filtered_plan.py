"""Plans under filters: the recall holds on queries that no plan was chosen on, whatever the filter goes with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from funnel import BudgetError, FunnelIndex
from funnel.budget import Budget
from funnel.engine import allowed as planning
from funnel.engine.allowed import FilterChoice, Filtered, FilterSample, _holds
from funnel.engine.steps import search
from funnel.plan import FLAT, Plan

K = 10
Float32 = npt.NDArray[np.float32]


@pytest.fixture
def slow_exact(graph: FunnelIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact search over a few thousand rows is cheaper than any plan: here it is said to take a second."""
    timed, planner = Filtered._timed, graph.searcher.planner
    monkeypatch.setattr(planner, "costs", replace(planner.costs, flat=dict.fromkeys(planner.costs.flat, 1e3)))
    monkeypatch.setattr(planner, "_chosen", {})

    def slower(self: Filtered, plan: Plan, k: int, batch: int) -> tuple[float, float, float]:
        return (1e3, 1e3, 1e3) if plan.is_flat else timed(self, plan, k, batch)

    monkeypatch.setattr(planning, "SECONDS_PER_TIMING", 0.001)
    monkeypatch.setattr(Filtered, "_timed", slower)


def filters_of(index: FunnelIndex, kind: str, share: float) -> Filtered:
    """Random rows, or those nearest to one row."""
    cascade = index.searcher.cascade
    rows = cascade.store.block(0, cascade.store.n).numpy()
    worth = np.random.default_rng(3).random(len(rows)) if kind == "random" else rows @ rows[7]
    mask = np.zeros(len(rows), dtype=np.bool_)
    mask[np.argsort(-worth)[: round(share * len(rows))]] = True
    return Filtered(index.searcher, index.searcher.among({"first": mask}, mask))


def recalls(filtered: Filtered, plan: Plan, queries: Float32) -> npt.NDArray[np.float64]:
    true = filtered.cascade.exact(queries, K)[0][:, -1:]
    found: npt.NDArray[np.float64] = (search(filtered.cascade, queries, plan, K).scores >= true - 1e-6).mean(axis=1)
    return found


@pytest.mark.parametrize(("kind", "share"), [("random", 0.5), ("random", 0.1), ("near", 0.5), ("near", 0.1)])
@pytest.mark.parametrize("recall", [0.9, 0.99])
@pytest.mark.usefixtures("slow_exact")
def test_the_recall_holds_on_unseen_queries_near_and_far(
    graph: FunnelIndex, unseen: Float32, kind: str, share: float, recall: float
) -> None:
    filtered = filters_of(graph, kind, share)
    choice = filtered.choose(Budget(recall), K, 256, 0.0)
    # Whether any effort holds 0.99 for the farthest queries differs from one built graph to the next.
    assert choice.estimate >= recall
    assert recall == 0.99 or not choice.plan.is_flat
    prepared = graph.searcher.prepare(unseen)
    found = recalls(filtered, choice.plan, prepared)
    near = np.argsort(filtered.cascade.exact(prepared, 1)[0][:, 0])
    # 100 queries of each kind: two standard errors of their mean beside the tolerance.
    for group in (near, near[:100], near[-100:]):
        assert found[group].mean() >= recall - 0.01 - 2 * found[group].std() / np.sqrt(len(group))


@pytest.mark.usefixtures("slow_exact")
def test_effort_rises_as_fewer_rows_are_allowed(graph: FunnelIndex) -> None:
    efforts = [
        filters_of(graph, "random", share).choose(Budget(0.95), K, 256, 0.0).plan.effort for share in (0.9, 0.2, 0.05)
    ]
    assert efforts == sorted(efforts)
    assert efforts[-1] > efforts[0]


@pytest.mark.usefixtures("slow_exact")
def test_a_share_of_queries_gets_the_recall(graph: FunnelIndex, unseen: Float32) -> None:
    filtered = filters_of(graph, "random", 0.3)
    choice = filtered.choose(Budget(0.9, share=0.9), K, 256, 0.0)
    found = recalls(filtered, choice.plan, graph.searcher.prepare(unseen)) >= 0.9 - 1e-9
    assert found.mean() >= 0.9 - 0.01 - 2 * found.std() / np.sqrt(len(found))


def test_exact_search_is_served_where_it_costs_less(graph: FunnelIndex) -> None:
    choice = filters_of(graph, "random", 0.01).choose(Budget(0.95), K, 1, 0.0)
    assert choice.exact
    assert choice.estimate == 1.0
    assert choice.fastest <= choice.p50 <= choice.p95


def test_a_recall_of_one_is_exact(graph: FunnelIndex) -> None:
    choice = filters_of(graph, "random", 0.5).choose(Budget(1.0), K, 256, 0.0)
    assert choice.plan == FLAT


@pytest.mark.usefixtures("slow_exact")
def test_a_latency_is_met_or_refused(graph: FunnelIndex) -> None:
    filtered = filters_of(graph, "random", 0.5)
    within = filtered.choose(Budget(latency_ms=200), K, 1, 0.0)
    assert not within.exact
    assert within.p95 <= 200
    both = filtered.choose(Budget(0.9, 200), K, 1, 0.0)
    assert both.estimate >= 0.9
    assert both.p95 <= 200
    with pytest.raises(BudgetError, match=r"over the 1,500 rows that the filter allows.*Allow more time"):
        filtered.choose(Budget(latency_ms=1e-4), K, 1, 0.0)
    with pytest.raises(BudgetError, match=r"no plan meets recall 0.9 and latency 0.0001 ms over the 1,500 rows"):
        filtered.choose(Budget(0.9, 1e-4), K, 1, 0.0)


def test_planning_waits_until_exact_search_took_as_long(graph: FunnelIndex) -> None:
    filtered = filters_of(graph, "random", 0.5)
    assert not filtered.worthwhile(1)
    assert filtered.worthwhile(100_000)
    filtered.spent_ms = 1e6
    assert filtered.worthwhile(1)


def test_certificates_say_that_nothing_is_certified(graph: FunnelIndex) -> None:
    filtered = filters_of(graph, "random", 0.5)
    measured = FilterChoice(Plan(32, 16), 0.96, 0.96, 0.94, 448, 1.0, 2.0, 3.0)
    certificate = filtered.certificate(measured, Budget(0.95), K)
    assert not certificate.certified
    assert "measured, not certified" in str(certificate)
    exact = filtered.certificate(replace(measured, plan=FLAT), Budget(0.95), K)
    assert exact.certified
    assert str(exact) == "exact: each of the 1,500 allowed rows is compared"


def test_the_sample_has_queries_near_and_far(graph: FunnelIndex) -> None:
    filtered = filters_of(graph, "near", 0.1)
    calibration = graph.searcher.calibration
    assert calibration is not None
    run = calibration.run()
    sample = FilterSample.draw(run, filtered.cascade, K)
    assert [group.stop - group.start for group in sample.groups] == [448, 64, 64]
    nearness = filtered.cascade.exact(sample.queries, 1)[0][:, 0]
    at_random, near, far = (nearness[group].mean() for group in sample.groups)
    assert near > at_random > far
    np.testing.assert_allclose(sample.truth, filtered.cascade.exact(sample.queries, K)[0][:, -1], atol=1e-6)


def test_a_row_is_not_its_own_neighbour(graph: FunnelIndex) -> None:
    calibration = graph.searcher.calibration
    assert calibration is not None
    corpus, _ = calibration.runs()
    filtered = filters_of(graph, "random", 0.5)
    sample = FilterSample.draw(corpus, filtered.cascade, 1)
    own = np.isin(sample.own, np.flatnonzero(np.asarray(filtered.cascade.live)))
    assert own.any()
    assert (sample.own >= 0).all()
    assert (sample.truth[own] < 1 - 1e-4).any()
    scores = sample.scored(graph.searcher.cascade, sample.own[:, None])
    assert np.isneginf(scores).all()


def test_one_group_that_falls_short_is_enough_to_fail() -> None:
    good, bad = np.full(448, 0.97), np.full(64, 0.9)
    assert _holds((good, good[:64]), Budget(0.95))
    assert not _holds((good, bad), Budget(0.95))
    assert not _holds((bad, good), Budget(0.95))
    uneven: Any = np.tile([1.0, 0.0], 224)
    assert not _holds((uneven,), Budget(0.5))  # its mean is .5, its bound lies far below
