"""How the answers of a call that a deadline stopped were found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from funnel.engine.steps import Found
from funnel.results import Served

__all__ = ["served_each", "served_in_all"]


def served_each(found: Found, served: Served, recalls: Sequence[float]) -> list[Served]:
    """One record a query. served: of the plan run to its end; recalls: estimated after each of its steps.

    Flat search that was stopped found the true neighbours among the rows it saw: their share is the estimate. Rows lie
    in the order of a cluster tree, so that this is a mean over queries, and says little of a single one.
    """
    made: dict[int, Served] = {}
    for done in np.unique(found.done).tolist():
        made[done] = _served(served, served.stages - done, found.seen, recalls)
    return [made[done] for done in found.done.tolist()]


def served_in_all(each: Sequence[Served], found: Found, served: Served) -> Served:
    """One record for a whole batch: the most steps that were left out, and the mean of the estimates."""
    if (found.done == served.stages).all():
        return each[0]
    estimate = float(np.mean([one.estimated_recall for one in each]))
    skipped = int(served.stages - found.done.min())
    return replace(served, estimated_recall=estimate, skipped=skipped, rows_seen=found.seen)


def _served(served: Served, skipped: int, seen: float, recalls: Sequence[float]) -> Served:
    if not skipped and not math.isnan(served.estimated_recall):
        return served
    estimate = seen if served.plan.is_flat else recalls[served.stages - skipped - 1]
    return replace(served, estimated_recall=estimate, skipped=skipped, rows_seen=seen)
