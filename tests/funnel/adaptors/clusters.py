"""Vectors whose neighbours prefixes can keep or lose."""

import numpy as np
import numpy.typing as npt


def clustered(n: int, dim: int = 32, seed: int = 0, clusters: int = 40, spread: float = 0.6) -> npt.NDArray[np.float32]:
    """Unit rows around centres, the noise strong in other dims than the centres: PCA helps, training helps more."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(np.random.default_rng(99).standard_normal((dim, dim)))[0]
    shrinking = np.linspace(1.0, 0.15, dim)
    centres = np.random.default_rng(7).standard_normal((clusters, dim)) * shrinking
    noise = rng.standard_normal((n, dim)) * shrinking[(5 * np.arange(dim)) % dim] * spread
    rows = (centres[rng.integers(0, clusters, n)] + noise) @ turn
    result: npt.NDArray[np.float32] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return result
