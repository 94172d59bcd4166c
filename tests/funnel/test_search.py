"""Scores as every answer gives them: cosines, whatever the rounding of stored rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from funnel import FunnelIndex
from tests.funnel.corpora import brute_force


def test_cosines_stay_between_minus_1_and_1(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((250, 2)).astype(np.float32)
    documents = [{"_id": str(i), "text": f"t{i}", "vector": row.tolist()} for i, row in enumerate(rows)]
    index = FunnelIndex.build(documents, tmp_path / "index", dtype="float16", progress=False)
    stored = np.linalg.norm(index.searcher.cascade.store.whole().numpy(), axis=1)
    assert stored.max() > 1 + 1e-5  # in float16: products with such rows pass 1, and -1
    _, cosines = brute_force(rows, rows, 250)
    for options in ({}, {"where": "id != 'none'"}, {"deadline_ms": 60_000}):
        scores = index.search_vectors(rows, k=250, **options).scores
        assert -1 <= scores.min() < -1 + 1e-3
        assert 1 - 1e-6 < scores.max() <= 1
        np.testing.assert_allclose(scores, cosines, atol=5e-4)
    for hit in index.search(rows[0], text="t0", hybrid=0.5, k=5):
        assert hit.ranks is not None
        assert hit.ranks.cosine is None or hit.ranks.cosine <= 1
    short = index.search_vectors(rows[:1], k=300, where="id IN ('1', '2')").scores
    assert np.isneginf(short[0, 2:]).all()
    assert np.isfinite(short[0, :2]).all()
