"""Exact search that looks at full width only at rows which a prefix cannot rule out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from indexes._faiss import load_faiss
from indexes._prefixcodes import (
    Float32Codes,
    Int8Codes,
    PrefixCodes,
    QueryCodes,
    gamma,
    int8_products_are_exact,
    tail_norms,
)
from indexes.base import Float32Array, Int64Array
from indexes.exact import exact_search
from indexes.vectors import SMALL_BYTES, VectorStore

__all__ = ["PrunedSearch", "Pruning"]

Spread: TypeAlias = Callable[[Callable[[range], None], Sequence[range]], None]

# Rows spread evenly over the store that a call is judged on before it is run: shares to .001, for 1 % of the work.
SAMPLED = 1_024
# Rows coded at a time, and queries they are multiplied with: codes and products stay in a core's 1 MB of cache. A few
# queries make small products, and larger blocks then save calls.
BLOCK_ROWS, BLOCK_ROWS_FEW = 2_048, 8_192
FEW_QUERIES = 4
TILE_QUERIES = 128
TAILS_AT_A_TIME = 65_536
FEWEST_ROWS_A_RESULT = 64  # more results of so few rows: most rows would have to be scored
# Found rows that are kept before they are cut to the best k of each query: 80 MB. Duplicates by the thousand reach it.
MOST_FOUND = 4_000_000
PIECES = 4  # a piece of rows for a worker is the n-th part of its share: the last one to finish waits less
# Below this many queries float32 is faster: coding rows as int8 costs more than it saves.
FEWEST_INT8 = 16
# Nanoseconds on one core, measured on 200,000 x 384 float16 rows (AMD EPYC, AVX-512 with VNNI): to read one value of a
# row, to code one, to multiply one, to score one surviving row at full width; and flat search, per value of a row.
READ_NS, READ_NARROW_NS = 0.15, 0.4  # whole rows; prefixes alone
CODE_NS = {torch.float32: 0.0, torch.int8: 0.35}
MULTIPLY_NS = {torch.float32: 0.025, torch.int8: 0.006}
SURVIVOR_NS = 60.0
FLAT_READ_NS, FLAT_MULTIPLY_NS = 0.3, 0.022
# Pruning must promise to save a tenth, or flat search is run: the estimate is no better than that.
WORTH = 0.9
JUDGED_QUERIES = 256  # of a call: spread over it
RESTED_CALLS = 16  # calls after one that was not worth it which are not judged: judging takes up to a tenth of flat


@dataclass(frozen=True, slots=True)
class Pruning:
    """How a call is answered: by a pass over prefixes of `width` dims, coded as `codes`.

    share: of the rows, left to be scored at full width; estimated on a sample of rows.
    """

    width: int
    codes: str
    share: float

    def __str__(self) -> str:
        return f"pruned at {self.width} dims ({self.codes}), {self.share:.2%} of rows scored at full width"


@dataclass(frozen=True)
class _Sample:
    """Evenly spread rows: prefixes float32 [s, widest], and tail norms [s] for every width."""

    prefixes: Float32Array
    tails: dict[int, Float32Array]


class PrunedSearch:
    """The k best rows of each query, as flat search finds them.

    A score tau that k rows are known to reach rules out every row whose upper bound (`indexes._prefixcodes`) lies
    below it. The others are scored in full in float32, and the best k of them are the best k of all: a row that is
    left out has, in exact arithmetic, a score below that of k rows that are not.

    Each call is first judged on a sample of rows. Where the bounds rule out too little, flat search answers.

    Args:
        store: The vectors.
        norms: float32 [n, len(ladder)], the norm of each prefix of each row; may be mapped.
        ladder: Its widths, rising; the last is d.
        reached: (queries, k) -> float32 [q], a float32 score that k rows of the store reach at full width, -inf where
            none is known; or None, if it cannot say for such a k. The higher the better.
        spread: (function, pieces) -> None, calls the function for every piece, on one thread or several.
        workers: How many threads `spread` uses.
    """

    def __init__(
        self,
        store: VectorStore,
        norms: Float32Array,
        ladder: Sequence[int],
        reached: Callable[[Float32Array, int], Float32Array | None],
        spread: Spread | None = None,
        workers: int = 1,
        release: bool = False,
    ) -> None:
        self._store = store
        self._norms = norms
        self._ladder = tuple(ladder)
        self._reached = reached
        self._spread = spread or _one_by_one
        self._workers = workers
        self._release = release
        self._lock = Lock()
        self._codes: dict[tuple[int, torch.dtype], PrefixCodes] = {}
        self._sample: _Sample | None = None
        self._largest_norm = 0.0
        self._rest: dict[bool, int] = {}

    @property
    def resident_bytes(self) -> int:
        """Bytes held: the sample of rows, from the first call on. Everything else is read from mapped files."""
        return 0 if self._sample is None else self._sample.prefixes.nbytes

    @staticmethod
    def estimate_bytes(n: int, ladder: Sequence[int]) -> int:
        """What `resident_bytes` will come to for n rows."""
        small = n * ladder[-1] * 4 <= SMALL_BYTES
        return 0 if small or len(ladder) < 2 else 4 * SAMPLED * ladder[-2]

    def __call__(self, queries: Float32Array, k: int) -> tuple[Float32Array, Int64Array]:
        """Scores float32 [q, k], falling, and rows int64 [q, k]. queries: float32 [q, d], C-contiguous."""
        few = len(queries) <= FEW_QUERIES
        if self._rest.get(few, 0) > 0:
            self._rest[few] -= 1
            return exact_search(self._store, queries, k, release=self._release)
        reached = self._reached_by(queries, k)
        choice = None if reached is None else self._choose(queries, reached)
        if choice is None:
            self._rest[few] = RESTED_CALLS
            return exact_search(self._store, queries, k, release=self._release)
        assert reached is not None
        return self._run(queries, k, reached, choice[0])

    def choose(self, queries: Float32Array, k: int) -> Pruning | None:
        """How a call with these queries is answered; None: by flat search."""
        reached = self._reached_by(queries, k)
        choice = None if reached is None else self._choose(queries, reached)
        return None if choice is None else choice[1]

    def _reached_by(self, queries: Float32Array, k: int) -> npt.NDArray[np.float64] | None:
        """A lower bound of the k-th true score of each query: what k rows reach, less the rounding of their scores."""
        store = self._store
        if store.device.type != "cpu" or store.small or len(self._ladder) < 2 or k > store.n // FEWEST_ROWS_A_RESULT:
            return None
        found = self._reached(queries, k)
        if found is None:
            return None
        if self._sample is None:
            self._prepare()
        norms = np.linalg.norm(queries.astype(np.float64), axis=1)
        lower: npt.NDArray[np.float64] = found - 2 * gamma(store.dim) * norms * self._largest_norm
        return lower

    def _prepare(self) -> None:
        with self._lock:
            if self._sample is not None:
                return
            store = self._store
            # Tails are rounded up: the norm of a row with such a tail is above the row's own by less than this.
            self._largest_norm = float(self._norms[:, -1].max()) * (1 + 4 * gamma(store.dim + 8))
            rows = np.linspace(0, store.n - 1, SAMPLED).astype(np.int64)
            widest = self._ladder[-2]
            prefixes = store.gather(torch.from_numpy(rows), 0, widest).float().numpy()
            tails = {}
            for column, width in enumerate(self._ladder[:-1]):
                tails[width] = tail_norms(self._norms[rows, column], self._norms[rows, -1], store.dim)
            self._sample = _Sample(prefixes, tails)

    def _kind(self, count: int) -> torch.dtype:
        return torch.int8 if count >= FEWEST_INT8 and int8_products_are_exact() else torch.float32

    def _choose(self, queries: Float32Array, tau: npt.NDArray[np.float64]) -> tuple[PrefixCodes, Pruning] | None:
        """The width at which the sample says that a call costs least, unless flat search costs about as much."""
        count, kind, dim = len(queries), self._kind(len(queries)), self._store.dim
        some = np.linspace(0, count - 1, min(count, JUDGED_QUERIES)).astype(np.int64)
        shares: dict[int, float] = {}
        # On a worker, which is a single thread: numpy's own threads wait for each other where cores are busy.
        self._spread(lambda _: shares.update(self._shares(queries[some], tau[some], kind)), [range(1)])
        least = WORTH * dim * (FLAT_READ_NS / count + FLAT_MULTIPLY_NS)
        best = None
        for width, share in shares.items():
            read = READ_NARROW_NS * width if count <= FEW_QUERIES else READ_NS * dim
            cost = (read + CODE_NS[kind] * width) / count + MULTIPLY_NS[kind] * width + share * SURVIVOR_NS
            if cost < least:
                least, best = cost, Pruning(width, str(kind).removeprefix("torch."), share)
        return None if best is None else (self._coded(best.width, kind), best)

    def _shares(self, queries: Float32Array, tau: npt.NDArray[np.float64], kind: torch.dtype) -> dict[int, float]:
        """The share of sampled rows that each width leaves, over all queries."""
        sample = self._sample
        assert sample is not None
        asked, prefixes = torch.from_numpy(queries), torch.from_numpy(sample.prefixes)
        dots, start, shares = torch.zeros((len(queries), len(prefixes))), 0, {}
        for width in self._ladder[:-1]:
            dots.addmm_(asked[:, start:width], prefixes[:, start:width].T)
            start, codes = width, self._coded(width, kind)
            coded = codes.queries(queries)
            lowest = torch.from_numpy(tau - coded.error - coded.length * codes.typical).float()
            tails = torch.outer(coded.tails.float(), torch.from_numpy(sample.tails[width]))
            shares[width] = float((dots + tails >= lowest[:, None]).float().mean())
        return shares

    def _coded(self, width: int, kind: torch.dtype) -> PrefixCodes:
        codes = self._codes.get((width, kind))
        if codes is None:
            with self._lock:
                codes = self._codes[width, kind] = self._make(width, kind)
        return codes

    def _make(self, width: int, kind: torch.dtype) -> PrefixCodes:
        store, sample = self._store, self._sample
        assert sample is not None
        if kind == torch.float32:
            return Float32Codes(width, self._largest_norm)
        prefixes = sample.prefixes[:, :width]
        tail = max(
            float(self._tails_of(width, i, i + TAILS_AT_A_TIME).max()) for i in range(0, store.n, TAILS_AT_A_TIME)
        )
        codes = Int8Codes(width, self._largest_norm, float(np.abs(prefixes).max()), tail, -(-store.n // BLOCK_ROWS))
        coded = torch.empty((len(prefixes), codes.columns), dtype=codes.dtype)
        rows = codes.rows(torch.from_numpy(prefixes), torch.from_numpy(sample.tails[width]), -1, coded)
        codes.typical = rows.residual
        return codes

    def _tails_of(self, width: int, start: int, stop: int) -> Float32Array:
        """Upper bounds of the tail norms of rows `start` to `stop`."""
        norms = self._norms[start:stop]
        return tail_norms(norms[:, self._ladder.index(width)], norms[:, -1], self._store.dim)

    def _run(
        self, queries: Float32Array, k: int, tau: npt.NDArray[np.float64], codes: PrefixCodes
    ) -> tuple[Float32Array, Int64Array]:
        coded = codes.queries(queries)
        norms = np.linalg.norm(queries.astype(np.float64), axis=1)
        # A row whose true score is tau may come out lower by what rounding its score takes.
        found = _Found(len(queries), k, (tau - gamma(self._store.dim) * norms * self._largest_norm).astype(np.float32))
        size = BLOCK_ROWS_FEW if len(queries) <= FEW_QUERIES else BLOCK_ROWS
        blocks = -(-self._store.n // size)
        step = size * max(1, -(-blocks // (self._workers * PIECES)))
        pieces = [range(i, min(i + step, self._store.n), size) for i in range(0, self._store.n, step)]

        def piece(starts: range) -> None:
            with torch.inference_mode():
                _Pass(self._store, partial(self._tails_of, codes.width), codes, queries, coded, tau, found).over(
                    starts, size
                )

        self._spread(piece, pieces)
        if self._release:
            self._store.release()
        return found.best()


class _Pass:
    """One worker's pass over some blocks of rows."""

    def __init__(
        self,
        store: VectorStore,
        tails: Callable[[int, int], Float32Array],
        codes: PrefixCodes,
        queries: Float32Array,
        coded: QueryCodes,
        tau: npt.NDArray[np.float64],
        found: _Found,
    ) -> None:
        self._store, self._tails, self._codes = store, tails, codes
        self._queries, self._coded, self._tau, self._found = queries, coded, tau, found

    def over(self, starts: range, size: int) -> None:
        store, codes, count = self._store, self._codes, len(self._queries)
        tile = min(count, TILE_QUERIES)
        few = count <= FEW_QUERIES
        # Reused from block to block: fresh memory costs a page fault for every 4 KB.
        values = torch.empty((size, codes.width if few else store.dim))
        narrow = torch.empty((size, codes.width), dtype=store.matrix.dtype)
        coded = torch.empty((size if codes.dtype == torch.int8 else 0, codes.columns), dtype=codes.dtype)
        products = torch.empty(tile * size, dtype=codes.product)
        above = np.empty(tile * size, dtype=np.bool_)
        for start in starts:
            count_rows = min(size, store.n - start)
            if few:
                block = _float32(store.prefixes(start, start + count_rows, codes.width), narrow, values)
            else:
                block = _float32(store.prefixes(start, start + count_rows, store.dim), None, values)
            tails = torch.from_numpy(self._tails(start, start + count_rows))
            rows = codes.rows(block[:, : codes.width], tails, start // size, coded[:count_rows])
            limits = codes.limits(self._coded, self._tau, rows.residual)
            for first in range(0, count, tile):
                part = slice(first, min(first + tile, count))
                shape = (part.stop - first, count_rows)
                product = products[: math.prod(shape)].view(shape)
                mask = above[: math.prod(shape)].reshape(shape)
                codes.multiply(self._coded, part, rows, product)
                np.greater(product.numpy(), limits[part, None], out=mask)
                places = np.flatnonzero(mask)
                if len(places):
                    asked, at = np.divmod(places, count_rows)
                    self._score(asked + first, at, start, None if few else block)

    def _score(self, asked: Int64Array, at: Int64Array, start: int, block: torch.Tensor | None) -> None:
        """Score pairs of query and row of the block at full width. block: its rows as float32, None: gather them."""
        rows = at + start
        if block is None:
            block = self._store.gather(torch.from_numpy(rows), 0, self._store.dim).float()
            at = np.arange(len(at))
        faiss, scores = load_faiss(), np.empty(len(at), dtype=np.float32)
        pointer = faiss.swig_ptr
        faiss.pairwise_indexed_inner_product(
            self._store.dim,
            len(at),
            pointer(self._queries),
            pointer(asked),
            pointer(block.numpy()),
            pointer(at),
            pointer(scores),
        )
        self._found.add(asked, rows, scores)


def _float32(stored: torch.Tensor, narrow: torch.Tensor | None, out: torch.Tensor) -> torch.Tensor:
    """Stored rows as float32, in `out` where they are not already.

    narrow: a buffer of the stored type where rows do not follow each other: torch converts only those that do with
    vector instructions, and copying them together first takes half the time.
    """
    if stored.dtype == torch.float32:
        return stored
    if narrow is not None:
        stored = narrow[: len(stored)].copy_(stored)
    return out[: len(stored)].copy_(stored)


class _Found:
    """Rows that reach what k rows are known to reach. Shared by workers."""

    def __init__(self, count: int, k: int, lowest: Float32Array) -> None:
        self._count, self._k = count, k
        self._lowest = lowest
        self._lock = Lock()
        self._parts: list[tuple[Int64Array, Int64Array, Float32Array]] = []
        self._held = 0

    def add(self, asked: Int64Array, rows: Int64Array, scores: Float32Array) -> None:
        """Keep those pairs of query and row whose score may be among the best."""
        good = scores >= self._lowest[asked]
        if not good.any():
            return
        with self._lock:
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
        shape = (self._count, self._k)  # at least k rows reach what k rows are known to reach
        return scores.reshape(shape), rows.reshape(shape)


def _one_by_one(function: Callable[[Any], None], pieces: Sequence[Any]) -> None:
    for piece in pieces:
        function(piece)
