"""From a budget to its explanation: what is planned, what it is worth, and what it took when it was run."""

from __future__ import annotations

import numpy as np

from funnel.budget import Budget
from funnel.checks import checked_whole
from funnel.engine.searcher import Searcher
from funnel.explanation import Explanation, stage_lines
from funnel.plan import Plan
from funnel.planning.costs import batch_class

__all__ = ["checked_batch", "explain_budget"]

LARGEST_BATCH = 100_000  # above what any latency is measured for; as many queries are searched
COUNTED = 64  # queries whose coarse searches are counted in bytes


def explain_budget(searcher: Searcher, wanted: Budget, k: int, batch: int, run: bool) -> Explanation:
    """The plan that serves a budget, step by step. run: also time each step and measure its recall.

    Raises InputError for a batch that is none, BudgetError as `Searcher.choose` does.
    """
    checked_batch(batch)
    choice = searcher.choose(wanted, k, batch)
    plan, size = choice.plan, batch_class(batch)
    latency, cascade = searcher.measured(plan, k, size), searcher.cascade
    pruning = searcher.pruning(k, size) if plan.is_flat else None
    exact = str(pruning or "every row at full width") if plan.is_flat else ""
    lines = stage_lines(
        plan,
        k,
        searcher.rows,
        (cascade.width, searcher.dim),
        cascade.store.dtype.itemsize,
        searcher.stage_ms(plan, size) or [latency.p50],
        searcher.step_recalls(plan, k),
        _coarse_bytes(searcher, plan),
        searcher.measure_steps(plan, k, size) if run else (),
        pruning,
    )
    held = None if wanted.latency_ms is None else searcher.held(plan, k, size)
    times = (latency.p50, latency.p95)
    return Explanation.of(str(wanted), k, size, plan, lines, times, choice.certificate, exact, held)


def checked_batch(batch: object) -> None:
    """InputError for a batch that is none."""
    checked_whole("batch", batch, 1, LARGEST_BATCH, such_as=256)


def _coarse_bytes(searcher: Searcher, plan: Plan) -> int | None:
    if plan.is_flat:
        return None
    coarse = searcher.cascade.coarse
    prefixes = np.ascontiguousarray(searcher.sample_queries()[:COUNTED, : coarse.dim])
    return coarse.bytes_touched(prefixes, plan.shortlist, plan.effort)
