"""Finds the plans that no cheaper plan equals, without evaluating most of the grid (branch and bound).

A plan's stages only lose candidates, so that its recall is at most that of the plan without its last stage, and a
direct plan's at most that of one with a longer shortlist. Its cost is known before it is evaluated. So a plan can be
left out, unevaluated, where at every batch size a plan that was evaluated costs no more and has at least the recall
that it could have at best. Direct plans are evaluated first, then one stage, then two: each level prunes the next.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

import numpy as np
import numpy.typing as npt

from funnel.plan import Plan, Stage
from funnel.planning.calibration import Run, hits
from funnel.planning.costs import Prices
from funnel.planning.grid import MOST_INTERMEDIATE_STAGES, keep_sizes

__all__ = ["pareto", "undominated"]

Recalls = dict[Plan, float]


class _Stairs:
    """The highest recall of evaluated plans up to a cost, at one batch size."""

    def __init__(self) -> None:
        self._costs: list[float] = []
        self._recalls: list[float] = []  # rising with cost

    def add(self, cost: float, recall: float) -> None:
        """Take in an evaluated plan."""
        at = bisect_right(self._costs, cost)
        if at and self._recalls[at - 1] >= recall:
            return
        end = at
        while end < len(self._recalls) and self._recalls[end] <= recall:
            end += 1
        start = at - 1 if at and self._costs[at - 1] == cost else at
        self._costs[start:end], self._recalls[start:end] = [cost], [recall]

    def reaches(self, recall: float, cost: float) -> bool:
        """Whether some evaluated plan of at most this cost has at least this recall."""
        at = bisect_right(self._costs, cost)
        return at > 0 and self._recalls[at - 1] >= recall


class _Search:
    def __init__(self, k: int, run: Run, prices: Prices) -> None:
        self.k, self.run, self.prices = k, run, prices
        self.recalls: Recalls = {}
        self.stairs = [_Stairs() for _ in prices.batches]

    def evaluate(self, plans: Sequence[Plan]) -> None:
        """Work out the recall of the plans, all of one effort."""
        means = hits(self.run, plans, self.k).mean(axis=1, dtype=np.float64) / self.k if plans else []
        for plan, recall in zip(plans, means, strict=True):
            self.recalls[plan] = float(recall)
            for stairs, cost in zip(self.stairs, self.prices.of(plan), strict=True):
                stairs.add(cost, float(recall))

    def useless(self, costs: Iterable[float], at_best: float) -> bool:
        """Whether a plan of these costs (or more), whose recall is at most `at_best`, need not be evaluated."""
        return all(stairs.reaches(at_best, cost) for stairs, cost in zip(self.stairs, costs, strict=True))

    def deepen(self, effort: int, parents: Sequence[tuple[Plan, float]]) -> list[tuple[Plan, float]]:
        """Evaluate what is worth it of the plans with one stage more than the parents; all of those not ruled out.

        parents: plans of one effort, with the recall that each has at best. Returns children alike.
        """
        children, wanted = [], []
        for parent, at_best in parents:
            start = parent.stages[-1].width if parent.stages else 0
            for width in self.run.widths[:-1]:
                if width <= start or self.useless(self.prices.until(parent, width), at_best):
                    continue
                for keep in keep_sizes(parent.survivors):
                    if keep < self.k:
                        break
                    child = Plan(effort, parent.shortlist, (*parent.stages, Stage(width, keep)))
                    children.append((child, at_best))
                    if not self.useless(self.prices.of(child), at_best):
                        wanted.append(child)
        self.evaluate(wanted)
        return [(child, self.recalls.get(child, at_best)) for child, at_best in children]


def undominated(k: int, run: Run, prices: Prices, sizes: Mapping[int, Sequence[int]]) -> Recalls:
    """Every plan of the grid that at some batch size no plan of at most its cost equals in recall, and others.

    sizes: effort -> its shortlists, each at least k. Returns recall@k on the run of every plan that was evaluated:
    all direct plans, and those with stages that could not be ruled out. A plan left out is equalled or beaten at
    every batch size by one that is there and costs no more.
    """
    search = _Search(k, run, prices)
    for effort, shortlists in sizes.items():
        search.evaluate([Plan(effort, size) for size in shortlists])
    level = [(plan, search.recalls[plan]) for plan in search.recalls]
    for _ in range(MOST_INTERMEDIATE_STAGES):
        level = [child for effort, parents in _by_effort(level) for child in search.deepen(effort, parents)]
    return search.recalls


def _by_effort(level: Sequence[tuple[Plan, float]]) -> Iterator[tuple[int, list[tuple[Plan, float]]]]:
    for effort, members in groupby(level, key=lambda member: member[0].effort):
        yield effort, list(members)


def pareto(recalls: npt.NDArray[np.float64], costs: npt.NDArray[np.float64]) -> set[int]:
    """Positions that no plan of at most their cost equals or beats in recall."""
    best, kept = -1.0, set()
    for i in np.lexsort((-recalls, costs)):
        if recalls[i] > best:
            best = float(recalls[i])
            kept.add(int(i))
    return kept
