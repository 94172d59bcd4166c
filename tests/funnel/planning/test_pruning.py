from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from funnel.plan import Plan
from funnel.planning import frontier as pruning
from funnel.planning.costs import BATCH_SIZES, Costs
from funnel.planning.frontier import pareto, undominated
from funnel.planning.run import MISSING, Run, hits
from tests.funnel.planning.made_up import plans_of_effort

WIDTHS = (16, 32, 48, 64)
QUERIES, CANDIDATES = 12, 160
EFFORTS = (8, 20, 48, 96, 128)


def made_up_run(seed: int) -> Run:
    """Scores that come nearer to the true ones as the width grows; some efforts find what others miss."""
    generator = np.random.default_rng(seed)
    true = -np.sort(-generator.normal(size=(QUERIES, CANDIDATES)).astype(np.float32), axis=1)
    noise = generator.uniform(0, 1.5, len(WIDTHS))
    noise = -np.sort(-noise)
    noise[-1] = 0.0
    scores = np.stack([true + n * generator.normal(size=true.shape).astype(np.float32) for n in noise], axis=2)
    coarse = true + 2 * generator.normal(size=true.shape)
    places = {}
    for effort in EFFORTS:
        found = np.where(generator.random(true.shape) < 0.5 + 0.5 * effort / EFFORTS[-1], coarse, -np.inf)
        order = np.argsort(-found, axis=1)[:, :effort]
        order = np.where(np.isfinite(np.take_along_axis(found, order, axis=1)), order, MISSING)
        places[effort] = order.astype(np.uint16)
    candidates = np.tile(np.arange(CANDIDATES, dtype=np.int32), (QUERIES, 1))
    own = np.full(QUERIES, -1, dtype=np.int64)
    return Run(np.zeros((QUERIES, 64), np.float32), own, true, WIDTHS, candidates, scores.astype(np.float32), places)


def made_up_costs(seed: int) -> Costs:
    """Rising with effort, candidates and columns, otherwise anyhow and another way at each batch size."""
    generator = np.random.default_rng(seed)

    def rising(count: int) -> list[float]:
        result: list[float] = np.cumsum(generator.uniform(0.0, 1.0, count)).tolist()
        return result

    rerank = {}
    for batch in BATCH_SIZES:
        table = np.cumsum(np.cumsum(generator.uniform(0, 0.3, (4, 3)), axis=0), axis=1)
        rerank[batch] = {width: table[i].tolist() for i, width in enumerate((16, 32, 48, 64))}
    return Costs(
        machine={},
        sizes=(8, 48, 128),
        coarse={batch: dict(zip(EFFORTS, rising(len(EFFORTS)), strict=True)) for batch in BATCH_SIZES},
        rerank=rerank,
        flat=dict.fromkeys(BATCH_SIZES, 100.0),
        base=dict.fromkeys(BATCH_SIZES, 0.1),
    )


def everything(k: int, run: Run, sizes: dict[int, list[int]]) -> list[Plan]:
    plans = [plan for effort in sizes for plan in plans_of_effort(effort, sizes[effort], run.widths[:-1])]
    return [plan for plan in plans if plan.survivors >= k]


def sizes_of(k: int) -> dict[int, list[int]]:
    return {effort: [s for s in (effort // 2, effort) if s >= k] for effort in EFFORTS if effort >= k}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.sampled_from([1, 3, 8]))
def test_what_is_found_is_what_full_enumeration_finds(seed: int, cost_seed: int, k: int) -> None:
    run, costs, sizes = made_up_run(seed), made_up_costs(cost_seed), sizes_of(k)
    plans = everything(k, run, sizes)
    recalls = dict(zip(plans, hits(run, plans, k).mean(axis=1) / k, strict=True))
    found = undominated(k, run, costs, sizes)
    assert set(found) <= set(plans)
    for plan, recall in found.items():
        assert recall == pytest.approx(recalls[plan], abs=1e-12)
    for batch in range(len(BATCH_SIZES)):
        best = stairs(recalls, costs, batch)
        assert stairs(found, costs, batch) == best


def stairs(recalls: dict[Plan, float], costs: Costs, batch: int) -> list[tuple[float, float]]:
    """Cost and recall of every plan that no plan of at most its cost equals."""
    plans = list(recalls)
    recall, cost = (
        np.array([recalls[p] for p in plans]),
        np.array([costs.predict(p, BATCH_SIZES[batch], 64) for p in plans]),
    )
    return sorted((float(cost[i]), float(recall[i])) for i in pareto(recall, cost))


@pytest.mark.parametrize("seed", range(3))
def test_plans_that_cannot_win_are_not_evaluated(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a run whose widths tell little apart, with a coarse search that costs most of the time, as it does."""
    run, sizes, counted = made_up_run(seed), sizes_of(3), []
    costs = made_up_costs(seed)
    for table in costs.coarse.values():
        table.update({effort: 0.2 * effort for effort in EFFORTS})

    def counting(run: Run, plans: Sequence[Plan], k: int) -> np.ndarray:
        counted.append(len(plans))
        return hits(run, plans, k)

    monkeypatch.setattr(pruning, "hits", counting)
    found = undominated(3, run, costs, sizes)
    assert sum(counted) == len(found) < len(everything(3, run, sizes))
