"""HNSW graphs over scalar-quantised prefixes.

Malkov & Yashunin 2016, arXiv 1603.09320; faiss.IndexHNSWSQ.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from indexes._faiss import FaissIndex
from indexes.base import LARGEST_DEGREE, LARGEST_EF_CONSTRUCTION, Float32Array, Int64Array, rising
from indexes.errors import CoarseIndexError

# ef_search values worth calibrating: step by step up to the end of each range. 7 % apart where budgets are usually met
# (half-octaves overshoot the recall asked for by up to .03 there), further apart where each costs seconds to run.
STEPS = ((0.07, 256), (0.1, 512), (0.25, 1024))
# Candidates beyond this many, of a search that found more, were never among the best on recall against cost.
LONGEST_SHORTLIST = 512

# Pivots that a batch is ordered by: neighbouring queries then walk the same part of the graph while it is in the
# cache (measured: 12 to 15 % faster). One small matrix product, and fine enough for the largest batch.
PIVOTS = 256
# Below this many rows graph and codes take a few megabytes: they stay in the cache in any order.
ORDERED_ROWS = 16_384

MIN_DEGREE = 2  # FAISS draws levels with 1 / log(degree), so that a degree of 1 divides by zero

# A row's level (int32) and where its links start (size_t), and each link.
LEVEL_BYTES, OFFSET_BYTES, LINK_BYTES = 4, 8, 4


class _HnswIndex(FaissIndex):
    """An HNSW graph; effort is ef_search, and a shortlist is at most that long.

    Settings: `degree` (links a row on the upper levels; twice as many on the base level) and
    `ef_construction` (candidates looked at for each row that is added).
    With a filter, rows that are not allowed are walked through but not returned: a filter that leaves few
    rows needs a greater effort, and may return fewer rows than asked for.
    """

    default_settings: ClassVar[Mapping[str, int]] = {"degree": 16, "ef_construction": 200}
    settings_taken: ClassVar[Mapping[str, range]] = {
        "degree": range(MIN_DEGREE, LARGEST_DEGREE + 1),
        "ef_construction": range(1, LARGEST_EF_CONSTRUCTION + 1),
    }
    _quantizer: ClassVar[str]
    _code_bytes_per_dim: ClassVar[int]

    _pivots: torch.Tensor | None = None

    def _make(self) -> Any:
        faiss = self._faiss
        quantizer = getattr(faiss.ScalarQuantizer, self._quantizer)
        degree = self._settings["degree"]
        index = faiss.IndexHNSWSQ(self.dim, quantizer, degree, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = self._settings["ef_construction"]
        # Fill the base level's lists: recall .951 instead of .9475 at ef 64 over 200,000 x 128, and faster.
        index.keep_max_size_level0 = True
        return index

    def _search_parameters(self, effort: int, selector: Any) -> Any:
        # Unbounded: a heap instead of an array of ef candidates. The same rows, in 5 to 20 % less time; but with a
        # filter it gives up as soon as ef rows were seen, whether or not any of them is allowed.
        return self._faiss.SearchParametersHNSW(efSearch=effort, bounded_queue=selector is not None, sel=selector)

    def _signature(self, index: Any) -> dict[str, object]:
        storage = self._faiss.downcast_index(index.storage)
        return {
            "degree": index.hnsw.nb_neighbors(1),
            "ef_construction": index.hnsw.efConstruction,
            "quantizer": storage.sq.qtype,
        }

    def _check_same(self, found: Any, path: Path) -> None:
        super()._check_same(found, path)
        wrong = _wrong_link(self._faiss, found, self._blank().hnsw)
        if wrong:
            raise CoarseIndexError(f"{path} cannot be read as {self.name}: {wrong}")

    def add(self, prefixes: Float32Array) -> None:
        super().add(prefixes)
        self._pivots = None

    def near_keys(self) -> Callable[[Float32Array], Int64Array] | None:
        """The stored row, among evenly spaced ones, that each query is nearest to: rows lie in cluster order."""
        if self.ntotal < ORDERED_ROWS:
            return None
        pivots = self._pivots
        if pivots is None:
            stored = np.linspace(0, self.ntotal - 1, PIVOTS).astype(np.int64)
            pivots = self._pivots = torch.from_numpy(self._index.reconstruct_batch(stored)).T.contiguous()

        def keys(queries: Float32Array) -> Int64Array:
            # torch keeps to the calling thread's own number of threads; numpy's BLAS would wake one for every core.
            nearest: Int64Array = torch.mm(torch.from_numpy(queries), pivots).argmax(dim=1).numpy()
            return nearest

        return keys

    def bytes_touched(self, queries: Float32Array, shortlist: int, effort: int) -> int:
        """Codes of the rows compared, and links of the rows walked through on the base level."""
        stats = self._faiss.cvar.hnsw_stats
        stats.reset()
        self.search(queries, shortlist, effort)
        links = stats.nhops * self._index.hnsw.nb_neighbors(0) * LINK_BYTES
        codes = stats.ndis * self._faiss.downcast_index(self._index.storage).code_size
        return int((codes + links) / len(queries))

    def efforts(self) -> tuple[int, ...]:
        """Values of ef_search up to the number of rows."""
        return rising(max(1, self.ntotal), STEPS)

    def largest_shortlist(self, effort: int) -> int:
        """ef_search, which FAISS would raise to a shortlist that is longer: that is another effort."""
        return min(effort, self.ntotal, LONGEST_SHORTLIST)

    @property
    def nbytes(self) -> int:
        """Bytes of codes, links, levels and offsets."""
        hnsw, storage = self._index.hnsw, self._faiss.downcast_index(self._index.storage)
        links = hnsw.neighbors.size() * LINK_BYTES
        numbers = hnsw.levels.size() * LEVEL_BYTES + hnsw.offsets.size() * OFFSET_BYTES
        return int(storage.codes.size() + links + numbers)

    @classmethod
    def estimate_nbytes(cls, n: int, dim: int, settings: Mapping[str, int]) -> int:
        """Codes and base links exactly, upper links as expected: a row has degree / (degree - 1) of them."""
        degree = cls.complete_settings(settings)["degree"]
        links = LINK_BYTES * (2 * degree + degree / (degree - 1))
        return round(n * (dim * cls._code_bytes_per_dim + links + LEVEL_BYTES + OFFSET_BYTES))


def _wrong_link(faiss: Any, index: Any, blank: Any) -> str:
    """Why a search would leave the graph that was read, and the process with it; "" where none does.

    FAISS checks some of this from 1.14.2 on, and not that a row is linked on the levels alone that it stands on.
    """

    def viewed(vector: Any) -> Any:
        return faiss.rev_swig_ptr(vector.data(), vector.size()) if vector.size() else np.empty(0, np.int32)

    hnsw, rows = index.hnsw, index.ntotal
    levels, links, starts = viewed(hnsw.levels), viewed(hnsw.neighbors), viewed(hnsw.offsets)
    ends = viewed(hnsw.cum_nneighbor_per_level)  # of a row's links on each level, counted from its first
    if not np.array_equal(ends, viewed(blank.cum_nneighbor_per_level)):
        return "its levels have other numbers of links than its degree says"
    if len(levels) != rows or (rows and not 1 <= levels.min() <= levels.max() < len(ends)):
        return f"its {len(levels):,} rows stand on levels that there are not; it says {rows:,} rows"
    if not np.array_equal(np.diff(starts), ends[levels]) or starts[0] != 0 or starts[-1] != len(links):
        return "the links of its rows do not follow one another"
    if len(links) and not -1 <= links.min() <= links.max() < rows:
        return f"rows {links.min():,} to {links.max():,} are linked, and there are {rows:,}"
    entry = hnsw.entry_point
    if rows and not (0 <= entry < rows and 0 <= hnsw.max_level < levels[entry]):
        return f"searches start at row {entry:,} on level {hnsw.max_level}, where it is not"
    for level in range(1, levels.max(initial=0)):
        above = np.flatnonzero(levels > level)
        linked = links[
            (starts[above] + ends[level])[:, None].astype(np.int64) + np.arange(ends[level + 1] - ends[level])
        ]
        if (levels[linked[linked >= 0]] <= level).any():
            return f"rows are linked on level {level} that do not stand on it"
    return ""


class HnswSq8Index(_HnswIndex):
    """HNSW over 8-bit codes: 1 byte a dimension."""

    name: ClassVar[str] = "hnsw-sq8"
    _quantizer: ClassVar[str] = "QT_8bit"
    _code_bytes_per_dim: ClassVar[int] = 1


class HnswFloat16Index(_HnswIndex):
    """HNSW over float16 codes: 2 bytes a dimension."""

    name: ClassVar[str] = "hnsw-f16"
    _quantizer: ClassVar[str] = "QT_fp16"
    _code_bytes_per_dim: ClassVar[int] = 2
