"""One segment: rows in cluster order, norms of prefixes, the coarse index."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from funnel.adaptors import Adaptor, make_adaptor
from funnel.building import segment as module
from funnel.building.intake import Intake, take_in
from funnel.building.segment import order_rows, store_rows, write_norms, write_prefixes
from funnel.data.corpus import open_corpus
from funnel.engine import coarse
from funnel.engine.cascade import Space, unit_prefixes
from funnel.engine.coarse import build_coarse
from funnel.errors import DamagedIndexError
from indexes import VectorStore
from tests.funnel.clustered import clustered_rows

LADDER = (16, 40, 64)


def write_rows(taken: Intake, adaptor: Adaptor, folder: Path, own: bool = False) -> None:
    space = Space(adaptor, own)
    positions = order_rows(taken, space.stored, space, folder, 0, False)
    store_rows(taken, space.stored, positions, folder, "float32", False)


@pytest.fixture
def store(tmp_path: Path) -> VectorStore:
    rows = clustered_rows(700)
    taken = take_in(open_corpus(rows), None, tmp_path, None, 0, False)
    write_rows(taken, make_adaptor("pca", taken.sample), tmp_path)
    return VectorStore.open(tmp_path / "vectors.npy")


def test_rows_are_adapted_and_put_in_order(store: VectorStore, tmp_path: Path) -> None:
    rows = clustered_rows(700)
    order = np.load(tmp_path / "order.npy")
    assert_array_equal(np.sort(order), np.arange(700))
    kept = store.matrix.numpy()
    assert_allclose(kept @ kept.T, rows[order] @ rows[order].T, atol=1e-5)  # a rotation keeps every cosine
    energy = (kept**2).mean(axis=0)
    assert (np.diff(energy) <= 1e-6).all()
    near = np.einsum("nd,nd->n", kept[1:], kept[:-1]).mean()
    shuffled = np.random.default_rng(0).permutation(kept)
    assert near > np.einsum("nd,nd->n", shuffled[1:], shuffled[:-1]).mean() + 0.2  # neighbours lie together


def test_the_sample_goes_once_the_order_is_known(tmp_path: Path) -> None:
    taken = take_in(open_corpus(clustered_rows(300)), None, tmp_path, None, 0, False)
    write_rows(taken, make_adaptor("pca", taken.sample), tmp_path)
    assert len(taken.sample) == 0


def test_rows_are_stored_alike_in_any_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = []
    for cells in (64 * 13, 64 * 1_000):
        monkeypatch.setattr(module, "CELLS_AT_A_TIME", cells)
        folder = tmp_path / str(cells)
        folder.mkdir()
        taken = take_in(open_corpus(clustered_rows(700)), None, folder, None, 0, False)
        write_rows(taken, make_adaptor("identity", taken.sample), folder)
        stored.append(VectorStore.open(folder / "vectors.npy").matrix.numpy())
    assert_array_equal(*stored)  # type: ignore[arg-type]


def test_rows_as_given_have_their_adapted_prefixes_beside_them(tmp_path: Path) -> None:
    rows = clustered_rows(700)
    taken = take_in(open_corpus(rows), None, tmp_path, None, 0, False)
    adaptor = make_adaptor("pca", taken.sample)
    write_rows(taken, adaptor, tmp_path, own=True)
    store, order = VectorStore.open(tmp_path / "vectors.npy"), np.load(tmp_path / "order.npy")
    assert_allclose(store.matrix.numpy(), rows[order], atol=1e-6)
    adapted = write_prefixes(store, Space(adaptor, True), LADDER, False)
    expected = adaptor.transform(rows[order])
    assert_allclose(adapted.matrix.float().numpy(), expected[:, : LADDER[-2]], atol=1e-3)
    norms = np.load(tmp_path / "norms.npy")
    for column, width in enumerate(LADDER):
        assert_allclose(norms[:, column], np.linalg.norm(expected[:, :width], axis=1), atol=1e-3)
    assert_allclose(norms[:, -1], 1.0, atol=1e-6)


def test_norms(store: VectorStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CELLS_AT_A_TIME", 64 * 33)
    write_norms(store, LADDER, tmp_path / "norms.npy", False)
    norms = np.load(tmp_path / "norms.npy")
    assert norms.dtype == np.float32
    for column, width in enumerate(LADDER):
        assert_allclose(norms[:, column], np.linalg.norm(store.matrix.numpy()[:, :width], axis=1), atol=1e-5)


@pytest.mark.parametrize("name", ["flat", "hnsw-sq8", "ivf-sq8"])
def test_a_coarse_index_holds_every_row_in_order(
    name: str, store: VectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coarse, "CELLS_AT_A_TIME", 64 * 50)
    monkeypatch.setattr(coarse, "BLOCK_BYTES", 4 * 16 * 100)  # a hundred rows at a time
    monkeypatch.setattr(coarse, "TRAINING_ROWS", 300)
    settings = {"nlist": 8} if name == "ivf-sq8" else {}
    index = build_coarse(store, 64, 16, name, settings, 0, False)
    assert index.ntotal == 700
    prefixes = unit_prefixes(store.matrix.numpy()[:, :16])
    _, found = index.search(prefixes, 5, index.efforts()[-1])
    assert (found == np.arange(700)[:, None]).any(axis=1).mean() > 0.98


@pytest.mark.parametrize("most", [100, 1_000])
def test_rows_that_are_not_finite_are_damage(most: int, store: VectorStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coarse, "TRAINING_ROWS", most)
    rows = store.matrix.numpy().copy()
    rows[699, 3] = np.nan
    np.save(store.path, rows)
    with pytest.raises(DamagedIndexError, match=r"vectors\.npy holds values that are not finite"):
        build_coarse(VectorStore.open(store.path), 64, 16, "ivf-sq8", {"nlist": 8}, 0, False)


def test_unit_prefixes() -> None:
    rows = np.array([[3, 4, 9], [0, 0, 1]], dtype=np.float32)
    prefixes = unit_prefixes(rows[:, :2])
    assert_allclose(prefixes, [[0.6, 0.8], [0.0, 0.0]])
    assert prefixes.flags.c_contiguous
    assert prefixes.dtype == np.float32
    assert rows[0, 0] == 3
