from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from funnel.plan import Plan
from funnel.planning import frontier as frontiers
from funnel.planning.costs import BATCH_SIZES, Costs
from funnel.planning.frontier import Frontier, build_frontier
from funnel.planning.run import Run, hits
from tests.funnel.planning.conftest import DIM, Recorded

Recording = Callable[[str], Recorded]


def costs_for(run: Run) -> Costs:
    """Costs that grow with effort, candidates and columns, more steeply in batches."""
    sizes, columns = (16, 1024), (16, DIM)
    return Costs(
        machine={},
        sizes=sizes,
        coarse={batch: {effort: (1 + effort) * batch**0.5 for effort in run.efforts} for batch in BATCH_SIZES},
        rerank={
            batch: {width: [size * width * batch / 1e3 for size in sizes] for width in columns} for batch in BATCH_SIZES
        },
        flat=dict.fromkeys(BATCH_SIZES, 1e4),
        base=dict.fromkeys(BATCH_SIZES, 0.1),
    )


@pytest.fixture(params=["flat", "hnsw-sq8", "ivf-sq8"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


MADE: dict[tuple[str, int], tuple[Frontier, Costs]] = {}


def frontier_of(recording: Recording, name: str, k: int, queries: Run | None = None) -> tuple[Frontier, Costs]:
    if queries is None and (name, k) in MADE:
        return MADE[name, k]
    _, corpus, real = recording(name)
    costs = costs_for(corpus)
    by_effort = name.startswith("hnsw")
    made = build_frontier(k, corpus, real if queries is None else queries, costs, by_effort, DIM), costs
    if queries is None:
        MADE[name, k] = made
    return made


@pytest.mark.parametrize("k", [1, 10, 100])
def test_plans_descend_in_recall_on_held_out_rows(recorded: Recording, name: str, k: int) -> None:
    frontier, _ = frontier_of(recorded, name, k)
    means = frontier.corpus_hits.mean(axis=1)
    assert (np.diff(means) <= 1e-12).all()
    assert len(frontier.plans) == len(set(frontier.plans)) == len(means)
    widths = recorded(name)[1].widths
    for plan in frontier.plans:
        plan.check(widths)
        assert plan.survivors >= k
        assert not plan.is_flat


def test_hits_on_the_frontier_are_those_of_its_plans(recorded: Recording, name: str) -> None:
    frontier, _ = frontier_of(recorded, name, 10)
    _, corpus, real = recorded(name)
    np.testing.assert_array_equal(frontier.corpus_hits, hits(corpus, frontier.plans, 10))
    assert frontier.query_hits is not None
    np.testing.assert_array_equal(frontier.query_hits, hits(real, frontier.plans, 10))
    assert frontier.hits is frontier.query_hits
    np.testing.assert_allclose(frontier.recalls(0), frontier.query_hits[0] / 10)
    assert replace(frontier, query_hits=None).hits is frontier.corpus_hits


def test_the_spine_is_there(recorded: Recording, name: str) -> None:
    frontier, _ = frontier_of(recorded, name, 10)
    _, corpus, _ = recorded(name)
    for effort in (effort for effort in corpus.efforts if corpus.largest(effort) >= 10):
        assert Plan(effort, corpus.largest(effort)) in frontier.plans
    if not name.startswith("hnsw"):
        direct = {plan.shortlist for plan in frontier.plans if not plan.stages and plan.effort == corpus.efforts[-1]}
        assert {10, 64, 256, 1024} <= direct


def test_no_plan_kept_is_beaten_but_on_the_spine(recorded: Recording, name: str) -> None:
    frontier, costs = frontier_of(recorded, name, 10)
    means = frontier.corpus_hits.mean(axis=1)
    table = np.array([[costs.predict(plan, batch, DIM) for plan in frontier.plans] for batch in BATCH_SIZES])
    for i, plan in enumerate(frontier.plans):
        if not plan.stages:
            continue
        beaten = [((table[b] < table[b, i]) & (means >= means[i])).any() for b in range(len(BATCH_SIZES))]
        assert not all(beaten), plan


def test_queries_have_no_part_in_plans_and_order(recorded: Recording, name: str) -> None:
    _, corpus, real = recorded(name)
    frontier, costs = frontier_of(recorded, name, 10)
    # Queries that find nothing, as different as can be.
    lost = replace(real, candidate_scores=np.full_like(real.candidate_scores, -1.0))
    other, _ = frontier_of(recorded, name, 10, lost)
    assert other.plans == frontier.plans
    np.testing.assert_array_equal(other.corpus_hits, frontier.corpus_hits)
    assert other.query_hits is not None
    assert not other.query_hits.any()
    alone = build_frontier(10, corpus, None, costs, name.startswith("hnsw"), DIM)
    assert alone.plans == frontier.plans
    assert alone.query_hits is None


def test_efforts_with_shortlists_below_k_are_left_out(recorded: Recording) -> None:
    frontier, _ = frontier_of(recorded, "hnsw-sq8", 100)
    assert min(plan.effort for plan in frontier.plans) >= 100


def test_a_k_between_uses_the_plans_of_others_on_the_record_for_itself(recorded: Recording, name: str) -> None:
    _, corpus, real = recorded(name)
    plans = [plan for k in (1, 10) for plan in frontier_of(recorded, name, k)[0].plans]
    made = frontiers.frontier_of(3, plans, corpus, real)
    assert set(made.plans) == {plan for plan in plans if plan.survivors >= 3}
    assert (np.diff(made.corpus_hits.mean(axis=1)) <= 1e-12).all()
    np.testing.assert_array_equal(made.corpus_hits, hits(corpus, made.plans, 3))
    np.testing.assert_array_equal(made.query_hits, hits(real, made.plans, 3))
    none = frontiers.frontier_of(3, [], corpus, real)
    assert none.plans == ()
    assert none.hits.shape == (0, len(real.queries))
