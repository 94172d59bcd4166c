"""SymphonyQG over rows that are the same."""

from __future__ import annotations

import time

import numpy as np
import pytest

from indexes import symqg
from indexes.symqg import SymqgIndex


@pytest.mark.parametrize("in_a_file", [False, True])
def test_copies_of_a_row_take_no_longer_than_other_rows(monkeypatch: pytest.MonkeyPatch, in_a_file: bool) -> None:
    if in_a_file:
        monkeypatch.setattr(symqg, "PENDING_BYTES", 0)
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((4_000, 64)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    copies = np.tile(rows[:1], (len(rows), 1))
    queries = np.ascontiguousarray(rows[1:50])
    seconds = []
    for given in (rows, copies):
        index = SymqgIndex(64)
        index.add(given)
        before = given.copy()
        scores, found = index.search(queries, 8, 16)
        np.testing.assert_array_equal(given, before)
        np.testing.assert_allclose(scores, np.einsum("qd,qkd->qk", queries, given[found]), atol=2e-6)
        times = []
        for _ in range(3):
            started = time.perf_counter()
            index.search(queries, 8, 16)
            times.append(time.perf_counter() - started)
        seconds.append(min(times))
    assert seconds[1] < 30 * seconds[0]  # hundreds of times, where every copy is walked over


@pytest.mark.parametrize("bits", [0, 8, 4])
def test_rows_that_the_graph_does_not_reach_are_left_out(bits: int) -> None:
    """Tight groups, whose rows are linked to each other and to few of the others."""
    rng = np.random.default_rng(14)
    rows = rng.normal(size=(12, 8))[rng.integers(12, size=202)] + rng.normal(scale=1e-3, size=(202, 8))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    index = SymqgIndex(8, bits=bits)
    index.train(rows)
    index.add(rows)
    for queries in (rows[:20], rows[:1]):
        scores, found = index.search(queries, len(rows), len(rows))
        assert ((found >= 0).sum(axis=1) > len(rows) // 2).all()
        assert ((found < 0) == np.isneginf(scores)).all()
        assert (found[:, 0] == np.arange(len(queries))).mean() > 0.5 or bits
        for one in found:
            assert len(set(one[one >= 0].tolist())) == (one >= 0).sum()
