"""Runs a plan: coarse search over the shortest prefix, then stages at rising widths. The hot path."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from funnel.adaptors import Adaptor, OrthogonalAdaptor
from funnel.engine.device import to_device, to_host
from funnel.engine.rerank import Kept, best, carry_on, depths, queries_together, rows_at_a_time
from funnel.engine.workers import workers
from funnel.plan import Plan, Stage
from indexes import CoarseIndex, VectorStore, only_allowed

__all__ = ["Candidates", "Cascade", "Float32", "Int64", "answers_alone", "padded", "some_missing", "turn_of"]

Float32 = npt.NDArray[np.float32]


class Turn:
    """A rotation [d, d]: a vector of the user's times it lies where the stored rows lie.

    A coarse index over the full width needs no adaptor, as every inner product there is what it was before. It is
    built over the user's own vectors, so that a query that it answers alone is not rotated: at 384 dims that takes 3 us
    a query in batch and 8 us by itself, where the graph takes 18 and 40.
    """

    def __init__(self, matrix: torch.Tensor) -> None:
        self._matrix = matrix

    def stored(self, own: Float32) -> Float32:
        """Rows float32 [n, d] of the user's own space as they would be stored."""
        return self._times(own, self._matrix)

    def own(self, stored: Float32) -> Float32:
        """Stored rows float32 [n, d] in the user's own space."""
        return self._times(stored, self._matrix.T)

    def _times(self, rows: Float32, matrix: torch.Tensor) -> Float32:
        # torch keeps to the calling thread's own number of threads; numpy's BLAS would wake one for every core.
        with torch.inference_mode():
            turned: Float32 = (torch.from_numpy(rows).to(matrix.device) @ matrix).cpu().numpy()
        return turned


def answers_alone(coarse: CoarseIndex, dim: int) -> bool:
    """Whether a coarse index gives exact full-width scores, so that nothing is left to rerank. dim: the full width."""
    return coarse.exact_scores and coarse.dim == dim


def turn_of(adaptor: Adaptor) -> Turn | None:
    """The way between the user's vectors and the stored rows; None where they are the same, or there is no way back."""
    return Turn(adaptor.matrix) if isinstance(adaptor, OrthogonalAdaptor) else None


Int64: TypeAlias = npt.NDArray[np.int64]
Piece = TypeVar("Piece")

# Queries whose shortlists are held at once on a device (8,192 x 1,024 ids are 64 MB).
QUERIES_AT_A_TIME_CUDA = 8_192
# A worker is handed at least so many queries: fewer cost more to hand over than they save.
FEWEST_QUERIES = 4
# Batches from this size on are put in an order that reuses the cache: a smaller one has no neighbours to put together.
ORDERED_BATCH = 64
ORDERED_AT_A_TIME = 128


@dataclass(slots=True)
class Candidates:
    """What is left of a few queries' shortlists after the last step that was done, best first.

    places: of the queries in their batch. query: float32 [n, d], as rows are stored. rows: int64 [n, s], 0 where
    `missing`, bool [n, s], is set; None: no place lacks a candidate. scores: float32 [n, s], what they are ranked by.
    partial: their dot products over the first `start` dims. done: steps, 1 after the coarse search. kept: see `Kept`.
    """

    places: slice | Int64
    query: torch.Tensor
    rows: torch.Tensor
    missing: torch.Tensor | None
    scores: torch.Tensor
    partial: torch.Tensor | None = None
    start: int = 0
    done: int = 1
    kept: Kept = ()

    def best(self, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The first k: scores and rows [n, k], -inf and -1 where there are fewer."""
        scores, rows = self.scores[:, :k], self.rows[:, :k]
        if self.missing is not None:
            rows = rows.masked_fill(self.missing[:, :k], -1)
        lacking = (0, k - scores.shape[1])
        if lacking[1] > 0:
            scores = torch.nn.functional.pad(scores, lacking, value=-torch.inf)
            rows = torch.nn.functional.pad(rows, lacking, value=-1)
        return scores, rows


@dataclass(frozen=True)
class Cascade:
    """What a plan is run on.

    coarse: over unit prefixes of `width` dims. store: the n x d matrix. inverse_norms: for every intermediate
    width, 1 / norm of each row's prefix, float32 [n]: stages rank by cosine on the prefix (a query's own norm
    changes no order). exact: what FLAT is served by, for queries as rows are stored. truth: flat search over every row
    at full width, whatever FLAT is served by: what is measured is measured against it. turn: where queries are not as
    rows are stored, what leads from one to the other. live: bool [n], False for rows that were deleted, which no search
    gives back; None where there are none.
    """

    coarse: CoarseIndex
    width: int
    store: VectorStore
    inverse_norms: dict[int, torch.Tensor]
    exact: Callable[[Float32, int], tuple[Float32, Int64]]
    truth: Callable[[Float32, int], tuple[Float32, Int64]]
    turn: Turn | None = None
    live: npt.NDArray[np.bool_] | None = None

    @cached_property
    def alone(self) -> bool:
        """Whether nothing is left to rerank: see `answers_alone`."""
        return answers_alone(self.coarse, self.store.dim)

    @cached_property
    def rows(self) -> int:
        """How many rows there are that were not deleted."""
        return self.store.n if self.live is None else int(np.count_nonzero(self.live))

    def as_stored(self, queries: Float32) -> Float32:
        """Queries float32 [n, d] in the space of the stored rows."""
        return queries if self.turn is None else self.turn.stored(queries)

    def as_asked(self, rows: Float32) -> Float32:
        """Stored rows float32 [n, d] in the space of the queries."""
        return rows if self.turn is None else self.turn.own(rows)

    def flat(self, queries: Float32, k: int) -> tuple[Float32, Int64]:
        """The exact best k: scores float32 [n, k] and stored rows int64 [n, k]."""
        return self.exact(self.as_stored(queries), k)

    def run(self, queries: Float32, plan: Plan, k: int) -> tuple[Float32, Int64]:
        """The best k of each query under the plan, by exact score, falling.

        queries: float32 [n, d], unit rows, C-contiguous. Returns scores float32 [n, k] and stored rows
        int64 [n, k]; where fewer than k were found, -inf and -1 stand at the end.
        """
        scores, rows, _ = self.traced(queries, plan, k)
        return scores, rows

    def traced(self, queries: Float32, plan: Plan, k: int) -> tuple[Float32, Int64, Kept]:
        """As `run`, and from where in the coarse shortlist the hits came."""
        if plan.is_flat:
            return *self.flat(queries, k), ()
        if len(queries) == 1:
            return self._piece(queries, plan, k)
        scores = np.empty((len(queries), k), dtype=np.float32)
        rows = np.empty((len(queries), k), dtype=np.int64)
        depth = np.empty((len(queries), 1), dtype=np.float32)

        def piece(places: slice | Int64) -> None:
            scores[places], rows[places], kept = self._piece(queries[places], plan, k)
            if kept:
                depth[places, 0] = depths(kept)

        self._spread(queries, piece)
        return scores, rows, () if self.alone or self.on_device else (torch.from_numpy(depth),)

    def shortlist(self, queries: Float32, shortlist: int, effort: int) -> Int64:
        """The coarse search alone: stored rows int64 [n, shortlist], best first, -1 where fewer were found."""
        rows = np.empty((len(queries), shortlist), dtype=np.int64)

        def piece(places: slice | Int64) -> None:
            rows[places] = self.coarse_search(queries[places], shortlist, effort)[1]

        self._spread(queries, piece)
        return rows

    def rerank(self, queries: Float32, rows: Int64, start: int, stop: int, keep: int) -> Int64:
        """One stage alone: the `keep` best of rows int64 [n, s] by their dot products over dims [start, stop)."""
        kept = np.empty((len(queries), min(keep, rows.shape[1])), dtype=np.int64)

        at_a_time = rows_at_a_time(rows.shape[1], stop - start, self.store.device)

        def piece(places: slice | Int64) -> None:
            asked, shortlist = queries[places], rows[places]
            parts = [
                self._kept(asked[i : i + at_a_time], shortlist[i : i + at_a_time], start, stop, keep)
                for i in range(0, len(asked), at_a_time)
            ]
            kept[places] = np.concatenate(parts)

        self._spread(queries, piece)
        return kept

    def _kept(self, queries: Float32, rows: Int64, start: int, stop: int, keep: int) -> Int64:
        with torch.inference_mode():
            query, found = self.tensors(queries, np.ascontiguousarray(rows))
            _, places = best(carry_on(self.store, query, found, None, start, stop), keep)
            best_rows: Int64 = found.gather(1, places).cpu().numpy()
            return best_rows

    def _spread(self, queries: Float32, piece: Callable[[slice | Int64], None]) -> None:
        """Cut the queries into pieces and run them, on workers where that pays."""
        self.each(piece, self.pieces(queries))

    def each(self, function: Callable[[Piece], None], pieces: Sequence[Piece]) -> None:
        """Call the function for every piece, on workers where there are several."""
        if len(pieces) == 1 or self.store.device.type != "cpu" or workers().count == 1:
            for piece in pieces:
                function(piece)
        else:
            workers().run(function, pieces)

    def pieces(self, queries: Float32) -> list[slice | Int64]:
        """The places of the queries that are run together on one thread, piece by piece."""
        count = len(queries)
        if self.store.device.type != "cpu":
            return _slices(count, QUERIES_AT_A_TIME_CUDA)
        most = self.coarse.queries_at_a_time
        if count == 1 or workers().count == 1:
            return _slices(count, most)
        # Two at least, however few: on the caller's thread FAISS and torch would wake threads of their own.
        fewest = min(FEWEST_QUERIES, -(-count // 2))
        size = min(most, max(fewest, -(-count // workers().count)))
        order = self._near_order(queries) if count >= ORDERED_BATCH else None
        return [places if order is None else order[places] for places in _slices(count, size)]

    def _near_order(self, queries: Float32) -> Int64 | None:
        """An order in which queries that look at the same rows follow each other."""
        keys = np.zeros(len(queries), dtype=np.int64)
        ordered = [True]

        def piece(start: int) -> None:
            part = np.ascontiguousarray(queries[start : start + ORDERED_AT_A_TIME, : self.width])
            found = self.coarse.near_keys(part)
            if found is None:
                ordered[0] = False
            else:
                keys[start : start + len(part)] = found

        workers().run(piece, range(0, len(queries), ORDERED_AT_A_TIME))
        return np.argsort(keys, kind="stable") if ordered[0] else None

    def coarse_search(self, queries: Float32, shortlist: int, effort: int) -> tuple[Float32, Int64]:
        """Scores float32 [n, shortlist] and stored rows int64 [n, shortlist] of a few queries, on this thread."""
        prefixes = queries if self.width == self.store.dim else np.ascontiguousarray(queries[:, : self.width])
        found = self.coarse.search(prefixes, shortlist, effort)
        return found if self.live is None else only_allowed(*found, self.live)

    def _piece(self, queries: Float32, plan: Plan, k: int) -> tuple[Float32, Int64, Kept]:
        """Coarse search and every stage for a few queries, on this thread."""
        if self.alone:  # what it finds falls by its exact scores, so that the head of it is all that is needed
            wanted = min(k, plan.shortlist) if self.live is None else plan.shortlist
            return *padded(*self.coarse_search(queries, wanted, plan.effort), k), ()
        if self.on_device:
            return *self.piece_on_device(queries, plan, k, self._live_on_device), ()
        parts = list(self.begin(queries, plan, slice(0, len(queries))))
        with torch.inference_mode():
            for part in parts:
                for stage in plan.reranks:
                    self.narrow(part, stage, k)
            if len(parts) > 1:
                return self._together(parts, k)
            scores, rows = to_host(*parts[0].best(k))
        return scores, rows, parts[0].kept

    def _together(self, parts: Sequence[Candidates], k: int) -> tuple[Float32, Int64, Kept]:
        found = [part.best(k) for part in parts]
        scores, rows = to_host(*(torch.cat(one) for one in zip(*found, strict=True)))
        return scores, rows, tuple(torch.cat(step) for step in zip(*(part.kept for part in parts), strict=True))

    def begin(self, queries: Float32, plan: Plan, places: slice | Int64) -> Iterator[Candidates]:
        """The coarse search of a few queries, on this thread; cut into as many as are reranked together.

        queries: float32 [n, d]; places: theirs in their batch.
        """
        scores, rows = self.coarse_search(queries, plan.shortlist, plan.effort)
        numbers = np.arange(places.start, places.stop) if isinstance(places, slice) else places
        stored, at_a_time = self.as_stored(queries), queries_together(self.store, rows.shape[1])
        for start in range(0, len(rows), at_a_time):
            part = slice(start, start + at_a_time)
            query, found = self.tensors(stored[part], np.ascontiguousarray(rows[part]))
            missing = found < 0 if some_missing(rows[part]) else None
            ranked = to_device(np.ascontiguousarray(scores[part]), self.store.device)
            yield Candidates(numbers[part], query, found if missing is None else found.clamp(min=0), missing, ranked)

    def narrow(self, part: Candidates, stage: Stage | None, k: int) -> None:
        """One step: score what is left at the stage's width and keep its best; None: at full width, and k of them."""
        width, keep = (self.store.dim, k) if stage is None else (stage.width, stage.keep)
        if not self.alone:  # where its scores are exact already
            partial, scores = self.scores_at(part.query, part.rows, part.missing, part.partial, part.start, width)
            part.scores, places = best(scores, keep)
            part.rows = part.rows.gather(1, places)
            part.partial = None if stage is None else partial.gather(1, places)
            part.missing = None if part.missing is None else part.missing.gather(1, places)
            part.kept = (*part.kept, places)
        part.start, part.done = width, part.done + 1

    @cached_property
    def _live_on_device(self) -> torch.Tensor | None:
        return None if self.live is None else torch.from_numpy(self.live).to(self.store.device)

    @cached_property
    def on_device(self) -> bool:
        """Whether the coarse index gives its shortlists where they are reranked, on a GPU."""
        return self.store.device.type != "cpu" and self.coarse.device == self.store.device

    def piece_on_device(
        self, queries: Float32, plan: Plan, k: int, allowed: torch.Tensor | None = None
    ) -> tuple[Float32, Int64]:
        """As `_piece`, from the queries' way to the device to the answers' way back without a wait between.

        allowed: bool [n] on the device, which stored rows may be returned.
        """
        with torch.inference_mode():
            scores, rows = to_host(*self.on_tensors(to_device(queries, self.store.device), plan, k, allowed))
        return scores, rows

    def on_tensors(
        self, query: torch.Tensor, plan: Plan, k: int, allowed: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The best k of queries float32 [n, d] that are on the device: scores and rows [n, k] there."""
        prefixes = query[:, : self.width].contiguous()
        ranked, rows = self.coarse.search_tensors(prefixes, plan.shortlist, plan.effort, allowed)
        # To ask whether any is missing would be to wait: they are masked whether or not.
        missing, rows, found = rows < 0, rows.clamp(min=0), []
        at_a_time = queries_together(self.store, plan.shortlist)
        for start in range(0, len(query), at_a_time):
            at = slice(start, start + at_a_time)
            part = Candidates(at, query[at], rows[at], missing[at], ranked[at])
            for stage in plan.reranks:
                self.narrow(part, stage, k)
            found.append(part.best(k))
        scores, best_rows = (torch.cat(one) if len(found) > 1 else one[0] for one in zip(*found, strict=True))
        return scores, best_rows

    def tensors(self, queries: Float32, rows: Int64) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries and rows on the device of the store."""
        return to_device(queries, self.store.device), to_device(rows, self.store.device)

    def scores_at(
        self,
        query: torch.Tensor,
        rows: torch.Tensor,
        missing: torch.Tensor | None,
        partial: torch.Tensor | None,
        start: int,
        width: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Dot products over the first `width` dims, and what candidates are ranked by there: float32 [n, s] twice.

        rows: int64 [n, s]; missing: bool [n, s] of places without a candidate, ranked at -inf. partial: dot products
        over the first `start` dims. They are ranked by cosine on the prefix, up to the query's own norm.
        """
        partial = carry_on(self.store, query, rows, partial, start, width)
        scores = partial if width == self.store.dim else partial * self.inverse_norms[width][rows]
        return partial, scores if missing is None else scores.masked_fill_(missing, -torch.inf)


def _slices(count: int, size: int) -> list[slice | Int64]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def padded(scores: Float32, rows: Int64, k: int) -> tuple[Float32, Int64]:
    """The first k of scores and rows [n, s], with -inf and -1 behind them where there are fewer."""
    lacking = k - rows.shape[1]
    if lacking <= 0:
        return scores[:, :k], rows[:, :k]
    fill = ((0, 0), (0, lacking))
    return np.pad(scores, fill, constant_values=-np.inf), np.pad(rows, fill, constant_values=-1)


def some_missing(rows: Int64) -> bool:
    """Whether a row of rows [n, s] lacks candidates: they stand best first, so that -1 is always at the end."""
    return rows.item(-1) < 0 if len(rows) == 1 else bool((rows[:, -1] < 0).any())
