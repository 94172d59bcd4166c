"""One pass over coded rows: which pairs of query and row survive their bound, and their scores at full width."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from indexes._faiss import load_faiss
from indexes._prefixcodes import Int8Codes, PrefixCodes, QueryCodes, RowCodes
from indexes.base import Float32Array, Int64Array
from indexes.forks import free_in_children
from indexes.vectors import VectorStore

__all__ = [
    "BLOCK_ROWS",
    "TILE_QUERIES",
    "KeptCodes",
    "PreparedQueries",
    "Reader",
    "RowSource",
    "Survivors",
    "survivors",
]

# Rows coded at a time, and queries they are multiplied with: codes and products stay in a core's 1 MB of cache.
BLOCK_ROWS = 2_048
TILE_QUERIES = 128
# Found rows that are kept before they are cut to the best k of each query: 80 MB. Duplicates by the thousand reach it.
MOST_FOUND = 4_000_000
FETCHED = 512  # rows fetched at a time where they are not at hand: 800 KB at 384 dims


@dataclass(frozen=True)
class PreparedQueries:
    """Queries float32 [q, d], their codes, and tau float64 [q], a lower bound of the k-th true score of each."""

    queries: Float32Array
    coded: QueryCodes
    tau: npt.NDArray[np.float64]


class RowSource(Protocol):
    """Where the codes of rows come from."""

    def __call__(self, start: int, stop: int) -> tuple[RowCodes, torch.Tensor | None]:
        """Codes of rows `start` to `stop`, valid until the next call.

        With them the rows themselves as float32 [r, d], where they were read whole.
        """
        ...


class Reader:
    """Codes made from the stored rows, block by block, in buffers that are used again. For one thread.

    size: rows of a block. narrow: read prefixes alone, not whole rows.
    """

    def __init__(
        self,
        store: VectorStore,
        codes: PrefixCodes,
        tails: Callable[[int, int], Float32Array],
        size: int,
        narrow: bool,
    ) -> None:
        self._store, self._codes, self._tails, self._size = store, codes, tails, size
        # Fresh memory costs a page fault for every 4 KB.
        self._values = torch.empty((size, codes.width if narrow else store.dim))
        self._narrow = torch.empty((size, codes.width), dtype=store.matrix.dtype) if narrow else None
        self._coded = torch.empty((size if codes.dtype == torch.int8 else 0, codes.columns), dtype=codes.dtype)

    def __call__(self, start: int, stop: int) -> tuple[RowCodes, torch.Tensor | None]:
        store, width = self._store, self._codes.width
        stored = store.prefixes(start, stop, store.dim if self._narrow is None else width)
        block = _float32(stored, self._narrow, self._values)
        tails = torch.from_numpy(self._tails(start, stop))
        out = self._coded[: stop - start]
        rows = self._codes.rows(block[:, :width], tails, start // self._size, out)
        return rows, block if self._narrow is None else None


@dataclass(frozen=True)
class KeptCodes:
    """The codes of all rows, held in memory: int8 [n, columns]. residual: the largest of any block."""

    codes: Int8Codes
    rows: torch.Tensor
    residual: float

    def __call__(self, start: int, stop: int) -> tuple[RowCodes, torch.Tensor | None]:
        """See `RowSource`. Tails are part of the codes."""
        part = self.rows[start:stop]
        return RowCodes(part, part, self.residual), None


def survivors(
    store: VectorStore, source: RowSource, codes: PrefixCodes, asked: PreparedQueries, found: Survivors, starts: range
) -> None:
    """Compare every query with the blocks of rows that begin at `starts`, and hand what survives to `found`."""
    size, count = starts.step, len(asked.queries)
    tile = min(count, TILE_QUERIES)
    products = torch.empty(tile * size, dtype=codes.product)
    above = np.empty(tile * size, dtype=np.bool_)
    residual = math.nan
    limits: npt.NDArray[np.generic] = np.empty(0)
    for start in starts:
        stop = min(start + size, store.n)
        rows, block = source(start, stop)
        if rows.residual != residual:
            residual, limits = rows.residual, codes.limits(asked.coded, asked.tau, rows.residual)
        for first in range(0, count, tile):
            part = slice(first, min(first + tile, count))
            shape = (part.stop - first, stop - start)
            product = products[: math.prod(shape)].view(shape)
            mask = above[: math.prod(shape)].reshape(shape)
            codes.multiply(asked.coded, part, rows, product)
            np.greater(product.numpy(), limits[part, None], out=mask)
            places = np.flatnonzero(mask)
            if len(places):
                own, at = np.divmod(places, stop - start)
                _score(store, asked.queries, own + first, at, start, block, found)


def _score(
    store: VectorStore,
    queries: Float32Array,
    asked: Int64Array,
    at: Int64Array,
    start: int,
    block: torch.Tensor | None,
    found: Survivors,
) -> None:
    """Score pairs of query and row of a block at full width. block: its rows as float32, None: fetch them."""
    if block is not None:
        found.add(asked, at + start, _products(queries, asked, block, at))
        return
    stored = torch.empty((min(len(at), FETCHED), store.dim), dtype=store.matrix.dtype)
    values = torch.empty(stored.shape)
    for first in range(0, len(at), FETCHED):
        own, rows = asked[first : first + FETCHED], at[first : first + FETCHED] + start
        fetched = store.gather(torch.from_numpy(rows), 0, store.dim, out=stored[: len(rows)])
        wide = _float32(fetched, None, values)
        found.add(own, rows, _products(queries, own, wide, np.arange(len(rows))))


def _products(queries: Float32Array, asked: Int64Array, rows: torch.Tensor, at: Int64Array) -> Float32Array:
    """Inner products of queries[asked] and rows[at], in float32: [pairs]."""
    faiss, scores = load_faiss(), np.empty(len(at), dtype=np.float32)
    pointer = faiss.swig_ptr
    faiss.pairwise_indexed_inner_product(
        queries.shape[1], len(at), pointer(queries), pointer(asked), pointer(rows.numpy()), pointer(at), pointer(scores)
    )
    return scores


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


class Survivors:
    """Rows that reach what k rows are known to reach. Shared by workers. live: bool [n], rows to keep; None: all."""

    def __init__(self, count: int, k: int, lowest: Float32Array, live: npt.NDArray[np.bool_] | None = None) -> None:
        self._live = live
        self._count, self._k = count, k
        self._lowest = lowest
        self._lock = free_in_children(Lock())
        self._parts: list[tuple[Int64Array, Int64Array, Float32Array]] = []
        self._held = 0

    def add(self, asked: Int64Array, rows: Int64Array, scores: Float32Array) -> None:
        """Keep those pairs of query and row whose score may be among the best."""
        good = scores >= self._lowest[asked]
        if self._live is not None:
            good &= self._live[rows]
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
