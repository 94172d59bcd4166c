"""FAISS's GPU families without a GPU: its own indexes in host memory stand where the copies on the GPU would."""

from __future__ import annotations

from typing import Any

import faiss
import pytest

from indexes import gpu
from indexes.base import Float32Array

__all__ = ["in_host_memory"]


def in_host_memory(patch: pytest.MonkeyPatch) -> None:
    """Leave indexes where they are instead of copying them to a GPU and back."""
    patch.setattr(gpu, "missing_gpu", lambda _cuvs=False: None)
    patch.setattr(gpu, "to_gpu", lambda index: index)
    patch.setattr(gpu, "to_host", lambda index: index)
    patch.setattr(gpu, "build_cagra", _graph)


def _graph(rows: Float32Array, degree: int) -> Any:
    library: Any = faiss  # whose types lack it
    index = library.IndexHNSWCagra(rows.shape[1], degree // gpu.CAGRA_DEGREE_STEP, faiss.METRIC_INNER_PRODUCT)
    index.add(rows)
    return index
