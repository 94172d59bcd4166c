"""A calibration that speaks of an index whose rows have changed since, without running anything again.

Deleted rows. The record holds every candidate that any effort found and its scores: with those of deleted rows at -inf,
which is what the cascade does to them, and the true neighbours among the rows that are left, it says what each plan
would have returned. A query none of whose true top k was deleted keeps at least its hits, as what is deleted only made
room for others; the others are counted again.

Added rows. They are searched exactly, so that those which belong to the true top k are always found. Say r of them do:
of the old top k the first k - r stay in it, of which at most r fewer were found than before. So no query's hits become
fewer by adding rows, under any plan, and what was counted without them is a lower bound of recall.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from threading import Lock

import numpy as np
import numpy.typing as npt

from funnel.planning.calibration import Calibration
from funnel.planning.frontier import Frontier
from funnel.planning.run import LARGEST_K, NEAR, Float32, Int64, Run, hits
from indexes.system import free_in_children

__all__ = ["Updated"]

Live = npt.NDArray[np.bool_]
Hits = npt.NDArray[np.uint8]
# Queries and k -> true scores and rows among the live rows, as `Cascade.truth`.
Truth = Callable[[Float32, int], tuple[Float32, Int64]]


class Updated(Calibration):
    """The calibration `stored`, of an index of whose first segment the rows `live` are left.

    live: bool [n]. truth: flat search over the live rows. before: what was counted for the state before this one.
    """

    stored: Calibration
    _live: Live
    _truth: Truth
    _before: dict[int, tuple[Frontier, Live | None]]

    @classmethod
    def of(cls, stored: Calibration, live: Live, truth: Truth, before: Calibration | None) -> Updated:
        """See the class."""
        made = cls(**{field.name: getattr(stored, field.name) for field in fields(stored) if field.init})
        left = int(np.count_nonzero(live))
        made.depth = max(0, min(stored.depth, left - 1))
        made.frontiers, made.corpus, made.queries, made.mapped = {}, None, None, None
        made.stored, made._live, made._truth, made._lock = stored, live, truth, free_in_children(Lock())
        made._before = {}
        if isinstance(before, Updated) and before.stored is stored:
            made._before = before._before | {k: (found, before._live) for k, found in before.frontiers.items()}
        return made

    def runs(self) -> tuple[Run, Run | None]:
        """The recorded runs as they would have been without the deleted rows."""
        if self.corpus is None:
            corpus, queries = self.stored.runs()
            self.queries = None if queries is None else _without_deleted(queries, self._live, self._truth)
            self.corpus = _without_deleted(corpus, self._live, self._truth)
            # Where some truth had to be searched for again, among the rows as stored, their cost is taken off all.
            ran, before = (self.corpus, corpus) if queries is None else (self.queries, queries)
            assert ran is not None
            self.as_given = self.as_given and ran.given is before.given
        return self.corpus, self.queries

    def frontier(self, k: int) -> Frontier | None:
        """The tested plans for this k, counted again where deleted rows can have made a difference."""
        if k > self.depth:
            return None
        with self._lock:
            if k not in self.frontiers:
                made = self._counted(k)
                if made is None:
                    return None
                self.keep(k, made)
            return self.frontiers[k]

    def _counted(self, k: int) -> Frontier | None:
        before, then = self._before.get(k, (None, None))
        if before is None:
            before = self.stored.frontier(k)
        if before is None:
            return None
        corpus, queries = self.runs()
        corpus_hits = _recounted(before, before.corpus_hits, corpus, self._live, then)
        query_hits = None
        if queries is not None and before.query_hits is not None:
            query_hits = _recounted(before, before.query_hits, queries, self._live, then)
        return Frontier(k, before.plans, corpus_hits, query_hits).ordered(corpus_hits.mean(axis=1, dtype=np.float64))


def _without_deleted(run: Run, live: Live, truth: Truth) -> Run:
    """A run whose truth is of the live rows, and whose deleted candidates count for nothing."""
    rows, scores, given = run.near_rows, run.near_scores, run.given
    depth = min(LARGEST_K, int(np.count_nonzero(live)) - 1)
    true = np.full((len(run.queries), depth), -np.inf, dtype=np.float32)
    short = np.ones(len(run.queries), dtype=np.bool_)
    if rows is not None and scores is not None:
        left = live[rows] & (rows >= 0)
        width = min(depth, rows.shape[1])
        true[:, :width] = scores[:, :width]
        lost = np.flatnonzero(~left[:, :width].all(axis=1))
        order = np.argsort(~left[lost], axis=1, kind="stable")[:, :width]
        kept = np.take_along_axis(scores[lost], order, axis=1)
        true[lost, :width] = np.where(np.take_along_axis(left[lost], order, axis=1), kept, -np.inf)
        short = left.sum(axis=1) < depth
    if short.any():  # more was deleted around these queries than their record holds
        asked = np.flatnonzero(short)
        true[asked] = _searched(run, asked, truth, depth)
        if given is not None:  # of these queries the rows as stored are the truth: see `Updated.runs`
            given = np.array(given)
            given[asked] = run.candidate_scores[asked, :, -1]
    return replace(run, truth=true, live=live, given=given)


def _searched(run: Run, asked: Int64, truth: Truth, depth: int) -> Float32:
    """True scores float32 [len(asked), depth] by flat search, each query's own row left out."""
    own = run.own_rows[asked]
    found, rows = truth(np.ascontiguousarray(run.queries[asked]), depth + 1)
    mine = (rows == own[:, None]) & (own[:, None] >= 0)
    kept = -np.sort(-np.where(mine, -np.inf, found), axis=1)
    return kept[:, :depth].astype(np.float32)


def _recounted(before: Frontier, counted: Hits, run: Run, live: Live, then: Live | None) -> Hits:
    """The hits of every plan and query: counted again for queries that lost one of their true top k since `then`."""
    asked = _lost_one(run, before.k, live, then)
    if not len(asked):
        return counted
    result = np.array(counted)
    result[:, asked] = hits(_some(run, asked), before.plans, before.k)
    return result


def _lost_one(run: Run, k: int, live: Live, then: Live | None) -> Int64:
    """The queries one of whose true top k was live then (None: all were) and is not now."""
    rows = run.near_rows
    if rows is None:
        return np.arange(len(run.queries))
    there = rows >= 0 if then is None else then[rows] & (rows >= 0)
    top = there & (np.cumsum(there, axis=1) <= k)
    beyond = top.sum(axis=1) < min(k, NEAR)  # its top k then lay beyond what was kept
    return np.flatnonzero((top & ~live[rows]).any(axis=1) | beyond)


def _some(run: Run, numbers: Int64) -> Run:
    """The run of some of its queries."""
    return replace(
        run,
        queries=run.queries[numbers],
        own_rows=run.own_rows[numbers],
        truth=run.truth[numbers],
        candidates=run.candidates[numbers],
        candidate_scores=run.candidate_scores[numbers],
        given=None if run.given is None else run.given[numbers],
        places={effort: places[numbers] for effort, places in run.places.items()},
        near_rows=None,
        near_scores=None,
    )
