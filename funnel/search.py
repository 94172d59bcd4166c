"""One call of search, from vectors to answers: planned, run, watched, audited; under a filter, or fused with BM25."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from threading import Lock
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from funnel.budget import LARGEST_K, Budget, check_k
from funnel.encoding.query_encoder import QueryEncoder
from funnel.engine.allowed import Filters
from funnel.engine.cascade import Float32, padded
from funnel.engine.generation import Opened
from funnel.engine.hybrid import Hybrid, Lexical
from funnel.engine.segments import Documents, left, live_positions
from funnel.engine.steps import Found, served_each, served_in_all
from funnel.engine.timing import held_ms, times_ms
from funnel.errors import BudgetError, DamagedIndexError
from funnel.monitoring import LiveRows, Monitor
from funnel.plan import FLAT
from funnel.planning.costs import Held, batch_class
from funnel.planning.planner import Choice
from funnel.planning.remembered import Remembered
from funnel.request import Reading, Request
from funnel.results import Hit, Hits, Served
from indexes.system import free_in_children

__all__ = ["Beside", "State", "answer", "answer_fused"]

Call: TypeAlias = "Callable[[int], object]"
SAMPLE_WORDS = 12  # about a question's: vaswani's queries have 11 on average
SETS = 64  # of documents read in turn, so that they are not the same ones every time


class Beside:
    """Measures, once for each batch size, what a latency budget must leave for encoder and documents.

    documents: None where the index holds bare vectors. rows: how many it holds, deleted ones among them. lexical: BM25
    over the documents.
    """

    def __init__(
        self, encoder: QueryEncoder, documents: Documents | None, rows: int, lexical: Lexical | None = None
    ) -> None:
        self._lexical = lexical
        self._encoder = encoder
        self._documents = documents
        self._rows = rows
        self._held: Remembered[tuple[str, int, int], Held | None] = Remembered()
        self._lock = free_in_children(Lock())

    def ms(self, batch: int, k: int, reading: Reading | None, latency_ms: float) -> float:
        """Milliseconds at the 95th percentile, as it is held by two callers at once; 0 where there is neither.

        batch: queries in a call. Encoding and BM25 are timed on beginnings of documents; where there are none, encoding
        on the texts of the call. Raises BudgetError where this takes all of latency_ms by itself.
        """
        if reading is None:
            return 0.0
        texts, from_text, fused = reading
        documents, lexical, encoder, total = self._documents, self._lexical, self._encoder, 0.0
        if from_text and (texts or documents is not None):

            def encoding() -> Call:
                sets = self._texts(batch, texts)
                return lambda number: encoder.encode(sets[number % len(sets)])

            total += self._ms("encoding", batch, 0, encoding, latency_ms)
        if fused is not None and lexical is not None:

            def ranking() -> Call:
                sets, _ = self._texts(batch, texts), lexical.open()
                return lambda number: lexical.rank_all(sets[number % len(sets)], k)

            total += self._ms("BM25 for", batch, k, ranking, latency_ms - total)
        if documents is not None:
            read = k if fused is None else fused

            def reading_them() -> Call:
                sets = np.random.default_rng(0).integers(0, self._rows, (SETS, batch * read))
                return lambda number: documents.get(sets[number % SETS])

            total += self._ms("reading the documents of", batch, read, reading_them, latency_ms - total)
        return total

    def _ms(self, what: str, batch: int, k: int, make: Callable[[], Call], allowed: float) -> float:
        with self._lock:
            held, taken = self._held.get((what, batch, k)), math.nan
            if held is None:
                call = make()
                taken = float(np.median(times_ms(call)))
                held = self._held[what, batch, k] = held_ms(call) if taken < allowed else None
        taken = taken if held is None else held.ms
        if taken >= allowed:
            queries, said = "one query" if batch == 1 else f"{batch} queries", held or f"{taken:.3g} ms"
            raise BudgetError(
                f"no plan answers within the latency asked for: {what} {queries} takes {said} by itself, and "
                f"{allowed:.3g} ms are left for it. Allow more time, or call search_vectors with vectors"
            )
        return taken

    def _texts(self, batch: int, given: Sequence[str]) -> list[list[str]]:
        """The first words of documents, other ones in each set; the texts given where there are none."""
        if self._documents is None:
            return [[given[i % len(given)] for i in range(batch)]]
        sets = np.random.default_rng(0).integers(0, self._rows, (SETS, batch))
        found = iter(self._documents.get(sets.ravel()))
        return [[" ".join(one.content.split()[:SAMPLE_WORDS]) for one in islice(found, batch)] for _ in sets]


@dataclass(frozen=True, eq=False)
class State:
    """One generation, its monitor, and what was chosen for the budgets that were asked for.

    lexical: BM25 over its documents; None where it holds bare vectors.
    """

    opened: Opened
    beside: Beside
    monitor: Monitor
    filters: Filters
    lexical: Lexical | None
    choices: Remembered[tuple[object, ...], Served] = field(default_factory=Remembered)

    @classmethod
    def of(cls, opened: Opened, encoder: QueryEncoder) -> State:
        """A generation that is opened anew."""
        searcher = opened.searcher
        return cls._made(opened, encoder, Monitor(searcher.calibration, searcher.truth, _rows_of(opened)), {})

    def then(self, opened: Opened, encoder: QueryEncoder) -> State:
        """The next generation: audits and a void promise go on, and what else is watched where its calibration does.

        Choices go on too, where nothing was deleted or tuned.
        Rows that were only added are searched exactly, and no plan's recall becomes less by them.
        """
        searcher, before = opened.searcher, self.opened.searcher
        only_added = (
            opened.stored is self.opened.stored
            and searcher.cascade is before.cascade
            and (searcher.calibration is None) == (before.calibration is None)
            and _void_of(opened) == _void_of(self.opened)
        )
        same = opened.stored is self.opened.stored and opened.segments[0].id == self.opened.segments[0].id
        monitor = self.monitor.then(searcher.calibration, searcher.truth, _rows_of(opened), same)
        # A latency is measured again: calls search the added rows too.
        kept = {key: served for key, served in list(self.choices.items()) if only_added and not _of_latency(key)}
        return self._made(opened, encoder, monitor, kept)

    @classmethod
    def _made(
        cls, opened: Opened, encoder: QueryEncoder, monitor: Monitor, choices: dict[tuple[object, ...], Served]
    ) -> State:
        stores = [(segment.first, segment.documents) for segment in opened.segments if segment.documents is not None]
        masks = [live_positions(segment, opened.live) for segment in opened.segments]
        lexical = Lexical(stores, masks) if stores else None
        beside = Beside(encoder, opened.documents, opened.segments[-1].stop, lexical)
        return cls(opened, beside, monitor, Filters(opened), lexical, Remembered(choices))

    def ids(self) -> list[Any]:
        """Every id that was not deleted, in input order."""
        positions = [segment.first + left(segment, self.opened.live) for segment in self.opened.segments]
        ids: list[Any] = self.opened.searcher.ids.at(np.concatenate(positions)).tolist()
        return ids

    def choose(self, asked: Request, k: int, n_queries: int) -> Choice:
        """The plan for such a call, and its certificate; a latency leaves room for encoder and documents."""
        wanted = asked.wanted
        return self.opened.searcher.choose(wanted, k, n_queries, self.beside_ms(asked, wanted, k, n_queries))

    def beside_ms(self, asked: Request, wanted: Budget, k: int, n_queries: int) -> float:
        """What a latency must leave for encoder, words and documents; 0 where none is asked for."""
        if wanted.latency_ms is None:
            return 0.0
        batch = batch_class(n_queries)
        return self.beside.ms(batch, k, asked.reading, wanted.latency_ms)

    def serving(self, asked: Request, k: int, n_queries: int) -> Served:
        """What serves a budget, or a plan of the user's own.

        Remembered under what the user wrote: a budget is checked once, not every call.
        """
        batch = 1 if n_queries == 1 else batch_class(n_queries)
        beside = None if asked.reading is None else asked.reading[1:]
        key = (k, batch, asked.recall, asked.share, asked.latency_ms, asked.budget, asked.plan, beside)
        try:
            return self.choices[key]
        except KeyError:
            if asked.plan is None:
                asked.began = 0.0  # planning on first use does not count
                choice = self.choose(asked, k, n_queries)
                plan, estimate = choice.plan, choice.certificate.mean_recall
            else:
                plan = self.opened.searcher.given(asked.plan, k)
                estimate = self.opened.searcher.estimate(plan, k)
            # Marked where rows are searched by the plan that its estimate says nothing of.
            served = Served(plan, estimate, void=bool(_void_of(self.opened)) and not plan.is_flat)
            self.choices[key] = served
            return served

    def hits(
        self,
        scores: npt.NDArray[np.float32],
        positions: npt.NDArray[np.int64],
        served: Served,
        each: Sequence[Served] | None,
    ) -> list[Hits]:
        """Hits for each query, with the documents where there are any; positions below 0 give none.

        scores, positions: [n, k]. each: how each query was answered, where they differ.
        """
        documents, wanted, answered = self.opened.documents, positions[positions >= 0], each or [served] * len(scores)
        rows = zip(positions.tolist(), scores.tolist(), strict=True)
        kept = [[score for at, score in zip(*row, strict=True) if at >= 0] for row in rows]
        if documents is None:
            ids = iter(self.opened.searcher.ids.at(wanted).tolist())
            return [Hits(map(Hit, islice(ids, len(one)), one), how) for one, how in zip(kept, answered, strict=True)]
        found = iter(documents.get(wanted))
        return [
            Hits(
                [
                    Hit(doc.id, score, doc.title, doc.text, dict(doc.metadata))
                    for doc, score in zip(islice(found, len(one)), one, strict=True)
                ],
                how,
            )
            for one, how in zip(kept, answered, strict=True)
        ]


def _rows_of(opened: Opened) -> LiveRows:
    """The rows of a generation, as its monitor is told of them."""
    count = opened.segments[-1].stop
    return (count, 0 if opened.live is None else count - int(np.count_nonzero(opened.live)))


def _of_latency(key: tuple[object, ...]) -> bool:
    """Whether a choice was made for a latency: keys are those of `State.serving`."""
    latency, budget = key[4:6]
    return latency is not None or (isinstance(budget, Budget) and budget.latency_ms is not None)


def _void_of(opened: Opened) -> str:
    """Why nothing can be certified; "" where it can."""
    calibration = opened.searcher.calibration
    return "" if calibration is None else calibration.void


HIGHEST_COSINE = np.float32(1.0)

Answered: TypeAlias = tuple[Float32, npt.NDArray[np.int64], Served, list[Served] | None]
"""Scores [n, k], input positions [n, k], how they were found, and where a deadline stopped some how each was."""


def answer_fused(
    state: State, vectors: npt.NDArray[Any], asked: Request, audit: float | bool | None, fused: Hybrid
) -> list[Hits]:
    """Hits of each query of a hybrid search, whose dense list `asked` is about."""
    assert asked.reading is not None, "hits are read"
    allowed = state.filters.by_position(asked.where, asked.allowed_ids) if asked.filtered else None
    if allowed is not None:
        fused = replace(fused, lexical=fused.lexical.among(allowed))
    words = fused.rank(asked.reading.texts, asked.deadline)
    if fused.words_alone:
        scores, positions, served, each = _no_dense(state, asked, len(words), allowed)
    else:
        scores, positions, served, each = answer(state, vectors, asked, audit)
    scores, positions, ranks = fused.fuse((scores, positions), words)
    return fused.marked(state.hits(scores, positions, served, each), ranks, words)


def answer(state: State, vectors: npt.NDArray[Any], asked: Request, audit: float | bool | None) -> Answered:
    """The best k of the user's vectors [n, d]. Raises InputError, and BudgetError as `Searcher.choose` does."""
    searcher, monitor, k = state.opened.searcher, state.monitor, asked.k
    if type(k) is not int or not 1 <= k <= searcher.rows:
        k = check_k(k, searcher.rows or LARGEST_K)
    prepared = searcher.prepare(vectors) if vectors.shape[:1] != (0,) else np.empty((0, searcher.dim), np.float32)
    if not len(prepared) or not searcher.rows:  # what a filter that allows nothing would find
        none = np.full((len(prepared), k), -np.inf, np.float32)
        return none, np.full(none.shape, -1, np.int64), Served(FLAT, 1.0), None
    if asked.filtered:
        found, served, each = _filtered(state, prepared, asked, k, audit)
    elif asked.deadline is not None:
        found, served, each = _stopped(state, prepared, asked, k)
    else:
        served, each = state.serving(asked, k, len(prepared)), None
        found = searcher.found(prepared, served.plan, k)
    scores, positions = found.scores, found.rows
    # Scores of a search that was stopped are of prefixes: they say nothing of drift or recall.
    if not asked.filtered and (each is None or served.complete):
        if monitor.drift is not None and monitor.drift.see(scores, served.plan):
            monitor.drifted()
        if audit is not None or monitor.running.share:
            monitor.check(prepared, scores, lambda: asked.name, audit)
    if monitor.broken:
        served, each = monitor.served(served), each and [monitor.served(one) for one in each]
    if len(scores) != 1 or not (scores.item(0) <= 1.0 and scores.item(-1) >= -1.0):  # falling, and all within
        scores = _cosines(state, scores, positions)
    return scores, positions, served, each


def _stopped(state: State, prepared: Float32, asked: Request, k: int) -> tuple[Found, Served, list[Served] | None]:
    """What is found up to a deadline. Planning on first use does not count."""
    searcher, deadline = state.opened.searcher, asked.deadline
    assert deadline is not None, "it is asked for"
    with deadline.paused():
        served = state.serving(asked, k, len(prepared))
        recalls = searcher.step_recalls(served.plan, k)
        searcher.flat_ms(served.plan, k, len(prepared))
    found = searcher.found(prepared, served.plan, k, deadline)
    each = served_each(found, served, recalls)
    return found, served_in_all(each, found, served), each


def _filtered(
    state: State, prepared: Float32, asked: Request, k: int, audit: float | bool | None
) -> tuple[Found, Served, list[Served] | None]:
    """As `_stopped`, over the allowed rows. Drift is not looked for: fewer rows give lower scores."""
    monitor, n_queries = state.monitor, len(prepared)
    found, served, filtered = state.filters.search(
        prepared, asked, k, lambda wanted: state.beside_ms(asked, wanted, k, n_queries)
    )
    reach = min(k, filtered.count)
    scores, positions = padded(found.scores, found.rows, k)
    each = None
    if found.done is not None:  # what a plan finds under a filter after some of its steps was not measured
        each = served_each(found, served, [math.nan] * (served.stages - 1) + [served.estimated_recall])
        served = served_in_all(each, found, served)
    if served.complete and reach and (audit is not None or monitor.running.share):

        def exact(queries: Float32, count: int) -> tuple[Float32, npt.NDArray[np.int64]]:
            true = filtered.searcher.found(queries, FLAT, count)
            return true.scores, true.rows

        monitor.check(prepared, scores[:, :reach], lambda: asked.name, audit, exact)
    return replace(found, scores=scores, rows=positions), served, each


def _cosines(state: State, scores: Float32, positions: npt.NDArray[np.int64]) -> Float32:
    """Scores cut to what lies within -1 and 1: every answer passes here. Raises DamagedIndexError for NaN.

    They are products with rows as they are stored, whose norms float16 leaves within 3e-4 of 1, and not divided by
    those norms: plans, bounds, truth and audits all rank by the products, and of rows that differ by less than the
    rounding another one would come first.
    """
    if not (scores < np.inf).all():
        root = state.opened.segments[0].folder.parent.parent
        raise DamagedIndexError(f"the vectors of {root} hold values that are not finite; build the index again")
    scores = np.minimum(scores, HIGHEST_COSINE)
    if (scores[:, -1] < -HIGHEST_COSINE).any():  # the least of each row; -inf where nothing was found
        scores[(scores < -HIGHEST_COSINE) & (positions >= 0)] = -HIGHEST_COSINE
    return scores


def _no_dense(state: State, asked: Request, n_queries: int, allowed: npt.NDArray[np.bool_] | None) -> Answered:
    """The empty dense list of a search for words alone; BM25 must keep a latency by itself."""
    if asked.plan is None and n_queries:
        state.beside_ms(asked, asked.wanted, asked.k, n_queries)
    asked.began = 0.0  # what is noted of a latency is of plans
    rows = None if allowed is None else int(allowed.sum())
    served = Served(FLAT, math.nan, allowed_rows=rows, dense=False)
    return np.empty((n_queries, 0), np.float32), np.empty((n_queries, 0), np.int64), served, None
