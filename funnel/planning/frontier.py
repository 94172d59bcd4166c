"""The plans worth testing, in the order they are tested.

A budget on the tail asks that a share of queries each get a recall. What is tested then is the share of queries with
recall@k >= r, by the same bound as the mean: the observation is 1 where a query got at least r k of its true top k
(tie-aware), else 0. The order is that of held-out rows here too.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby

import numpy as np
import numpy.typing as npt

from funnel.plan import Plan, Stage
from funnel.planning.costs import Costs, Prices
from funnel.planning.run import Run, hits

__all__ = [
    "SHORTLISTS",
    "Frontier",
    "TailFrontier",
    "build_frontier",
    "frontier_of",
    "hits_needed",
    "keep_sizes",
    "pareto",
    "plans_of_effort",
    "shortlists",
    "tail_of",
    "undominated",
]

# Sizes half an octave apart: the cost of a plan between two of them differs from one by less than a quarter.
SHORTLISTS = (10, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
SMALLEST_SHARE = 8  # a shortlist below 1/8 of what the coarse search found wastes its effort
MOST_INTERMEDIATE_STAGES = 2  # a third saves under 2 % on the recorded costs at 384 to 1,024 dims
KEEP_STEPS = 6  # a stage keeps at least 1/8 (six half-octave steps below) of what it is given


def shortlists(largest: int, smallest_share: int | None = SMALLEST_SHARE) -> tuple[int, ...]:
    """Shortlist sizes up to `largest`, itself among them, down to a share of it (None: down to the smallest)."""
    floor = 1 if smallest_share is None else largest / smallest_share
    sizes = {size for size in SHORTLISTS if floor <= size <= largest}
    return tuple(sorted(sizes | {largest}))


def keep_sizes(candidates: int) -> tuple[int, ...]:
    """How many of `candidates` an intermediate stage may keep, falling; at most two thirds of them."""
    smaller = [size for size in SHORTLISTS if size <= candidates * 2 / 3]
    return tuple(reversed(smaller[-KEEP_STEPS:]))


def plans_of_effort(effort: int, sizes: Sequence[int], widths: Sequence[int]) -> Iterator[Plan]:
    """Every plan at this effort: sizes are its shortlists, widths the intermediate widths, rising."""
    for size in sizes:
        yield Plan(effort, size)
        for count in range(1, MOST_INTERMEDIATE_STAGES + 1):
            for chosen in combinations(widths, count):
                yield from _staged(effort, size, chosen)


def _staged(effort: int, size: int, widths: tuple[int, ...]) -> Iterator[Plan]:
    def deeper(keep: int, position: int) -> Iterator[tuple[Stage, ...]]:
        if position == len(widths):
            yield ()
            return
        for smaller in keep_sizes(keep):
            for rest in deeper(smaller, position + 1):
                yield (Stage(widths[position], smaller), *rest)

    for stages in deeper(size, 0):
        yield Plan(effort, size, stages)


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
