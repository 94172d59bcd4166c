"""FAISS behind the contract: the one place that imports it, and what its families share."""

import copy
import errno
import importlib
import os
import struct
from abc import abstractmethod
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar, TypeVar

import numpy as np
from typing_extensions import override

from indexes.base import Allowed, CoarseIndex, Float32Array, Int64Array, allowed_mask, check_prefixes, check_sample
from indexes.errors import CoarseIndexError, MissingBackendError
from indexes.system import free_in_children

# FAISS scans a flat batch with BLAS from nq * d >= this value. Its own 128,000 (since 1.14.2) leaves a batch
# of 256 at 64 dimensions on the slow path: 5 times slower, measured on 2 threads.
BLAS_THRESHOLD_PER_THREAD = 800

# Longest shortlist of families whose effort does not bound it: reranking more rows costs more than a
# greater effort does.
MAX_SHORTLIST = 1024

# The head of a file of an index (faiss/impl/index_write.cpp, write_index_header): type, d, ntotal, two fillers,
# is_trained, metric.
HEAD = struct.Struct("<4siqqq?i")
# What reading may allocate at once, in sizes of the file: tables that FAISS works out beside the centroids it reads
# (IVF-PQ's, 32 bytes a dimension against the 4 of a centroid) are the most.
ALLOCATED_PER_BYTE = 8
# FAISS gives the system's words for an error; after a file that is cut short they may be those of an earlier one.
OF_THE_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EACCES, errno.ESTALE, errno.ETIMEDOUT)
READ_AS = {"IndexFlat": "IndexFlatIP"}
# FAISS's limits on reading hold for the whole process.
_READING = free_in_children(Lock())

FaissIndexType = TypeVar("FaissIndexType", bound="FaissIndex")


@lru_cache(maxsize=1)
def load_faiss() -> Any:
    """Import FAISS once and set its BLAS threshold.

    Raises:
        MissingBackendError: FAISS is not installed.
    """
    try:
        faiss = importlib.import_module("faiss")
    except ImportError as error:
        raise MissingBackendError(
            "the coarse indexes need FAISS, which is not installed: pip install 'funnel-retrieval[cpu]'. "
            "The extras cpu, gpu and cuvs exclude each other, because they unpack into one folder (faiss/)."
        ) from error
    faiss.cvar.distance_compute_blas_threshold = BLAS_THRESHOLD_PER_THREAD * faiss.omp_get_max_threads()
    return faiss


def use_one_thread() -> None:
    """Have FAISS search on one thread when it is called from the calling thread; other threads are not affected."""
    load_faiss().omp_set_num_threads(1)


class FaissIndex(CoarseIndex):
    """What every FAISS family shares. A family says which FAISS index it is and how effort is passed."""

    def __init__(self, dim: int, **settings: int) -> None:
        super().__init__(dim, **settings)
        self._faiss = load_faiss()
        self._pointer = self._faiss.swig_ptr
        self._parameters: dict[int, Any] = {}
        self._selector: Any = None
        self._adopt(self._make())

    @classmethod
    def library(cls) -> str:
        return f"faiss {load_faiss().__version__}"

    @abstractmethod
    def _make(self) -> Any:
        """An empty FAISS index with the settings in force."""

    @abstractmethod
    def _search_parameters(self, effort: int, selector: Any) -> Any:
        """FAISS's search parameters for one effort and an `IDSelector` or None."""

    def _signature(self, _index: Any) -> dict[str, object]:
        """What must agree between a file and the settings, besides type, dim and metric."""
        return {}

    def _adopt(self, index: Any) -> None:
        self._index = index
        self._search_c = index.search_c

    def train(self, prefixes: Float32Array) -> None:
        self._index.train(check_sample(self, prefixes))

    def add(self, prefixes: Float32Array) -> None:
        rows = check_prefixes(prefixes, self.dim)
        if not self._index.is_trained:
            raise CoarseIndexError(f"{self.name} is not trained; call train before add")
        if len(rows):
            self._index.add(rows)

    def search(
        self, queries: Float32Array, shortlist: int, effort: int, allowed: Allowed | None = None
    ) -> tuple[Float32Array, Int64Array]:
        if allowed is not None:
            return self.restricted(allowed).search(queries, shortlist, effort)
        parameters = self._effort_parameters(effort)
        count = len(queries)
        scores = np.empty((count, shortlist), np.float32)
        rows = np.empty((count, shortlist), np.int64)
        pointer = self._pointer
        # search_c takes the pointers as they are; faiss.Index.search would check and copy on every call.
        self._search_c(count, pointer(queries), shortlist, pointer(scores), pointer(rows), parameters)
        if (rows[0, -1] < 0) if count == 1 else (rows[:, -1] < 0).any():
            scores[rows < 0] = -np.inf  # FAISS pads with the lowest float
        return scores, rows

    def _effort_parameters(self, effort: int) -> Any:
        parameters = self._parameters.get(effort)
        if parameters is None:
            parameters = self._parameters[effort] = self._search_parameters(effort, self._selector)
        return parameters

    def restricted(self, allowed: Allowed) -> CoarseIndex:
        view = copy.copy(self)
        bits = np.packbits(allowed_mask(allowed, self.ntotal), bitorder="little")
        view._parameters, view._selector = {}, self._faiss.IDSelectorBitmap(bits)
        return view

    @override
    def largest_shortlist(self, effort: int) -> int:
        return min(MAX_SHORTLIST, self.ntotal)

    def save(self, path: Path) -> None:
        # Written through Python: FAISS's own file writer only prints when the last flush fails.
        with open(path, "wb") as file:
            self._faiss.write_index(self._index, self._faiss.PyCallbackIOWriter(file.write))

    @classmethod
    def load(cls: type[FaissIndexType], path: Path, dim: int, settings: Mapping[str, int]) -> FaissIndexType:
        index = cls(dim, **settings)
        index._check_head(path)
        try:
            found = _read(index._faiss, path)
        except (RuntimeError, MemoryError) as error:
            reason = str(error).strip().splitlines()[-1]
            said = [code for code in OF_THE_MACHINE if os.strerror(code) in reason]
            if said:
                code = max(said, key=lambda code: len(os.strerror(code)))  # some begin as others do
                raise OSError(code, os.strerror(code), str(path)) from error
            raise CoarseIndexError(f"{path} cannot be read as {cls.name}: {reason}") from error
        index._check_same(found, path)
        index._adopt(found)
        return index

    def _check_head(self, path: Path) -> None:
        """Before FAISS parses anything: is it the one type that this family writes, and no larger than it says?"""
        with open(path, "rb") as file:
            head, size = file.read(HEAD.size), os.fstat(file.fileno()).st_size
        expected = self._faiss.serialize_index(self._blank())[: HEAD.size].tobytes()
        kind, d, _, _, _, _, metric = HEAD.unpack(expected)
        if len(head) < HEAD.size or head[:4] != kind:
            raise CoarseIndexError(
                f"{path} cannot be read as {self.name}: it begins with {head[:4]!r}, expected {kind!r}"
            )
        _, found_d, rows, _, _, _, found_metric = HEAD.unpack(head)
        for key, value, expected_value in (("dim", found_d, d), ("metric", found_metric, metric)):
            if value != expected_value:
                raise CoarseIndexError(f"{path} has {key} {value}; the settings say {expected_value}")
        if not 0 <= rows <= size:
            raise CoarseIndexError(f"{path} says that it holds {rows:,} rows, and has {size:,} bytes")

    def _check_same(self, found: Any, path: Path) -> None:
        blank = self._blank()
        kinds, known = _kinds(self._faiss, found), _kinds(self._faiss, blank)
        # A flat index of inner products has a type of its own once it was read from a file.
        if [READ_AS.get(kind, kind) for kind in kinds] != [READ_AS.get(kind, kind) for kind in known]:
            raise CoarseIndexError(f"{path} holds a {' of '.join(kinds)}; {self.name} is a {' of '.join(known)}")
        has, expected = ({"dim": i.d, "metric": i.metric_type, **self._signature(i)} for i in (found, blank))
        for key, value in has.items():
            if value != expected[key]:
                raise CoarseIndexError(f"{path} has {key} {value}; the settings say {expected[key]}")

    def _blank(self) -> Any:
        """An index of this kind as files hold it: what one that is read is compared with."""
        return self._index

    @property
    def ntotal(self) -> int:
        return int(self._index.ntotal)


def _read(faiss: Any, path: Path) -> Any:
    """Read an index; nothing larger than a few times the file is allocated, and no list has more entries than bytes.

    An index that names another file gets it from the same folder, and read-only, whatever path it says.
    """
    size = os.path.getsize(path)
    flags = faiss.IO_FLAG_ONDISK_SAME_DIR | faiss.IO_FLAG_READ_ONLY
    if not hasattr(faiss, "set_deserialization_vector_byte_limit"):  # FAISS below 1.14.2
        return faiss.read_index(str(path), flags)
    with _READING:
        before = faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()
        faiss.set_deserialization_vector_byte_limit(ALLOCATED_PER_BYTE * size + 1)
        faiss.set_deserialization_loop_limit(size)
        try:
            return faiss.read_index(str(path), flags)
        finally:
            faiss.set_deserialization_vector_byte_limit(before[0])
            faiss.set_deserialization_loop_limit(before[1])


def _kinds(faiss: Any, index: Any) -> list[str]:
    """The types of an index and of the indexes and lists inside it."""
    kinds = [type(index).__name__]
    for name in ("storage", "quantizer"):
        inner = getattr(index, name, None)
        if inner is not None:
            kinds += _kinds(faiss, faiss.downcast_index(inner))
    lists = getattr(index, "invlists", None)
    if lists is not None:
        kinds.append(type(faiss.downcast_InvertedLists(lists)).__name__)
    return kinds


FLOAT32_BYTES = 4


class FlatIndex(FaissIndex):
    """Every row is compared with the query (faiss.IndexFlatIP). Its one effort is 0."""

    name: ClassVar[str] = "flat"

    def _make(self) -> Any:
        return self._faiss.IndexFlatIP(self.dim)

    @override
    def _search_parameters(self, effort: int, selector: Any) -> Any:
        return None if selector is None else self._faiss.SearchParameters(sel=selector)

    @override
    def bytes_touched(self, queries: Float32Array, shortlist: int, effort: int) -> int:
        """Every row."""
        return self.nbytes

    def efforts(self) -> tuple[int, ...]:
        """Flat search has no effort to choose: (0,)."""
        return (0,)

    @property
    def nbytes(self) -> int:
        """Bytes of the float32 rows."""
        return int(self._index.codes.size())

    @override
    @classmethod
    def estimate_nbytes(cls, n: int, dim: int, settings: Mapping[str, int]) -> int:
        """Exactly n * dim * 4."""
        return n * dim * FLOAT32_BYTES
