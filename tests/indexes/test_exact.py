from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from indexes import RunningTop, VectorStore, exact, exact_search
from indexes.base import Float32Array


@pytest.fixture(scope="module", params=["float16", "float32"])
def store(request: pytest.FixtureRequest, rows: Float32Array, tmp_path_factory: pytest.TempPathFactory) -> VectorStore:
    path: Path = tmp_path_factory.mktemp("exact") / "vectors.npy"
    with VectorStore.create(path, len(rows), rows.shape[1], request.param) as writer:
        writer.write(np.arange(len(rows)), rows)
    return VectorStore.open(path)


def scores_of(store: VectorStore, queries: Float32Array) -> np.ndarray:
    result: np.ndarray = queries.astype(np.float64) @ store.matrix.double().numpy().T
    return result


@pytest.mark.parametrize("rows_at_a_time", [1, 7, 256, 1499, 1500, 10_000])
@pytest.mark.parametrize("k", [1, 10])
def test_however_many_rows_at_a_time_it_is_brute_force(
    store: VectorStore, queries: Float32Array, k: int, rows_at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact, "CELLS_AT_A_TIME", rows_at_a_time * store.dim)
    queries = queries[:20]
    true = scores_of(store, queries)
    scores, rows = exact_search(store, queries, k)
    assert (scores.dtype, rows.dtype, scores.shape, rows.shape) == (np.float32, np.int64, (20, k), (20, k))  # type: ignore[comparison-overlap]
    np.testing.assert_allclose(scores, -np.sort(-true, axis=1)[:, :k], atol=2e-6)
    np.testing.assert_allclose(np.take_along_axis(true, rows, axis=1), scores, atol=2e-6)
    assert all(len(set(row)) == k for row in rows.tolist())


def test_all_rows_may_be_asked_for(store: VectorStore, queries: Float32Array, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "CELLS_AT_A_TIME", 400 * store.dim)
    scores, rows = exact_search(store, queries[:3], store.n)
    assert (np.sort(rows, axis=1) == np.arange(store.n)).all()
    assert (np.diff(scores, axis=1) <= 0).all()


def test_pages_given_back_are_read_again(
    store: VectorStore, queries: Float32Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact, "CELLS_AT_A_TIME", 100 * store.dim)
    np.testing.assert_array_equal(exact_search(store, queries, 5, release=True)[1], exact_search(store, queries, 5)[1])


@pytest.mark.parametrize("many", [1, 10_000])
def test_a_running_top_is_the_top_of_what_came_so_far(
    rows: Float32Array, queries: Float32Array, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact, "MANY_QUERIES", many)
    monkeypatch.setattr(exact, "TILE_QUERIES", 7)
    top, k, done = RunningTop(queries, 10), 10, 0
    for size in (3, 4, 1, 500, 992):  # the first blocks hold fewer rows than are wanted
        top.update(np.ascontiguousarray(rows[done : done + size]), done)
        done += size
        true = queries @ rows[:done].T
        kept = min(k, done)
        assert top.scores.shape == top.rows.shape == (len(queries), kept)
        np.testing.assert_allclose(top.scores, -np.sort(-true, axis=1)[:, :kept], atol=2e-6)
        np.testing.assert_allclose(np.take_along_axis(true, top.rows, axis=1), top.scores, atol=2e-6)


@pytest.mark.parametrize("order", [1, -1])
def test_many_queries_find_rows_that_come_best_last_or_first(order: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "MANY_QUERIES", 1)
    angles = np.linspace(1.5, 0.0, 600)[::order].astype(np.float32)
    rows = np.ascontiguousarray(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    queries = np.array([[1, 0], [0.8, 0.6]], dtype=np.float32)
    queries.setflags(write=False)
    top = RunningTop(queries, 20)
    for start in range(0, 600, 100):
        top.update(rows[start : start + 100], start)
    true = queries @ rows.T
    np.testing.assert_allclose(top.scores, -np.sort(-true, axis=1)[:, :20], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(true, top.rows, axis=1), top.scores, atol=1e-6)


def test_blocks_keep_their_own_numbers(rows: Float32Array) -> None:
    top = RunningTop(rows[:5].copy(), 1)
    top.update(rows[:100].copy(), 1_000)
    assert top.rows[:, 0].tolist() == [1000, 1001, 1002, 1003, 1004]


@pytest.mark.parametrize("rows_at_a_time", [100, 10_000])
@pytest.mark.parametrize("left", [0, 3, 700])
def test_only_live_rows_are_found(
    store: VectorStore, queries: Float32Array, left: int, rows_at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the others were not there; -inf and -1 where fewer than k are left."""
    monkeypatch.setattr(exact, "CELLS_AT_A_TIME", rows_at_a_time * store.dim)
    live = np.zeros(store.n, dtype=np.bool_)
    live[np.random.default_rng(3).choice(store.n, left, replace=False)] = True
    scores, rows = exact_search(store, queries[:9], 10, live=live)
    true = -np.sort(-np.where(live, scores_of(store, queries[:9]), -np.inf), axis=1)[:, :10]
    np.testing.assert_allclose(scores, true, atol=2e-6)
    assert ((rows >= 0) == np.isfinite(scores)).all()
    assert live[rows[rows >= 0]].all()
