"""Trials of the promise: calibration queries drawn from a pool, the planner's own choice, the pool's mean as truth."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from funnel.budget import Budget
from funnel.plan import FLAT, Plan
from funnel.planning.calibration import Calibration
from funnel.planning.costs import Costs
from funnel.planning.frontier import Frontier, build_frontier
from funnel.planning.planner import Planner
from funnel.planning.run import Run, hits

__all__ = ["Pool", "Row", "make_pool", "recall_told_apart", "run_trials"]


@dataclass(frozen=True)
class Pool:
    """The plans of one k and what the whole pool says of them.

    frontier: as the index would test it, with the hits of every query of the pool. truth: its plans' mean recall over
    the pool. best: every plan worth serving were the pool known, with its mean recall: found on the pool itself.
    """

    k: int
    frontier: Frontier
    truth: dict[Plan, float]
    best: dict[Plan, float]


def make_pool(calibration: Calibration, pool: Run, k: int) -> Pool:
    """The frontier of the index for this k, evaluated on the pool, and the pool's own frontier beside it."""
    frontier = calibration.frontier(k)
    assert frontier is not None
    found = hits(pool, frontier.plans, k)
    own = build_frontier(k, pool, None, calibration.costs, calibration.by_effort, calibration.dim)
    truth = dict(zip(frontier.plans, found.mean(axis=1) / k, strict=True))
    best = {**truth, **dict(zip(own.plans, own.corpus_hits.mean(axis=1) / k, strict=True)), FLAT: 1.0}
    return Pool(k, replace(frontier, query_hits=found), {**truth, FLAT: 1.0}, best)


@dataclass(frozen=True)
class Row:
    """What many trials of one budget gave.

    fell_back: share of trials in which no plan was certified, so that flat search was served. met: of the others, the
    share whose served plan has at least the recall over the pool, at batch size 1 and 256 both; met_error: the
    standard error of a share of .95 over so many trials. overshoot: mean of recall over the pool less the recall asked.
    cost: cost of the served plan over that of the cheapest plan that truly meets the recall, by batch size. least: what
    it must be in half of the trials at least, whatever the test: see `recall_told_apart`.
    queries_needed: median of what certificates of the trials that fell back say. overshoots: each trial's, at batch 1.
    """

    k: int
    recall: float
    n: int
    trials: int
    fell_back: float
    met: float
    met_error: float
    overshoot: float
    cost: dict[int, float]
    least: dict[int, float]
    queries_needed: float | None
    overshoots: list[float]

    def to_json(self) -> dict[str, Any]:
        """The row as plain values."""
        return asdict(self)


def run_trials(
    pool: Pool,
    calibration: Calibration,
    recalls: Sequence[float],
    n: int,
    trials: int,
    batches: Sequence[int],
    seed: int,
) -> Iterator[Row]:
    """One row for each recall: `trials` calibrations on n queries drawn from the pool with replacement."""
    generator = np.random.default_rng(seed)
    size = pool.frontier.hits.shape[1]
    planners = [_planner(pool, calibration, generator.integers(0, size, n)) for _ in range(trials)]
    for recall in recalls:
        yield _row(pool, planners, Budget(recall), n, batches)


def _planner(pool: Pool, calibration: Calibration, drawn: npt.NDArray[np.int64]) -> Planner:
    """The planner of an index that was calibrated on the drawn queries of the pool."""
    found = pool.frontier.query_hits
    assert found is not None
    frontier = replace(pool.frontier, query_hits=np.ascontiguousarray(found[:, drawn]))
    own = replace(calibration, n_queries=len(drawn), frontiers={pool.k: frontier})

    def unmeasured(_plan: Plan, _k: int, _batch: int) -> NoReturn:
        raise AssertionError("a recall budget alone measures no latency")

    return Planner(own, calibration.costs, unmeasured)


def _row(pool: Pool, planners: Sequence[Planner], budget: Budget, n: int, batches: Sequence[int]) -> Row:
    recall = budget.recall
    assert recall is not None
    costs = planners[0].costs
    cheapest = {batch: _cheapest(pool, costs, planners[0].calibration.dim, recall, batch) for batch in batches}
    served = [{batch: planner.candidates(budget, pool.k, batch) for batch in batches} for planner in planners]
    certified = [plans for plans in served if len(plans[batches[0]]) > 1]
    short = [planner for planner, plans in zip(planners, served, strict=True) if len(plans[batches[0]]) == 1]
    needed = [planner.choose(budget, pool.k, batches[0]).certificate.queries_needed for planner in short]
    chosen = [{batch: plans[batch][0] for batch in batches} for plans in certified]
    overshoots = [pool.truth[plans[batches[0]]] - recall for plans in chosen]
    met = [all(pool.truth[plan] >= recall for plan in plans.values()) for plans in chosen]
    dim, apart = planners[0].calibration.dim, recall_told_apart(recall, n, budget.delta)
    cost = {
        batch: float(np.mean([costs.predict(plans[batch], batch, dim) / cheapest[batch] for plans in chosen]))
        for batch in batches
        if chosen
    }
    return Row(
        k=pool.k,
        recall=recall,
        n=n,
        trials=len(planners),
        fell_back=len(short) / len(planners),
        met=float(np.mean(met)) if met else math.nan,
        met_error=math.sqrt(0.95 * 0.05 / len(met)) if met else math.nan,
        overshoot=float(np.mean(overshoots)) if met else math.nan,
        cost=cost,
        least={batch: _cheapest(pool, costs, dim, apart, batch) / cheapest[batch] for batch in batches},
        queries_needed=float(np.median([count for count in needed if count])) if any(needed) else None,
        overshoots=overshoots,
    )


def recall_told_apart(recall: float, n: int, delta: float) -> float:
    """The true recall below which no valid test of n queries certifies a plan in more than half of the trials.

    Let every plan up to some cost have a recall of at most m, and fail completely besides on a share 1 - recall / m of
    all queries. None of them keeps the recall then, so that one is certified with probability delta at most; and with
    probability (recall / m) ** n no such query is drawn, and everything looks as it does without them.
    """
    return min(1.0, float(recall * (0.5 / delta) ** (1.0 / n)))


def _cheapest(pool: Pool, costs: Costs, dim: int, recall: float, batch: int) -> float:
    return float(min(costs.predict(plan, batch, dim) for plan, truth in pool.best.items() if truth >= recall))
