"""Flat search: exact inner products of full-width rows, the truth that everything else is measured against."""

import timeit

import numpy as np
import torch

from indexes._faiss import load_faiss
from indexes.base import Float32Array, Int64Array, Mask
from indexes.vectors import VectorStore

# Rows compared at a time: 25 MB as float32 at 384 dims. Larger blocks are no faster and take more memory.
CELLS_AT_A_TIME = 6_291_456
# Queries from which torch multiplies, as quickly as the processor allows: FAISS takes up to four times as long. Of the
# later blocks little lies above what was found, so that comparing costs less than a heap.
MANY_QUERIES, TILE_QUERIES = 64, 256
# On a GPU the block of scores bounds it: 1,024 queries x 262,144 rows are 1 GB.
ROWS_AT_A_TIME_CUDA = 262_144


def exact_search(
    store: VectorStore, queries: Float32Array, k: int, release: bool = False, live: Mask | None = None
) -> tuple[Float32Array, Int64Array]:
    """The k rows of the largest inner product with each query, accumulated in float32.

    queries: float32 [n, d], C-contiguous; 1 <= k <= store.n. release: give the mapped pages back to the system
    after each block, for passes over matrices larger than memory. live: bool [store.n], the rows to search; None: all.
    Returns scores float32 [n, k], falling, and rows int64 [n, k]; where fewer are live, -inf and -1 at the end.
    """
    if store.placement != "mapped":
        return _on_device(store, queries, k, live)
    top = RunningTop(queries, k)
    if store.small and not release:
        top.update(store.whole().numpy(), 0, live)
        return top.filled()
    rows_at_a_time = max(1, CELLS_AT_A_TIME // store.dim)
    for start in range(0, store.n, rows_at_a_time):
        # Not named: a name would keep the block before alive while the next one is read.
        top.update(store.block(start, start + rows_at_a_time).numpy(), start, live)
        if release:
            store.release()
    return top.filled()


class ExactTop:
    """Takes blocks of scores, one after the other, and gives the best rows of all: a sort of every block."""

    def __init__(self, shortlist: int) -> None:
        self._shortlist = shortlist
        self._best: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(self, scores: torch.Tensor, first_row: int) -> None:
        """Look at a block: scores [queries, c]; its rows begin at `first_row`."""
        found, places = torch.topk(scores, min(self._shortlist, scores.shape[1]), dim=1)
        rows = places + first_row
        if self._best is not None:
            found, rows = torch.cat([self._best[0], found], dim=1), torch.cat([self._best[1], rows], dim=1)
            found, places = torch.topk(found, min(self._shortlist, found.shape[1]), dim=1)
            rows = rows.gather(1, places)
        self._best = found, rows

    def best(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores [queries, s], falling, and rows int64 [queries, s], s <= shortlist."""
        assert self._best is not None, "asked before any block was given"
        return self._best


class RunningTop:
    """The best k rows of each query among blocks of rows that come one after the other.

    queries: float32 [n, d], C-contiguous. scores: float32 [n, <= k], falling; rows: int64 [n, <= k].
    """

    def __init__(self, queries: Float32Array, k: int) -> None:
        self._faiss = load_faiss()
        self._queries = queries
        self._k = k
        self.scores: Float32Array = np.empty((len(queries), 0), dtype=np.float32)
        self.rows: Int64Array = np.empty((len(queries), 0), dtype=np.int64)

    def update(self, block: Float32Array, first_row: int, live: Mask | None = None) -> None:
        """Compare with a block of rows: float32 [c, d], C-contiguous, numbered from `first_row`.

        live: of all rows, by number, those to compare with; None: all.
        """
        kept = None
        if live is not None:
            inside = live[first_row : first_row + len(block)]
            if not inside.all():
                kept = np.flatnonzero(inside)
                block = block[kept]
        if not len(block):
            return
        found, places = self._found(block)
        if kept is not None:
            places = kept[places]
        if not self.scores.shape[1]:
            self.scores, self.rows = found, places + first_row
            return
        scores = np.concatenate([self.scores, found], axis=1)
        rows = np.concatenate([self.rows, places + first_row], axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, : self._k]
        self.scores = np.take_along_axis(scores, order, axis=1)
        self.rows = np.take_along_axis(rows, order, axis=1)

    def _found(self, block: Float32Array) -> tuple[Float32Array, Int64Array]:
        """What of a block may be among the best of each query: scores, -inf where there is no more, and places."""
        count, most = len(self._queries), min(self._k, len(block))
        if count < MANY_QUERIES:
            found, places = self._faiss.knn(self._queries, block, most, metric=self._faiss.METRIC_INNER_PRODUCT)
            return found, places
        with torch.inference_mode():
            queries, rows = _tensor(self._queries), _tensor(block).T
            tiles = [slice(start, start + TILE_QUERIES) for start in range(0, count, TILE_QUERIES)]
            parts = [self._above(queries[tile] @ rows, tile, most) for tile in tiles]
        width = max(part.shape[1] for part, _ in parts)
        found = np.full((count, width), -np.inf, dtype=np.float32)
        places = np.zeros((count, width), dtype=np.int64)
        for tile, (scores, at) in zip(tiles, parts, strict=True):
            found[tile, : scores.shape[1]], places[tile, : scores.shape[1]] = scores, at
        return found, places

    def _above(self, products: torch.Tensor, tile: slice, most: int) -> tuple[Float32Array, Int64Array]:
        """Of the products of some queries with a block those above the k-th score so far, in no order."""
        if self.scores.shape[1] == self._k:
            asked, at = torch.nonzero(products > torch.from_numpy(self.scores[tile, -1:]), as_tuple=True)
            counts = torch.bincount(asked, minlength=len(products))
            width = int(counts.max())
            if width <= most:
                numbers = torch.arange(len(asked)) - (counts.cumsum(0) - counts)[asked]
                scores = torch.full((len(products), width), -torch.inf)
                places = torch.zeros((len(products), width), dtype=torch.int64)
                scores[asked, numbers], places[asked, numbers] = products[asked, at], at
                return scores.numpy(), places.numpy()
        scores, places = torch.topk(products, most, dim=1)
        return scores.numpy(), places.numpy()

    def filled(self) -> tuple[Float32Array, Int64Array]:
        """Scores and rows [n, k], with -inf and -1 at the end where fewer than k rows were compared."""
        lacking = ((0, 0), (0, self._k - self.scores.shape[1]))
        if not lacking[1][1]:
            return self.scores, self.rows
        return np.pad(self.scores, lacking, constant_values=-np.inf), np.pad(self.rows, lacking, constant_values=-1)


def _tensor(rows: Float32Array) -> torch.Tensor:
    """Rows as a tensor, copied only where they may not be written to, which torch warns of."""
    return torch.from_numpy(rows if rows.flags.writeable else rows.copy())


def _on_device(store: VectorStore, queries: Float32Array, k: int, live: Mask | None) -> tuple[Float32Array, Int64Array]:
    """The same with torch, where the matrix is put on a device (or read from a tensor): one copy back at the end."""
    with torch.inference_mode():
        query = torch.from_numpy(queries).to(store.device)
        top = ExactTop(k)
        for start in range(0, store.n, ROWS_AT_A_TIME_CUDA):
            block = store.block(start, start + ROWS_AT_A_TIME_CUDA)
            products = query @ block.T
            if live is not None:
                deleted = torch.from_numpy(np.flatnonzero(~live[start : start + len(block)]))
                products[:, deleted.to(store.device)] = -torch.inf
            top.update(products, start)
        scores, rows = top.best()
        if live is not None:
            rows = rows.masked_fill(scores == -torch.inf, -1)
        return scores.cpu().numpy(), rows.cpu().numpy()


ROWS_AT_A_TIME = 65_536
# FAISS compares n_queries x d with this to choose between BLAS and its own kernels; which is faster depends on the
# batch and the version. Always BLAS, our own setting for 2 threads, the default of 1.14.2 and later.
THRESHOLDS = (1, 1_600, 128_000)
TRIALS = 3


class FlatBaseline:
    """IndexFlatIP over the rows of a store as float32 in memory; for each batch size the fastest BLAS threshold."""

    def __init__(self, store: VectorStore) -> None:
        self._faiss = load_faiss()
        self._index = self._faiss.IndexFlatIP(store.dim)
        for _, rows in store.chunks(ROWS_AT_A_TIME):
            self._index.add(rows)
        self._best: dict[int, int] = {}

    def search(self, queries: Float32Array, k: int) -> tuple[Float32Array, Int64Array]:
        """The k best rows of each query: scores float32 [n, k], rows int64 [n, k]. Not for several threads."""

        def took(threshold: int) -> float:
            return min(timeit.repeat(lambda: self._at(queries, k, threshold), number=1, repeat=TRIALS))

        if len(queries) not in self._best:
            self._best[len(queries)] = min(THRESHOLDS, key=took)
        return self._at(queries, k, self._best[len(queries)])

    def _at(self, queries: Float32Array, k: int, threshold: int) -> tuple[Float32Array, Int64Array]:
        variables = self._faiss.cvar
        before, variables.distance_compute_blas_threshold = variables.distance_compute_blas_threshold, threshold
        try:
            scores, rows = self._index.search(queries, k)
            return scores, rows
        finally:
            variables.distance_compute_blas_threshold = before
