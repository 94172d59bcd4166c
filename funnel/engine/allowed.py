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
from funnel.engine.exact import allowed_only
from funnel.engine.generation import Opened
from funnel.engine.rerank import scored
from funnel.engine.searcher import Searcher
from funnel.engine.segments import Others
from funnel.engine.steps import Found, search
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
from funnel.request import Deadline, Request
from funnel.results import Served
from indexes.system import free_in_children

__all__ = ["FilterChoice", "FilterPlanner", "FilterSample", "Filtered", "Filters"]

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
        near = _nearness(run, allowed)
        shuffled = np.random.default_rng(seed).permutation(len(near))
        random, rest = shuffled[:AT_RANDOM], shuffled[AT_RANDOM:]
        rest = rest[np.argsort(near[rest], kind="stable")]
        extreme = min(EXTREME, len(rest) // 2)
        drawn = np.concatenate([random, rest[len(rest) - extreme :], rest[:extreme]])
        edges = np.cumsum([0, len(random), extreme, extreme]).tolist()
        groups = tuple(slice(a, b) for a, b in pairwise(edges) if b > a)
        queries = np.ascontiguousarray(run.queries[drawn])
        own = np.asarray(run.own_rows[drawn])
        beside = int((own >= 0).any())
        found, rows = allowed.flat(queries, min(k + beside, allowed.rows))
        scores = np.where(rows == own[:, None], -np.inf, found) if beside else found
        truth = -np.sort(-scores, axis=1)[:, :k]
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


def _nearness(run: Run, allowed: Cascade) -> npt.NDArray[np.float64]:
    """The share of each query's nearest recorded neighbours that are allowed: float64 [q]."""
    assert allowed.live is not None, "a cascade over allowed rows"
    nearest = np.asarray(run.candidates[:, :NEAREST])
    share: npt.NDArray[np.float64] = (allowed.live[nearest] & (nearest >= 0)).mean(axis=1)
    return share


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

    cascade: the first segment's over its allowed rows, for which plans are made; others: the further segments' over
    theirs, compared exactly.
    """

    cascade: Cascade
    others: Others | None = None
    choices: Remembered[tuple[object, ...], FilterChoice] = field(default_factory=Remembered)
    samples: Remembered[int, FilterSample] = field(default_factory=lambda: Remembered(most=SAMPLES_KEPT))
    spent_ms: float = 0.0
    planning: Lock = field(default_factory=lambda: free_in_children(Lock()))

    @classmethod
    def of(cls, opened: Opened, masks: Sequence[npt.NDArray[np.bool_]]) -> Filtered:
        """From bool [rows] for every segment, in stored order, rows that were deleted not set."""
        searcher = opened.searcher
        cascade = allowed_only(searcher.cascade, masks[0])
        if searcher.others is None:
            return cls(cascade)
        by_segment = {segment.id: mask for segment, mask in zip(opened.segments, masks, strict=True)}
        return cls(cascade, searcher.others.over(by_segment, np.concatenate(list(masks))))

    @cached_property
    def count(self) -> int:
        """How many rows are allowed."""
        return self.cascade.rows + (0 if self.others is None else self.others.rows)

    @property
    def nbytes(self) -> int:
        """Bytes held: masks, row numbers, each coarse index's own form of them, and the samples."""
        cascades = [self.cascade, *(() if self.others is None else (cascade for _, cascade in self.others.coarse))]
        rows: int = sum(cascade.store.n + cascade.store.n // 8 + 8 * cascade.rows for cascade in cascades)
        return rows + sum(sample.queries.nbytes for sample in list(self.samples.values()))

    def found(
        self, searcher: Searcher, prepared: Float32, plan: Plan, k: int, deadline: Deadline | None = None
    ) -> Found:
        """The best k allowed rows of each query, by input position; fewer columns where fewer are allowed."""
        inside = min(k, self.cascade.rows)
        if inside:
            found = search(self.cascade, prepared, plan, inside, deadline)
            found = replace(found, rows=searcher.positions(found.rows))
        else:
            found = Found(np.empty((len(prepared), 0), np.float32), np.empty((len(prepared), 0), np.int64))
        if self.others is None:
            return found
        return self.others.joined(self.cascade, prepared, k, found, lambda cascade: Found(*cascade.flat(prepared, k)))


class FilterPlanner:
    """Plans under filters over one searcher."""

    def __init__(self, searcher: Searcher) -> None:
        self._searcher = searcher

    def worthwhile(self, filtered: Filtered, n_queries: int) -> bool:
        """Whether planning is due: exact search will have taken as long as it by the end of this call.

        A filter that is used once is thus never planned for, and all calls together take at most about twice the
        least that was possible.
        """
        if self._searcher.calibration is None:
            return False
        flat, share = self._searcher.planner.costs.flat, filtered.cascade.rows / self._searcher.rows
        batch = min(batch_class(n_queries), BATCH_SIZES[-1])
        this_call = flat[batch] * max(1.0, n_queries / batch) * share
        sample = self._searcher.calibration.run().queries
        planning = flat[BATCH_SIZES[-1]] / BATCH_SIZES[-1] * min(len(sample), MOST) * share * PLANNING_SEARCHES
        return filtered.spent_ms + this_call >= planning

    def choose(self, filtered: Filtered, budget: Budget, k: int, n_queries: int, beside_ms: float) -> FilterChoice:
        """The cheapest plan found that holds the recall over the allowed rows, within the latency.

        k: at most as many as are allowed. beside_ms: what a call takes besides the search. Raises BudgetError.
        """
        batch = batch_class(n_queries)
        exact = self._exact(filtered, k, batch)
        room = math.inf if budget.latency_ms is None else budget.latency_ms - beside_ms
        if budget.recall is None:
            return self._within(filtered, exact, budget, k, batch, room)
        plan = next(self._holding(filtered, exact, budget, k, batch), None)
        choice = exact if plan is None or not self._quicker(filtered, plan, exact, k, batch) else plan
        if choice.p95 > room and exact.p95 <= room:
            choice = exact
        if choice.p95 > room:
            raise BudgetError(
                f"no plan meets {budget} over the {filtered.count:,} rows that the filter allows: the cheapest "
                f"that holds the recall ({choice.plan}) takes {choice.p95:.3g} ms at the 95th percentile, "
                f"{room:.3g} are left; allow more time, or ask for less recall"
            )
        return choice

    def _quicker(self, filtered: Filtered, plan: FilterChoice, exact: FilterChoice, k: int, batch: int) -> bool:
        """Whether a plan takes less time than exact search, by the fastest calls: other work on the machine only adds.

        Exact search is timed once more, as it was timed at another moment.
        """
        return plan.fastest < min(exact.fastest, self._timed(filtered, FLAT, k, batch)[0])

    def certificate(self, filtered: Filtered, choice: FilterChoice, budget: Budget, k: int) -> Certificate:
        """What can be said of the recall under this filter; certified only where every allowed row is compared."""
        calibration, rows = self._searcher.calibration, f"{filtered.count:,} allowed rows"
        note, kept = f"exact: each of the {rows} is compared", self._searcher.flat_recall(k)
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

    def _exact(self, filtered: Filtered, k: int, batch: int) -> FilterChoice:
        return FilterChoice(FLAT, 1.0, 1.0, 1.0, 0, *self._timed(filtered, FLAT, k, batch))

    def _within(
        self, filtered: Filtered, exact: FilterChoice, budget: Budget, k: int, batch: int, room: float
    ) -> FilterChoice:
        """The highest recall within the latency."""
        if exact.p95 <= room:
            return exact
        best: FilterChoice | None = None
        fastest = exact
        for choice in self._tried(filtered, exact, budget, k, batch):
            if choice.p95 > room:
                fastest = min(fastest, choice, key=lambda one: one.p95)
                break
            best = choice if best is None or choice.estimate >= best.estimate else best
        if best is None:
            raise BudgetError(
                f"no plan answers within {room:.3g} ms over the {filtered.count:,} rows that the filter allows: "
                f"the fastest ({fastest.plan}) takes {fastest.p95:.3g} ms at the 95th percentile. Allow more time"
            )
        return best

    def _holding(
        self, filtered: Filtered, exact: FilterChoice, budget: Budget, k: int, batch: int
    ) -> Iterator[FilterChoice]:
        """Plans that hold the recall on the sample, from the least effort up."""
        for plan, groups, hits in self._measured(filtered, exact, budget, k, batch):
            if _holds(groups, budget):
                yield self._choice(filtered, plan, groups, hits, budget, k, batch)

    def _tried(
        self, filtered: Filtered, exact: FilterChoice, budget: Budget, k: int, batch: int
    ) -> Iterator[FilterChoice]:
        """Every plan that is measured, whatever its recall."""
        for plan, groups, hits in self._measured(filtered, exact, budget, k, batch):
            yield self._choice(filtered, plan, groups, hits, budget, k, batch)

    def _choice(
        self,
        filtered: Filtered,
        plan: Plan,
        groups: Groups,
        hits: npt.NDArray[np.int64],
        budget: Budget,
        k: int,
        batch: int,
    ) -> FilterChoice:
        at_random = groups[0]
        bound = betting_lower_bound(at_random, budget.delta)
        recall = float(hits[: len(at_random)].mean() / k)
        times = self._timed(filtered, plan, k, batch)
        return FilterChoice(plan, recall, float(at_random.mean()), bound, len(at_random), *times)

    def _measured(
        self, filtered: Filtered, exact: FilterChoice, budget: Budget, k: int, batch: int
    ) -> Iterator[tuple[Plan, Groups, npt.NDArray[np.int64]]]:
        """Plans at rising effort with what each group of the sample gets.

        They end where the coarse search costs as much as exact search over the allowed rows.
        """
        base = self._base(budget, k, batch)
        if base is None:
            return
        sample = self._sample(filtered, k)
        cascade, least = filtered.cascade, float(base.effort)
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
                yield self._searcher.as_run(Plan(effort, length)), groups, hits
            least = effort * (LEAP if mean < (budget.target or DEFAULT_RECALL) - FAR_OFF else EFFORT_STEP)

    def _coarse_ms(self, effort: int, batch: int) -> float:
        """What the coarse search takes at an effort without a filter; beyond those that were timed, in proportion."""
        timed = self._searcher.planner.costs.coarse[min(batch, BATCH_SIZES[-1])]
        known = max((one for one in timed if one <= effort), default=min(timed))
        return timed[known] * max(1.0, effort / max(1, known)) * max(1.0, batch / BATCH_SIZES[-1])

    def _sample(self, filtered: Filtered, k: int) -> FilterSample:
        sample = filtered.samples.get(k)
        if sample is None:
            calibration = self._searcher.calibration
            assert calibration is not None
            sample = filtered.samples[k] = FilterSample.draw(calibration.run(), filtered.cascade, k)
        return sample

    def _base(self, budget: Budget, k: int, batch: int) -> Plan | None:
        """The plan that serves the recall without a filter; None where exact search does, or must."""
        calibration = self._searcher.calibration
        if calibration is None or budget.exact or k > calibration.depth:
            return None
        wanted = replace(budget, latency_ms=None) if budget.recall is not None else Budget(DEFAULT_RECALL)
        plan = self._searcher.choose(wanted, k, batch).plan
        return None if plan.is_flat else plan

    def _timed(self, filtered: Filtered, plan: Plan, k: int, batch: int) -> tuple[float, float, float]:
        """The fastest, the median and the 95th percentile of calls under the filter, in milliseconds."""
        queries = self._searcher.sample_queries()
        size = min(batch, BATCH_SIZES[-1])
        repeated = np.resize(queries, (max(size, len(queries)), queries.shape[1]))
        count = len(repeated) // size

        def call(number: int) -> None:
            start = number % count * size
            filtered.found(self._searcher, np.ascontiguousarray(repeated[start : start + size]), plan, k)

        times = np.array(times_ms(call, SECONDS_PER_TIMING)) * max(1.0, batch / size)
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


def read_filter(
    where: str | None, allowed_ids: Any
) -> tuple[tuple[str | None, str], Condition | None, GivenIds | None]:
    """A short name to remember a filter by, and its two parts. Raises InputError for what cannot be read."""
    condition = None if where is None else parse(where)
    given = None if allowed_ids is None else GivenIds.read(allowed_ids)
    return (where, "" if given is None else given.digest), condition, given


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
        self._planner = FilterPlanner(opened.searcher)
        self._known: OrderedDict[tuple[str | None, str], Filtered] = OrderedDict()
        self._lock = free_in_children(Lock())

    def filtered(self, where: str | None, allowed_ids: Any) -> Filtered:
        """The filter, worked out on first use. Raises InputError."""
        plain = (
            (where, "") if allowed_ids is None and isinstance(where, str) else None
        )  # so that a text in use is not parsed again
        name, condition, given = (plain, None, None) if plain in self._known else read_filter(where, allowed_ids)
        assert name is not None
        with self._lock:
            known = self._known.get(name)
            if known is not None:
                self._known.move_to_end(name)
                return known
        if condition is None and given is None:  # forgotten in another thread meanwhile
            _, condition, given = read_filter(where, allowed_ids)
        masks = self._live(segment_masks(self._rows, where, condition, given))
        made = Filtered.of(self._opened, masks)
        with self._lock:
            made = self._known.setdefault(name, made)
            total = sum(one.nbytes for one in self._known.values())
            while len(self._known) > 1 and (len(self._known) > FILTERS_KEPT or total > BYTES_KEPT):
                _, dropped = self._known.popitem(last=False)
                total -= dropped.nbytes
        return made

    @cached_property
    def _rows(self) -> tuple[SegmentRows, ...]:
        return self._opened.rows_by_id

    def _live(self, masks: list[npt.NDArray[np.bool_]]) -> list[npt.NDArray[np.bool_]]:
        """Masks of the segments without the rows that were deleted."""
        live = self._opened.live
        if live is None:
            return masks
        return [mask & live[at.first : at.stop] for at, mask in zip(self._opened.segments, masks, strict=True)]

    def by_position(self, where: str | None, allowed_ids: Any) -> npt.NDArray[np.bool_]:
        """The allowed rows as bool [all rows] by input position. Raises InputError."""
        filtered, segments = self.filtered(where, allowed_ids), self._opened.segments
        allowed = filtered.cascade.live if filtered.others is None else filtered.others.live
        assert allowed is not None, "cascades over allowed rows"
        mask = np.zeros(segments[-1].stop, dtype=np.bool_)
        for segment in segments:
            mask[segment.positions(np.flatnonzero(allowed[segment.first : segment.stop]))] = True
        return mask

    def choose(self, filtered: Filtered, budget: Budget, k: int, n_queries: int, beside_ms: float) -> FilterChoice:
        """The plan for a budget under a filter, measured on first use and remembered; k: at most what is allowed."""
        key = (budget, k, batch_class(n_queries), beside_ms if budget.latency_ms is not None else 0.0)
        choice = filtered.choices.get(key)
        if choice is None:
            with filtered.planning:
                choice = filtered.choices.get(key) or self._planner.choose(filtered, *key)
                filtered.choices[key] = choice
        return choice

    @property
    def planner(self) -> FilterPlanner:
        """What chooses plans under filters."""
        return self._planner

    def search(
        self, prepared: Float32, asked: Request, k: int, beside_ms: Callable[[Budget], float]
    ) -> tuple[Found, Served, Filtered]:
        """The best k allowed rows of each query, how they are served, and the filter.

        prepared: float32 [n, d] as `Searcher.prepare` gives it, n from 1. Raises InputError for the filter, BudgetError
        for the budget.
        """
        filtered = self.filtered(asked.where, asked.allowed_ids)
        inside = min(k, filtered.cascade.rows)
        if inside:
            served = self._served(filtered, asked, inside, len(prepared), beside_ms)
        else:
            served = Served(FLAT, self._searcher.flat_recall(k), allowed_rows=filtered.count)
        started = time.perf_counter()
        found = filtered.found(self._searcher, prepared, served.plan, k, asked.deadline)
        if asked.deadline is None and served.plan.is_flat:
            filtered.spent_ms += (time.perf_counter() - started) * 1e3
        return found, served, filtered

    def _served(
        self, filtered: Filtered, asked: Request, k: int, n_queries: int, beside_ms: Callable[[Budget], float]
    ) -> Served:
        """How a call is answered: exactly, until planning for the filter pays."""
        count = filtered.count
        if asked.plan is not None:
            plan = self._searcher.given(asked.plan, k)
            return Served(plan, self._searcher.flat_recall(k) if plan.is_flat else math.nan, allowed_rows=count)
        budget = asked.wanted
        due = budget.latency_ms is not None or self._planner.worthwhile(filtered, n_queries)
        busy = budget.latency_ms is None and filtered.planning.locked()  # another thread plans: it is not waited for
        if budget.exact or busy or not (due or filtered.choices):
            return Served(FLAT, self._searcher.flat_recall(k), allowed_rows=count)
        if asked.deadline is None:
            choice = self.choose(filtered, budget, k, n_queries, beside_ms(budget))
        else:
            with asked.deadline.paused():
                choice = self.choose(filtered, budget, k, n_queries, beside_ms(budget))
        lost = 1.0 - self._searcher.flat_recall(k)  # the sample's truth is that of the rows as stored
        return Served(choice.plan, max(0.0, choice.estimate - lost), allowed_rows=count)
