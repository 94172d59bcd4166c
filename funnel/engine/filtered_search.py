"""Searches under a filter: from `where` and `allowed_ids` to rows, to a plan, to answers."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from funnel.budget import Budget
from funnel.engine.allowed import AllowedRows
from funnel.engine.cascade import Float32, Int64
from funnel.engine.filtered_plan import FilterChoice, Filtered, FilterPlanner
from funnel.engine.further import Further
from funnel.engine.generation import Opened
from funnel.engine.steps import Found
from funnel.engine.stopped import served_each, served_in_all
from funnel.errors import InputError
from funnel.filtering.checking import check_columns
from funnel.filtering.columns import merged
from funnel.filtering.expression import Condition
from funnel.filtering.given import GivenIds
from funnel.filtering.parser import parse
from funnel.filtering.segment import SegmentRows
from funnel.plan import FLAT
from funnel.planning.costs import batch_class
from funnel.request import Asked
from funnel.results import Served
from indexes.forks import free_in_children

__all__ = ["FilteredSearch", "Filters", "read_filter", "segment_masks"]

# Filters that are remembered, and the bytes that they hold together: those not used for longest go first.
FILTERS_KEPT, BYTES_KEPT = 64, 64_000_000


@dataclass(frozen=True, slots=True)
class FilteredSearch:
    """What a search under a filter gave.

    scores: float32 [n, k] and positions: int64 [n, k] in input order, -inf and -1 where fewer rows are allowed. exact:
    runs exact search over the allowed rows, as an audit needs it. reach: how many columns can be filled.
    """

    scores: Float32
    positions: Int64
    served: Served
    each: list[Served] | None
    reach: int
    exact: Callable[[Float32, int], tuple[Float32, Int64]]


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
        made = Filtered(AllowedRows.from_mask(masks[0], self._searcher.cascade), Further.of(self._opened, masks))
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
        mask = np.zeros(segments[-1].stop, dtype=np.bool_)
        mask[segments[0].positions(filtered.allowed.rows)] = True
        if filtered.further is not None:
            for segment in segments[1:]:
                rows = np.flatnonzero(filtered.further.mask[segment.first : segment.stop])
                mask[segment.positions(rows)] = True
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

    def search(self, prepared: Float32, asked: Asked, k: int, beside_ms: Callable[[Budget], float]) -> FilteredSearch:
        """The best k allowed rows of each query. Raises InputError for the filter, BudgetError for the budget.

        prepared: float32 [n, d] as `Searcher.prepare` gives it, n from 1.
        """
        deadline = asked.deadline
        filtered = self.filtered(asked.where, asked.allowed_ids)
        allowed, inside = filtered.allowed, min(k, len(filtered.allowed))
        reach = min(k, filtered.count)

        def exact(queries: Float32, count: int) -> tuple[Float32, Int64]:
            found = allowed.exact(queries, min(count, len(allowed))) if len(allowed) else None
            answer = self._none(len(queries)) if found is None else (found.scores, self._positions(found.rows))
            return answer if filtered.further is None else self._joined(filtered, queries, count, answer)

        if not inside:
            answer = self._joined(filtered, prepared, k, self._none(len(prepared)))
            served = Served(FLAT, self._searcher.flat_recall(k), allowed_rows=filtered.count)
            return FilteredSearch(*answer, served, None, reach, exact)
        served = self._served(filtered, asked, inside, len(prepared), beside_ms)
        if deadline is None:
            started = time.perf_counter()
            scores, rows = allowed.run(prepared, served.plan, inside)
            if served.plan.is_flat:
                filtered.spent_ms += (time.perf_counter() - started) * 1e3
            answer = self._joined(filtered, prepared, k, (scores, self._positions(rows)))
            return FilteredSearch(*answer, served, None, reach, exact)
        found = allowed.run_until(prepared, served.plan, inside, deadline)
        each = self._each(found, served)
        answer = self._joined(filtered, prepared, k, (found.scores, self._positions(found.rows)))
        return FilteredSearch(*answer, served_in_all(each, found, served), each, reach, exact)

    def _served(
        self, filtered: Filtered, asked: Asked, k: int, n_queries: int, beside_ms: Callable[[Budget], float]
    ) -> Served:
        """How a call is answered: exactly, until planning for the filter pays."""
        count = filtered.count
        if asked.plan is not None:
            plan = asked.explicit
            self._searcher.check(plan, k)
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

    def _each(self, found: Found, served: Served) -> list[Served]:
        """One record a query; what a plan finds under a filter after some of its steps was not measured."""
        recalls = [math.nan] * (served.stages - 1) + [served.estimated_recall]
        return served_each(found, served, recalls)

    def _positions(self, rows: Int64) -> Int64:
        return self._opened.segments[0].positions(rows)

    @staticmethod
    def _none(n_queries: int) -> tuple[Float32, Int64]:
        return np.empty((n_queries, 0), np.float32), np.empty((n_queries, 0), np.int64)

    def _joined(
        self, filtered: Filtered, prepared: Float32, k: int, found: tuple[Float32, Int64]
    ) -> tuple[Float32, Int64]:
        """Scores and input positions [n, k] of the first segment's and of all others', -inf and -1 behind fewer."""
        if filtered.further is not None:
            return filtered.further.join(self._searcher.cascade, prepared, k, found)
        fill = ((0, 0), (0, k - found[0].shape[1]))
        return np.pad(found[0], fill, constant_values=-np.inf), np.pad(found[1], fill, constant_values=-1)
