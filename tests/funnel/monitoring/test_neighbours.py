"""Neighbours carried on from generation to generation are those that a search over all rows would find."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from funnel.engine.segments import ExactRows
from funnel.monitoring.drift import DEPTH, Neighbours
from tests.funnel.clustered import clustered_rows
from tests.funnel.monitoring.growing import DIM, Growing


def agrees(found: Neighbours | None, index: Growing) -> None:
    assert found is not None
    run = index.stored.queries
    assert run is not None
    truth, numbers = index.flat(run.queries, DEPTH)
    assert found.scores == pytest.approx(truth, abs=1e-5)
    assert (found.numbers == numbers).mean() > 0.999  # but for ties
    if found.added is not None:
        assert found.added == pytest.approx(np.where(numbers >= index.count, truth, -np.inf), abs=1e-5)


def test_they_are_those_of_flat_search_after_any_writes() -> None:
    index, generator = Growing(400, 60, 1), np.random.default_rng(1)
    more = clustered_rows(2_000, DIM, seed=5)
    found = Neighbours.of(index.stored, index.now())
    agrees(found, index)
    for step in range(60):
        live = np.flatnonzero(index.live)
        part = more[20 * step : 20 * step + int(generator.integers(1, 20))]
        gone = generator.choice(live, int(generator.integers(0, 12)), replace=False)
        index.write(part if step % 3 else None, gone)
        if len(index.segments) > 9:
            index.fold(int(generator.integers(2, 8)))
        assert found is not None
        found = found.then(index.now())
        agrees(found, index)
    agrees(Neighbours.of(index.stored, index.now()), index)


def test_those_around_which_everything_was_deleted() -> None:
    index = Growing(400, 60, 1)
    first = Neighbours.of(index.stored, index.now())
    assert first is not None
    index.write(clustered_rows(12, DIM, seed=5), np.arange(395))
    found = first.then(index.now())
    assert np.isneginf(found.scores[:, 17:]).all()
    assert (found.numbers[:, 17:] == -1).all()
    assert np.isfinite(found.scores[:, :12]).all()
    assert np.isfinite(first.scores).all()  # what was known before stays as it was


def test_a_write_scores_new_rows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    index = Growing(2_000, 300, 1)
    index.write(clustered_rows(1_000, DIM, seed=5))
    found = Neighbours.of(index.stored, index.now())
    assert found is not None
    scored: list[int] = []
    search = ExactRows.search

    def counted(self: ExactRows, queries: np.ndarray, k: int, live: np.ndarray | None):  # type: ignore[no-untyped-def]
        scored.append(len(queries) * self.count)
        return search(self, queries, k, live)

    monkeypatch.setattr(ExactRows, "search", counted)
    index.write(clustered_rows(3, DIM, seed=6))
    found = found.then(index.now())
    assert scored == [300 * 3]
    index.write(deleted=[2_500])
    found.then(index.now())
    assert len(scored) == 2
    assert scored[1] < 0.1 * 300 * 1_003  # for those whose neighbour it was


def test_how_far_scores_have_moved() -> None:
    index = Growing(2_000, 300, 1)
    first = Neighbours.of(index.stored, index.now())
    assert first is not None
    assert first.moved_since(first) == 0.0
    index.write(clustered_rows(5, DIM, seed=6))
    little = first.then(index.now()).moved_since(first)
    index.write(clustered_rows(1_000, DIM, seed=7))
    much = first.then(index.now()).moved_since(first)
    assert 0.0 < little < 0.02 < 0.05 < much < 0.5


def test_records_that_name_no_near_rows() -> None:
    index = Growing(400, 60, 1)
    run = index.stored.queries
    assert run is not None
    index.stored.queries = replace(run, near_rows=None, near_scores=None)
    assert Neighbours.of(index.stored, index.now()) is None
