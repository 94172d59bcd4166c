"""Calibrations by hand: hits as given, costs as given, so that what a planner must choose is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from funnel.plan import Plan, Stage
from funnel.planning.calibration import Calibration
from funnel.planning.costs import BATCH_SIZES, Costs
from funnel.planning.frontier import Frontier, keep_sizes
from funnel.planning.planner import Latency, Planner

__all__ = ["DIM", "PLANS", "K", "costs_of", "hits_of", "make_calibration", "make_planner", "plans_of_effort"]

DIM, K = 64, 10
MACHINE = {"processor": "made up"}
# Strongest first, as on held-out rows; each costs its effort in hundredths of a millisecond.
PLANS = tuple(Plan(effort, 100) for effort in (400, 200, 100, 50, 25))


def costs_of(plans: Sequence[Plan] = PLANS, flat: float = 10.0, batch_factor: float = 10.0) -> Costs:
    """A batch of 32 takes ten times one query, 256 a hundred times; reranks are free."""
    factors = {batch: batch_factor**i for i, batch in enumerate(BATCH_SIZES)}
    return Costs(
        machine=dict(MACHINE),
        sizes=(16, 1024),
        coarse={batch: {p.effort: p.effort / 100 * factor for p in plans} for batch, factor in factors.items()},
        rerank={batch: {DIM: [0.0, 0.0]} for batch in factors},
        flat={batch: flat * factor for batch, factor in factors.items()},
        base=dict.fromkeys(factors, 0.0),
    )


def hits_of(recalls: Sequence[float], queries: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """uint8 [plans, queries] of 0..K, whose means are the recalls to within 1 / (K queries)."""
    generator = np.random.default_rng(seed)
    result = np.empty((len(recalls), queries), dtype=np.uint8)
    for row, recall in zip(result, recalls, strict=True):
        total = round(recall * K * queries)
        values = np.full(queries, total // queries)
        values[: total - int(values.sum())] += 1
        row[:] = generator.permutation(values)
    return result


def make_calibration(
    recalls: Sequence[float], queries: int = 2000, real: bool = True, plans: Sequence[Plan] = PLANS, depth: int = 100
) -> Calibration:
    found = hits_of(recalls, queries)
    return Calibration(
        costs=costs_of(plans),
        by_effort=True,
        dim=DIM,
        date="2026-01-02T03:04:05+00:00",
        n_queries=queries if real else 0,
        n_corpus_rows=queries,
        depth=depth,
        frontiers={K: Frontier(K, tuple(plans), found, found if real else None)},
    )


def make_planner(
    calibration: Calibration, p95: Callable[[Plan, int], float] | None = None, calls: list[Plan] | None = None
) -> Planner:
    """Measured latencies are the predicted ones unless `p95` says; the plans measured are noted in `calls`."""

    def measure(plan: Plan, _k: int, batch: int) -> Latency:
        if calls is not None:
            calls.append(plan)
        ms = calibration.costs.predict(plan, batch, DIM) if p95 is None else p95(plan, batch)
        return Latency(ms * 0.9, ms)

    return Planner(calibration, calibration.costs, measure)


def plans_of_effort(effort: int, sizes: Sequence[int], widths: Sequence[int]) -> Iterator[Plan]:
    """Every plan at this effort: sizes are its shortlists, widths the intermediate widths, rising."""
    for size in sizes:
        yield Plan(effort, size)
        for width in widths:
            for keep in keep_sizes(size):
                yield Plan(effort, size, (Stage(width, keep),))
