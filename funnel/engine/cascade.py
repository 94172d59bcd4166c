"""Runs a plan: coarse search over the shortest prefix, then stages at rising widths. The hot path.

And where vectors lie: as the user gives them, as rows are stored, and the adapted prefixes of those.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from funnel.adaptors import Adaptor, Identity, OrthogonalAdaptor
from funnel.engine.rerank import (
    Float32,
    Int64,
    best,
    carry_on,
    loops,
    queries_together,
    reranked,
    to_device,
    to_host,
    writable,
)
from funnel.engine.workers import workers
from funnel.plan import Plan, Stage
from indexes import CoarseIndex, VectorStore, only_allowed

__all__ = ["Candidates", "Cascade", "Float32", "Int64", "Space", "answers_alone", "padded", "unit_prefixes"]


def unit_prefixes(prefixes: Float32) -> Float32:
    """Rows [n, width], scaled to unit length; those of zeros stay zeros."""
    norms = np.linalg.norm(prefixes, axis=1, keepdims=True)
    scaled: Float32 = np.ascontiguousarray(prefixes / np.maximum(norms, np.finfo(np.float32).tiny))
    return scaled


@dataclass(frozen=True, eq=False)
class Space:
    """What an adaptor makes of an index's vectors.

    own: whether rows are stored as the user gave them. So they are where the adaptor keeps every inner product at full
    width: a query is then only projected to the prefix that is searched, which takes width / d of the time of adapting
    it whole. Else rows are stored adapted, and so are queries. whole: whether rows are stored adapted, and the coarse
    index is over all dims of those that were given: of formats up to 3. columns: by width and whether nearly,
    those of the projections in use, as rows that loops read: the bits of float16, or float32.
    """

    adaptor: Adaptor
    own: bool
    whole: bool = False
    columns: dict[tuple[int, bool], npt.NDArray[Any]] = field(default_factory=dict, repr=False)

    @property
    def projects(self) -> bool:
        """Whether adapted prefixes are others than those of the stored rows."""
        return self.own and not isinstance(self.adaptor, Identity)

    def stored(self, given: Float32) -> Float32:
        """Unit rows float32 [n, d] of the user's as they are stored, and as queries meet them."""
        return given if self.own else np.ascontiguousarray(self.adaptor.unit_transform(given))

    def given(self, stored: Float32) -> Float32:
        """Stored rows in the user's own space. Raises InputError where the adaptor cannot be inverted."""
        return stored if self.own else self.adaptor.inverse(stored)

    @property
    def whole_rows(self) -> Callable[[Float32], Float32] | None:
        """What stored rows go through on their way into the coarse index, where it is over those that were given."""
        return self.given if self.whole else None

    def adapted(self, stored: Float32) -> Float32:
        """Stored rows adapted, at full width."""
        return self.adaptor.unit_transform(stored) if self.own else stored

    def prefixes(self, stored: Float32, width: int, nearly: bool = False) -> Float32:
        """The first `width` adapted dims of stored rows or queries [n, d]: float32 [n, width], C-contiguous.

        At full width they are as stored: what keeps inner products changes nothing there. nearly: to within 2e-4 of the
        query's length do, as for a search that is reranked: of one query half of the bytes are read then, which take
        most of the time.
        """
        if self.own and width < stored.shape[1]:
            # One query on this thread, as torch wakes others for it: 200 us for 30.
            compiled = loops() if len(stored) == 1 and isinstance(self.adaptor, OrthogonalAdaptor) else None
            if compiled is None:
                return self.adaptor.prefixes(stored, width)
            columns = self.columns.get((width, nearly))
            if columns is None:
                matrix = np.ascontiguousarray(self.adaptor.tensors()["matrix"][:, :width].T)
                matrix = matrix.astype(np.float16).view(np.uint16) if nearly else matrix
                columns = self.columns[width, nearly] = matrix
            found = np.empty((1, width), dtype=np.float32)
            compiled.products(columns, writable(stored)[0], found[0])
            return found
        if self.whole:
            return np.ascontiguousarray(self.given(stored)[:, :width])
        return np.ascontiguousarray(stored[:, :width])


def answers_alone(coarse: CoarseIndex, dim: int) -> bool:
    """Whether a coarse index gives exact full-width scores, so that nothing is left to rerank. dim: the full width."""
    return coarse.exact_scores and coarse.dim == dim


Piece = TypeVar("Piece")

# Queries whose shortlists are held at once on a device (8,192 x 1,024 ids are 64 MB).
QUERIES_AT_A_TIME_CUDA = 8_192
# A worker is handed at least so many queries: fewer cost more to hand over than they save.
FEWEST_QUERIES = 4
# Batches from this size on are put in an order that reuses the cache: a smaller one has no neighbours to put together.
ORDERED_BATCH = 64
ORDERED_AT_A_TIME = 128
SCANNED_AT_A_TIME = 16_384  # rows: 8 MB of scores for 128 queries
ALL = slice(None)


@dataclass(slots=True)
class Candidates:
    """What is left of a few queries' shortlists after the last step that was done, best first.

    places: of the queries in their batch. queries: float32 [n, d], as rows are stored. scores: float32 [n, s], what
    they are ranked by. rows: int64 [n, s], -1 where there is none. width: of the scan or the last stage, 0 before.
    done: steps, 1 after the coarse search. exact: whether scores are exact already, which leaves nothing to rerank.
    """

    places: slice | Int64
    queries: Float32
    scores: Float32
    rows: Int64
    width: int = 0
    done: int = 1
    exact: bool = False


@dataclass(frozen=True)
class Cascade:
    """What a plan is run on.

    coarse: over unit prefixes of `width` dims. store: the n x d matrix. space: where its rows lie. adapted: the adapted
    prefixes of rows that are stored as given, n x the widest stage; None where stored rows have them. inverse_norms:
    for every width below the full one, 1 / norm of each row's prefix, float32 [n]: stages rank by cosine on the prefix
    (a query's own norm changes no order). ladder: the widths that these are kept for, and d. exact: what FLAT is served
    by. truth: flat search over every row at full width, whatever FLAT is served by: what is measured is measured
    against it. live: bool [n], False for rows that were deleted, which no search gives back; None where there are none.
    """

    coarse: CoarseIndex
    width: int
    store: VectorStore
    space: Space
    adapted: VectorStore | None
    inverse_norms: dict[int, torch.Tensor]
    exact: Callable[[Float32, int], tuple[Float32, Int64]]
    truth: Callable[[Float32, int], tuple[Float32, Int64]]
    live: npt.NDArray[np.bool_] | None = None
    ladder: tuple[int, ...] = ()

    @cached_property
    def alone(self) -> bool:
        """Whether nothing is left to rerank: see `answers_alone`."""
        return answers_alone(self.coarse, self.store.dim)

    @cached_property
    def rows(self) -> int:
        """How many rows there are that were not deleted."""
        return self.store.n if self.live is None else int(np.count_nonzero(self.live))

    def run(self, queries: Float32, plan: Plan, k: int, fill: bool = False) -> tuple[Float32, Int64]:
        """The best k of each query under the plan, by exact score, falling.

        queries: float32 [n, d], unit rows, C-contiguous. Returns scores float32 [n, k] and stored rows
        int64 [n, k]; where fewer than k were found, -inf and -1 stand at the end. fill: see `filled`.
        """
        if not plan.shortlist:
            return self.exact(queries, k)
        if len(queries) == 1:
            found = self._piece(queries, plan, k)
            return self.filled(queries, *found) if fill and found[1].item(-1) < 0 else found
        scores = np.empty((len(queries), k), dtype=np.float32)
        rows = np.empty((len(queries), k), dtype=np.int64)

        def piece(places: slice | Int64) -> None:
            scores[places], rows[places] = self._piece(queries[places], plan, k)

        self.spread(queries, piece)
        return self.filled(queries, scores, rows) if fill else (scores, rows)

    def filled(self, queries: Float32, scores: Float32, rows: Int64) -> tuple[Float32, Int64]:
        """Answers of a plan, where queries that lack some of the best k that there are are answered exactly.

        Rows of a shortlist may have been deleted, and the lists that were searched may be short or empty. Rows stand
        best first, so that -1 is always at the end.
        """
        count = min(rows.shape[1], self.rows)
        short = np.flatnonzero(rows[:, count - 1] < 0) if count else ()
        if len(short):
            scores, rows = np.array(scores), np.array(rows)
            scores[short, :count], rows[short, :count] = self.exact(np.ascontiguousarray(queries[short]), count)
        return scores, rows

    def shortlist(self, queries: Float32, shortlist: int, effort: int) -> Int64:
        """The coarse search alone: stored rows int64 [n, shortlist], best first, -1 where fewer were found."""
        plan, rows = Plan(effort, shortlist), np.empty((len(queries), shortlist), dtype=np.int64)

        def piece(places: slice | Int64) -> None:
            rows[places] = self.begin(queries[places], plan, places).rows

        self.spread(queries, piece)
        return rows

    def spread(self, queries: Float32, piece: Callable[[slice | Int64], object]) -> None:
        """Cut the queries into pieces and run them, on workers where that pays."""
        self.each(piece, self.pieces(queries))

    def each(self, function: Callable[[Piece], object], pieces: Sequence[Piece]) -> None:
        """Call the function for every piece, on workers where there are several."""
        if len(pieces) == 1 or self.store.device.type != "cpu" or workers().count == 1:
            for piece in pieces:
                function(piece)
        else:
            workers().run(function, pieces)

    def pieces(self, queries: Float32, most: int = sys.maxsize) -> list[slice | Int64]:
        """The places of the queries that are run together on one thread, piece by piece, at most so many in each."""
        count = len(queries)
        if self.store.device.type != "cpu":
            return _slices(count, QUERIES_AT_A_TIME_CUDA)
        most = min(most, self.coarse.queries_at_a_time)
        if count == 1 or workers().count == 1:
            return _slices(count, most)
        # Two at least, however few: on the caller's thread FAISS and torch would wake threads of their own.
        fewest = min(FEWEST_QUERIES, -(-count // 2))
        size = min(most, max(fewest, -(-count // workers().count)))
        order = self._near_order(queries) if count >= ORDERED_BATCH else None
        return [places if order is None else order[places] for places in _slices(count, size)]

    def _near_order(self, queries: Float32) -> Int64 | None:
        """An order in which queries that look at the same rows follow each other."""
        near_keys = self.coarse.near_keys()
        if near_keys is None:
            return None

        def keys(start: int) -> Int64:
            return near_keys(self.space.prefixes(queries[start : start + ORDERED_AT_A_TIME], self.width))

        found = workers().run(keys, range(0, len(queries), ORDERED_AT_A_TIME))
        return np.argsort(np.concatenate(found), kind="stable")

    def at(self, width: int) -> VectorStore:
        """What stages of this width read."""
        return self.store if self.adapted is None or width == self.store.dim else self.adapted

    def _prefixes(self, query: torch.Tensor, width: int) -> torch.Tensor:
        """As `Space.prefixes`, of queries that are on the device."""
        adaptor = self.space.adaptor
        if self.space.own and width < query.shape[1] and isinstance(adaptor, OrthogonalAdaptor):
            return query @ adaptor.matrix[:, :width].to(query.device)
        return query[:, :width].contiguous()

    def _piece(self, queries: Float32, plan: Plan, k: int) -> tuple[Float32, Int64]:
        """Coarse search and every stage for a few queries, on this thread."""
        if self.on_device and not plan.width and not self.alone:
            return self.piece_on_device(queries, plan, k, self._live_on_device)
        part = self.begin(queries, plan, ALL, k)
        if not part.exact:
            for stage in plan.stages:
                self.narrow(part, stage, k)
            self.narrow(part, None, k)
        scores, rows = part.scores, part.rows
        return (scores, rows) if rows.shape[1] == k else padded(scores, rows, k)

    def begin(self, queries: Float32, plan: Plan, places: slice | Int64, k: int = sys.maxsize) -> Candidates:
        """The coarse search of a few queries float32 [n, d], on this thread; places: theirs in their batch.

        k: so many are enough where they are found by exact scores, which fall, so that the head is all that is needed.
        """
        if plan.width:
            return Candidates(places, queries, *self.scan(queries, plan.width, plan.shortlist), plan.width)
        wanted = min(k, plan.shortlist) if self.alone and self.live is None else plan.shortlist
        found = self.coarse.search(self.space.prefixes(queries, self.width, nearly=True), wanted, plan.effort)
        if self.live is not None:
            found = only_allowed(*found, self.live)
        return Candidates(places, queries, *found, exact=self.alone)

    def scan(self, queries: Float32, width: int, keep: int) -> tuple[Float32, Int64]:
        """The best of all rows by cosine on a stored prefix, for a few queries, on this thread: [n, at most keep]."""
        store, weights = self.at(width), self.inverse_norms[width]
        with torch.inference_mode():
            asked = to_device(np.ascontiguousarray(self._met(queries, width)[:, :width]), store.device)
            scores = torch.empty((len(queries), 0), device=store.device)
            rows = torch.empty((len(queries), 0), dtype=torch.int64, device=store.device)
            for start in range(0, store.n, SCANNED_AT_A_TIME):
                numbers = torch.arange(start, min(start + SCANNED_AT_A_TIME, store.n), device=store.device)
                block = store.prefixes(start, start + SCANNED_AT_A_TIME, width).to(store.device).float()
                products = (asked @ block.T) * weights[numbers]
                if self._live_on_device is not None:
                    products.masked_fill_(~self._live_on_device[numbers], -torch.inf)
                scores, places = best(torch.cat([scores, products], dim=1), keep)
                rows = torch.cat([rows, numbers.expand(len(queries), -1)], dim=1).gather(1, places)
            found, numbered = to_host(scores, rows.masked_fill_(scores == -torch.inf, -1))
        return found, numbered

    def _met(self, queries: Float32, width: int) -> Float32:
        """Queries as `at(width)` meets them."""
        return queries if self.adapted is None else self.space.prefixes(queries, width)

    def narrow(self, part: Candidates, stage: Stage | None, k: int) -> None:
        """One step: score what is left at the stage's width and keep its best; None: at full width, and k of them."""
        if stage is None:
            width, keep, store, queries, weights = self.store.dim, k, self.store, part.queries, None
        else:
            width, keep, store = stage.width, stage.keep, self.at(stage.width)
            queries, weights = self._met(part.queries, width), self.inverse_norms[width]
        part.scores, part.rows, _ = reranked(store, queries, part.rows, width, keep, weights)
        part.width, part.done = width, part.done + 1

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
        prefixes = self._prefixes(query, self.width)
        _, rows = self.coarse.search_tensors(prefixes, plan.shortlist, plan.effort, allowed)
        at_a_time = queries_together(self.store, plan.shortlist)
        found = [
            self._narrowed(query[start : start + at_a_time], rows[start : start + at_a_time], plan, k)
            for start in range(0, len(query), at_a_time)
        ]
        scores, best_rows = (torch.cat(one) if len(found) > 1 else one[0] for one in zip(*found, strict=True))
        return scores, best_rows

    def _narrowed(
        self, query: torch.Tensor, rows: torch.Tensor, plan: Plan, k: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Every stage for shortlists int64 [n, s] that are on the device: scores and rows [n, k] there."""
        # To ask whether any is missing would be to wait: they are masked whether or not.
        missing, partial, start = rows < 0, None, 0
        scores = torch.empty(0)
        for stage in plan.reranks:
            width, keep = (self.store.dim, k) if stage is None else (stage.width, stage.keep)
            store = self.at(width)
            if store is not self.store or self.adapted is None:
                asked = self._prefixes(query, width)
            else:  # the user's own rows: nothing is carried on
                asked, partial, start = query, None, 0
            partial = carry_on(store, asked, rows.clamp(min=0), partial, start, width)
            weights = None if stage is None else self.inverse_norms[width]
            ranked = partial if weights is None else partial * weights[rows.clamp(min=0)]
            scores, places = best(ranked.masked_fill(missing, -torch.inf), keep)
            rows, missing, partial = rows.gather(1, places), missing.gather(1, places), partial.gather(1, places)
            start = width
        lacking = (0, max(0, k - scores.shape[1]))
        scores = torch.nn.functional.pad(scores, lacking, value=-torch.inf)
        return scores, torch.nn.functional.pad(rows, lacking, value=-1)


def _slices(count: int, size: int) -> list[slice | Int64]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def padded(scores: Float32, rows: Int64, k: int) -> tuple[Float32, Int64]:
    """The first k of scores and rows [n, s], with -inf and -1 behind them where there are fewer."""
    lacking = k - rows.shape[1]
    if lacking <= 0:
        return scores[:, :k], rows[:, :k]
    fill = ((0, 0), (0, lacking))
    return np.pad(scores, fill, constant_values=-np.inf), np.pad(rows, fill, constant_values=-1)
