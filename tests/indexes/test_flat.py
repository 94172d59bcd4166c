from __future__ import annotations

import numpy as np

from indexes import FlatIndex
from indexes.base import Float32Array


def test_flat_search_is_exact(rows: Float32Array, queries: Float32Array) -> None:
    index = FlatIndex(rows.shape[1])
    index.add(rows)
    scores, found = index.search(queries, 10, 0)
    true = -np.sort(-(queries @ rows.T), axis=1)[:, :10]
    np.testing.assert_allclose(scores, true, atol=1e-6)
    np.testing.assert_allclose(np.einsum("qd,qkd->qk", queries, rows[found]), true, atol=1e-6)


def test_flat_bytes_are_exact(rows: Float32Array) -> None:
    index = FlatIndex(rows.shape[1])
    index.add(rows)
    assert index.nbytes == rows.nbytes == FlatIndex.estimate_nbytes(len(rows), rows.shape[1], {})
