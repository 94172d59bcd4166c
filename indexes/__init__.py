"""Coarse indexes over one prefix of an embedding, and the store of the full vectors.

Stands on its own: FAISS, numpy and torch, and nothing of `funnel`.
"""

from indexes._faiss import FaissIndex, load_faiss, use_one_thread
from indexes._placement import check_placement
from indexes.base import CoarseIndex, families, family
from indexes.baseline import FlatBaseline
from indexes.errors import CoarseIndexError, MissingBackendError
from indexes.exact import RunningTop, exact_search
from indexes.flat import FlatIndex
from indexes.gpu import CagraIndex, FaissGpuFlatIndex, FaissGpuIvfIndex
from indexes.hnsw import HnswFloat16Index, HnswSq8Index
from indexes.ivf import IvfPqIndex, IvfSq8Index
from indexes.memory import release_freed
from indexes.ordering import ClusterTree, stored_order
from indexes.pruned import PrunedSearch, Pruning
from indexes.restricted import only_allowed
from indexes.selection import Choice, choose, hnsw_settings
from indexes.symqg import SymqgIndex, symqg_installed
from indexes.torchbins import TorchBinsIndex
from indexes.vectors import VectorStore, VectorWriter

__all__ = [
    "CagraIndex",
    "Choice",
    "ClusterTree",
    "CoarseIndex",
    "CoarseIndexError",
    "FaissGpuFlatIndex",
    "FaissGpuIvfIndex",
    "FaissIndex",
    "FlatBaseline",
    "FlatIndex",
    "HnswFloat16Index",
    "HnswSq8Index",
    "IvfPqIndex",
    "IvfSq8Index",
    "MissingBackendError",
    "PrunedSearch",
    "Pruning",
    "RunningTop",
    "SymqgIndex",
    "TorchBinsIndex",
    "VectorStore",
    "VectorWriter",
    "check_placement",
    "choose",
    "exact_search",
    "families",
    "family",
    "hnsw_settings",
    "load_faiss",
    "only_allowed",
    "release_freed",
    "stored_order",
    "symqg_installed",
    "use_one_thread",
]
