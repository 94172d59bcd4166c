"""Exact search that looks at full width only at rows which a prefix cannot rule out."""

import math
import time
import timeit
from bisect import bisect_left
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain
from threading import Lock
from typing import Any, Self, TypeAlias

import numpy as np
import torch

from indexes._faiss import load_faiss
from indexes._prefixcodes import (
    TAIL_DIMS,
    Float32Codes,
    Float64Array,
    Int8Codes,
    PrefixCodes,
    QueryCodes,
    RowCodes,
    gamma,
    int8_products_are_exact,
    norms_of,
    tail_norms,
)
from indexes.base import Float32Array, Int64Array, Mask
from indexes.exact import RunningTop, exact_search
from indexes.system import free_in_children
from indexes.vectors import VectorStore

# Rows coded at a time, and queries they are multiplied with: codes and products stay in a core's 1 MB of cache.
BLOCK_ROWS = 2_048
TILE_QUERIES = 128
# Found rows that are kept before they are cut to the best k of each query: 80 MB. Duplicates by the thousand reach it.
MOST_FOUND = 4_000_000
MOST_SHARE = 0.125  # of pairs of query and row: where more survive, flat search is the quicker
FETCHED = 512  # rows fetched at a time where they are not at hand: 800 KB at 384 dims


RowSource: TypeAlias = Callable[[int, int], tuple[RowCodes, torch.Tensor | None]]
"""(start, stop) -> codes of these rows, and the rows themselves as float32 [r, d] where they were read whole."""


def reader(
    store: VectorStore, codes: PrefixCodes, tails: Callable[[int, int], Float32Array], size: int, narrow: bool
) -> RowSource:
    """Codes made from the stored rows, in buffers that the next call uses again: for one thread.

    size: rows of a block at most. narrow: read prefixes alone, not whole rows.
    """
    width = codes.width if narrow else store.dim
    values = torch.empty((size, width))
    # Torch converts rows that follow each other with vector instructions: copying them together takes half the time.
    together = torch.empty((size, width), dtype=store.matrix.dtype) if narrow else None

    def read(start: int, stop: int) -> tuple[RowCodes, torch.Tensor | None]:
        block = store.prefixes(start, stop, width)
        if block.dtype != torch.float32:
            stored = block if together is None else together[: len(block)].copy_(block)
            block = values[: len(block)].copy_(stored)
        rows = codes.rows(block[:, : codes.width], torch.from_numpy(tails(start, stop)), start)
        return rows, None if narrow else block

    return read


@dataclass(frozen=True)
class KeptCodes:
    """The codes of all rows, held in memory: int8 [n, columns]. residual: the largest of any block."""

    codes: Int8Codes
    rows: torch.Tensor
    residual: float

    def __call__(self, start: int, stop: int) -> tuple[RowCodes, None]:
        """See `RowSource`. Tails are part of the codes."""
        part = self.rows[start:stop]
        return RowCodes(part, part, self.residual), None


class Survivors:
    """Rows that reach what k rows are known to reach. Shared by workers.

    queries: float32 [q, d]. tau: float64 [q], a lower bound of the k-th true score of each; lowest: float32 [q], of the
    score as it is computed. pairs: of query and row, that are compared in all. live: bool [n], rows to keep.
    """

    def __init__(
        self,
        queries: Float32Array,
        k: int,
        tau: Float64Array,
        lowest: Float32Array,
        pairs: int,
        live: Mask | None,
    ) -> None:
        self.queries, self.tau = queries, tau
        self._k, self._lowest, self._pairs, self._live = k, lowest, pairs, live
        self._lock = free_in_children(Lock())
        self._parts: list[tuple[Int64Array, Int64Array, Float32Array]] = []
        self._held = self.scored = 0

    @property
    def share(self) -> float:
        """How many pairs were scored, of those compared in all."""
        return self.scored / self._pairs

    @property
    def too_many(self) -> bool:
        """Whether more pairs were scored than is worth it."""
        return self.share > MOST_SHARE

    def add(self, asked: Int64Array, rows: Int64Array, scores: Float32Array) -> None:
        """Keep those pairs of query and row whose score may be among the best."""
        good = scores >= self._lowest[asked]
        if self._live is not None:
            good &= self._live[rows]
        with self._lock:
            self.scored += len(asked)
            self._parts.append((asked[good], rows[good], scores[good]))
            self._held += len(self._parts[-1][0])
            if self._held > MOST_FOUND:
                self._parts = [self._cut()]
                self._held = len(self._parts[0][0])

    def _cut(self) -> tuple[Int64Array, Int64Array, Float32Array]:
        """The best k found of each query: query by query, scores falling, then row numbers rising."""
        asked, rows, scores = (np.concatenate(parts) for parts in zip(*self._parts, strict=True))
        order = np.lexsort((rows, -scores, asked))
        asked = asked[order]
        place = np.arange(len(order)) - np.searchsorted(asked, asked)
        kept = place < self._k
        return asked[kept], rows[order][kept], scores[order][kept]

    def best(self) -> tuple[Float32Array, Int64Array]:
        """Scores float32 [q, k], falling, and rows int64 [q, k]."""
        _, rows, scores = self._cut()
        shape = (len(self.queries), self._k)  # at least k rows reach what k rows are known to reach
        return scores.reshape(shape), rows.reshape(shape)


def survivors(
    store: VectorStore,
    source: RowSource,
    codes: PrefixCodes,
    coded: QueryCodes,
    found: Survivors,
    blocks: Sequence[range],
) -> None:
    """Compare every query with blocks of rows, and hand what survives to `found`."""
    size, count = max(map(len, blocks)), len(found.queries)
    tile = min(count, TILE_QUERIES)
    products = torch.empty(tile * size, dtype=codes.product)
    above = np.empty(tile * size, dtype=np.bool_)
    residual = math.nan
    for rows_here in blocks:
        if found.too_many:
            return
        start, stop = rows_here.start, rows_here.stop
        rows, block = source(start, stop)
        if rows.residual != residual:
            residual, limits = rows.residual, codes.limits(coded, found.tau, rows.residual)
        for first in range(0, count, tile):
            part = slice(first, min(first + tile, count))
            shape = (part.stop - first, stop - start)
            product = products[: math.prod(shape)].view(shape)
            mask = above[: math.prod(shape)].reshape(shape)
            codes.multiply(coded, part, rows, product)
            np.greater(product.numpy(), limits[part, None], out=mask)
            places = np.flatnonzero(mask)
            if len(places):
                own, at = np.divmod(places, stop - start)
                _score(store, own + first, at, start, block, found)


def _score(
    store: VectorStore, own: Int64Array, at: Int64Array, start: int, block: torch.Tensor | None, found: Survivors
) -> None:
    """Score pairs of query and row of a block at full width. block: its rows as float32, None: fetch them."""
    if block is not None:
        found.add(own, at + start, _products(found.queries, own, block, at))
        return
    for first in range(0, len(at), FETCHED):
        asked, rows = own[first : first + FETCHED], at[first : first + FETCHED] + start
        fetched = store.gather(torch.from_numpy(rows), 0, store.dim).float()
        found.add(asked, rows, _products(found.queries, asked, fetched, np.arange(len(rows))))


def _products(queries: Float32Array, asked: Int64Array, rows: torch.Tensor, at: Int64Array) -> Float32Array:
    """Inner products of queries[asked] and rows[at], in float32: [pairs]."""
    faiss, scores = load_faiss(), np.empty(len(at), dtype=np.float32)
    pointer = faiss.swig_ptr
    faiss.pairwise_indexed_inner_product(
        queries.shape[1], len(at), pointer(queries), pointer(asked), pointer(rows.numpy()), pointer(at), pointer(scores)
    )
    return scores


Blocks: TypeAlias = Sequence[range]
Spread: TypeAlias = Callable[[Callable[[Blocks], None], Sequence[Blocks]], None]
Call: TypeAlias = tuple[Float32Array, Float64Array]  # queries [q, d] and, for each, a score that k rows reach

# Calls of up to so many queries are answered in one way, which is measured once.
BATCHES = (1, 4, 15, 32, 256)
FEW_QUERIES = BATCHES[1]  # small products: blocks of TRIED_BLOCK rows then save calls, and prefixes alone are read
FEWEST_INT8 = BATCHES[2] + 1  # for fewer, coding rows anew costs more than it saves
MOST_FROM_MEMORY = BATCHES[3]  # for more, rows are read whole: what survives is then at hand
# Products at a time where codes are kept: 1 MB, and no more rows than that would be for 4 queries.
KEPT_PRODUCTS, KEPT_ROWS = 262_144, 65_536
ROWS_AT_A_TIME = 65_536
SAMPLED = 1_024  # rows whose largest value sets the step of int8 codes
NARROWEST = 32  # dims of a prefix that may rule rows out, where wider ones are stored too
FEWEST_ROWS_A_RESULT = 64  # more results of so few rows: most rows would have to be scored
PIECES = 4  # a piece of rows for a worker is the n-th part of its share: the last one to finish waits less
# A way is tried on at most so many queries and rows, and pairs of them, in blocks of rows all over the store.
TRIED_QUERIES, TRIED_ROWS, TRIED_PAIRS, TRIED_BLOCK, TRIALS = 256, 65_536, 1 << 22, 8_192, 2
WORTH = 0.9  # of the time of flat search: where pruning saves less than a tenth, flat search is run


@dataclass(frozen=True, slots=True)
class Pruning:
    """How calls are answered: by a pass over prefixes of `width` dims, coded as `codes`.

    share: of the rows, left to be scored at full width, when it was tried. kept: the codes of all rows are held in
    memory.
    """

    width: int
    codes: str
    share: float = 0.0
    kept: bool = False

    def __str__(self) -> str:
        codes = f"{self.codes} in memory" if self.kept else self.codes
        return f"pruned at {self.width} dims ({codes}), {self.share:.2%} of rows scored at full width"


@dataclass(frozen=True)
class Projected:
    """Prefixes of rows that were turned before they were cut, by a matrix with orthonormal columns.

    store: n x the widest of them. project: (queries [q, d], width) -> their prefixes [q, width].
    """

    store: VectorStore
    project: Callable[[Float32Array, int], Float32Array]


# By how much, in norm, a float16 prefix is off the exact projection of its unit row: half a step of float16, 2^-11, and
# what the projection rounds, which is below 1e-6 where it was measured. Squared lengths are kept to within 1e-5.
OFF, TURNED = 2.0**-11 + 1e-5, 4e-5


def _one_by_one(function: Callable[[Blocks], None], pieces: Sequence[Blocks]) -> None:
    for piece in pieces:
        function(piece)


class PrunedSearch:
    """The k best rows of each query, as flat search finds them.

    A score tau that k rows are known to reach rules out every row whose upper bound (`indexes._prefixcodes`) lies
    below it. The others are scored in full in float32, and the best k of them are the best k of all: a row that is
    left out has, in exact arithmetic, a score below that of k rows that are not.

    The first call of about so many queries and results tries every way on a part of the rows, and flat search beside
    them: the quickest answers from then on. A call of which more survives than is worth it falls back on flat search.

    Args:
        store: The vectors.
        norms: float32 [n, len(ladder)], the norm of each prefix of each row; may be mapped.
        ladder: Its widths, rising; the last is d.
        projected: Where prefixes are not those of the stored rows, what they are.
        reached: (queries, k) -> float32 [q], a float32 score that k rows of the store reach at full width, -inf where
            none is known; or None, if it cannot say for such a k. The higher the better.
        spread: (function, pieces) -> None, calls the function for every piece, blocks of rows, on one thread or more.
        workers: How many threads `spread` uses.
        release: Give the mapped pages back after each pass.
        keep: Hold int8 codes of one width in memory once a call would gain by them: width + 4 bytes a row.
    """

    def __init__(
        self,
        store: VectorStore,
        norms: Float32Array,
        ladder: Sequence[int],
        reached: Callable[[Float32Array, int], Float32Array | None],
        spread: Spread = _one_by_one,
        workers: int = 1,
        release: bool = False,
        keep: bool = False,
        projected: Projected | None = None,
    ) -> None:
        self._projected, self._source = projected, store if projected is None else projected.store
        self._store, self._norms, self._ladder, self._reached = store, norms, tuple(ladder), reached
        self._widths = [width for width in ladder[:-1] if width >= NARROWEST] or self._ladder[:-1]
        self._spread, self._workers, self._release = spread, workers, release
        self._keep = keep and int8_products_are_exact()
        self._live: Mask | None = None
        # What is made on first use, under the lock; a search among live rows shares it.
        self._lock = free_in_children(Lock())
        self._chosen: dict[tuple[int, int], Pruning | None] = {}  # by class of batch and of k
        self._codes: dict[tuple[int, str], PrefixCodes] = {}
        self._kept: dict[int, KeptCodes] = {}  # of one width

    def among(
        self,
        live: Mask | None,
        reached: Callable[[Float32Array, int], Float32Array | None],
    ) -> Self:
        """The same search over the live rows alone, bool [n]; it shares what was made. reached: of live rows."""
        other = copy(self)
        other._live, other._reached = live, reached
        return other

    @property
    def resident_bytes(self) -> int:
        """Bytes of the codes that are kept."""
        return sum(kept.rows.nbytes for kept in self._kept.values())

    def __call__(self, queries: Float32Array, k: int) -> tuple[Float32Array, Int64Array]:
        """Scores float32 [q, k], falling, and rows int64 [q, k]. queries: float32 [q, d], C-contiguous."""
        tau = self._tau(queries, k)
        way = None if tau is None else self._way(queries, k, tau)
        if tau is not None and way is not None:
            found = self._run((queries, tau), k, way, self._kept[way.width] if way.kept else None)
            if not found.too_many:
                return found.best()
        return exact_search(self._store, queries, k, self._release, self._live)

    def choose(self, queries: Float32Array, k: int) -> Pruning | None:
        """How calls of so many queries are answered; None: by flat search. Tries the ways on these where none has."""
        tau = self._tau(queries, k)
        return None if tau is None else self._way(queries, k, tau)

    def _tau(self, queries: Float32Array, k: int) -> Float64Array | None:
        """A lower bound of the k-th true score of each query: what k rows reach, less the rounding of their scores.

        None where flat search answers.
        """
        store = self._store
        if store.device.type != "cpu" or store.small or len(self._ladder) < 2 or k > store.n // FEWEST_ROWS_A_RESULT:
            return None
        if self._chosen.get(_class_of(queries, k), True) is None:
            return None
        found = self._reached(queries, k)
        return None if found is None else found - 2 * self._rounding(queries)

    def _rounding(self, queries: Float32Array) -> Float64Array:
        """How far a score in float32 is off at most: [q]."""
        norms = np.linalg.norm(queries.astype(np.float64), axis=1)
        return np.asarray(gamma(self._store.dim) * norms * self._largest_norm)

    @cached_property
    def _largest_norm(self) -> float:
        # Tails are rounded up: the norm of a row with such a tail is above the row's own by less than this.
        return float(self._norms[:, -1].max()) * (1 + 4 * gamma(self._store.dim + 8))

    def _way(self, queries: Float32Array, k: int, tau: Float64Array) -> Pruning | None:
        key = _class_of(queries, k)
        with self._lock:
            if key not in self._chosen:
                some = np.linspace(0, len(queries) - 1, min(len(queries), TRIED_QUERIES)).astype(np.int64)
                calls = [(queries[some], tau[some])]
                rows = self._rows_for_queries(k) if len(queries) <= MOST_FROM_MEMORY else None
                if rows is not None:
                    calls = [(rows[0][i : i + len(some)], rows[1][i : i + len(some)]) for i in range(0, 8, len(some))]
                alone = copy(self)
                alone._spread, alone._workers = _one_by_one, 1
                tried: list[Pruning | None] = []

                def judge(_: Blocks) -> None:
                    tried.append(alone._quickest(calls, k, self._keep and rows is not None))

                self._spread(judge, [()])  # on one worker, whose own time others do not lengthen
                way = tried[0]
                if way is not None and way.kept and not self._kept:
                    self._kept[way.width] = self._code_all(way.width, BLOCK_ROWS)
                self._chosen[key] = way
            return self._chosen[key]

    def _rows_for_queries(self, k: int) -> Call | None:
        """Rows that stand for queries, as a few calls say little: what one leaves may be a tenth of what others do."""
        store = self._store
        numbers = torch.from_numpy(np.random.default_rng(0).integers(store.n, size=MOST_FROM_MEMORY))
        rows = store.gather(numbers, 0, store.dim).float().numpy()
        found = self._reached(rows, k + 1)  # each finds itself as well
        return None if found is None else (rows, found - 2 * self._rounding(rows))

    def _quickest(self, calls: Sequence[Call], k: int, keep: bool) -> Pruning | None:
        """The way that takes least time, unless flat search takes about as much. keep: whether codes may be kept."""
        count = len(calls[0][0])
        every = max(1, self._store.n // min(TRIED_ROWS, TRIED_PAIRS // (count * len(calls))))
        kind = "int8" if count >= FEWEST_INT8 and int8_products_are_exact() else "float32"
        ways: list[tuple[Pruning, KeptCodes | None]] = [(Pruning(width, kind), None) for width in self._widths]
        if keep:  # the codes that are kept, or those of a part of the rows
            held = self._kept or {width: self._code_all(width, TRIED_BLOCK, every) for width in self._widths}
            ways += [(Pruning(width, "int8", kept=True), codes) for width, codes in held.items()]
        flat, _ = _seconds(lambda call: self._flat(call, k, every), calls)
        least, best = WORTH * flat, None
        for way, kept in ways:
            took, found = _seconds(partial(self._run, k=k, way=way, kept=kept, every=every), calls)
            if took < least and not any(each.too_many for each in found):
                least, best = took, replace(way, share=sum(each.share for each in found) / len(found))
        return best

    def _flat(self, call: Call, k: int, every: int) -> None:
        top = RunningTop(call[0], k)
        for block in chain(*self._pieces(TRIED_BLOCK, every)):
            top.update(self._store.block(block.start, block.stop).numpy(), block.start, self._live)

    def _coded(self, width: int, kind: str) -> PrefixCodes:
        store, codes = self._store, self._codes.get((width, kind))
        if codes is None and kind == "float32":
            codes = Float32Codes(width, self._largest_norm)
        elif codes is None:
            sample = torch.from_numpy(np.linspace(0, store.n - 1, SAMPLED).astype(np.int64))
            largest = float(self._source.gather(sample, 0, width).abs().max())
            starts = range(0, store.n, ROWS_AT_A_TIME)
            tail = max(float(self._tails(width, start, start + ROWS_AT_A_TIME).max()) for start in starts)
            codes = Int8Codes(width, self._largest_norm, largest, tail)
        return self._codes.setdefault((width, kind), codes)

    def _tails(self, width: int, start: int, stop: int) -> Float32Array:
        """Upper bounds of the tail norms of rows `start` to `stop`."""
        norms = self._norms[start:stop]
        prefix = norms[:, self._ladder.index(width)]
        if self._projected is not None:
            prefix = np.maximum(prefix * (1 - OFF), 0)
        return tail_norms(prefix, norms[:, -1], self._store.dim)

    def _run(self, call: Call, k: int, way: Pruning, kept: KeptCodes | None, every: int = 1) -> Survivors:
        """What survives of every so many blocks of rows."""
        (queries, tau), store = call, self._store
        few = len(queries) <= FEW_QUERIES
        narrow = few or self._source is not store
        size = self._kept_size(len(queries)) if kept is not None else TRIED_BLOCK if few else BLOCK_ROWS
        pieces = self._pieces(size, every)
        codes = self._coded(way.width, way.codes) if kept is None else kept.codes
        coded = self._asked(codes, queries)
        # A row whose true score is tau may come out lower by what rounding its score takes.
        lowest = (tau - self._rounding(queries)).astype(np.float32)
        found = Survivors(queries, k, tau, lowest, len(queries) * sum(map(len, chain(*pieces))), self._live)

        def piece(blocks: Blocks) -> None:
            with torch.inference_mode():
                source = kept or reader(self._source, codes, partial(self._tails, codes.width), size, narrow)
                survivors(store, source, codes, coded, found, blocks)

        self._spread(piece, pieces)
        if self._release:
            store.release()
        return found

    def _asked(self, codes: PrefixCodes, queries: Float32Array) -> QueryCodes:
        """The codes of queries [q, d]."""
        if self._projected is None:
            return codes.queries(queries[:, : codes.width], norms_of(queries[:, codes.width :]))
        head, whole = self._projected.project(queries, codes.width), norms_of(queries)
        tails = np.sqrt(np.maximum(whole**2 - norms_of(head) ** 2, 0.0) + TURNED * whole**2)
        coded = codes.queries(head, tails)
        return replace(coded, error=coded.error + (OFF + TURNED) * whole * self._largest_norm)

    def _kept_size(self, count: int) -> int:
        """Rows of a block of kept codes: something for every worker."""
        size = min(KEPT_ROWS, max(BLOCK_ROWS, KEPT_PRODUCTS // min(count, TILE_QUERIES)))
        return min(size, -(-self._store.n // (2 * self._workers)))

    def _pieces(self, size: int, every: int = 1) -> list[Blocks]:
        """Blocks of up to `size` rows, in as many runs as keep every worker busy to the end.

        every: one of so many blocks of TRIED_BLOCK rows, whatever the size, so that trials are over the same rows.
        """
        n = self._store.n
        step = size if every == 1 else TRIED_BLOCK
        whole = [range(start, min(start + step, n)) for start in range(0, n, step)[::every]]
        blocks = [rows[i : i + size] for rows in whole for i in range(0, len(rows), size)]
        step = -(-len(blocks) // (self._workers * PIECES))
        return [blocks[i : i + step] for i in range(0, len(blocks), step)]

    def _code_all(self, width: int, size: int, every: int = 1) -> KeptCodes:
        """The codes of every so many blocks of rows."""
        store, codes = self._store, self._coded(width, "int8")
        assert isinstance(codes, Int8Codes)
        rows, residuals = torch.empty((store.n, width + TAIL_DIMS), dtype=torch.int8), []

        def piece(blocks: Blocks) -> None:
            source = reader(self._source, codes, partial(self._tails, width), size, self._source is not store)
            for block in blocks:
                coded, _ = source(block.start, block.stop)
                rows[block.start : block.stop] = coded.codes
                residuals.append(coded.residual)

        self._spread(piece, self._pieces(size, every))
        return KeptCodes(codes, rows, max(residuals))


def _class_of(queries: Float32Array, k: int) -> tuple[int, int]:
    return bisect_left(BATCHES, len(queries)), k.bit_length()


def _seconds(call: Callable[[Call], Any], calls: Sequence[Call]) -> tuple[float, list[Any]]:
    """The least of a few times of this thread, and all that was returned."""
    found: list[Any] = []
    timer = timeit.Timer(lambda: found.extend(map(call, calls)), timer=time.thread_time)
    return min(timer.repeat(TRIALS, 1)), found
