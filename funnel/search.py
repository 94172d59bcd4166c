"""One call of search, from vectors to answers: planned, run, watched, audited; under a filter, or fused with BM25."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from funnel.budget import LARGEST_K, check_k
from funnel.engine.deadline import Deadline
from funnel.engine.depth import Kept
from funnel.engine.hybrid import Hybrid
from funnel.engine.stopped import served_each, served_in_all
from funnel.errors import DamagedIndexError
from funnel.plan import FLAT
from funnel.request import Asked
from funnel.results import Hits, Served
from funnel.state import State

__all__ = ["Answered", "answer", "answer_hits", "padded"]

Float32 = npt.NDArray[np.float32]
HIGHEST_COSINE = np.float32(1.0)

Answered: TypeAlias = tuple[Float32, npt.NDArray[np.int64], Served, list[Served] | None]
"""Scores [n, k], input positions [n, k], how they were found, and where a deadline stopped some how each was."""


def answer_hits(
    state: State,
    vectors: npt.NDArray[Any],
    asked: Asked,
    audit: float | bool | None,
    fused: Hybrid | None,
    texts: Sequence[str] | None,
) -> list[Hits]:
    """Hits of each query. fused: of a hybrid search, whose dense list `asked` is about; texts: its queries."""
    if fused is None:
        hits = state.hits(*answer(state, vectors, asked, audit))
    else:
        allowed = state.filters.by_position(asked.where, asked.allowed_ids) if asked.filtered else None
        if allowed is not None:
            fused = replace(fused, lexical=fused.lexical.among(allowed))
        words = fused.rank(texts or [], asked.deadline)
        if fused.words_alone:
            scores, positions, served, each = _no_dense(state, asked, len(words), allowed)
        else:
            scores, positions, served, each = answer(state, vectors, asked, audit)
        scores, positions, ranks = fused.fuse((scores, positions), words)
        hits = fused.marked(state.hits(scores, positions, served, each), ranks, words)
    if asked.began:
        asked.took(len(hits), state.monitor.punctuality.note)
    return hits


def answer(state: State, vectors: npt.NDArray[Any], asked: Asked, audit: float | bool | None) -> Answered:
    """The best k of the user's vectors [n, d]. Raises InputError, and BudgetError as `Searcher.choose` does.

    Scores are products with rows as they are stored, whose norms float16 leaves within 3e-4 of 1; every answer passes
    here, and what lies outside of -1 to 1 is cut. They are not divided by those norms: plans, bounds, truth and audits
    all rank by the products, and of rows that differ by less than the rounding another one would come first.
    """
    scores, positions, served, each = _answer(state, vectors, asked, audit)
    if len(scores) == 1 and scores.item(0) <= 1.0 and scores.item(-1) >= -1.0:  # falling, and all within
        return scores, positions, served, each
    if not (scores < np.inf).all():
        root = state.opened.segments[0].folder.parent.parent
        raise DamagedIndexError(f"the vectors of {root} hold values that are not finite; build the index again")
    scores = np.minimum(scores, HIGHEST_COSINE)
    if (scores[:, -1] < -HIGHEST_COSINE).any():  # the least of each row; -inf where nothing was found
        scores[(scores < -HIGHEST_COSINE) & (positions >= 0)] = -HIGHEST_COSINE
    return scores, positions, served, each


def _answer(state: State, vectors: npt.NDArray[Any], asked: Asked, audit: float | bool | None) -> Answered:
    searcher, monitor, deadline = state.opened.searcher, state.monitor, asked.deadline
    if not searcher.rows:
        return _nothing(len(searcher.prepare(vectors)), check_k(asked.k, LARGEST_K))
    k = check_k(asked.k, searcher.rows)
    if vectors.ndim == 2 and not len(vectors):
        return np.empty((0, k), dtype=np.float32), np.empty((0, k), dtype=np.int64), Served(FLAT, 1.0), None
    prepared = searcher.prepare(vectors)
    if asked.filtered:
        return _filtered(state, prepared, asked, k, audit)
    each = None
    kept: Kept = ()
    if deadline is None:
        served = _served(state, asked, k, len(prepared))
        scores, positions, kept = searcher.traced(prepared, served.plan, k)
    else:
        scores, positions, served, each = _until(state, deadline, prepared, asked, k)
    if served.complete:  # scores of a search that was stopped are of prefixes: they say nothing of drift or recall
        monitor.see(scores, served.plan, kept)
        if audit is not None or monitor.audits:
            monitor.check(prepared, scores, lambda: asked.name, audit)
    if monitor.void:
        served, each = monitor.served(served), each and [monitor.served(one) for one in each]
    return scores, positions, served, each


def padded(scores: Float32, positions: npt.NDArray[np.int64], k: int) -> tuple[Float32, npt.NDArray[np.int64]]:
    """[n, k] of what was found [n, at most k]: -inf and -1 behind it, where the index holds fewer rows."""
    missing = int(k) - scores.shape[1]
    if missing <= 0:
        return scores, positions
    behind = ((0, 0), (0, missing))
    return np.pad(scores, behind, constant_values=-np.inf), np.pad(positions, behind, constant_values=-1)


def _nothing(n_queries: int, k: int) -> Answered:
    """What an index whose rows were all deleted has, as a filter that allows nothing would."""
    scores, positions = np.full((n_queries, k), -np.inf, np.float32), np.full((n_queries, k), -1, np.int64)
    return scores, positions, Served(FLAT, 1.0), None


def _no_dense(state: State, asked: Asked, n_queries: int, allowed: npt.NDArray[np.bool_] | None) -> Answered:
    """The empty dense list of a search for words alone; BM25 must keep a latency by itself."""
    if asked.plan is not None:
        _ = asked.explicit
    elif n_queries:
        state.beside_ms(asked, asked.wanted, asked.k, n_queries)
    asked.began = 0.0  # what is noted of a latency is of plans
    rows = None if allowed is None else int(allowed.sum())
    served = Served(FLAT, math.nan, allowed_rows=rows, dense=False)
    return np.empty((n_queries, 0), np.float32), np.empty((n_queries, 0), np.int64), served, None


def _filtered(state: State, prepared: Float32, asked: Asked, k: int, audit: float | bool | None) -> Answered:
    """As `answer`, over the allowed rows. Drift is not looked for: fewer rows give lower scores."""
    monitor, n_queries = state.monitor, len(prepared)
    found = state.filters.search(prepared, asked, k, lambda wanted: state.beside_ms(asked, wanted, k, n_queries))
    if found.served.complete and found.reach and (audit is not None or monitor.audits):
        monitor.check(prepared, found.scores[:, : found.reach], lambda: asked.name, audit, found.exact)
    if not monitor.void:
        return found.scores, found.positions, found.served, found.each
    each = found.each and [monitor.served(one) for one in found.each]
    return found.scores, found.positions, monitor.served(found.served), each


def _until(state: State, deadline: Deadline, prepared: Float32, asked: Asked, k: int) -> Answered:
    """What was found by the deadline. Planning on first use does not count."""
    searcher = state.opened.searcher
    with deadline.paused():
        served = _served(state, asked, k, len(prepared))
        recalls = searcher.step_recalls(served.plan, k)
        searcher.flat_ms(served.plan, k, len(prepared))
    found = searcher.run_until(prepared, served.plan, k, deadline)
    each = served_each(found, served, recalls)
    return found.scores, found.rows, served_in_all(each, found, served), each


def _served(state: State, asked: Asked, k: int, n_queries: int) -> Served:
    return state.choice(asked, k, n_queries) if asked.plan is None else state.explicit(asked.explicit, k)
