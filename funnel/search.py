"""One call of search, from vectors to answers: planned, run, watched, audited; under a filter, or fused with BM25."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from funnel.budget import LARGEST_K, Budget, check_k
from funnel.encoding.query_encoder import QueryEncoder
from funnel.engine.allowed import Filters
from funnel.engine.cascade import padded
from funnel.engine.generation import Opened
from funnel.engine.hybrid import Hybrid, Lexical
from funnel.engine.segments import Documents, live_positions
from funnel.engine.steps import Found, served_each, served_in_all
from funnel.engine.timing import held_ms, times_ms
from funnel.errors import BudgetError, DamagedIndexError
from funnel.monitoring import LiveRows, Monitor
from funnel.plan import FLAT, Plan
from funnel.planning.costs import batch_class
from funnel.planning.latencies import Held
from funnel.planning.planner import Choice
from funnel.planning.remembered import Remembered
from funnel.request import Reading, Request
from funnel.results import Hit, Hits, Served
from indexes.system import free_in_children

__all__ = ["Beside", "State", "answer", "answer_fused"]

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
        self._held: Remembered[tuple[str, int, int], Held] = Remembered()
        self._lock = free_in_children(Lock())

    def ms(self, batch: int, k: int, reading: Reading | None, latency_ms: float) -> float:
        """Milliseconds at the 95th percentile, as it is held by two callers at once; 0 where there is neither.

        batch: queries in a call. Encoding and BM25 are timed on beginnings of documents; where there are none, encoding
        on the texts of the call. Raises BudgetError where this takes all of latency_ms by itself.
        """
        if reading is None:
            return 0.0
        texts, from_text, fused = reading
        total = 0.0
        if from_text and (texts or self._documents is not None):
            total += self._ms("encoding", batch, 0, self._encode(batch, texts), latency_ms)
        if fused is not None and self._lexical is not None:
            total += self._ms("BM25 for", batch, k, self._rank(batch, k), latency_ms - total)
        if self._documents is not None:
            read = k if fused is None else fused
            total += self._ms("reading the documents of", batch, read, self._read(batch, read), latency_ms - total)
        return total

    def _ms(self, what: str, batch: int, k: int, call: Callable[[int], object], allowed: float) -> float:
        calls = "one query" if batch == 1 else f"{batch} queries"
        with self._lock:
            held = self._held.get((what, batch, k))
            if held is None:
                quick = float(np.median(times_ms(call)))
                if quick >= allowed:
                    said = f"{quick:.3g} ms"
                    raise self._too_much(f"{what} {calls} takes {said}", allowed)
                held = self._held[what, batch, k] = held_ms(call)
        if held.ms >= allowed:
            raise self._too_much(f"{what} {calls} takes {held}", allowed)
        return held.ms

    @staticmethod
    def _too_much(taken: str, allowed: float) -> BudgetError:
        return BudgetError(
            f"no plan answers within the latency asked for: {taken} by itself, and {allowed:.3g} ms are left for it. "
            "Allow more time, or call search_vectors with vectors"
        )

    def _encode(self, batch: int, texts: Sequence[str]) -> Callable[[int], object]:
        """Encoding of the first words of documents, other ones each time; of the texts given where there are none."""
        if self._documents is None:
            sets = [[texts[i % len(texts)] for i in range(batch)]]
        else:
            sets = self._beginnings(self._documents, batch)
        return lambda number: self._encoder.encode(sets[number % len(sets)])

    def _beginnings(self, documents: Documents, batch: int) -> list[list[str]]:
        sets = np.random.default_rng(0).integers(0, self._rows, (SETS, batch))
        return [[" ".join(document.content.split()[:SAMPLE_WORDS]) for document in documents.get(row)] for row in sets]

    def _rank(self, batch: int, depth: int) -> Callable[[int], object]:
        """BM25 for a batch of the first words of documents, other ones each time."""
        documents, lexical = self._documents, self._lexical
        assert documents is not None
        assert lexical is not None
        texts = self._beginnings(documents, batch)
        lexical.open()
        return lambda number: lexical.rank_all(texts[number % SETS], depth)

    def _read(self, batch: int, k: int) -> Callable[[int], object]:
        documents = self._documents
        assert documents is not None
        sets = np.random.default_rng(0).integers(0, self._rows, (SETS, batch, k))

        def read(number: int) -> None:
            for row in sets[number % SETS]:
                documents.get(row)

        return read


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
        lexical = lexical_of(opened)
        beside = Beside(encoder, opened.documents, opened.segments[-1].stop, lexical)
        return cls(opened, beside, monitor, Filters(opened), lexical, Remembered(choices))

    def ids(self) -> list[Any]:
        """Every id that was not deleted, in input order."""
        opened = self.opened
        ids = opened.searcher.ids.all()
        if opened.live is None:
            return ids
        parts = [live_positions(segment, opened.live) for segment in opened.segments]
        kept = np.concatenate([part for part in parts if part is not None])
        return [one for one, there in zip(ids, kept, strict=True) if there]

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
        if asked.plan is not None:
            return self._explicit(asked.plan, k)
        choices, batch = self.choices, batch_class(n_queries)
        beside = None if asked.reading is None else (asked.reading.encoded, asked.reading.fused)
        key = (k, batch, asked.recall, asked.share, asked.latency_ms, asked.budget, beside)
        served = choices.get(key)
        if served is None:
            asked.began = 0.0  # planning on first use does not count
            choice = self.choose(asked, k, n_queries)
            served = choices[key] = self._served(choice.plan, choice.certificate.mean_recall)
        elif self.monitor.void and not served.void:
            served = choices[key] = self.monitor.served(served)
        return served

    def _explicit(self, plan: Plan, k: int) -> Served:
        """A plan of the user's own, checked."""
        choices, searcher, key = self.choices, self.opened.searcher, (plan, k)
        served = choices.get(key)
        if served is None:
            run = searcher.given(plan, k)
            served = choices[key] = self._served(run, searcher.estimate(run, k))
        return served

    def _served(self, plan: Plan, estimate: float) -> Served:
        """Marked where rows are searched by the plan that its estimate says nothing of."""
        return Served(plan, estimate, void=bool(_void_of(self.opened)) and not plan.is_flat)

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
        documents, answered = self.opened.documents, each or [served] * len(scores)
        if documents is None:
            ids = self.opened.searcher.ids.at(positions).tolist()
            found = zip(ids, scores.tolist(), positions.tolist(), answered, strict=True)
            return [Hits([Hit(*hit) for *hit, at in zip(*row, strict=True) if at >= 0], how) for *row, how in found]
        result = []
        for row_scores, row, how in zip(scores, positions, answered, strict=True):
            hits = [
                Hit(document.id, score, document.title, document.text, dict(document.metadata))
                for document, score in zip(documents.get(row[row >= 0]), row_scores.tolist(), strict=False)
            ]
            result.append(Hits(hits, how))
        return result


def lexical_of(opened: Opened) -> Lexical | None:
    """BM25 over the documents of every segment that were not deleted; None where there are bare vectors."""
    stores = [(segment.first, segment.documents) for segment in opened.segments if segment.documents is not None]
    if not stores:
        return None
    return Lexical(stores, [live_positions(segment, opened.live) for segment in opened.segments])


def _rows_of(opened: Opened) -> LiveRows:
    """The rows of a generation, as its monitor is told of them."""
    count = opened.segments[-1].stop
    return (count, 0 if opened.live is None else count - int(np.count_nonzero(opened.live)))


def _of_latency(key: tuple[object, ...]) -> bool:
    """Whether a choice was made for a latency: keys are those of `State.serving`, or a plan and k."""
    if len(key) == 2:
        return False
    latency, budget = key[4:6]
    return latency is not None or (isinstance(budget, Budget) and budget.latency_ms is not None)


def _void_of(opened: Opened) -> str:
    """Why nothing can be certified; "" where it can."""
    calibration = opened.searcher.calibration
    return "" if calibration is None else calibration.void


Float32 = npt.NDArray[np.float32]
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
    searcher, monitor = state.opened.searcher, state.monitor
    if not searcher.rows:
        return _nothing(len(searcher.prepare(vectors)), check_k(asked.k, LARGEST_K))
    k = check_k(asked.k, searcher.rows)
    if vectors.ndim == 2 and not len(vectors):
        return np.empty((0, k), dtype=np.float32), np.empty((0, k), dtype=np.int64), Served(FLAT, 1.0), None
    prepared = searcher.prepare(vectors)
    if asked.filtered:
        found, served, each = _filtered(state, prepared, asked, k, audit)
    else:
        found, served, each = _found(state, prepared, asked, k)
        if served.complete:  # scores of a search that was stopped are of prefixes: they say nothing of drift or recall
            monitor.see(found.scores, served.plan)
            if audit is not None or monitor.audits:
                monitor.check(prepared, found.scores, lambda: asked.name, audit)
    if monitor.void:
        served, each = monitor.served(served), each and [monitor.served(one) for one in each]
    scores, positions = found.scores, found.rows
    if len(scores) != 1 or not (scores.item(0) <= 1.0 and scores.item(-1) >= -1.0):  # falling, and all within
        scores = _cosines(state, scores, positions)
    return scores, positions, served, each


def _found(state: State, prepared: Float32, asked: Request, k: int) -> tuple[Found, Served, list[Served] | None]:
    """What a budget's plan finds, or the user's own; up to a deadline. Planning on first use does not count."""
    searcher, deadline = state.opened.searcher, asked.deadline
    if deadline is None:
        served = state.serving(asked, k, len(prepared))
        return searcher.found(prepared, served.plan, k), served, None
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
    """As `_found`, over the allowed rows. Drift is not looked for: fewer rows give lower scores."""
    monitor, n_queries, searcher = state.monitor, len(prepared), state.opened.searcher
    found, served, filtered = state.filters.search(
        prepared, asked, k, lambda wanted: state.beside_ms(asked, wanted, k, n_queries)
    )
    reach = min(k, filtered.count)
    scores, positions = padded(found.scores, found.rows, k)
    each = None
    if found.done is not None:  # what a plan finds under a filter after some of its steps was not measured
        each = served_each(found, served, [math.nan] * (served.stages - 1) + [served.estimated_recall])
        served = served_in_all(each, found, served)
    if served.complete and reach and (audit is not None or monitor.audits):

        def exact(queries: Float32, count: int) -> tuple[Float32, npt.NDArray[np.int64]]:
            true = filtered.found(searcher, queries, FLAT, count)
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


def _nothing(n_queries: int, k: int) -> Answered:
    """What an index whose rows were all deleted has, as a filter that allows nothing would."""
    scores, positions = np.full((n_queries, k), -np.inf, np.float32), np.full((n_queries, k), -1, np.int64)
    return scores, positions, Served(FLAT, 1.0), None


def _no_dense(state: State, asked: Request, n_queries: int, allowed: npt.NDArray[np.bool_] | None) -> Answered:
    """The empty dense list of a search for words alone; BM25 must keep a latency by itself."""
    if asked.plan is None and n_queries:
        state.beside_ms(asked, asked.wanted, asked.k, n_queries)
    asked.began = 0.0  # what is noted of a latency is of plans
    rows = None if allowed is None else int(allowed.sum())
    served = Served(FLAT, math.nan, allowed_rows=rows, dense=False)
    return np.empty((n_queries, 0), np.float32), np.empty((n_queries, 0), np.int64), served, None
