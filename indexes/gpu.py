"""FAISS on a GPU: flat search, inverted files, and CAGRA graphs where FAISS was built with cuVS.

FAISS's classic GPU indexes ignore an `IDSelector` without a word (GpuIndexIVF::searchImpl_ reads nprobe alone; CAGRA
drops it too), so none of these is handed one: flat search filters with a mask on the device, and the others search the
same index in host memory, which honours it.
"""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from threading import Lock, RLock
from typing import Any, ClassVar

import numpy as np
import torch
from typing_extensions import override

from indexes._devicerows import DeviceRows
from indexes._faiss import FaissIndex, load_faiss
from indexes.base import LARGEST_DEGREE, Allowed, CoarseIndex, Float32Array, Int64Array, check_prefixes, check_sample
from indexes.errors import CoarseIndexError, MissingBackendError
from indexes.exact import ExactTop
from indexes.ivf import FLOAT32_BYTES, IvfSq8Index
from indexes.system import free_in_children

# itopk_size, the length of CAGRA's list of candidates: a multiple of 32, and at most 512 in one thread block.
CAGRA_EFFORTS = (32, 64, 96, 128, 192, 256, 384, 512)
CAGRA_DEGREE_STEP = 2  # the copy in host memory is a graph of half that degree, twice on its base level
INTERMEDIATE_DEGREES = 2  # the graph that is pruned has twice as many links (cuVS's own ratio: 128 to 64)
LINK_BYTES = 4
CLUSTERING = ("niter", "max_points_per_centroid", "min_points_per_centroid", "seed")

# FAISS's resources serve one thread at a time.
_one_at_a_time = free_in_children(RLock())


def missing_gpu(cuvs: bool = False) -> str | None:
    """Why FAISS cannot search on a GPU here; None where it can. cuvs: what needs FAISS built with cuVS."""
    try:
        faiss = load_faiss()
    except MissingBackendError as error:
        return str(error)
    if not hasattr(faiss, "StandardGpuResources"):
        return f"faiss {faiss.__version__} was built without GPU support; install one of the extras gpu and cuvs"
    if cuvs and not hasattr(faiss, "GpuIndexCagra"):
        return f"faiss {faiss.__version__} was built without cuVS; install the extra cuvs (faiss-gpu-cuvs)"
    if not torch.cuda.is_available() or faiss.get_num_gpus() < 1:
        return "no CUDA device is to be found here; choose a family that runs on the CPU"
    return None


@lru_cache(maxsize=1)
def _resources() -> Any:
    return load_faiss().StandardGpuResources()


def to_gpu(index: Any) -> Any:
    """A FAISS index in host memory, copied to torch's current device."""
    return load_faiss().index_cpu_to_gpu(_resources(), torch.cuda.current_device(), index)


def to_host(index: Any) -> Any:
    """A FAISS index on a GPU, copied to host memory."""
    return load_faiss().index_gpu_to_cpu(index)


def _follow_torch() -> None:
    """Have FAISS queue its work behind torch's, so that neither waits for the device."""
    stream = load_faiss().cast_integer_to_cudastream_t(torch.cuda.current_stream().cuda_stream)
    _resources().setDefaultStream(torch.cuda.current_device(), stream)


class FaissGpuFlatIndex(DeviceRows):
    """Every prefix compared by FAISS (bfKnn, float16); its one effort is 0. With a filter torch does it, masked."""

    name: ClassVar[str] = "faiss-gpu-flat"

    @classmethod
    def missing(cls) -> str | None:
        """Why FAISS cannot search on a GPU here."""
        return missing_gpu()

    def efforts(self) -> tuple[int, ...]:
        """Flat search has no effort to choose: (0,)."""
        return (0,)

    @override
    def _scan(
        self, queries: torch.Tensor, shortlist: int, effort: int, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if mask is None and self._device.type == "cuda":
            return brute_force(queries, self._rows, min(shortlist, len(self._rows)))
        top = ExactTop(shortlist)
        for start, products in self._blocks(queries):
            if mask is not None:
                products.masked_fill_(~mask[start : start + products.shape[1]], -torch.inf)
            top.update(products, start)
        return top.best()


def brute_force(queries: torch.Tensor, rows: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """FAISS's exact search over float16 tensors on a GPU: scores float32 [q, k] and places int64 [q, k]."""
    faiss, queries = load_faiss(), queries.contiguous()
    scores = torch.empty((len(queries), k), device=rows.device)
    places = torch.empty((len(queries), k), dtype=torch.int64, device=rows.device)
    asked = faiss.GpuDistanceParams()
    asked.metric, asked.k, asked.dims = faiss.METRIC_INNER_PRODUCT, k, rows.shape[1]
    asked.vectors, asked.numVectors = faiss.cast_integer_to_void_ptr(rows.data_ptr()), len(rows)
    asked.queries, asked.numQueries = faiss.cast_integer_to_void_ptr(queries.data_ptr()), len(queries)
    asked.vectorType = asked.queryType = faiss.DistanceDataType_F16
    asked.vectorsRowMajor = asked.queriesRowMajor = True
    asked.outDistances = faiss.cast_integer_to_float_ptr(scores.data_ptr())
    asked.outIndices = faiss.cast_integer_to_void_ptr(places.data_ptr())
    asked.outIndicesType, asked.device = faiss.IndicesDataType_I64, torch.cuda.current_device()
    if len(queries):
        with _one_at_a_time:
            _follow_torch()
            faiss.bfKnn(_resources(), asked)
    return scores, places


class _OnGpu(FaissIndex):
    """A FAISS index that lies on a GPU, and its copy in host memory, made when it is needed.

    The copy is what is saved, and what filtered searches run on. `host_family` is how it searches.
    """

    host_family: ClassVar[type[FaissIndex]]
    needs_cuvs: ClassVar[bool] = False

    def __init__(self, dim: int, **settings: int) -> None:
        self._copy: FaissIndex | None = None
        self._copying = free_in_children(Lock())
        super().__init__(dim, **settings)

    @classmethod
    def missing(cls) -> str | None:
        """Why FAISS cannot search on a GPU here."""
        return missing_gpu(cls.needs_cuvs)

    @property
    def device(self) -> torch.device:
        """The GPU; the CPU where the index stayed in host memory."""
        return torch.device("cuda", torch.cuda.current_device()) if self._on_gpu else torch.device("cpu")

    @property
    def _on_gpu(self) -> bool:
        return hasattr(self._index, "getDevice")

    def _adopt(self, index: Any) -> None:
        super()._adopt(to_gpu(index))
        self._copy = None

    def _blank(self) -> Any:
        return self._make()

    def add(self, prefixes: Float32Array) -> None:
        super().add(prefixes)
        self._copy = None

    def restricted(self, allowed: Allowed) -> CoarseIndex:
        return CoarseIndex.restricted(self, allowed)  # FAISS's would be a view with a selector, which GPUs ignore

    def search(
        self, queries: Float32Array, shortlist: int, effort: int, allowed: Allowed | None = None
    ) -> tuple[Float32Array, Int64Array]:
        if allowed is not None:
            return self._in_host_memory().search(queries, shortlist, effort, allowed)
        with _one_at_a_time:
            return super().search(queries, shortlist, effort)

    def search_tensors(
        self, queries: torch.Tensor, shortlist: int, effort: int, allowed: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `CoarseIndex.search_tensors`. Filtered, the queries go to host memory and the rows come back."""
        if allowed is not None:
            found = self._in_host_memory().search(queries.cpu().numpy(), shortlist, effort, allowed.cpu().numpy())
            return torch.from_numpy(found[0]).to(queries.device), torch.from_numpy(found[1]).to(queries.device)
        scores = torch.full((len(queries), shortlist), -torch.inf, device=queries.device)
        rows = torch.full((len(queries), shortlist), -1, dtype=torch.int64, device=queries.device)
        if len(queries) and self.ntotal:
            self._fill(queries.contiguous(), effort, scores, rows)
        return scores.masked_fill_(rows < 0, -torch.inf), rows

    def _fill(self, queries: torch.Tensor, effort: int, scores: torch.Tensor, rows: torch.Tensor) -> None:
        faiss = self._faiss
        pointers = faiss.cast_integer_to_float_ptr(scores.data_ptr()), faiss.cast_integer_to_idx_t_ptr(rows.data_ptr())
        asked = faiss.cast_integer_to_float_ptr(queries.data_ptr())
        with _one_at_a_time:
            _follow_torch()
            self._search_c(len(queries), asked, scores.shape[1], *pointers, self._effort_parameters(effort))

    def save(self, path: Path) -> None:
        """Write the copy in host memory."""
        self._in_host_memory().save(path)

    def _in_host_memory(self) -> FaissIndex:
        with self._copying:
            if self._copy is None:
                with _one_at_a_time:
                    index = to_host(self._index)
                copy = self.host_family(self.dim, **self.settings)
                copy._adopt(index)
                self._copy = copy
            return self._copy


class FaissGpuIvfIndex(_OnGpu, IvfSq8Index):
    """Cells of 8-bit codes on a GPU (faiss.GpuIndexIVFScalarQuantizer); effort is nprobe."""

    name: ClassVar[str] = "faiss-gpu-ivf"
    host_family: ClassVar[type[FaissIndex]] = IvfSq8Index

    @override
    def bytes_touched(self, queries: Float32Array, shortlist: int, effort: int) -> int | None:  # type: ignore[override]
        """FAISS does not count on a GPU."""
        return None

    def _adopt(self, index: Any) -> None:
        super()._adopt(index)
        for setting in CLUSTERING:  # which FAISS does not copy
            setattr(self._index.cp, setting, getattr(index.cp, setting))


class _CagraInHostMemory(FaissIndex):
    """A CAGRA graph as FAISS searches it on the CPU: HNSW's base level."""

    name: ClassVar[str] = "faiss-cagra"
    default_settings: ClassVar[Mapping[str, int]] = {"degree": 32}
    settings_taken: ClassVar[Mapping[str, range]] = {
        "degree": range(CAGRA_DEGREE_STEP, LARGEST_DEGREE + 1, CAGRA_DEGREE_STEP)
    }

    def _make(self) -> Any:
        faiss = self._faiss
        return faiss.IndexHNSWCagra(self.dim, self._settings["degree"] // CAGRA_DEGREE_STEP, faiss.METRIC_INNER_PRODUCT)

    def _search_parameters(self, effort: int, selector: Any) -> Any:
        return self._faiss.SearchParametersHNSW(efSearch=effort, bounded_queue=selector is not None, sel=selector)

    def _signature(self, index: Any) -> dict[str, object]:
        return {"degree": index.hnsw.nb_neighbors(0)}

    def efforts(self) -> tuple[int, ...]:
        return CAGRA_EFFORTS

    @property
    def nbytes(self) -> int:
        return self.estimate_nbytes(self.ntotal, self.dim, self._settings)

    @classmethod
    def estimate_nbytes(cls, n: int, dim: int, settings: Mapping[str, int]) -> int:
        return n * (dim * FLOAT32_BYTES + cls.complete_settings(settings)["degree"] * LINK_BYTES)


def build_cagra(rows: Float32Array, degree: int) -> Any:
    """A CAGRA graph over unit rows [n, dim], on torch's current device."""
    faiss, config = load_faiss(), load_faiss().GpuIndexCagraConfig()
    config.graph_degree, config.intermediate_graph_degree = degree, degree * INTERMEDIATE_DEGREES
    config.device = torch.cuda.current_device()
    index = faiss.GpuIndexCagra(_resources(), rows.shape[1], faiss.METRIC_INNER_PRODUCT, config)
    with _one_at_a_time:
        index.train(rows)
    return index


class CagraIndex(_OnGpu, _CagraInHostMemory):
    """A CAGRA graph (Ootomo et al. 2023, arXiv 2308.15136) through FAISS and cuVS; effort is its itopk_size.

    Settings: `degree`, links a row, a multiple of 2. Rows are held until the first search or save: cuVS takes them all
    at once.
    """

    name: ClassVar[str] = "faiss-cagra"
    host_family: ClassVar[type[FaissIndex]] = _CagraInHostMemory
    needs_cuvs: ClassVar[bool] = True

    def __init__(self, dim: int, **settings: int) -> None:
        self._pending: list[Float32Array] = []
        self._building = free_in_children(Lock())
        super().__init__(dim, **settings)

    def train(self, prefixes: Float32Array) -> None:
        """Nothing is learnt before all rows are there: they are checked."""
        check_sample(self, prefixes)

    def add(self, prefixes: Float32Array) -> None:
        """Hold the rows for the graph; CoarseIndexError once it is built."""
        rows = check_prefixes(prefixes, self.dim)
        if self._index.ntotal:
            raise CoarseIndexError(f"{self.name} is built, and takes no more rows; build it again with all of them")
        if len(rows):
            self._pending.append(rows.copy())

    def search(
        self, queries: Float32Array, shortlist: int, effort: int, allowed: Allowed | None = None
    ) -> tuple[Float32Array, Int64Array]:
        """See `CoarseIndex.search`."""
        self._finish()
        if not self._on_gpu:  # fewer rows than a graph takes
            return self._in_host_memory().search(queries, shortlist, effort, allowed)
        return super().search(queries, shortlist, effort, allowed)

    def search_tensors(
        self, queries: torch.Tensor, shortlist: int, effort: int, allowed: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `CoarseIndex.search_tensors`."""
        self._finish()
        if not self._on_gpu and allowed is None:
            allowed = torch.ones(self.ntotal, dtype=torch.bool)
        return super().search_tensors(queries, shortlist, effort, allowed)

    def save(self, path: Path) -> None:
        """Build what is still to be built, and write the copy in host memory."""
        self._finish()
        super().save(path)

    def _adopt(self, index: Any) -> None:
        if index.ntotal > self._fewest_rows:
            super()._adopt(index)
        else:
            FaissIndex._adopt(self, index)
            self._copy = None

    @property
    def _fewest_rows(self) -> int:
        return self._settings["degree"] * INTERMEDIATE_DEGREES

    def _finish(self) -> None:
        with self._building:
            if self._pending:
                rows = np.concatenate(self._pending)
                self._pending.clear()
                if len(rows) > self._fewest_rows:
                    graph = build_cagra(rows, self._settings["degree"])
                else:
                    graph = self._make()
                    graph.add(rows)
                FaissIndex._adopt(self, graph)
                self._copy = None

    @override
    def _search_parameters(self, effort: int, selector: Any) -> Any:
        return self._faiss.SearchParametersCagra(itopk_size=effort)

    def largest_shortlist(self, effort: int) -> int:
        """itopk_size."""
        return min(effort, self.ntotal)

    @property
    def ntotal(self) -> int:
        """Rows held."""
        return int(self._index.ntotal) + sum(map(len, self._pending))
