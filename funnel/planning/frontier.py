"""The plans worth testing, in the order they are tested."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from funnel.plan import Plan
from funnel.planning.calibration import Run, hits
from funnel.planning.costs import BATCH_SIZES, Costs
from funnel.planning.grid import SMALLEST_SHARE, plans_of_effort, shortlists

__all__ = ["Frontier", "build_frontier", "frontier_of"]


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


def build_frontier(k: int, corpus: Run, queries: Run | None, costs: Costs, by_effort: bool, dim: int) -> Frontier:
    """The plans that no cheaper plan beats on held-out rows at some batch size, and the spine.

    The spine, plans without intermediate stages at rising effort (and, where the shortlist is free, rising
    shortlists), stays in even where a cheaper plan looks as good: held-out rows are easier than real queries (.99
    there may be .92), and the sequence must begin with plans stronger than any that are likely to be needed.
    by_effort: whether the shortlist is tied to the effort (a graph) or free (lists, flat).
    """
    plans, spine = _all_plans(k, corpus, by_effort)
    found = hits(corpus, plans, k)
    recall = found.mean(axis=1, dtype=np.float64) / k
    cost = np.array([[costs.predict(plan, batch, dim) for plan in plans] for batch in BATCH_SIZES])
    chosen = set(spine)
    for row in cost:
        chosen |= _pareto(recall, row)
    order = sorted(chosen, key=lambda i: (-recall[i], -cost[:, i].sum()))
    kept = tuple(plans[i] for i in order)
    real = None if queries is None else hits(queries, kept, k)
    return Frontier(k, kept, found[order], real)


def frontier_of(k: int, plans: Sequence[Plan], corpus: Run, queries: Run | None) -> Frontier:
    """The plans that can serve k, in descending recall on held-out rows: for a k near those they were chosen for."""
    fitting = [plan for plan in dict.fromkeys(plans) if plan.survivors >= k]
    found = hits(corpus, fitting, k)
    order = np.argsort(-found.mean(axis=1, dtype=np.float64), kind="stable") if fitting else np.empty(0, dtype=np.int64)
    kept = tuple(fitting[i] for i in order)
    return Frontier(k, kept, found[order], None if queries is None else hits(queries, kept, k))


def _all_plans(k: int, run: Run, by_effort: bool) -> tuple[list[Plan], list[int]]:
    plans: list[Plan] = []
    spine: list[int] = []
    for effort in run.efforts:
        largest = run.shortlists[effort].shape[1]
        if largest < k:
            continue
        sizes = [s for s in shortlists(largest, SMALLEST_SHARE if by_effort else None) if s >= k]
        own = [plan for plan in plans_of_effort(effort, sizes, run.widths[:-1]) if plan.survivors >= k]
        direct = sizes if effort == run.efforts[-1] and not by_effort else [largest]
        spine += [len(plans) + own.index(Plan(effort, size)) for size in direct]
        plans += own
    return plans, spine


def _pareto(recall: npt.NDArray[np.float64], cost: npt.NDArray[np.float64]) -> set[int]:
    """Positions that no cheaper plan equals or beats in recall."""
    best, kept = -1.0, set()
    for i in np.lexsort((-recall, cost)):
        if recall[i] > best:
            best = float(recall[i])
            kept.add(int(i))
    return kept
