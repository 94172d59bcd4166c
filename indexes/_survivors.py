"""One pass over coded rows: which pairs of query and row survive their bound, and their scores at full width."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from indexes._faiss import load_faiss
from indexes._prefixcodes import Int8Codes, PrefixCodes, QueryCodes, RowCodes
from indexes.base import Float32Array, Int64Array
from indexes.forks import free_in_children
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
    limits: npt.NDArray[np.generic] = np.empty(0)
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


class Survivors:
    """Rows that reach what k rows are known to reach. Shared by workers.

    queries: float32 [q, d]. tau: float64 [q], a lower bound of the k-th true score of each; lowest: float32 [q], of the
    score as it is computed. pairs: of query and row, that are compared in all. live: bool [n], rows to keep.
    """

    def __init__(
        self,
        queries: Float32Array,
        k: int,
        tau: npt.NDArray[np.float64],
        lowest: Float32Array,
        pairs: int,
        live: npt.NDArray[np.bool_] | None,
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
