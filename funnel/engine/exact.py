"""Exact search for less than flat search: the funnel's own answer says which rows need no look."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from funnel.engine.cascade import Cascade, Float32, Int64, some_missing
from funnel.engine.steps import Found
from funnel.engine.workers import workers
from funnel.plan import Plan
from funnel.request import Deadline
from indexes import PrunedSearch, Pruning, exact_search

__all__ = ["filled_up", "filled_up_until", "over_live", "pruned_exact", "pruning_of"]

# Candidates for k results in the search whose k-th score rules rows out. Of 200,000 rows 24 for 10 lack the k-th true
# score by .004; twice as many cost more than they rule out.
SEEDS_PER_RESULT = 2
FEWEST_SEEDS = 24
# Where a shortlist does not grow with effort (lists), the effort to use: the fourth, eight lists.
LIST_EFFORT = 3


def pruned_exact(cascade: Cascade, norms: Float32, ladder: tuple[int, ...], release: bool, keep: bool) -> PrunedSearch:
    """What FLAT is served by: see `indexes.PrunedSearch`. norms: float32 [n, len(ladder)], may be mapped."""

    def spread(function: Callable[[range], None], pieces: Sequence[range]) -> None:
        workers().run(function, pieces)

    return PrunedSearch(cascade.store, norms, ladder, _reached(cascade), spread, torch.get_num_threads(), release, keep)


def over_live(cascade: Cascade, live: npt.NDArray[np.bool_] | None) -> Cascade:
    """The cascade over its live rows alone, bool [n]; None: over all. What it holds in memory is shared."""
    if live is None and cascade.live is None:
        return cascade
    store, exact = cascade.store, cascade.exact

    def flat(queries: Float32, k: int) -> tuple[Float32, Int64]:
        return exact_search(store, queries, k, live=live)

    def truth(queries: Float32, k: int) -> tuple[Float32, Int64]:
        return flat(cascade.as_stored(queries), k)

    made = replace(cascade, live=live, truth=truth, exact=flat)
    if isinstance(exact, PrunedSearch):
        made = replace(made, exact=exact.among(live, _reached(made)))
    return made


def filled_up(
    cascade: Cascade, queries: Float32, plan: Plan, k: int, scores: Float32, rows: Int64
) -> tuple[Float32, Int64]:
    """What a plan found, scores and stored rows [n, k]; exact where it lacks some of the best k that there are.

    Rows of its shortlist were deleted, or the lists that were searched are short or empty.
    """
    if not some_missing(rows) or plan.is_flat:
        return scores, rows
    count = min(k, cascade.rows)
    if not count or not some_missing(rows[:, :count]):
        return scores, rows
    short = np.flatnonzero(rows[:, count - 1] < 0)
    scores, rows = np.array(scores), np.array(rows)
    scores[short], rows[short] = cascade.flat(np.ascontiguousarray(queries[short]), k)
    return scores, rows


def filled_up_until(cascade: Cascade, queries: Float32, plan: Plan, k: int, deadline: Deadline, found: Found) -> Found:
    """As `filled_up`, unless the deadline has passed."""
    if deadline.passed():
        return found
    scores, rows = filled_up(cascade, queries, plan, k, found.scores, found.rows)
    return replace(found, scores=scores, rows=rows)


def _reached(cascade: Cascade) -> Callable[[Float32, int], Float32 | None]:
    def reached(queries: Float32, k: int) -> Float32 | None:
        plan = _seeds(cascade, k)
        return None if plan is None else cascade.run(cascade.as_asked(queries), plan, k)[0][:, -1]

    return reached


def _seeds(cascade: Cascade, k: int) -> Plan | None:
    """A cheap search for k rows that score high; None where the coarse index gives too few."""
    coarse, wanted = cascade.coarse, max(FEWEST_SEEDS, SEEDS_PER_RESULT * k)
    enough = [effort for effort in coarse.efforts() if coarse.largest_shortlist(effort) >= wanted]
    if not enough:
        return None
    return Plan(enough[0 if coarse.shortlist_grows else min(LIST_EFFORT, len(enough) - 1)], wanted)


def pruning_of(cascade: Cascade, queries: Float32, k: int, batch: int) -> Pruning | None:
    """How FLAT is run for calls of `batch` such queries; None: every row at full width.

    queries: float32 [q, d], unit rows as the cascade takes them, repeated where a batch needs more.
    """
    exact = cascade.exact
    repeated = cascade.as_stored(np.ascontiguousarray(np.resize(queries, (batch, queries.shape[1]))))
    return exact.choose(repeated, k) if isinstance(exact, PrunedSearch) else None
