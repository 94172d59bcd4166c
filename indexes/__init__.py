"""Coarse indexes over one prefix of an embedding, and the store of the full vectors.

Stands on its own: FAISS, numpy and torch, and nothing of `funnel`.
"""

from typing import TYPE_CHECKING

from indexes.lazy import loaded_on_first_use

if TYPE_CHECKING:
    from indexes._faiss import FaissIndex, FlatIndex, load_faiss, use_one_thread
    from indexes.base import CoarseIndex, families, family, only_allowed
    from indexes.errors import CoarseIndexError, MissingBackendError
    from indexes.exact import FlatBaseline, RunningTop, exact_search
    from indexes.hnsw import HnswFloat16Index, HnswSq8Index
    from indexes.ivf import IvfPqIndex, IvfSq8Index
    from indexes.ordering import ClusterTree, stored_order
    from indexes.pruned import Projected, PrunedSearch, Pruning
    from indexes.selection import FamilyChoice, choose, graphs, hnsw_settings
    from indexes.symqg import SymqgIndex, symqg_installed
    from indexes.system import release_freed
    from indexes.torchbins import TorchBinsIndex
    from indexes.vectors import VectorStore, VectorWriter, check_placement

__all__ = [
    "ClusterTree",
    "CoarseIndex",
    "CoarseIndexError",
    "FaissIndex",
    "FamilyChoice",
    "FlatBaseline",
    "FlatIndex",
    "HnswFloat16Index",
    "HnswSq8Index",
    "IvfPqIndex",
    "IvfSq8Index",
    "MissingBackendError",
    "Projected",
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
    "graphs",
    "hnsw_settings",
    "load_faiss",
    "only_allowed",
    "release_freed",
    "stored_order",
    "symqg_installed",
    "use_one_thread",
]

# Where each name is, loaded on its first use (PEP 562): FAISS and torch take seconds to import.
_HOMES = {
    "FamilyChoice": "indexes.selection",
    "ClusterTree": "indexes.ordering",
    "CoarseIndex": "indexes.base",
    "CoarseIndexError": "indexes.errors",
    "FaissIndex": "indexes._faiss",
    "FlatBaseline": "indexes.exact",
    "FlatIndex": "indexes._faiss",
    "HnswFloat16Index": "indexes.hnsw",
    "HnswSq8Index": "indexes.hnsw",
    "IvfPqIndex": "indexes.ivf",
    "IvfSq8Index": "indexes.ivf",
    "MissingBackendError": "indexes.errors",
    "Projected": "indexes.pruned",
    "PrunedSearch": "indexes.pruned",
    "Pruning": "indexes.pruned",
    "RunningTop": "indexes.exact",
    "SymqgIndex": "indexes.symqg",
    "TorchBinsIndex": "indexes.torchbins",
    "VectorStore": "indexes.vectors",
    "VectorWriter": "indexes.vectors",
    "check_placement": "indexes.vectors",
    "choose": "indexes.selection",
    "exact_search": "indexes.exact",
    "families": "indexes.base",
    "family": "indexes.base",
    "graphs": "indexes.selection",
    "hnsw_settings": "indexes.selection",
    "load_faiss": "indexes._faiss",
    "only_allowed": "indexes.base",
    "release_freed": "indexes.system",
    "stored_order": "indexes.ordering",
    "symqg_installed": "indexes.symqg",
    "use_one_thread": "indexes._faiss",
}

__getattr__, __dir__ = loaded_on_first_use(globals(), _HOMES)
