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
