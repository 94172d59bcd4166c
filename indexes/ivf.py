"""Inverted files over the prefix: rows are kept in cells, and the cells nearest to the query are scanned."""

import math
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from indexes._faiss import FaissIndex
from indexes.base import Float32Array, rising
from indexes.errors import CoarseIndexError

# Cells: 4 * sqrt(n), FAISS's own rule of thumb (wiki, "Guidelines to choose an index"), between 1 and 16,384.
CELLS_PER_ROOT, MAX_CELLS = 4, 16_384
# FAISS warns below 39 training rows a cell, and works with far fewer; a default never goes under 8.
MIN_ROWS_PER_CELL = 8

# Rounds of k-means (FAISS's default is 10) and sample rows a cell (256): cells need no exact centres, and
# most of the build's time goes here.
CLUSTERING_ROUNDS, CLUSTERING_ROWS_PER_CELL, CLUSTERING_SEED = 8, 64, 1234

# nprobe goes up to a quarter of the cells, and to 256: beyond, the scan is hardly sublinear any more.
LARGEST_PROBED_SHARE, LARGEST_NPROBE = 4, 256
# With few cells a quarter of them is too coarse a step: all of these may be probed.
SMALL_NPROBE = 16

# From one nprobe to the next that is calibrated: recall then moves by less than a point.
NPROBE_STEP = 0.125

PQ_DIMS, PQ_BITS = 2, 4  # dimensions that a sub-quantiser covers: half a byte for two of them
PQ_CENTROIDS = 1 << PQ_BITS  # so many rows at least are needed to train one
FASTSCAN_BLOCK = 32  # FastScan packs the rows of a cell in blocks of 32

ROW_NUMBER_BYTES, FLOAT32_BYTES = 8, 4


def cells(n: int) -> int:
    """How many cells `n` rows are divided into unless the settings say."""
    return max(1, min(round(CELLS_PER_ROOT * math.sqrt(n)), n // MIN_ROWS_PER_CELL, MAX_CELLS))


class _IvfIndex(FaissIndex):
    """An inverted file; effort is nprobe, the number of cells scanned.

    Settings: `nlist`, the number of cells; 0 lets `train` choose it from the rows that it is given.
    """

    default_settings: ClassVar[Mapping[str, int]] = {"nlist": 0}
    settings_taken: ClassVar[Mapping[str, range]] = {"nlist": range((1 << 24) + 1)}  # bounded by the rows as well

    def _make(self) -> Any:
        faiss = self._faiss
        nlist = max(1, self._settings["nlist"])
        index = faiss.index_factory(self.dim, f"IVF{nlist},{self._codes()}", faiss.METRIC_INNER_PRODUCT)
        index.cp.niter = CLUSTERING_ROUNDS
        index.cp.max_points_per_centroid = CLUSTERING_ROWS_PER_CELL
        index.cp.min_points_per_centroid = 1  # FAISS's 39 only makes it print a warning
        index.cp.seed = CLUSTERING_SEED
        return index

    @abstractmethod
    def _codes(self) -> str:
        """How rows are coded, in the words of FAISS's index_factory."""

    def _rows_needed(self) -> int:
        return max(1, self._settings["nlist"])

    def train(self, prefixes: Float32Array) -> None:
        if not self._settings["nlist"]:
            self._settings["nlist"] = cells(len(prefixes))
            self._adopt(self._make())
        if len(prefixes) < self._rows_needed():
            raise CoarseIndexError(
                f"{self.name} was given {len(prefixes)} rows to train on and needs {self._rows_needed()}; "
                "give more rows, or set a smaller nlist"
            )
        super().train(prefixes)

    def _search_parameters(self, effort: int, selector: Any) -> Any:
        return self._faiss.SearchParametersIVF(nprobe=effort, sel=selector)

    def _signature(self, index: Any) -> dict[str, object]:
        return {"nlist": index.nlist, "code size": index.code_size}

    def _check_same(self, found: Any, path: Path) -> None:
        super()._check_same(found, path)
        lists, rows = found.invlists, found.ntotal
        held = [self._faiss.rev_swig_ptr(lists.get_ids(cell), lists.list_size(cell)) for cell in range(found.nlist)]
        numbers = np.concatenate(held)
        # Searches give these numbers as they are: anything but each row once is a row that there is not.
        if len(numbers) != rows or not np.array_equal(np.sort(numbers), np.arange(rows)):
            raise CoarseIndexError(
                f"{path} cannot be read as {self.name}: its cells do not hold each of {rows:,} rows once"
            )

    def bytes_touched(self, queries: Float32Array, shortlist: int, effort: int) -> int:
        """Centroids, and codes and row numbers of the cells scanned."""
        stats = self._faiss.cvar.indexIVF_stats
        stats.reset()
        self.search(queries, shortlist, effort)
        scanned = stats.ndis * (self._index.code_size + ROW_NUMBER_BYTES)
        return int(self._index.nlist * self.dim * FLOAT32_BYTES + scanned / len(queries))

    def efforts(self) -> tuple[int, ...]:
        """Values of nprobe up to a quarter of the cells."""
        nlist = self._index.nlist
        largest = min(LARGEST_NPROBE, max(nlist // LARGEST_PROBED_SHARE, min(nlist, SMALL_NPROBE)))
        return rising(largest, ((NPROBE_STEP, largest),))

    @property
    def nbytes(self) -> int:
        """Bytes of centroids, codes and row numbers, as estimated for the cells that there are."""
        return self.estimate_nbytes(self.ntotal, self.dim, {"nlist": int(self._index.nlist)})


class IvfSq8Index(_IvfIndex):
    """Cells of 8-bit codes of the residual: 1 byte a dimension (faiss.IndexIVFScalarQuantizer)."""

    name: ClassVar[str] = "ivf-sq8"

    def _codes(self) -> str:
        return "SQ8"

    @classmethod
    def estimate_nbytes(cls, n: int, dim: int, settings: Mapping[str, int]) -> int:
        """Exactly."""
        nlist = cls.complete_settings(settings)["nlist"] or cells(n)
        return nlist * dim * FLOAT32_BYTES + n * (dim + ROW_NUMBER_BYTES)


class IvfPqIndex(_IvfIndex):
    """Cells of 4-bit product codes, one for every two dimensions (faiss.IndexIVFPQFastScan).

    FastScan: André, Kermarrec & Le Scouarnec 2017, arXiv 1704.07355. Scores are coarse, so that its
    shortlists must be longer; best in large batches and where memory is short.
    """

    name: ClassVar[str] = "ivf-pq"

    def __init__(self, dim: int, **settings: int) -> None:
        if dim % PQ_DIMS:
            raise CoarseIndexError(f"dim is {dim}; {self.name} takes a multiple of {PQ_DIMS}")
        super().__init__(dim, **settings)

    def _codes(self) -> str:
        return f"PQ{self.dim // PQ_DIMS}x{PQ_BITS}fs"

    def _make(self) -> Any:
        index: Any = super()._make()
        index.pq.cp.min_points_per_centroid = 1
        index.pq.cp.seed = CLUSTERING_SEED
        return index

    def _rows_needed(self) -> int:
        return max(PQ_CENTROIDS, super()._rows_needed())

    @property
    def nbytes(self) -> int:
        """Bytes of centroids, sub-quantisers, packed codes and row numbers."""
        lists = self._faiss.downcast_InvertedLists(self._index.invlists)
        blocks = sum(-(-lists.list_size(cell) // FASTSCAN_BLOCK) for cell in range(self._index.nlist))
        tables = (self._index.nlist + PQ_CENTROIDS) * self.dim * FLOAT32_BYTES
        return int(tables + blocks * lists.block_size) + self.ntotal * ROW_NUMBER_BYTES

    @classmethod
    def estimate_nbytes(cls, n: int, dim: int, settings: Mapping[str, int]) -> int:
        """Centroids, sub-quantisers, codes and row numbers, each cell's last block being half full on average."""
        nlist = cls.complete_settings(settings)["nlist"] or cells(n)
        code_bytes = math.ceil(dim / PQ_DIMS / 2)
        packed = (n + nlist * FASTSCAN_BLOCK // 2) * code_bytes
        tables = (nlist + PQ_CENTROIDS) * dim * FLOAT32_BYTES
        return tables + packed + n * ROW_NUMBER_BYTES
