"""Scores of candidates: the same, whether rows are gathered query by query or met in a pass over the matrix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from funnel.engine import measuring as scoring
from funnel.engine.measuring import score
from tests.funnel.cascades import cascade_over, stored_rows

DIM, WIDTHS = 64, (16, 32, 48, 64)


@pytest.mark.parametrize("widths", [(DIM,), (32, DIM), WIDTHS[1:]])
def test_a_pass_over_the_matrix_scores_as_gathering_does(
    widths: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((900, DIM), dtype=np.float32)
    cascade = cascade_over(rows / np.linalg.norm(rows, axis=1, keepdims=True), tmp_path, WIDTHS, "flat")[0]
    queries = generator.standard_normal((23, DIM), dtype=np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    candidates = generator.integers(-1, 900, (23, 40)).astype(np.int32)
    candidates[5] = -1
    gathered, passed = (np.full((23, 40, len(widths)), np.nan, dtype=np.float32) for _ in range(2))
    score(cascade, queries, candidates, widths, gathered)
    monkeypatch.setattr(cascade.store, "exceeds_memory", True)
    for name, value in {"PAIRS_SORTED": 200, "PAIRS_SCORED": 7, "CELLS_AT_A_TIME": 100 * DIM}.items():
        monkeypatch.setattr(scoring, name, value)
    score(cascade, queries, candidates, widths, passed)
    assert np.isneginf(passed[candidates < 0]).all()
    assert np.isfinite(passed[candidates >= 0]).all()
    np.testing.assert_allclose(passed, gathered, atol=2e-6)
    exact = np.einsum("qd,qsd->qs", queries, stored_rows(cascade)[candidates])
    np.testing.assert_allclose(passed[:, :, -1][candidates >= 0], exact[candidates >= 0], atol=2e-6)
