"""Searches under a filter: from `where` and `allowed_ids` to rows, to a plan, to answers."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cached_property
from itertools import pairwise
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from funnel.budget import DEFAULT_RECALL, Budget
from funnel.engine.cascade import Cascade, Float32, Int64
from funnel.engine.generation import Opened
from funnel.engine.rerank import scored
from funnel.engine.searcher import Searcher
from funnel.engine.steps import Found
from funnel.engine.timing import times_ms
from funnel.errors import BudgetError, InputError
from funnel.filtering.columns import merged
from funnel.filtering.condition import Condition, parse
from funnel.filtering.segment import GivenIds, SegmentRows, check_columns
from funnel.plan import FLAT, Plan
from funnel.planning.bounds import betting_lower_bound
from funnel.planning.certificate import Certificate
from funnel.planning.costs import BATCH_SIZES, batch_class
from funnel.planning.frontier import hits_needed
from funnel.planning.remembered import Remembered
from funnel.planning.run import TIE_TOLERANCE, Run
from funnel.request import Request, paused
from funnel.results import Served
from indexes.system import free_in_children

__all__ = ["FilterChoice", "FilterSample", "Filtered", "Filters"]

# Queries drawn at random, on which the recall is judged: enough to see .95 to within .005 (standard error).
AT_RANDOM = 448
# Besides, so many of those nearest to allowed rows, and of those farthest: a filter may come with queries of one kind.
EXTREME = 64
MOST = AT_RANDOM + 2 * EXTREME
NEAREST = 100  # neighbours by which it is judged how near a query is to allowed rows


@dataclass(frozen=True)
class FilterSample:
    """Queries and their true neighbours among the allowed rows.

    queries: float32 [q, d] as the cascade takes them: those at random, those nearest to allowed rows, those farthest;
    `groups` says which are which. own: int64 [q], the stored row that a query is, or -1. truth: float32 [q], the k-th
    true score.
    """

    queries: Float32
    own: Int64
    groups: tuple[slice, ...]
    truth: Float32
    k: int

    @classmethod
    def draw(cls, run: Run, allowed: Cascade, k: int, seed: int = 0) -> FilterSample:
        """Draw queries of a recorded run and find their true k among the allowed rows, their own row left out."""
        assert allowed.live is not None, "a cascade over allowed rows"
        nearest = np.asarray(run.candidates[:, :NEAREST])
        near = (allowed.live[nearest] & (nearest >= 0)).mean(axis=1)  # how much of what is nearest to each is allowed
        shuffled = np.random.default_rng(seed).permutation(len(near))
        random, rest = shuffled[:AT_RANDOM], shuffled[AT_RANDOM:]
        rest = rest[np.argsort(near[rest], kind="stable")]
        extreme = min(EXTREME, len(rest) // 2)
        drawn = np.concatenate([random, rest[len(rest) - extreme :], rest[:extreme]])
        edges = np.cumsum([0, len(random), extreme, extreme]).tolist()
        groups = tuple(slice(a, b) for a, b in pairwise(edges) if b > a)
        queries = np.ascontiguousarray(run.queries[drawn])
        own = np.asarray(run.own_rows[drawn])
        found, rows = allowed.exact(queries, min(k + int((own >= 0).any()), allowed.rows))
        truth = -np.sort(-np.where(rows == own[:, None], -np.inf, found), axis=1)[:, :k]
        return cls(queries, own, groups, np.ascontiguousarray(truth[:, -1]), k)

    def scored(self, cascade: Cascade, rows: Int64) -> Float32:
        """Exact scores of shortlists int64 [q, s]: float32 [q, s], -inf where there is no row or the query's own."""
        result = scored(cascade.store, self.queries, rows, cascade.store.dim)
        result[rows == self.own[:, None]] = -np.inf
        return result

    def hits(self, scores: Float32) -> npt.NDArray[np.int64]:
        """How many of the true k stand in shortlists with these scores, of each query: int64 [q], 0..k.

        A query with fewer than k candidates has them all: it is answered exactly.
        """
        enough = np.isfinite(scores).sum(axis=1) >= self.k
        found = (scores >= self.truth[:, None] - TIE_TOLERANCE).sum(axis=1).clip(max=self.k)
        return np.where(enough, found, self.k)

    def values(self, hits: npt.NDArray[np.int64], budget: Budget) -> npt.NDArray[np.float64]:
        """What the budget is about: each query's recall, or, for a share of queries, whether it gets the recall."""
        if budget.share is None or budget.recall is None:
            return hits / self.k
        return (hits >= hits_needed(budget.recall, self.k)).astype(np.float64)


# Recall may lie so far below the budget for queries of one kind, near to what is allowed or far from it, and so far the
# bound for all of them may lie below it.
TOLERANCE = 0.01
EFFORT_STEP = 1.2  # from one effort that is tried to the next
FAR_OFF, LEAP = 0.15, 2.0  # so much recall short of the budget, the next effort is a larger step away
SHORTLISTS = (1, 2, 4)  # times the shortlist of the unfiltered plan
SECONDS_PER_TIMING = 0.1
# What planning takes, in exact searches of the sample: truth, and some plans, each cheaper than it.
PLANNING_SEARCHES = 3.0
SAMPLES_KEPT = 8  # for one k each: a megabyte at 768 dims

Groups = tuple[npt.NDArray[np.float64], ...]


@dataclass(frozen=True, slots=True)
class FilterChoice:
    """What is served for a budget under one filter.

    estimate: mean recall@k on the sample, of queries at random. promised: what the budget is about, the recall or the
    share of queries that gets it; lower_bound: of that, at the budget's confidence. n_queries: of the sample; 0: exact.
    fastest, p50, p95: milliseconds of one call, as measured.
    """

    plan: Plan
    estimate: float
    promised: float
    lower_bound: float
    n_queries: int
    fastest: float
    p50: float
    p95: float

    @property
    def exact(self) -> bool:
        """Whether every allowed row is compared."""
        return self.plan.is_flat


@dataclass(eq=False)
class Filtered:
    """One filter as it is remembered: its rows, the plans found for them, and what exact search has cost so far.

    whole: over all rows. searcher: over the allowed ones. Plans are made for those of the first segment; the others are
    compared exactly.
    """

    whole: Searcher
    searcher: Searcher
    choices: Remembered[tuple[object, ...], FilterChoice] = field(default_factory=Remembered)
    samples: Remembered[int, FilterSample] = field(default_factory=lambda: Remembered(most=SAMPLES_KEPT))
    spent_ms: float = 0.0
    planning: Lock = field(default_factory=lambda: free_in_children(Lock()))

    @property
    def cascade(self) -> Cascade:
        """The first segment's."""
        return self.searcher.cascade

    @property
    def count(self) -> int:
        """How many rows are allowed."""
        return self.searcher.rows

    @property
    def nbytes(self) -> int:
        """Bytes held: masks, row numbers, each coarse index's own form of them, and the samples."""
        others = self.searcher.others
        cascades = [self.cascade, *(() if others is None else (cascade for _, cascade in others.coarse))]
        rows: int = sum(cascade.store.n + cascade.store.n // 8 + 8 * cascade.rows for cascade in cascades)
        return rows + sum(sample.queries.nbytes for sample in list(self.samples.values()))

    def worthwhile(self, n_queries: int) -> bool:
        """Whether planning is due: exact search will have taken as long as it by the end of this call.

        A filter that is used once is thus never planned for, and all calls together take at most about twice the
        least that was possible.
        """
        if self.whole.calibration is None:
            return False
        flat, share = self.whole.planner.costs.flat, self.cascade.rows / self.whole.rows
        batch = min(batch_class(n_queries), BATCH_SIZES[-1])
        this_call = flat[batch] * max(1.0, n_queries / batch) * share
        sample = self.whole.calibration.run().queries
        planning = flat[BATCH_SIZES[-1]] / BATCH_SIZES[-1] * min(len(sample), MOST) * share * PLANNING_SEARCHES
        return self.spent_ms + this_call >= planning

    def choose(self, budget: Budget, k: int, n_queries: int, beside_ms: float) -> FilterChoice:
        """See `_chosen`; measured on first use, and remembered."""
        key = (budget, k, batch_class(n_queries), beside_ms if budget.latency_ms is not None else 0.0)
        choice = self.choices.get(key)
        if choice is None:
            with self.planning:
                choice = self.choices[key] = self.choices.get(key) or self._chosen(*key)
        return choice

    def _chosen(self, budget: Budget, k: int, batch: int, beside_ms: float) -> FilterChoice:
        """The cheapest plan found that holds the recall over the allowed rows, within the latency.

        Without a recall the plan with the highest within the latency. k: at most as many as are allowed. beside_ms:
        what a call takes besides the search. Raises BudgetError.
        """
        exact = FilterChoice(FLAT, 1.0, 1.0, 1.0, 0, *self._timed(FLAT, k, batch))
        room = math.inf if budget.latency_ms is None else budget.latency_ms - beside_ms
        if budget.recall is None:
            tried = [] if exact.p95 <= room else list(self._tried(exact, budget, k, batch, room))
            within = [choice for choice in (exact, *tried) if choice.p95 <= room]
            choice = max(within, key=lambda one: one.estimate, default=min([exact, *tried], key=lambda one: one.p95))
        else:
            choice = next(self._tried(exact, budget, k, batch, math.inf), exact)
            # By the fastest calls: other work on the machine only adds. Exact search was timed at another moment.
            slower = choice.fastest >= min(exact.fastest, self._timed(FLAT, k, batch)[0])
            choice = exact if slower or choice.p95 > room >= exact.p95 else choice
        if choice.p95 > room:
            raise BudgetError(
                f"no plan meets {budget} over the {self.count:,} rows that the filter allows: the "
                f"{'fastest' if budget.recall is None else 'cheapest that holds the recall'} ({choice.plan}) takes "
                f"{choice.p95:.3g} ms at the 95th percentile, {room:.3g} are left. Allow more time, or ask for less"
            )
        return choice

    def certificate(self, choice: FilterChoice, budget: Budget, k: int) -> Certificate:
        """What can be said of the recall under this filter; certified only where every allowed row is compared."""
        calibration, rows = self.whole.calibration, f"{self.count:,} allowed rows"
        note, kept = f"exact: each of the {rows} is compared", self.whole.flat_recall(k)
        if choice.exact and kept < 1.0:
            note = f"each of the {rows} is compared as stored: of all rows that keeps {kept:.4f} of the true top {k}"
        elif not choice.exact:
            note = (
                f"measured, not certified: recall under this filter ({rows}) on {choice.n_queries} "
                f"{'' if calibration is None else calibration.kind}, which also chose the plan"
            )
        return Certificate(
            recall=budget.recall,
            k=k,
            delta=budget.delta,
            certified=choice.exact and kept == 1.0,
            estimate=max(0.0, choice.promised - (1.0 - kept)),
            lower_bound=choice.lower_bound if kept == 1.0 else math.nan,
            n_queries=choice.n_queries,
            query_kind="none" if calibration is None else calibration.kind,
            date=date.today().isoformat(),
            machine="",
            note=note,
            share=budget.share,
            mean_recall=max(0.0, choice.estimate - (1.0 - kept)),
        )

    def _tried(self, exact: FilterChoice, budget: Budget, k: int, batch: int, room: float) -> Iterator[FilterChoice]:
        """Plans from the least effort up that hold the recall on the sample, if one is asked for; up to the room."""
        for plan, groups, hits in self._measured(exact, budget, k, batch):
            if budget.recall is None or _holds(groups, budget):
                recall, bound = float(hits[: len(groups[0])].mean() / k), betting_lower_bound(groups[0], budget.delta)
                times = self._timed(plan, k, batch)
                choice = FilterChoice(plan, recall, float(groups[0].mean()), bound, len(groups[0]), *times)
                yield choice
                if choice.p95 > room:
                    return

    def _measured(
        self, exact: FilterChoice, budget: Budget, k: int, batch: int
    ) -> Iterator[tuple[Plan, Groups, npt.NDArray[np.int64]]]:
        """Plans at rising effort with what each group of the sample gets.

        They end where the coarse search costs as much as exact search over the allowed rows.
        """
        base, calibration = self._base(budget, k, batch), self.whole.calibration
        if base is None or calibration is None:
            return
        sample = self.samples.get(k)
        if sample is None:
            sample = self.samples[k] = FilterSample.draw(calibration.run(), self.cascade, k)
        cascade, least = self.cascade, float(base.effort)
        for effort in cascade.coarse.efforts():
            if effort < least:
                continue
            if self._coarse_ms(effort, batch) >= exact.fastest:
                return
            largest = cascade.coarse.largest_shortlist(effort)
            lengths = sorted({min(base.shortlist * times, largest) for times in SHORTLISTS})
            rows = cascade.shortlist(sample.queries, lengths[-1], effort)
            scores = sample.scored(cascade, rows)
            mean = 0.0
            for length in lengths:
                hits = sample.hits(scores[:, :length])
                values = sample.values(hits, budget)
                groups = tuple(values[group] for group in sample.groups)
                mean = float(groups[0].mean())
                yield self.whole.as_run(Plan(effort, length)), groups, hits
            least = effort * (LEAP if mean < (budget.target or DEFAULT_RECALL) - FAR_OFF else EFFORT_STEP)

    def _coarse_ms(self, effort: int, batch: int) -> float:
        """What the coarse search takes at an effort without a filter; beyond those that were timed, in proportion."""
        timed = self.whole.planner.costs.coarse[min(batch, BATCH_SIZES[-1])]
        known = max((one for one in timed if one <= effort), default=min(timed))
        return timed[known] * max(1.0, effort / max(1, known)) * max(1.0, batch / BATCH_SIZES[-1])

    def _base(self, budget: Budget, k: int, batch: int) -> Plan | None:
        """The plan that serves the recall without a filter; None where exact search does, or must."""
        calibration = self.whole.calibration
        if calibration is None or budget.exact or k > calibration.depth:
            return None
        wanted = replace(budget, latency_ms=None) if budget.recall is not None else Budget(DEFAULT_RECALL)
        plan = self.whole.choose(wanted, k, batch).plan
        return None if plan.is_flat else plan

    def _timed(self, plan: Plan, k: int, batch: int) -> tuple[float, float, float]:
        """The fastest, the median and the 95th percentile of calls under the filter, in milliseconds."""
        size = min(batch, BATCH_SIZES[-1])
        times = np.array(times_ms(self.searcher.calls(plan, k, size), SECONDS_PER_TIMING)) * max(1.0, batch / size)
        return float(times.min()), float(np.median(times)), float(np.percentile(times, 95))


def _holds(groups: Groups, budget: Budget) -> bool:
    """Whether the recall holds: of queries at random in the mean, and surely within the tolerance of each group.

    Surely: by the betting bound for those at random, by one standard error for those near and far, which are few.
    """
    target = budget.target or 1.0
    at_random, *extremes = groups
    if at_random.mean() < target or betting_lower_bound(at_random, budget.delta) < target - TOLERANCE:
        return False
    return all(one.mean() - one.std() / math.sqrt(len(one)) >= target - TOLERANCE for one in extremes)


# Filters that are remembered, and the bytes that they hold together: those not used for longest go first.
FILTERS_KEPT, BYTES_KEPT = 64, 64_000_000


def segment_masks(
    segments: Sequence[SegmentRows], where: str | None, condition: Condition | None, given: GivenIds | None
) -> list[npt.NDArray[np.bool_]]:
    """The allowed stored rows of each segment: bool [rows] each.

    Raises InputError for a column that no segment has, and for a value of a kind that it never holds.
    """
    if condition is not None and where is not None:
        columns = merged(segment.catalogue() for segment in segments)
        if not columns:
            raise InputError(
                "where needs metadata, and this index holds bare vectors; give allowed_ids, or build it from documents"
            )
        check_columns(where, condition, columns)
    masks = []
    for segment in segments:
        mask = np.ones(len(segment), dtype=np.bool_)
        if given is not None:
            mask &= segment.holding(given)
        if condition is not None and mask.any():
            mask &= segment.matching(condition)
        masks.append(mask)
    return masks


class Filters:
    """The filters of one opened index: remembered, planned for, searched under. Safe in threads."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self._searcher = opened.searcher
        self._known: OrderedDict[tuple[str | None, str], Filtered] = OrderedDict()
        self._lock = free_in_children(Lock())

    def filtered(self, where: str | None, allowed_ids: Any) -> Filtered:
        """The filter, worked out on first use. Raises InputError."""
        given = None if allowed_ids is None else GivenIds.read(allowed_ids)
        name = (where, "" if given is None else given.digest)
        with self._lock:
            known = self._known.get(name) if where is None or isinstance(where, str) else None
            if known is not None:
                self._known.move_to_end(name)
                return known
        live = self._opened.live
        masks = segment_masks(self._rows, where, None if where is None else parse(where), given)
        by_segment = {
            segment.id: mask if live is None else mask & live[segment.first : segment.stop]
            for segment, mask in zip(self._opened.segments, masks, strict=True)
        }
        made = Filtered(self._searcher, self._searcher.among(by_segment, np.concatenate(list(by_segment.values()))))
        with self._lock:
            made = self._known.setdefault(name, made)
            total = sum(one.nbytes for one in self._known.values())
            while len(self._known) > 1 and (len(self._known) > FILTERS_KEPT or total > BYTES_KEPT):
                total -= self._known.popitem(last=False)[1].nbytes
        return made

    @cached_property
    def _rows(self) -> tuple[SegmentRows, ...]:
        """Each segment's stored rows by what filters ask for."""
        return tuple(
            SegmentRows(one.ids, np.arange(one.rows) if one.order is None else one.order, one.documents, one.columns)
            for one in self._opened.segments
        )

    def by_position(self, where: str | None, allowed_ids: Any) -> npt.NDArray[np.bool_]:
        """The allowed rows as bool [all rows] by input position. Raises InputError."""
        searcher, segments = self.filtered(where, allowed_ids).searcher, self._opened.segments
        allowed = searcher.cascade.live if searcher.others is None else searcher.others.live
        assert allowed is not None, "cascades over allowed rows"
        mask = np.zeros(segments[-1].stop, dtype=np.bool_)
        for segment in segments:
            mask[segment.positions(np.flatnonzero(allowed[segment.first : segment.stop]))] = True
        return mask

    def search(
        self, prepared: Float32, asked: Request, k: int, beside_ms: Callable[[Budget], float]
    ) -> tuple[Found, Served, Filtered]:
        """The best k allowed rows of each query, how they are served, and the filter.

        prepared: float32 [n, d] as `Searcher.prepare` gives it, n from 1. Raises InputError for the filter, BudgetError
        for the budget.
        """
        filtered = self.filtered(asked.where, asked.allowed_ids)
        with paused(asked.deadline):
            served = self._served(filtered, asked, min(k, filtered.cascade.rows), len(prepared), beside_ms)
        started = time.perf_counter()
        found = filtered.searcher.found(prepared, served.plan, k, asked.deadline)
        if asked.deadline is None and served.plan.is_flat:
            filtered.spent_ms += (time.perf_counter() - started) * 1e3
        return found, served, filtered

    def _served(
        self, filtered: Filtered, asked: Request, k: int, n_queries: int, beside_ms: Callable[[Budget], float]
    ) -> Served:
        """How a call is answered: exactly, until planning for the filter pays."""
        exact = Served(FLAT, self._searcher.flat_recall(max(1, k)), allowed_rows=filtered.count)
        if k and asked.plan is not None:
            plan = self._searcher.given(asked.plan, k)
            return exact if plan.is_flat else replace(exact, plan=plan, estimated_recall=math.nan)
        due = k and asked.plan is None and not asked.wanted.exact
        if due and asked.wanted.latency_ms is None:  # another thread that plans is not waited for
            idle = not filtered.planning.locked()
            due = idle and bool(filtered.choices or filtered.worthwhile(n_queries))
        if not due:
            return exact
        choice = filtered.choose(asked.wanted, k, n_queries, beside_ms(asked.wanted))
        lost = 1.0 - exact.estimated_recall  # the sample's truth is that of the rows as stored
        return replace(exact, plan=choice.plan, estimated_recall=max(0.0, choice.estimate - lost))
