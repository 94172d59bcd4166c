from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from indexes import FlatBaseline, VectorStore, exact, exact_search
from indexes._faiss import load_faiss
from indexes.base import Float32Array


@pytest.fixture(scope="module")
def store(rows: Float32Array, tmp_path_factory: pytest.TempPathFactory) -> VectorStore:
    path: Path = tmp_path_factory.mktemp("baseline") / "vectors.npy"
    with VectorStore.create(path, *rows.shape) as writer:
        writer.write(np.arange(len(rows)), rows)
    return VectorStore.open(path)


@pytest.mark.parametrize("count", [1, 17, 100])
def test_it_finds_what_exact_search_finds(store: VectorStore, queries: Float32Array, count: int) -> None:
    scores, rows = FlatBaseline(store).search(queries[:count], 10)
    expected_scores, expected_rows = exact_search(store, queries[:count], 10)
    np.testing.assert_allclose(scores, expected_scores, atol=2e-6)
    np.testing.assert_array_equal(rows, expected_rows)


def test_rows_added_in_blocks_keep_their_numbers(
    store: VectorStore, queries: Float32Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact, "ROWS_AT_A_TIME", 333)
    np.testing.assert_array_equal(FlatBaseline(store).search(queries, 5)[1], exact_search(store, queries, 5)[1])


def test_the_threshold_of_everyone_else_is_left_as_it_was(store: VectorStore, queries: Float32Array) -> None:
    variables = load_faiss().cvar
    before = variables.distance_compute_blas_threshold
    searched = FlatBaseline(store)
    searched.search(queries, 5)
    assert variables.distance_compute_blas_threshold == before
    with pytest.raises(AssertionError):
        searched.search(queries[:, :5], 5)
    assert variables.distance_compute_blas_threshold == before
