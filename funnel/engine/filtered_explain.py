"""What is planned under a filter, explained as a budget without one is."""

from __future__ import annotations

import math
from typing import Any

from funnel.budget import Budget
from funnel.engine.explain import checked_batch
from funnel.engine.filtered_plan import FilterChoice
from funnel.engine.filtered_search import Filters
from funnel.engine.searcher import Searcher
from funnel.errors import InputError
from funnel.explanation import Explanation, StageLine, stage_lines
from funnel.plan import FLAT
from funnel.planning.costs import batch_class

__all__ = ["explain_filtered"]


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
    k, inside = min(k, count), min(k, len(filtered.allowed))
    if inside:
        choice = filters.choose(filtered, wanted, inside, batch, 0.0)
    else:  # what lies in further segments is compared exactly
        choice = FilterChoice(FLAT, 1.0, 1.0, 1.0, 0, math.nan, math.nan, math.nan)
    certificate = filters.planner.certificate(filtered, choice, wanted, k)
    exact = "" if not choice.plan.is_flat else f"each of the {count:,} allowed rows at full width"
    lines = _lines(searcher, choice, k, count)
    times = (choice.p50, choice.p95)
    return Explanation.of(str(wanted), k, batch_class(batch), choice.plan, lines, times, certificate, exact, None)


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
