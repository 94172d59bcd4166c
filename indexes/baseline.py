"""FAISS's flat index at its best, to measure everything else against."""

import timeit

from indexes._faiss import load_faiss
from indexes.base import Float32Array, Int64Array
from indexes.vectors import VectorStore

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
        count = len(queries)
        if count not in self._best:

            def took(threshold: int) -> float:
                return min(timeit.repeat(lambda: self._at(queries, k, threshold), number=1, repeat=TRIALS))

            self._best[count] = min(THRESHOLDS, key=took)
        return self._at(queries, k, self._best[count])

    def _at(self, queries: Float32Array, k: int, threshold: int) -> tuple[Float32Array, Int64Array]:
        variables = self._faiss.cvar
        before, variables.distance_compute_blas_threshold = variables.distance_compute_blas_threshold, threshold
        try:
            scores, rows = self._index.search(queries, k)
            return scores, rows
        finally:
            variables.distance_compute_blas_threshold = before
