from __future__ import annotations

import numpy as np
import pytest

from indexes.base import Float32Array

DIM = 32
ROWS = 1500
CLUSTERS = 40


def clustered_rows(count: int, dim: int, seed: int) -> Float32Array:
    """Unit rows around centres that depend on `dim` alone."""
    centres = np.random.default_rng(0).normal(size=(CLUSTERS, dim))
    generator = np.random.default_rng(seed)
    rows = centres[generator.integers(CLUSTERS, size=count)] + 0.6 * generator.normal(size=(count, dim))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


@pytest.fixture(scope="session")
def rows() -> Float32Array:
    return clustered_rows(ROWS, DIM, seed=1)


@pytest.fixture(scope="session")
def queries() -> Float32Array:
    return clustered_rows(100, DIM, seed=2)
