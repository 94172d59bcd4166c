from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from indexes import PrunedSearch, VectorStore, exact_search, pruned
from indexes._prefixcodes import int8_products_are_exact
from indexes.base import Float32Array, Int64Array

DIM, LADDER = 64, (16, 32, 48, 64)
ROWS = 7_000
TIE = 1e-6


def spectrum(count: int, seed: int, decay: float) -> Float32Array:
    """Unit rows around 60 centres whose variance falls along the dims."""
    scale = (1.0 + np.arange(DIM)) ** -decay
    centres = np.random.default_rng(0).normal(size=(60, DIM)) * scale
    generator = np.random.default_rng(seed)
    rows = centres[generator.integers(60, size=count)] + 0.5 * generator.normal(size=(count, DIM)) * scale
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def store_of(rows: Float32Array, folder: Path, dtype: str = "float16") -> VectorStore:
    path = folder / "vectors.npy"
    with VectorStore.create(path, len(rows), rows.shape[1], dtype) as writer:
        writer.write(np.arange(len(rows)), rows)
    return VectorStore.open(path)


def norms_of(store: VectorStore) -> Float32Array:
    rows = store.matrix.float().numpy()
    return np.stack([np.linalg.norm(rows[:, :width], axis=1) for width in LADDER], axis=1)


def searcher(store: VectorStore, slack: float = 0.01, keep: bool = False) -> PrunedSearch:
    """Over known scores that lie below the k-th true one by up to `slack`."""

    def reached(queries: Float32Array, k: int) -> Float32Array | None:
        true = np.sort(queries @ store.matrix.float().numpy().T, axis=1)
        below = -np.searchsorted(-true[0, ::-1], -(true[0, -k] - slack))  # a score that some row has
        return true[:, min(-k, below)] if slack else true[:, -k]

    return PrunedSearch(store, norms_of(store), LADDER, reached, keep=keep)


def kept_is_quickest(call: Callable[[Any], Any], calls: list[Any]) -> tuple[float, Any]:
    """In the place of a clock: what is scored and multiplied, where codes are kept."""
    found = [call(each) for each in calls]
    way = call.keywords["way"] if isinstance(call, partial) else None
    if way is None or not way.kept:
        return 1e12, found
    return sum(each.scored * 50 + way.width * ROWS for each in found), found


@pytest.fixture(autouse=True)
def every_store_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VectorStore, "small", property(lambda _: False))
    monkeypatch.setattr(pruned, "WORTH", 1e9)  # so few rows that flat search may take less
    monkeypatch.setattr(pruned, "MOST_SHARE", 1.0)


@pytest.fixture(scope="module", params=["float16", "float32"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VectorStore:
    return store_of(spectrum(ROWS, 1, 1.0), tmp_path_factory.mktemp(request.param), request.param)


def assert_exact(store: VectorStore, queries: Float32Array, scores: Float32Array, rows: Int64Array, k: int) -> None:
    """Tie-aware recall of 1, true scores, falling, no row twice."""
    true = queries.astype(np.float64) @ store.matrix.double().numpy().T
    kth = -np.sort(-true, axis=1)[:, k - 1 : k]
    assert (scores.dtype, rows.dtype, scores.shape, rows.shape) == (np.float32, np.int64, *[(len(queries), k)] * 2)
    own = np.take_along_axis(true, rows, axis=1)
    assert (own >= kth - TIE).all()
    np.testing.assert_allclose(scores, own, atol=2e-6)
    assert (np.diff(scores, axis=1) <= 0).all()
    assert all(len(set(row)) == k for row in rows.tolist())


@pytest.mark.parametrize("k", [1, 10, 100])
@pytest.mark.parametrize("count", [1, 3, 20, 130])
def test_it_finds_what_brute_force_finds(
    store: VectorStore, count: int, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = spectrum(count, 2, 1.0)
    search = searcher(store)
    search(queries, k)
    monkeypatch.setattr(pruned, "exact_search", pytest.fail)  # once it is chosen, all must come from pruning
    scores, rows = search(queries, k)
    assert_exact(store, queries, scores, rows, k)
    choice = search.choose(queries, k)
    assert choice is not None
    assert 0 < choice.share < 0.5
    int8 = count >= pruned.FEWEST_INT8 and int8_products_are_exact()
    assert choice.codes == ("int8" if int8 else "float32")
    assert not choice.kept


@pytest.mark.skipif(not int8_products_are_exact(), reason="no exact int8 products on this processor")
@pytest.mark.parametrize("k", [1, 10, 100])
@pytest.mark.parametrize("first", [1, 20])
def test_codes_that_are_kept_answer_from_memory(
    store: VectorStore, first: int, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruned, "KEPT_ROWS", 3_000)
    monkeypatch.setattr(pruned, "_seconds", kept_is_quickest)
    search = searcher(store, keep=True)
    assert search.resident_bytes == 0
    for count in (first, 1, 3, 20):
        queries = spectrum(count, 2 + count, 1.0)
        assert_exact(store, queries, *search(queries, k), k)
        choice = search.choose(queries, k)
        assert choice is not None
        assert choice.kept
        assert "in memory" in str(choice)
        assert search.resident_bytes == ROWS * (choice.width + 4)


@pytest.mark.skipif(not int8_products_are_exact(), reason="no exact int8 products on this processor")
def test_the_width_that_is_kept_does_not_hang_on_the_first_query(
    store: VectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruned, "_seconds", kept_is_quickest)
    kept = set()
    for query in spectrum(12, 9, 1.0):
        search = searcher(store, keep=True)
        search(query[None], 10)
        choice = search.choose(query[None], 10)
        assert choice is not None
        assert choice.kept
        kept.add(choice.width)
    assert len(kept) == 1


@pytest.mark.parametrize("block", [500, 1_000, ROWS])
@pytest.mark.parametrize("few", [0, 200])
def test_blocks_tiles_and_threads_do_not_matter(
    store: VectorStore, block: int, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("BLOCK_ROWS", "TRIED_BLOCK"):
        monkeypatch.setattr(pruned, name, block)
    monkeypatch.setattr(pruned, "TILE_QUERIES", 7)
    monkeypatch.setattr(pruned, "FEW_QUERIES", few)
    queries = spectrum(40, 3, 1.0)
    assert_exact(store, queries, *searcher(store)(queries, 10), 10)


def test_duplicates_and_near_ties(tmp_path: Path) -> None:
    rows = spectrum(4_000, 4, 1.0)
    rows[1_000:1_500] = rows[0]  # more duplicates than results
    near = np.random.default_rng(5).normal(size=(500, DIM)) * 1e-7
    rows[2_000:2_500] = rows[1] + near  # scores apart by less than float32 resolves
    store = store_of(rows, tmp_path, "float32")
    queries = np.concatenate([rows[:4], spectrum(20, 6, 1.0)])
    for slack in (0.0, 0.01):
        for count in (1, len(queries)):
            assert_exact(store, queries[:count], *searcher(store, slack)(queries[:count], 10), 10)


def test_what_is_found_beyond_memory_is_cut_to_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruned, "MOST_FOUND", 300)
    rows = spectrum(4_000, 4, 1.0)
    rows[500:3_500] = rows[0]
    store = store_of(rows, tmp_path)
    queries = np.concatenate([rows[:3], spectrum(20, 6, 1.0)])
    assert_exact(store, queries, *searcher(store)(queries, 10), 10)


def test_zero_tails_and_zero_rows(tmp_path: Path) -> None:
    rows = spectrum(4_000, 7, 1.0)
    rows[:2_000, 16:] = 0  # not unit any more: bounds rest on the norms there are
    rows[100:200] = 0
    store = store_of(rows, tmp_path)
    queries = spectrum(30, 8, 1.0)
    queries[:10, 16:] = 0
    assert_exact(store, queries, *searcher(store)(queries, 10), 10)


def test_a_query_for_which_nothing_is_known_is_still_exact(store: VectorStore) -> None:
    def nothing(queries: Float32Array, _k: int) -> Float32Array:
        return np.where(np.arange(len(queries)) % 2, -np.inf, -1.0).astype(np.float32)

    queries = spectrum(20, 9, 1.0)
    search = PrunedSearch(store, norms_of(store), LADDER, nothing)
    assert_exact(store, queries, *search(queries, 10), 10)
    assert search.choose(queries, 10) is not None


def test_pages_are_guarded_and_given_back(tmp_path: Path) -> None:
    store = store_of(spectrum(5_000, 1, 1.0), tmp_path)
    touched: set[int] = set()
    search = searcher(store)
    store.guard(lambda rows: touched.update(rows.tolist()))
    for count in (1, 20):
        search(spectrum(count, 2, 1.0), 10)
        touched.clear()
        search(spectrum(count, 2, 1.0), 10)
        assert touched == set(range(store.n))


@pytest.mark.parametrize("k", [10, 3_000, ROWS])
def test_where_it_cannot_pay_flat_search_answers(store: VectorStore, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruned, "WORTH", 0.9)
    monkeypatch.setattr(pruned, "MOST_SHARE", 0.125)
    queries = spectrum(20, 1, 0.0)  # no spectrum: queries that look at every dim alike
    asked: list[int] = []

    def reached(queries: Float32Array, k: int) -> Float32Array:
        asked.append(k)
        return np.full(len(queries), -1.0, dtype=np.float32)

    search = PrunedSearch(store, norms_of(store), LADDER, reached)
    search(queries, k)
    asked.clear()
    for _ in range(3):
        np.testing.assert_array_equal(search(queries, k)[1], exact_search(store, queries, k)[1])
    assert search.choose(queries, k) is None
    assert not asked  # once it was not worth it, nothing is tried again


def test_a_call_of_which_too_much_survives_falls_back_on_flat_search(
    store: VectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruned, "MOST_SHARE", 0.125)
    queries, search = spectrum(20, 3, 1.0), searcher(store)
    assert search.choose(queries, 10) is not None
    monkeypatch.setattr(search, "_reached", lambda queries, _k: np.full(len(queries), -1.0, np.float32))
    np.testing.assert_array_equal(search(queries, 10)[1], exact_search(store, queries, 10)[1])


def test_it_uses_float32_where_int8_is_not_exact(store: VectorStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruned, "int8_products_are_exact", lambda: False)
    queries = spectrum(50, 2, 1.0)
    search = searcher(store)
    choice = search.choose(queries, 10)
    assert choice is not None
    assert choice.codes == "float32"
    assert "pruned at" in str(choice)
    assert_exact(store, queries, *search(queries, 10), 10)
    assert search.resident_bytes == 0


def test_stored_rows_are_not_written_to(store: VectorStore) -> None:
    before = store.matrix.clone()
    for count in (1, 20):
        searcher(store)(spectrum(count, 2, 1.0), 10)
    assert torch.equal(before, store.matrix)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("count", [1, 40])
def test_among_live_rows(store: VectorStore, count: int, keep: bool) -> None:
    """The same search without deleted rows, whose best ones would have been found; it shares what was made."""
    queries, k = spectrum(count, 2, 1.0), 10
    whole = searcher(store, keep=keep)
    live = np.ones(store.n, dtype=np.bool_)
    live[np.unique(whole(queries, k)[1])] = False

    def reached(asked: Float32Array, k: int) -> Float32Array:
        return np.sort(np.where(live, asked @ store.matrix.float().numpy().T, -np.inf), axis=1)[:, -k]

    part = whole.among(live, reached)
    scores, rows = part(queries, k)
    true, _ = exact_search(store, queries, k, live=live)
    assert part.choose(queries, k) is not None
    np.testing.assert_allclose(scores, true, atol=TIE)
    assert live[rows].all()
    assert part.resident_bytes == whole.resident_bytes
