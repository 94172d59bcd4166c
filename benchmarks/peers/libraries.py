"""Every peer behind one small shape: build settings, a search, and the knob that trades recall for time."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from typing_extensions import override

__all__ = ["PEERS", "Peer"]

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Knob = Mapping[str, Any]

EFS = (10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
PROBES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
REORDERED = (50, 100, 200, 400, 800)  # candidates that ScaNN scores exactly
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
    builds: ClassVar[Mapping[str, Mapping[str, Any]]] = {"degree 16": {"degree": 16}, "degree 32": {"degree": 32}}

    @override
    def prepare(self, settings: Mapping[str, Any]) -> None:
        self.index.hnsw.efConstruction = 200

    @override
    def knobs(self, n: int) -> Sequence[Knob]:
        return [{"ef": ef} for ef in EFS]

    def parameters(self, knob: Knob) -> Any:
        return self.faiss.SearchParametersHNSW(efSearch=knob["ef"], bounded_queue=False)


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
            {"leaves": probes, "reorder": reorder} for probes in PROBES if probes <= leaves for reorder in REORDERED
        ]

    def search(self, queries: Float32, knob: Knob) -> Int64:
        arguments = {"leaves_to_search": knob["leaves"], "pre_reorder_num_neighbors": knob["reorder"]}
        if len(queries) == 1:
            found = self.index.search(queries[0], self.k, **arguments)[0][None, :]
        else:
            found = self.index.search_batched_parallel(queries, self.k, **arguments)[0]
        return _padded(np.asarray(found, dtype=np.int64), self.k)


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
    "faiss-ivfpq-refine": FaissPq,
    "faiss-ivf-panorama": FaissPanorama,
    "faiss-ivf-rabitq-refine": FaissRaBitQ,
    "hnswlib": Hnswlib,
    "usearch": Usearch,
    "scann": Scann,
    "symphonyqg": SymphonyQG,
    "semantic-search": SemanticSearch,
}
"""Every peer by the name that `--only` takes."""
