"""The plans worth testing, in the order they are tested.

A budget on the tail asks that a share of queries each get a recall. What is tested then is the share of queries with
recall@k >= r, by the same bound as the mean: the observation is 1 where a query got at least r k of its true top k
(tie-aware), else 0. The order is that of held-out rows here too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from funnel.plan import Plan
from funnel.planning.calibration import Run, hits
from funnel.planning.costs import Costs, Prices
from funnel.planning.grid import SMALLEST_SHARE, shortlists
from funnel.planning.pruning import pareto, undominated

__all__ = ["Frontier", "TailFrontier", "build_frontier", "frontier_of", "hits_needed", "tail_of"]

ROUNDING = 1e-9  # recall times k may come out a hair above what it is


@dataclass(frozen=True)
class Frontier:
    """Plans for one k, in descending recall on held-out corpus rows, with what was measured of each.

    corpus_hits: uint8 [plans, rows], how many of the true top k each held-out row got. query_hits: the same
    [plans, queries] of the real queries, which had no part in choosing or ordering the plans; None without any.
    """

    k: int
    plans: tuple[Plan, ...]
    corpus_hits: npt.NDArray[np.uint8]
    query_hits: npt.NDArray[np.uint8] | None

    @property
    def hits(self) -> npt.NDArray[np.uint8]:
        """Of the real queries where there are any, else of the held-out rows."""
        return self.corpus_hits if self.query_hits is None else self.query_hits

    def recalls(self, position: int) -> npt.NDArray[np.float64]:
        """recall@k of every query under one plan: float64 [q]."""
        recalls: npt.NDArray[np.float64] = self.hits[position] / self.k
        return recalls


@dataclass(frozen=True)
class TailFrontier(Frontier):
    """Plans for budgets on the share of queries that get `needed` of their top k, by falling worth on held-out rows."""

    needed: int

    def recalls(self, position: int) -> npt.NDArray[np.float64]:
        """What is tested of a plan: 1 for every query that got as many as needed, else 0. float64 [q]."""
        met: npt.NDArray[np.float64] = (self.hits[position] >= self.needed).astype(np.float64)
        return met


def hits_needed(recall: float, k: int) -> int:
    """How many of the true top k a query must get for a recall@k of `recall`, at least one."""
    return max(1, math.ceil(recall * k - ROUNDING))


def tail_of(frontier: Frontier, needed: int) -> TailFrontier:
    """The same plans, in the order in which a budget on the share of queries tests them.

    needed: of the true top k, see `hits_needed`. Ordered by the mean of "got at least j" over j from `needed` to k:
    nearly all held-out rows get as many as needed, too nearly to tell good plans from better ones, and the rows that a
    plan finds in full tell them apart.
    """
    k, found = frontier.k, frontier.corpus_hits.astype(np.float64)
    worth = np.clip((found - (needed - 1)) / (k - needed + 1), 0.0, 1.0).mean(axis=1)
    order = np.argsort(-worth, kind="stable") if len(found) else np.empty(0, dtype=np.int64)
    real = None if frontier.query_hits is None else frontier.query_hits[order]
    return TailFrontier(k, tuple(frontier.plans[i] for i in order), frontier.corpus_hits[order], real, needed)


def build_frontier(k: int, corpus: Run, queries: Run | None, costs: Costs, by_effort: bool, dim: int) -> Frontier:
    """The plans that no cheaper plan beats on held-out rows at some batch size, and the spine.

    The spine, plans without intermediate stages at rising effort (and, where the shortlist is free, rising
    shortlists), stays in even where a cheaper plan looks as good: held-out rows are easier than real queries (.99
    there may be .92), and the sequence must begin with plans stronger than any that are likely to be needed.
    by_effort: whether the shortlist is tied to the effort (a graph) or free (lists, flat).
    """
    prices = Prices(costs, dim)
    sizes = _sizes(k, corpus, by_effort, costs.reranked)
    found = undominated(k, corpus, prices, sizes)
    plans, recall = list(found), np.array(list(found.values()))
    cost = np.array([prices.of(plan) for plan in plans]).reshape(len(plans), len(prices.batches))
    spine = _spine(sizes, by_effort)
    chosen = {i for i, plan in enumerate(plans) if plan in spine}
    for column in cost.T:
        chosen |= pareto(recall, column)
    order = sorted(chosen, key=lambda i: (-recall[i], -cost[i].sum()))
    kept = tuple(plans[i] for i in order)
    real = None if queries is None else hits(queries, kept, k)
    return Frontier(k, kept, hits(corpus, kept, k), real)


def frontier_of(k: int, plans: Sequence[Plan], corpus: Run, queries: Run | None) -> Frontier:
    """The plans that can serve k, in descending recall on held-out rows: for a k near those they were chosen for."""
    fitting = [plan for plan in dict.fromkeys(plans) if plan.survivors >= k]
    found = hits(corpus, fitting, k)
    order = np.argsort(-found.mean(axis=1, dtype=np.float64), kind="stable") if fitting else np.empty(0, dtype=np.int64)
    kept = tuple(fitting[i] for i in order)
    return Frontier(k, kept, found[order], None if queries is None else hits(queries, kept, k))


def _sizes(k: int, run: Run, by_effort: bool, reranked: bool) -> dict[int, list[int]]:
    """Effort -> the shortlists worth trying that hold k candidates, rising; one where they all cost the same."""
    if not reranked:
        return {effort: [run.largest(effort)] for effort in run.efforts if run.largest(effort) >= k}
    share = SMALLEST_SHARE if by_effort else None
    sizes = {effort: [s for s in shortlists(run.largest(effort), share) if s >= k] for effort in run.efforts}
    return {effort: fitting for effort, fitting in sizes.items() if fitting}


def _spine(sizes: dict[int, list[int]], by_effort: bool) -> set[Plan]:
    spine = {Plan(effort, fitting[-1]) for effort, fitting in sizes.items()}
    if not by_effort and sizes:
        last = max(sizes)
        spine |= {Plan(last, size) for size in sizes[last]}
    return spine
