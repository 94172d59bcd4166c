"""From a budget to its explanation: what is planned, what it is worth, and what it took when it was run."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from funnel.budget import DEFAULT_CONFIDENCE, Budget
from funnel.checks import checked_whole
from funnel.engine.allowed import FilterChoice, Filters
from funnel.engine.searcher import Searcher
from funnel.engine.steps import QUERIES, measure_steps, pruning_of
from funnel.errors import InputError
from funnel.plan import FLAT, Plan
from funnel.planning.certificate import Certificate
from funnel.planning.costs import Held, batch_class
from funnel.planning.run import Run
from funnel.results import Explanation, StageLine, stage_lines

__all__ = ["checked_batch", "explain_budget", "explain_filtered", "explain_plan"]

LARGEST_BATCH = 100_000  # above what any latency is measured for; as many queries are searched
COUNTED = 64  # queries whose coarse searches are counted in bytes


def explain_budget(searcher: Searcher, wanted: Budget, k: int, batch: int, run: bool) -> Explanation:
    """The plan that serves a budget, step by step. run: also time each step and measure its recall.

    Raises InputError for a batch that is none, BudgetError as `Searcher.choose` does.
    """
    checked_batch(batch)
    choice, size = searcher.choose(wanted, k, batch), batch_class(batch)
    held = None if wanted.latency_ms is None else searcher.latencies.held(choice.plan, k, size)
    return _explained(searcher, str(wanted), k, size, choice.plan, run, choice.certificate, held)


def explain_plan(searcher: Searcher, plan: Plan, k: int, batch: int, run: bool) -> Explanation:
    """A plan of the user's own, as `explain_budget`. Raises InputError where the index cannot run it."""
    if plan.is_flat:
        return explain_budget(searcher, Budget(recall=1.0), k, batch, run)
    checked_batch(batch)
    return _explained(searcher, f"plan {plan}", k, batch_class(batch), searcher.given(plan, k), run)


def _explained(
    searcher: Searcher,
    asked: str,
    k: int,
    size: int,
    plan: Plan,
    run: bool,
    certificate: Certificate | None = None,
    held: Held | None = None,
) -> Explanation:
    latency, cascade = searcher.latencies.of(plan, k, size), searcher.cascade
    pruning = pruning_of(cascade, searcher.sample_queries(), k, size) if plan.is_flat else None
    exact = str(pruning or "every row at full width") if plan.is_flat else ""
    recorded = _recorded(searcher, k) if run else None
    measured = () if recorded is None else measure_steps(cascade, recorded, plan, k, size)
    lines = stage_lines(
        plan,
        k,
        searcher.rows,
        (plan.width or cascade.width, searcher.dim),
        cascade.store.dtype.itemsize,
        _predicted(searcher, plan, size, latency.p50),
        searcher.step_recalls(plan, k),
        _coarse_bytes(searcher, plan),
        measured,
        pruning,
    )
    if certificate is None:
        estimate = measured[-1][1] if measured else searcher.estimate(plan, k)
        queries = 0 if recorded is None else min(QUERIES, len(recorded.queries))
        certificate = _by_hand(searcher, k, estimate, queries)
    return Explanation(asked, k, size, plan, lines, latency.p50, latency.p95, certificate, exact, held)


def _predicted(searcher: Searcher, plan: Plan, size: int, whole_ms: float) -> list[float]:
    """Milliseconds of each step by the costs on record; NaN where there are none of it, as of scans."""
    costs = None if searcher.calibration is None else searcher.planner.costs
    if costs is not None and (plan.is_flat or (not plan.width and plan.effort in costs.coarse[1])):
        return costs.stages(plan, size, searcher.dim)
    return [whole_ms] if plan.is_flat else [math.nan] * plan.steps


def _by_hand(searcher: Searcher, k: int, estimate: float, queries: int) -> Certificate:
    """What can be said of a user's own plan. queries: those that it was measured on now."""
    kind = "rows of the index" if searcher.calibration is None else searcher.calibration.kind
    note = "a plan by hand: its recall is not certified"
    figures = (estimate, math.nan, queries, kind, "", "", note)
    return Certificate(None, k, 1 - DEFAULT_CONFIDENCE, False, *figures, mean_recall=estimate)


def _recorded(searcher: Searcher, k: int) -> Run:
    """Queries and their true scores to run a plan on: the calibration's, or a sample's."""
    if searcher.calibration is not None and k <= searcher.calibration.depth:
        return searcher.calibration.run()
    queries = searcher.sample_queries()
    truth, _ = searcher.cascade.truth(queries, k)
    own, none = np.full(len(queries), -1, dtype=np.int64), np.empty((0, 0))
    return Run(queries, own, truth, searcher.widths, none.astype(np.int32), none.astype(np.float32), {})


def checked_batch(batch: object) -> None:
    """InputError for a batch that is none."""
    checked_whole("batch", batch, 1, LARGEST_BATCH, such_as=256)


def _coarse_bytes(searcher: Searcher, plan: Plan) -> int | None:
    if plan.is_flat:
        return None
    if plan.width:
        store = searcher.cascade.at(plan.width)
        return int(store.n * (plan.width * store.dtype.itemsize + 4))
    coarse = searcher.cascade.coarse
    prefixes = np.ascontiguousarray(searcher.sample_queries()[:COUNTED, : coarse.dim])
    return coarse.bytes_touched(prefixes, plan.shortlist, plan.effort)


def explain_filtered(
    searcher: Searcher,
    filters: Filters,
    where: str | None,
    allowed_ids: Any,
    wanted: Budget,
    k: int,
    batch: int,
    run: bool = False,
) -> Explanation:
    """The plan that serves a budget under a filter; its recall is measured under it, and not certified.

    A step's milliseconds and recall are known for the whole plan alone. Raises InputError where steps are to be run,
    where no row is allowed, and as `Filters` does.
    """
    if run:
        raise InputError(
            "run=True with a filter: the steps of a plan under a filter are not run one by one; leave it out"
        )
    filtered = filters.filtered(where, allowed_ids)
    count = filtered.count
    if not count:
        raise InputError("the filter allows no row: there is nothing to explain, and searches give no hits")
    checked_batch(batch)
    k, inside = min(k, count), min(k, filtered.cascade.rows)
    if inside:
        choice = filtered.choose(wanted, inside, batch, 0.0)
    else:  # what lies in further segments is compared exactly
        choice = FilterChoice(FLAT, 1.0, 1.0, 1.0, 0, math.nan, math.nan, math.nan)
    certificate = filtered.certificate(choice, wanted, k)
    exact = "" if not choice.plan.is_flat else f"each of the {count:,} allowed rows at full width"
    lines = _lines(searcher, choice, k, count)
    size, plan = batch_class(batch), choice.plan
    return Explanation(str(wanted), k, size, plan, lines, choice.p50, choice.p95, certificate, exact)


def _lines(searcher: Searcher, choice: FilterChoice, k: int, count: int) -> tuple[StageLine, ...]:
    steps = choice.plan.steps
    unknown = [math.nan] * (steps - 1)
    widths = (searcher.cascade.width, searcher.dim)
    return stage_lines(
        choice.plan,
        k,
        count,
        widths,
        searcher.cascade.store.dtype.itemsize,
        [*unknown, choice.p50],
        [*unknown, choice.estimate],
    )
