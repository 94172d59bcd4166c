"""Budgets on the tail: a share of queries that each get a recall, and the escalating plans that serve it cheaply.

What is tested is the share of queries with recall@k >= r, by the same bound as the mean: the observation is 1 where a
query got at least r k of its true top k (tie-aware), else 0. Plans, thresholds and their order are chosen on held-out
rows alone, the queries that certify have no part in it. Uniform and escalating plans are two fixed sequences, which
share the probability of error: in one, an escalating plan that fails would end the testing of uniform ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from funnel.escalation import ease, hard, looked_at
from funnel.plan import Escalation, Plan
from funnel.planning.bounds import fixed_sequence
from funnel.planning.calibration import Run
from funnel.planning.costs import BATCH_SIZES, Costs
from funnel.planning.escalating import again_ms, best_scores, judging_ms, weights_of
from funnel.planning.frontier import Frontier

__all__ = ["TailFrontier", "build_tail", "hits_needed"]

# Shares of held-out rows that may go on, a quarter apart; of real queries, which are harder, up to four times as many
# do. On smaller shares a threshold rests on fewer than ten rows, and real queries did not bear such rules out.
RATES = tuple(0.01 * 1.23**step for step in range(20))
# Plans whose costs differ by less than this say the same.
COST_STEP = 1.02
# A second plan costs at most so many times the first. Beyond, few rows and a very strong plan look best on held-out
# rows, whose few misses lie far out; those of real queries do not, and the sequence of tests ended early (at 9 times).
DEAREST_SECOND = 3.0
# A pair must be cheaper than what it replaces by this share: less is within the noise of costs and of held-out rows.
WORTHWHILE = 0.02
# Share of delta that escalating plans are tested with. Uniform plans lose next to nothing by it: of seven budgets on
# 200,000 x 384 each got the same plan as with all of delta; with a fifth of it given away, one got a dearer one.
ESCALATING_DELTA = 0.1
ROUNDING = 1e-9  # recall times k, or a mean, may come out a hair above what it is

Hits = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


def hits_needed(recall: float, k: int) -> int:
    """How many of the true top k a query must get for a recall@k of `recall`, at least one."""
    return max(1, math.ceil(recall * k - ROUNDING))


@dataclass(frozen=True)
class TailFrontier(Frontier):
    """Plans for budgets on the share of queries that get `needed` of their top k, by falling worth on held-out rows.

    Escalating plans carry the rate measured on real queries, or on held-out rows where there are none.
    """

    needed: int

    def passed(self, share: float, delta: float) -> frozenset[int]:
        """The places of the plans that serve at least this share of queries, all of them with probability 1 - delta."""
        uniform = [i for i, plan in enumerate(self.plans) if plan.escalation is None]
        escalating = [i for i, plan in enumerate(self.plans) if plan.escalation is not None]
        given = ESCALATING_DELTA if escalating else 0.0
        found: list[int] = []
        for places, level in ((uniform, delta * (1.0 - given)), (escalating, delta * given)):
            found += places[: fixed_sequence((self.recalls(i) for i in places), share, level)]
        return frozenset(found)

    def recalls(self, position: int) -> Float64:
        """What is tested of a plan: 1 for every query that got as many as needed, else 0. float64 [q]."""
        met: Float64 = (self.hits[position] >= self.needed).astype(np.float64)
        return met


@dataclass(frozen=True)
class _Pairs:
    """Pairs of uniform plans, by their places on the frontier, and the rules between them.

    worth: of each on held-out rows, see `_worth`. milliseconds: [batch sizes, pairs].
    """

    first: tuple[int, ...]
    second: tuple[int, ...]
    rules: tuple[Escalation, ...]
    worth: Float64
    milliseconds: Float64

    def at(self, kept: list[int]) -> _Pairs:
        """Some of them."""
        return _Pairs(
            tuple(self.first[i] for i in kept),
            tuple(self.second[i] for i in kept),
            tuple(self.rules[i] for i in kept),
            self.worth[kept],
            self.milliseconds[:, kept],
        )


def build_tail(
    frontier: Frontier, needed: int, corpus: Run, queries: Run | None, costs: Costs, dim: int
) -> TailFrontier:
    """The uniform plans of the frontier, and the pairs that no cheaper plan beats on held-out rows at some batch size.

    frontier: uniform plans for k with their hits. needed: of the true top k, see `hits_needed`.
    """
    k, plans = frontier.k, frontier.plans
    worth = _worth(frontier.corpus_hits, needed, k)
    uniform = np.array([[costs.predict(plan, batch, dim) for plan in plans] for batch in BATCH_SIZES])
    pairs = _worthwhile(worth, uniform, _all_pairs(frontier, worth, uniform, corpus, costs, dim))
    corpus_hits, rates = _hits(frontier.corpus_hits, pairs, plans, corpus, k)
    query_hits = None
    if queries is not None and frontier.query_hits is not None:
        query_hits, rates = _hits(frontier.query_hits, pairs, plans, queries, k)
    escalating = (
        replace(plans[first], escalation=replace(rule, rate=rate))
        for first, rule, rate in zip(pairs.first, pairs.rules, rates, strict=True)
    )
    every = [*plans, *escalating]
    value = np.concatenate([worth.mean(axis=1), pairs.worth])
    cost = np.concatenate([uniform.sum(axis=0), pairs.milliseconds.sum(axis=0)])
    order = np.lexsort((-cost, -value))
    in_order = tuple(every[i] for i in order)
    return TailFrontier(k, in_order, corpus_hits[order], None if query_hits is None else query_hits[order], needed)


def _worth(hits: Hits, needed: int, k: int) -> Float64:
    """What plans are chosen and ordered by: float64 [plans, rows] in [0, 1].

    The mean of "got at least j" over j from `needed` to k: nearly all held-out rows get as many as needed, too nearly
    to tell good plans from better ones, and the rows that a plan finds in full tell them apart.
    """
    worth: Float64 = np.clip((hits.astype(np.float64) - (needed - 1)) / (k - needed + 1), 0.0, 1.0)
    return worth


def _all_pairs(frontier: Frontier, worth: Float64, uniform: Float64, corpus: Run, costs: Costs, dim: int) -> _Pairs:
    """Every pair of plans that are on the frontier at some batch size, at every rate. uniform: ms [batches, plans]."""
    means, k, rows = worth.mean(axis=1), frontier.k, worth.shape[1]
    usable = sorted({i for row in uniform for i in _spaced(means, row)})
    counts = sorted({count for rate in RATES if 0 < (count := round(rate * rows)) < rows})
    rates = np.array(counts) / rows
    again = {
        j: np.stack([again_ms(costs, frontier.plans[j], rates, batch, dim).sum(axis=0) for batch in BATCH_SIZES])
        for j in usable
    }
    firsts, seconds, rules, values = [], [], [], []
    table = [np.empty((len(BATCH_SIZES), 0))]
    for i in usable:
        learned = _Learned.of(frontier, i, corpus)
        if learned is None:
            continue
        alone = uniform[:, [i]] + _judging(frontier.plans[i], k)
        for j in usable:
            gained = np.cumsum((worth[j] - worth[i])[learned.order])
            fitting = [at for at, count in enumerate(counts) if gained[count - 1] > 0 and learned.parts(count)]
            if not fitting or (uniform[:, j] > DEAREST_SECOND * uniform[:, i]).any():
                continue
            firsts += [i] * len(fitting)
            seconds += [j] * len(fitting)
            rules += [learned.rule(counts[at], frontier.plans[j]) for at in fitting]
            values += [means[i] + gained[counts[at] - 1] / rows for at in fitting]
            table.append(alone + again[j][:, fitting])
    return _Pairs(tuple(firsts), tuple(seconds), tuple(rules), np.array(values), np.concatenate(table, axis=1))


@dataclass(frozen=True)
class _Learned:
    """What held-out rows say of a first plan: weights of the signals, rows from the hardest on, and their ease."""

    k: int
    weights: tuple[float, float]
    order: npt.NDArray[np.int64]
    judged: Float32

    @classmethod
    def of(cls, frontier: Frontier, first: int, corpus: Run) -> _Learned | None:
        """None where there is nothing to learn from."""
        scores = best_scores(corpus, frontier.plans[first], frontier.k)
        weights = weights_of(scores, frontier.corpus_hits[first] < frontier.k, frontier.k)
        if weights is None:
            return None
        judged = ease(scores, frontier.k, *weights)
        judged[~np.isfinite(judged)] = -np.inf  # goes on whatever the threshold
        order = np.argsort(judged, kind="stable")
        return cls(frontier.k, weights, order, judged[order])

    def parts(self, count: int) -> bool:
        """Whether a threshold can send just so many rows on."""
        return bool(np.isfinite(self.judged[count - 1]) and self.judged[count - 1] < self.judged[count])

    def rule(self, count: int, then: Plan) -> Escalation:
        """Sends so many rows on, the threshold half way to the next."""
        return Escalation(self.k, *self.weights, float(self.judged[count - 1] + self.judged[count]) / 2, then)


def _judging(plan: Plan, k: int) -> Float64:
    """Milliseconds of looking at a plan's scores: [batch sizes, 1]."""
    return np.array([[judging_ms(batch, looked_at(plan.survivors, k), k)] for batch in BATCH_SIZES])


def _spaced(means: Float64, cost: Float64) -> list[int]:
    """Plans that no cheaper one equals or beats, COST_STEP apart."""
    best, last, kept = -1.0, 0.0, []
    for i in np.lexsort((-means, cost)):
        if means[i] > best and cost[i] >= last * COST_STEP:
            best, last = float(means[i]), float(cost[i])
            kept.append(int(i))
    return kept


def _worthwhile(worth: Float64, uniform: Float64, pairs: _Pairs) -> _Pairs:
    """The pairs that no cheaper plan equals or beats at some batch size."""
    count = len(worth)
    value = np.concatenate([worth.mean(axis=1), pairs.worth])
    kept: set[int] = set()
    for alone, both in zip(uniform, pairs.milliseconds, strict=True):
        best = -1.0
        for at in np.lexsort((-value, np.concatenate([alone * (1 - WORTHWHILE), both]))):
            if value[at] > best + ROUNDING:
                best = float(value[at])
                kept.add(int(at))
    return pairs.at(sorted(at - count for at in kept if at >= count))


def _hits(uniform: Hits, pairs: _Pairs, plans: tuple[Plan, ...], run: Run, k: int) -> tuple[Hits, list[float]]:
    """What uniform and escalating plans find: uint8 [plans + pairs, q], and the share of queries that pairs send on."""
    result = np.concatenate([uniform, np.empty((len(pairs.first), uniform.shape[1]), dtype=np.uint8)])
    scores = {first: best_scores(run, plans[first], k) for first in set(pairs.first)}
    rates = []
    for row, first, second, rule in zip(result[len(uniform) :], pairs.first, pairs.second, pairs.rules, strict=True):
        again = hard(rule, scores[first])
        row[:] = np.where(again, uniform[second], uniform[first])
        rates.append(float(again.mean()))
    return result, rates
