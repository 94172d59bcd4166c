"""The plan under a filter: measured on queries of the calibration against exact search over the allowed rows.

What was certified without a filter says nothing of the recall among the rows that it allows: a graph walks through
rows that may not be returned, lists hold fewer that may. So effort is raised from that of the unfiltered plan until
the recall holds on a sample, for queries near to allowed rows and far from them too; exact search over the allowed
rows is served where no plan does so for less time than it takes. No intermediate stages are planned: what a filter
costs lies in the coarse search. The same sample chooses and judges, so that the recall is measured and not certified.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import date
from threading import Lock

import numpy as np
import numpy.typing as npt

from funnel.budget import DEFAULT_RECALL, Budget
from funnel.engine.allowed import AllowedRows
from funnel.engine.filter_sample import MOST, FilterSample
from funnel.engine.further import Further
from funnel.engine.searcher import Searcher
from funnel.errors import BudgetError
from funnel.plan import FLAT, Plan
from funnel.planning.bounds import betting_lower_bound
from funnel.planning.certificate import Certificate
from funnel.planning.costs import BATCH_SIZES, batch_class, times_ms
from funnel.planning.remembered import Remembered
from indexes.forks import free_in_children

__all__ = ["FilterChoice", "FilterPlanner", "Filtered"]

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

    allowed: those of the first segment, for which plans are made; further: those of the others, compared exactly.
    """

    allowed: AllowedRows
    further: Further | None = None
    choices: Remembered[tuple[object, ...], FilterChoice] = field(default_factory=Remembered)
    samples: Remembered[int, FilterSample] = field(default_factory=lambda: Remembered(most=SAMPLES_KEPT))
    spent_ms: float = 0.0
    planning: Lock = field(default_factory=lambda: free_in_children(Lock()))

    @property
    def count(self) -> int:
        """How many rows are allowed."""
        return len(self.allowed) + (0 if self.further is None else self.further.count)

    @property
    def nbytes(self) -> int:
        """Bytes held by its rows."""
        return self.allowed.nbytes + (0 if self.further is None else self.further.nbytes)


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
        flat, share = self._searcher.planner.costs.flat, len(filtered.allowed) / self._searcher.rows
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
        """Plans at rising effort with what each group of the sample gets, while the coarse search costs less than exact
        search over the allowed rows."""
        base = self._base(budget, k, batch)
        if base is None:
            return
        sample = self._sample(filtered, k)
        cascade, least = filtered.allowed.cascade, float(base.effort)
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
            sample = filtered.samples[k] = FilterSample.draw(calibration.run(), filtered.allowed, k)
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
            asked = np.ascontiguousarray(repeated[start : start + size])
            found = filtered.allowed.run(asked, plan, k)
            if filtered.further is not None:
                filtered.further.join(self._searcher.cascade, asked, k, found)

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
