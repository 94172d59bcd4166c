from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.wide import _flatten, caption


def test_flattened_rows_have_the_same_axes_and_the_roots_of_their_eigenvalues(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    scales = np.array([8, 4, 2, 1], dtype=np.float32)
    rows = (random.standard_normal((20_000, 4)) * scales).astype(np.float32)
    for name in ("corpus", "queries"):
        np.save(tmp_path / f"{name}-4.npy", rows)
    flat = np.load(_flatten(tmp_path, 4, 0.5))
    assert np.linalg.norm(flat, axis=1) == pytest.approx(1, abs=1e-5)
    moment = (flat.T @ flat) / len(flat)
    assert np.diag(moment).round(2).tolist() == sorted(np.diag(moment).round(2).tolist(), reverse=True)
    assert np.abs(moment - np.diag(np.diag(moment))).max() < 0.01  # its axes are those of PCA
    before, after = (float(np.median(np.abs(some[:, 0] / some[:, 3]))) for some in (rows, flat))
    assert after / before == pytest.approx(8**-0.5, rel=0.03)  # eigenvalues are squares of scales
    assert "eigenvalues to the power" not in caption(tmp_path / "corpus-4-flat0.5.npy", flat)  # no layers of MiniLM
    assert "6 layers" in caption(tmp_path / "corpus-2304-flat0.5.npy", flat)
    assert "to the power 0.5" in caption(tmp_path / "corpus-2304-flat0.5.npy", flat)
