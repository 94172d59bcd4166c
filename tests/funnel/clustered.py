"""Rows as embeddings lie: in clusters, with a spectrum that falls, so that short prefixes hold most of a cosine."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["clustered_rows"]

CLUSTERS = 60
DECAY = 0.6  # the standard deviation of dim i is (i + 1) ** -DECAY


def clustered_rows(count: int, dim: int = 64, seed: int = 1, spread: float = 0.7) -> npt.NDArray[np.float32]:
    """Unit rows [count, dim] around centres that depend on `dim` alone."""
    scale = np.arange(1, dim + 1) ** -DECAY
    centres = np.random.default_rng(0).normal(size=(CLUSTERS, dim)) * scale
    generator = np.random.default_rng(seed)
    rows = centres[generator.integers(CLUSTERS, size=count)] + spread * scale * generator.normal(size=(count, dim))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)
