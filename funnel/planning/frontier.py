"""The plans worth testing, in the order they are tested.

A budget on the tail asks that a share of queries each get a recall. What is tested then is the share of queries with
recall@k >= r, by the same bound as the mean: the observation is 1 where a query got at least r k of its true top k
(tie-aware), else 0. The order is that of held-out rows here too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from funnel.plan import Plan, Stage
from funnel.planning.costs import BATCH_SIZES, Costs
from funnel.planning.run import Run, hits

__all__ = [
    "SHORTLISTS",
    "Frontier",
    "build_frontier",
    "frontier_of",
    "hits_needed",
    "keep_sizes",
    "pareto",
    "shortlists",
    "tail_of",
    "undominated",
]

# Sizes half an octave apart: the cost of a plan between two of them differs from one by less than a quarter.
SHORTLISTS = (10, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
SMALLEST_SHARE = 8  # a shortlist below 1/8 of what the coarse search found wastes its effort
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


Recalls = dict[Plan, float]


Parents = list[tuple[Plan, float]]  # plans of one effort, with the recall that each has at best


class _Search:
    def __init__(self, k: int, run: Run, costs: Costs) -> None:
        self.k, self.run, self.costs = k, run, costs
        self.recalls: Recalls = {}
        self._prices: list[tuple[float, ...]] = []  # of the plans evaluated, at every batch size

    def price(self, plan: Plan, width: int) -> tuple[float, ...]:
        """Predicted milliseconds of the coarse search, the stages, and one rerank more, up to this width."""
        return tuple(self.costs.predict(plan, batch, width) for batch in BATCH_SIZES)

    def evaluate(self, plans: Sequence[Plan]) -> None:
        """Work out the recall of the plans, all of one effort."""
        if plans:
            means = hits(self.run, plans, self.k).mean(axis=1, dtype=np.float64) / self.k
            self.recalls |= zip(plans, means.tolist(), strict=True)
            self._prices += [self.price(plan, self.run.widths[-1]) for plan in plans]

    def useful(self, parents: Parents, width: int | None = None) -> Parents:
        """Those that no evaluated plan equals at their recall at best and no more than their cost, at some batch size.

        width: of the last rerank, instead of the full one.
        """
        asked = np.array([self.price(plan, width or self.run.widths[-1]) for plan, _ in parents])
        at_best, useful = np.array([recall for _, recall in parents]), np.zeros(len(parents), dtype=np.bool_)
        recalls, known = np.array(list(self.recalls.values())), np.array(self._prices)
        for column in range(len(BATCH_SIZES) if parents else 0):
            order = np.argsort(known[:, column])
            highest = np.concatenate([[-1.0], np.maximum.accumulate(recalls[order])])
            useful |= highest[np.searchsorted(known[order, column], asked[:, column], "right")] < at_best
        return [parent for parent, is_so in zip(parents, useful, strict=True) if is_so]

    def deepen(self, effort: int, parents: Parents) -> None:
        """Evaluate what is worth it of the plans with one stage between the coarse search and full width."""
        children = []
        for width in self.run.widths[:-1]:
            for parent, at_best in self.useful(parents, width):
                keeps = [keep for keep in keep_sizes(parent.survivors) if keep >= self.k]
                children += [(Plan(effort, parent.shortlist, (Stage(width, keep),)), at_best) for keep in keeps]
        self.evaluate([child for child, _ in self.useful(children)])


def undominated(k: int, run: Run, costs: Costs, sizes: Mapping[int, Sequence[int]]) -> Recalls:
    """Every plan of the grid that at some batch size no plan of at most its cost equals in recall, and others.

    Of plans with one stage between the coarse search and full width at most: on 100,000 x 1,536 at equal recall, plans
    with two between took 1.17 to 1.26 times as long as those without, and with four 1.4 to 1.7 times.
    sizes: effort -> its shortlists, each at least k. Returns recall@k on the run of every plan that was evaluated:
    all direct plans, and those with stages that could not be ruled out. A plan left out is equalled or beaten at
    every batch size by one that is there and costs no more.
    """
    search = _Search(k, run, costs)
    for effort, shortlists in sizes.items():
        search.evaluate([Plan(effort, size) for size in shortlists])
    direct = list(search.recalls.items())
    for effort in sizes:
        search.deepen(effort, [one for one in direct if one[0].effort == effort])
    return search.recalls


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
    needed: of the true top k, where budgets are on the share of queries that get so many; None: on the mean recall.
    """

    k: int
    plans: tuple[Plan, ...]
    corpus_hits: npt.NDArray[np.uint8]
    query_hits: npt.NDArray[np.uint8] | None
    needed: int | None = None

    @property
    def hits(self) -> npt.NDArray[np.uint8]:
        """Of the real queries where there are any, else of the held-out rows."""
        return self.corpus_hits if self.query_hits is None else self.query_hits

    def recalls(self, position: int) -> npt.NDArray[np.float64]:
        """What is tested of a plan, float64 [q]: recall@k; or 1 where a query got as many as needed, else 0."""
        found: npt.NDArray[np.uint8] = self.hits[position]
        return found / self.k if self.needed is None else (found >= self.needed).astype(np.float64)

    def ordered(self, worth: npt.NDArray[np.float64]) -> Frontier:
        """The same plans by falling worth, float [plans]."""
        order = np.argsort(-worth, kind="stable")
        real = None if self.query_hits is None else self.query_hits[order]
        return Frontier(self.k, tuple(self.plans[i] for i in order), self.corpus_hits[order], real)


def hits_needed(recall: float, k: int) -> int:
    """How many of the true top k a query must get for a recall@k of `recall`, at least one."""
    return max(1, math.ceil(recall * k - ROUNDING))


def tail_of(frontier: Frontier, needed: int) -> Frontier:
    """The same plans, in the order in which a budget on the share of queries tests them.

    needed: of the true top k, see `hits_needed`. Ordered by the mean of "got at least j" over j from `needed` to k:
    nearly all held-out rows get as many as needed, too nearly to tell good plans from better ones, and the rows that a
    plan finds in full tell them apart.
    """
    k, found = frontier.k, frontier.corpus_hits.astype(np.float64)
    worth = np.clip((found - (needed - 1)) / (k - needed + 1), 0.0, 1.0).mean(axis=1)
    return replace(frontier.ordered(worth), needed=needed)


def build_frontier(k: int, corpus: Run, queries: Run | None, costs: Costs, by_effort: bool, dim: int) -> Frontier:
    """The plans that no cheaper plan beats on held-out rows at some batch size, and the spine.

    The spine, plans without intermediate stages at rising effort (and, where the shortlist is free, rising
    shortlists), stays in even where a cheaper plan looks as good: held-out rows are easier than real queries (.99
    there may be .92), and the sequence must begin with plans stronger than any that are likely to be needed.
    by_effort: whether the shortlist is tied to the effort (a graph) or free (lists, flat).
    """
    sizes = _sizes(k, corpus, by_effort, costs.reranked)
    found = undominated(k, corpus, costs, sizes)
    plans, recall = list(found), np.array(list(found.values()))
    cost = np.array([[costs.predict(plan, batch, dim) for batch in BATCH_SIZES] for plan in plans])
    cost = cost.reshape(len(plans), len(BATCH_SIZES))
    spine = {Plan(effort, fitting[-1]) for effort, fitting in sizes.items()}
    if not by_effort and sizes:
        spine |= {Plan(max(sizes), size) for size in sizes[max(sizes)]}
    chosen = {i for i, plan in enumerate(plans) if plan in spine}
    for column in cost.T:
        chosen |= pareto(recall, column)
    kept = tuple(plans[i] for i in sorted(chosen, key=lambda i: (-recall[i], -cost[i].sum())))
    return Frontier(k, kept, hits(corpus, kept, k), None if queries is None else hits(queries, kept, k))


def frontier_of(k: int, plans: Sequence[Plan], corpus: Run, queries: Run | None) -> Frontier:
    """The plans that can serve k, in descending recall on held-out rows: for a k near those they were chosen for."""
    fitting = tuple(plan for plan in dict.fromkeys(plans) if plan.survivors >= k)
    found = Frontier(k, fitting, hits(corpus, fitting, k), None if queries is None else hits(queries, fitting, k))
    return found.ordered(found.corpus_hits.mean(axis=1, dtype=np.float64))


def _sizes(k: int, run: Run, by_effort: bool, reranked: bool) -> dict[int, list[int]]:
    """Effort -> the shortlists worth trying that hold k candidates, rising; one where they all cost the same."""
    if not reranked:
        return {effort: [run.largest(effort)] for effort in run.efforts if run.largest(effort) >= k}
    share = SMALLEST_SHARE if by_effort else None
    sizes = {effort: [s for s in shortlists(run.largest(effort), share) if s >= k] for effort in run.efforts}
    return {effort: fitting for effort, fitting in sizes.items() if fitting}
