from __future__ import annotations

import numpy as np
import pytest

import indexes.hnsw
from indexes import CoarseIndexError, HnswFloat16Index, HnswSq8Index
from indexes.base import Float32Array


@pytest.fixture(scope="module")
def index(rows: Float32Array) -> HnswSq8Index:
    index = HnswSq8Index(rows.shape[1], degree=8, ef_construction=40)
    index.train(rows)
    index.add(rows)
    return index


def test_keys_follow_the_rows_that_queries_are_near(
    index: HnswSq8Index, rows: Float32Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexes.hnsw, "ORDERED_ROWS", 1)
    positions = np.linspace(0, len(rows) - 1, indexes.hnsw.PIVOTS).astype(np.int64)
    keys = index.near_keys()
    assert keys is not None
    np.testing.assert_array_equal(keys(rows[positions]), np.arange(len(positions)))


def test_a_graph_that_fits_the_cache_has_no_keys(index: HnswSq8Index) -> None:
    assert index.near_keys() is None


def test_added_rows_renew_the_keys(rows: Float32Array, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexes.hnsw, "ORDERED_ROWS", 1)
    index = HnswSq8Index(rows.shape[1], degree=8, ef_construction=40)
    index.train(rows)
    index.add(rows[:300])
    index.near_keys()
    index.add(rows[300:])
    keys = index.near_keys()
    assert keys is not None
    np.testing.assert_array_equal(keys(rows[-1:].copy()), [indexes.hnsw.PIVOTS - 1])


def test_the_base_level_is_kept_full(rows: Float32Array) -> None:
    index = HnswSq8Index(rows.shape[1], degree=8, ef_construction=40)
    assert index._index.keep_max_size_level0
    assert index._index.hnsw.efConstruction == 40


def test_float16_codes_take_one_byte_more_a_dimension(rows: Float32Array) -> None:
    sizes = []
    for kind in (HnswSq8Index, HnswFloat16Index):
        index = kind(rows.shape[1], degree=8, ef_construction=40)
        index.train(rows)
        index.add(rows)
        sizes.append(index.nbytes)
    assert sizes[1] - sizes[0] == rows.size


def test_efforts_end_at_the_number_of_rows(rows: Float32Array) -> None:
    index = HnswSq8Index(rows.shape[1], degree=8, ef_construction=40)
    index.train(rows)
    assert index.efforts() == (1,)
    index.add(rows[:30])
    assert index.efforts() == (*range(1, 23), 24, 26, 28, 30)


@pytest.mark.parametrize("settings", [{"degree": 1}, {"ef_construction": 0}])
def test_a_graph_without_links_is_refused(settings: dict[str, int]) -> None:
    with pytest.raises(CoarseIndexError, match=r"give a whole number from [12] to "):
        HnswSq8Index(8, **settings)


def test_effort_reaches_the_search(rows: Float32Array, queries: Float32Array) -> None:
    index = HnswSq8Index(rows.shape[1], degree=2, ef_construction=4)
    index.train(rows)
    index.add(rows)
    shallow, deep = (index.search(queries, 10, effort)[0].sum() for effort in (16, 256))
    assert deep > shallow * 1.01
