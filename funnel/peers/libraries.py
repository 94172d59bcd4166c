"""Every peer behind one small shape: build settings, a search, and the knob that trades recall for time."""

from __future__ import annotations

import math
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from typing_extensions import override

__all__ = ["ABSENT", "PEERS", "Peer"]

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Knob = Mapping[str, Any]

EFS = (10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
PROBES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
REORDERED = (50, 100, 200, 400, 800)  # candidates that ScaNN scores exactly
LEVELS = 8  # of FAISS's Panorama
EPSILONS = (0.0, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.14, 0.2, 0.3, 0.4)  # of NGT
REFINED = (2, 4, 8, 16, 32)  # times k, for FAISS's refinement


def _lists(n: int) -> int:
    """4 sqrt(n), FAISS's own rule of thumb (wiki, "Guidelines to choose an index")."""
    return max(1, min(round(4 * math.sqrt(n)), n // 39 or 1))


class Peer(ABC):
    """One library and kind of index. `builds`: settings tried, by name; each is a curve of its own."""

    builds: ClassVar[Mapping[str, Mapping[str, Any]]] = {"default": {}}

    def __init__(self, dim: int, threads: int, k: int) -> None:
        self.dim, self.threads, self.k = dim, threads, k

    @staticmethod
    @abstractmethod
    def version() -> str:
        """The library and its version. ImportError where it is not installed."""

    @abstractmethod
    def build(self, rows: Float32, settings: Mapping[str, Any]) -> None:
        """Index unit rows float32 [n, d]."""

    @abstractmethod
    def knobs(self, n: int) -> Sequence[Knob]:
        """What to sweep."""

    @abstractmethod
    def search(self, queries: Float32, knob: Knob) -> Int64:
        """Row numbers [q, k]."""


def _faiss() -> Any:
    import faiss

    return faiss


class _Faiss(Peer):
    factory: ClassVar[str]

    @property
    def faiss(self) -> Any:
        """The library, which is imported when it is first asked for, and has few types."""
        return _faiss()

    @staticmethod
    def version() -> str:
        return f"faiss {_faiss().__version__}"

    def build(self, rows: Float32, settings: Mapping[str, Any]) -> None:
        self.faiss.omp_set_num_threads(self.threads)
        description = self.factory.format(lists=_lists(len(rows)), half=self.dim // 2, **settings)
        self.index = self.faiss.index_factory(self.dim, description, self.faiss.METRIC_INNER_PRODUCT)
        self.prepare(settings)
        self.index.train(rows)
        self.index.add(rows)

    def prepare(self, settings: Mapping[str, Any]) -> None:
        """Set what the factory string does not say."""

    def search(self, queries: Float32, knob: Knob) -> Int64:
        found: Int64 = self.index.search(queries, self.k, params=self.parameters(knob))[1]
        return found

    def parameters(self, knob: Knob) -> Any:
        """FAISS's search parameters; None: its own."""


class FaissFlat(_Faiss):
    """IndexFlatIP at the fastest of three BLAS thresholds."""

    factory = "Flat"

    @override
    def knobs(self, n: int) -> Sequence[Knob]:
        return [{"threshold": threshold} for threshold in (1, 1_600, 128_000)]

    def search(self, queries: Float32, knob: Knob) -> Int64:
        self.faiss.cvar.distance_compute_blas_threshold = knob["threshold"]
        return super().search(queries, {})


class FaissHnsw(_Faiss):
    """IndexHNSWFlat."""

    factory = "HNSW{degree}"
    builds: ClassVar[Mapping[str, Mapping[str, Any]]] = {"degree 32": {"degree": 32}, "degree 16": {"degree": 16}}

    @override
    def prepare(self, settings: Mapping[str, Any]) -> None:
        self.index.hnsw.efConstruction = 200

    @override
    def knobs(self, n: int) -> Sequence[Knob]:
        return [{"ef": ef} for ef in EFS]

    def parameters(self, knob: Knob) -> Any:
        return self.faiss.SearchParametersHNSW(efSearch=knob["ef"], bounded_queue=False)


class FaissHnswSq8(FaissHnsw):
    """IndexHNSWSQ: the graph over rows of 8 bits a dim."""

    factory = "HNSW{degree}_SQ8"
    builds: ClassVar[Mapping[str, Mapping[str, Any]]] = {"degree 32": {"degree": 32}}


class _InPcaAxes(FaissHnsw):
    """Panorama abandons rows early by the energy that is left, which falls along the axes of PCA; it takes L2 alone."""

    builds: ClassVar[Mapping[str, Mapping[str, Any]]] = {"degree 32": {"degree": 32}}

    @override
    def build(self, rows: Float32, settings: Mapping[str, Any]) -> None:
        self.faiss.omp_set_num_threads(self.threads)
        turn = self.faiss.PCAMatrix(self.dim, self.dim)
        turn.train(rows[: 40 * self.dim])
        self.kept = (turn, *self.parts(settings))
        self.kept[1].hnsw.efConstruction = 200
        self.index = self.faiss.IndexPreTransform(turn, self.kept[-1])
        self.index.train(rows)
        self.index.add(rows)

    @abstractmethod
    def parts(self, settings: Mapping[str, Any]) -> tuple[Any, ...]:
        """The graph first, what is searched last."""

    def parameters(self, knob: Knob) -> Any:
        return self.faiss.SearchParametersPreTransform(index_params=self.inner(knob))

    def inner(self, knob: Knob) -> Any:
        """Of what is searched."""
        return super().parameters(knob)


class FaissHnswPanorama(_InPcaAxes):
    """IndexHNSWFlatPanorama."""

    @override
    def parts(self, settings: Mapping[str, Any]) -> tuple[Any, ...]:
        return (self.faiss.IndexHNSWFlatPanorama(self.dim, settings["degree"], LEVELS),)


class FaissSq8RefinePanorama(_InPcaAxes):
    """IndexHNSWSQ, refined by IndexRefinePanorama with float32 rows."""

    @override
    def parts(self, settings: Mapping[str, Any]) -> tuple[Any, ...]:
        graph = self.faiss.IndexHNSWSQ(self.dim, self.faiss.ScalarQuantizer.QT_8bit, settings["degree"])
        rows = self.faiss.IndexFlatL2Panorama(self.dim, LEVELS, 1)  # what is refined with goes row by row
        return graph, rows, self.faiss.IndexRefinePanorama(graph, rows)

    @override
    def knobs(self, n: int) -> Sequence[Knob]:
        return [{"ef": ef, "factor": factor} for ef in EFS for factor in (1.5, 3) if factor * self.k <= 2 * ef]

    def inner(self, knob: Knob) -> Any:
        found = super().inner(knob)
        return self.faiss.IndexRefineSearchParameters(k_factor=knob["factor"], base_index_params=found)


class _FaissIvf(_Faiss):
    def knobs(self, n: int) -> Sequence[Knob]:
        return [{"nprobe": probes} for probes in PROBES if probes <= _lists(n)]

    def parameters(self, knob: Knob) -> Any:
        return self.faiss.SearchParametersIVF(nprobe=knob["nprobe"])


class FaissPanorama(_FaissIvf):
    """IndexIVFFlatPanorama: exact within the probed lists, with early abandoning."""

    factory = "IVF{lists},FlatPanorama8"


class _Refined(_FaissIvf):
    def knobs(self, n: int) -> Sequence[Knob]:
        return [{**knob, "factor": factor} for knob in super().knobs(n) for factor in REFINED]

    def parameters(self, knob: Knob) -> Any:
        inner = self.faiss.SearchParametersIVF(nprobe=knob["nprobe"])
        return self.faiss.IndexRefineSearchParameters(k_factor=knob["factor"], base_index_params=inner)


class FaissPq(_Refined):
    """IVF-PQ FastScan, 4 bits for two dims, refined with the float32 rows."""

    factory = "IVF{lists},PQ{half}x4fs,RFlat"


class FaissRaBitQ(_Refined):
    """IVF-RaBitQ FastScan, one bit a dim, refined with the float32 rows."""

    factory = "IVF{lists},RaBitQfs,RFlat"


class Hnswlib(Peer):
    """hnswlib, inner product of unit rows."""

    builds: ClassVar[Mapping[str, Mapping[str, Any]]] = {"M 16": {"M": 16}, "M 32": {"M": 32}}

    @staticmethod
    def version() -> str:
        from importlib.metadata import version

        import hnswlib  # noqa: F401

        return f"hnswlib {version('hnswlib')}"

    def build(self, rows: Float32, settings: Mapping[str, Any]) -> None:
        import hnswlib

        self.index = hnswlib.Index(space="ip", dim=self.dim)
        self.index.init_index(max_elements=len(rows), ef_construction=200, M=settings["M"])
        self.index.set_num_threads(self.threads)
        self.index.add_items(rows)

    @override
    def knobs(self, n: int) -> Sequence[Knob]:
        return [{"ef": ef} for ef in EFS]

    def search(self, queries: Float32, knob: Knob) -> Int64:
        self.index.set_ef(max(self.k, knob["ef"]))
        labels: Int64 = self.index.knn_query(queries, k=self.k)[0].astype(np.int64)
        return labels


class Usearch(Peer):
    """usearch, inner product, over float32 or its own int8."""

    builds: ClassVar[Mapping[str, Mapping[str, Any]]] = {"f32": {"dtype": "f32"}, "i8": {"dtype": "i8"}}

    @staticmethod
    def version() -> str:
        import usearch
        import usearch.index  # the part that needs its compiled half

        return f"usearch {usearch.__version__}"

    def build(self, rows: Float32, settings: Mapping[str, Any]) -> None:
        from usearch.index import Index

        self.index: Any = Index(
            ndim=self.dim, metric="cos", dtype=settings["dtype"], connectivity=16, expansion_add=200
        )
        self.index.add(np.arange(len(rows)), rows, threads=self.threads)

    @override
    def knobs(self, n: int) -> Sequence[Knob]:
        return [{"ef": ef} for ef in EFS]

    def search(self, queries: Float32, knob: Knob) -> Int64:
        self.index.expansion_search = max(self.k, knob["ef"])  # type: ignore[misc, unused-ignore]  # has a setter
        keys = self.index.search(queries, self.k, threads=self.threads).keys
        return np.asarray(keys, dtype=np.int64).reshape(len(queries), -1)


class Scann(Peer):
    """ScaNN: tree, anisotropic hashing, exact reordering."""

    @staticmethod
    def version() -> str:
        from importlib.metadata import version

        import scann  # noqa: F401

        return f"scann {version('scann')}"

    @override
    def build(self, rows: Float32, settings: Mapping[str, Any]) -> None:
        import scann

        leaves, sample = max(1, round(2 * math.sqrt(len(rows)))), min(len(rows), 100_000)
        self.index = (
            scann.scann_ops_pybind.builder(rows, self.k, "dot_product")
            .set_n_training_threads(self.threads)
            .tree(num_leaves=leaves, num_leaves_to_search=leaves // 10 + 1, training_sample_size=sample)
            .score_ah(2, anisotropic_quantization_threshold=0.2)
            .reorder(100)
            .build()
        )
        self.index.set_num_threads(self.threads)

    def knobs(self, n: int) -> Sequence[Knob]:
        leaves = round(2 * math.sqrt(n))
        return [
            {"leaves": probes, "reorder": reorder}
            for probes in PROBES
            if probes <= leaves
            for reorder in REORDERED
            if reorder >= self.k
        ]

    def search(self, queries: Float32, knob: Knob) -> Int64:
        arguments = {"leaves_to_search": knob["leaves"], "pre_reorder_num_neighbors": knob["reorder"]}
        if len(queries) == 1:
            found = self.index.search(queries[0], self.k, **arguments)[0][None, :]
        else:
            found = self.index.search_batched_parallel(queries, self.k, **arguments)[0]
        return _padded(np.asarray(found, dtype=np.int64), self.k)


class _Svs(Peer):
    """Intel's graph over compressed rows."""

    @staticmethod
    def version() -> str:
        import svs

        return f"svs {svs.library_version()}"

    @override
    def build(self, rows: Float32, settings: Mapping[str, Any]) -> None:
        import svs

        with tempfile.NamedTemporaryFile(suffix=".fvecs") as file:
            heads = np.full((len(rows), 1), self.dim, dtype=np.int32).view(np.float32)
            np.hstack([heads, rows]).tofile(file.name)
            loader = self.loader(svs, svs.VectorDataLoader(file.name, svs.float32, self.dim), settings)
            asked = svs.VamanaBuildParameters(alpha=0.95, graph_max_degree=64, window_size=128)
            self.index = svs.Vamana.build(asked, loader, svs.MIP, num_threads=self.threads)
        self.using = self.threads

    @abstractmethod
    def loader(self, svs: Any, rows: Any, settings: Mapping[str, Any]) -> Any:
        """What compresses the rows."""

    @override
    def knobs(self, n: int) -> Sequence[Knob]:
        return [{"window": window} for window in EFS if window >= self.k]

    @override
    def search(self, queries: Float32, knob: Knob) -> Int64:
        using = self.threads if len(queries) > 1 else 1
        if using != self.using:  # which ends threads and starts others
            self.index.num_threads = self.using = using
        self.index.search_window_size = knob["window"]
        return np.asarray(self.index.search(queries, self.k)[0], dtype=np.int64)


class SvsLvq(_Svs):
    """Vamana over LVQ: 4 bits a dim, and 8 of what is left for the last scores."""

    builds: ClassVar[Mapping[str, Mapping[str, Any]]] = {"LVQ4x8": {"primary": 4, "residual": 8}}

    def loader(self, svs: Any, rows: Any, settings: Mapping[str, Any]) -> Any:
        return svs.LVQLoader(rows, **settings)


class SvsLeanVec(_Svs):
    """Vamana over LeanVec: fewer dims of 8 bits, then 8 bits of all."""

    builds: ClassVar[Mapping[str, Mapping[str, Any]]] = {"a sixth of the dims": {"of": 6}, "half": {"of": 2}}

    def loader(self, svs: Any, rows: Any, settings: Mapping[str, Any]) -> Any:
        dims = max(32, self.dim // settings["of"] // 32 * 32)
        return svs.LeanVecLoader(rows, dims, svs.LeanVecKind.lvq8, svs.LeanVecKind.lvq8)


class Ngt(Peer):
    """NGT's ANNG. Its wheel brings nothing that makes a quantized graph."""

    @staticmethod
    def version() -> str:
        from importlib.metadata import version

        import ngtpy  # noqa: F401

        return f"ngt {version('ngt')}"

    @override
    def build(self, rows: Float32, settings: Mapping[str, Any]) -> None:
        import ngtpy

        self.ngt, self.folder = ngtpy, tempfile.mkdtemp()
        ngtpy.create(f"{self.folder}/anng", self.dim, edge_size_for_creation=30, distance_type="Normalized Cosine")
        self.index = ngtpy.Index(f"{self.folder}/anng", log_disabled=True)
        self.index.batch_insert(rows, num_threads=self.threads)

    @override
    def knobs(self, n: int) -> Sequence[Knob]:
        return [{"epsilon": epsilon} for epsilon in EPSILONS]

    @override
    def search(self, queries: Float32, knob: Knob) -> Int64:
        self.index.set(epsilon=knob["epsilon"])
        if len(queries) == 1:
            found = self.index.search(queries[0], self.k, knob["epsilon"], with_distance=False)
            return _padded(np.asarray(found, dtype=np.int64)[None], self.k)
        results = self.ngt.BatchResults()
        self.index.batch_search(queries, results, self.k)
        rows = [[row for row, _ in results.get(number)] for number in range(len(queries))]
        return np.array([row + [-1] * (self.k - len(row)) for row in rows], dtype=np.int64)


class Lorann(Peer):
    """LoRANN: clusters, scores by regression of reduced rank, exact reordering."""

    @staticmethod
    def version() -> str:
        from importlib.metadata import version

        import lorann  # noqa: F401

        return f"lorann {version('lorann')}"

    @override
    def build(self, rows: Float32, settings: Mapping[str, Any]) -> None:
        import lorann

        reduced = None if self.dim < 200 else 128 if self.dim <= 1_000 else 256  # as its documentation says
        clusters = 2 ** round(math.log2(2 * math.sqrt(len(rows))))
        self.rows = rows
        self.index = lorann.LorannIndex(rows, clusters, reduced, distance=lorann.IP)
        self.index.build(n_threads=self.threads)

    @override
    def knobs(self, n: int) -> Sequence[Knob]:
        return [{"clusters": c, "reorder": r} for c in PROBES[2:8] for r in REORDERED if r >= self.k]

    @override
    def search(self, queries: Float32, knob: Knob) -> Int64:
        asked = (self.k, knob["clusters"], knob["reorder"])
        if len(queries) == 1:
            found = self.index.search(queries[0], *asked, n_threads=1)[None]
        else:
            found = self.index.search(queries, *asked, n_threads=self.threads)
        return np.asarray(found, dtype=np.int64)


class SymphonyQG(Peer):
    """rabitqlib's SymqgIndex at full width."""

    builds: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "degree 32": {"degree": 32, "ef_construction": 200},
        "degree 32, built with more care": {"degree": 32, "ef_construction": 300},  # as the funnel builds it
        "degree 64": {"degree": 64, "ef_construction": 200},
    }

    @staticmethod
    def version() -> str:
        from importlib.metadata import version

        import rabitqlib  # noqa: F401

        return f"rabitqlib {version('rabitqlib')}"

    def build(self, rows: Float32, settings: Mapping[str, Any]) -> None:
        import rabitqlib

        self.index = rabitqlib.SymqgIndex(self.dim, settings["degree"], metric="ip")
        self.index.build(rows, settings["ef_construction"], num_threads=self.threads)

    def knobs(self, n: int) -> Sequence[Knob]:
        return [{"ef": ef} for ef in EFS if ef <= n]

    def search(self, queries: Float32, knob: Knob) -> Int64:
        threads = self.threads if len(queries) > 1 else 1
        rows: Int64 = self.index.search(queries, self.k, max(self.k, knob["ef"]), num_threads=threads)[0]
        return rows.astype(np.int64)


class SemanticSearch(Peer):
    """sentence_transformers.util.semantic_search: exact, in torch."""

    @staticmethod
    def version() -> str:
        import sentence_transformers

        return f"sentence-transformers {sentence_transformers.__version__}"

    @override
    def build(self, rows: Float32, settings: Mapping[str, Any]) -> None:
        import torch

        torch.set_num_threads(self.threads)
        self.rows = torch.from_numpy(rows)

    @override
    def knobs(self, n: int) -> Sequence[Knob]:
        return [{}]

    @override
    def search(self, queries: Float32, knob: Knob) -> Int64:
        import torch
        from sentence_transformers.util import dot_score, semantic_search

        found = semantic_search(torch.from_numpy(queries), self.rows, top_k=self.k, score_function=dot_score)
        return np.array([[hit["corpus_id"] for hit in hits] for hits in found], dtype=np.int64)


def _padded(rows: Int64, k: int) -> Int64:
    return np.pad(rows, ((0, 0), (0, k - rows.shape[1])), constant_values=-1)


PEERS: dict[str, type[Peer]] = {
    "faiss-flat": FaissFlat,
    "faiss-hnsw": FaissHnsw,
    "faiss-hnsw-sq8": FaissHnswSq8,
    "faiss-hnsw-panorama": FaissHnswPanorama,
    "faiss-hnsw-sq8-refine-panorama": FaissSq8RefinePanorama,
    "faiss-ivfpq-refine": FaissPq,
    "faiss-ivf-panorama": FaissPanorama,
    "faiss-ivf-rabitq-refine": FaissRaBitQ,
    "hnswlib": Hnswlib,
    "usearch": Usearch,
    "scann": Scann,
    "svs-lvq": SvsLvq,
    "svs-leanvec": SvsLeanVec,
    "ngt": Ngt,
    "lorann": Lorann,
    "symphonyqg": SymphonyQG,
    "semantic-search": SemanticSearch,
}
"""Every peer by the name that `--only` takes."""

ABSENT = {
    "NGT-QG": "the wheel of ngt has no program that quantizes its graph",
    "Glass": "no package of it on the index of Python packages",
    "PAG": "no package of it on the index of Python packages; `pag` there is another program",
}
