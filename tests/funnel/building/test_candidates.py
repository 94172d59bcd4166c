"""What is built is what was quickest on a sample, within the memory that was allowed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from funnel import FunnelIndex
from funnel.adaptors import make_adaptor
from funnel.building import candidates
from funnel.building.candidates import NEARLY, choose_coarse, fitting
from funnel.engine.cascade import Space
from funnel.errors import InputError
from indexes import FamilyChoice, VectorStore, choose, symqg_installed
from indexes.selection import FLAT_ROWS
from tests.funnel.clustered import clustered_rows

ROWS, DIM, LADDER, BASE = FLAT_ROWS + 1_000, 96, (8, 16, 24, 32, 48, 96), 16
CPU = torch.device("cpu")

needs_symqg = pytest.mark.skipif(not symqg_installed(), reason="rabitqlib is not installed")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> VectorStore:
    path = tmp_path_factory.mktemp("candidates") / "vectors.npy"
    with VectorStore.create(path, ROWS, DIM) as writer:
        writer.write(np.arange(ROWS), clustered_rows(ROWS, DIM, seed=1))
    return VectorStore.open(path)


@pytest.fixture(scope="module")
def space() -> Space:
    return Space(make_adaptor("pca", clustered_rows(2_000, DIM, seed=2), progress=False), True)


@needs_symqg
def test_all_are_timed_and_the_quickest_that_fits_is_taken(
    store: VectorStore, space: Space, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen, timed = choose_coarse(store, space, LADDER, BASE, None, True, 0, True)
    fits = fitting(ROWS, LADDER, BASE, None, CPU, True)
    assert [(one.coarse, one.width) for one in timed[: len(fits)]] == [(one.name, one.dim) for one in fits]
    assert {"symqg", "hnsw-sq8", "ivf-sq8"} <= {one.coarse for one in timed}
    whole = timed[-1]
    assert (whole.coarse, whole.width) == ("symqg", DIM)
    us = {(one.coarse, one.width): one.us for one in timed[: len(fits)] if one.us is not None}
    assert us[chosen.name, chosen.dim] <= NEARLY * min(us.values()) * 1.01  # figures are rounded
    smaller = [one for one in fits if one.estimated_bytes < chosen.estimated_bytes]
    assert all(us.get((one.name, one.dim), np.inf) > NEARLY * min(us.values()) * 0.99 for one in smaller)
    said = capsys.readouterr().err
    gains = whole.us is not None and us[chosen.name, chosen.dim] / whole.us > candidates.WORTH_SAYING
    assert ("over whole rows it would be" in said) == gains


@needs_symqg
def test_whole_rows_are_among_them_where_memory_has_room(store: VectorStore, space: Space) -> None:
    _, timed = choose_coarse(store, space, LADDER, BASE, 1_000.0, True, 0, False)
    assert [(one.coarse, one.width) for one in timed].count(("symqg", DIM)) == 1


def test_few_rows_are_scanned_untimed(space: Space, tmp_path: Path) -> None:
    with VectorStore.create(tmp_path / "vectors.npy", 100, DIM) as writer:
        writer.write(np.arange(100), clustered_rows(100, DIM, seed=1))
    chosen, timed = choose_coarse(VectorStore.open(tmp_path / "vectors.npy"), space, LADDER, BASE, None, True, 0, False)
    assert (chosen.name, timed) == ("flat", [])


@needs_symqg
def test_widths_that_were_asked_for_are_kept_to() -> None:
    assert {one.dim for one in fitting(ROWS, (8, 24, 40, 96), 24, 1_000.0, CPU, False)} == {24, 40}
    assert {one.dim for one in fitting(ROWS, (96,), 96, None, CPU, False)} == {96}


def test_too_little_memory_says_the_least() -> None:
    with pytest.raises(InputError, match=r"memory_mb=0.1 is too little for 9,192 rows: .* the smallest, ivf-pq, needs"):
        fitting(ROWS, LADDER, BASE, 0.1, CPU, True)


def test_what_is_held_is_within_the_memory_that_was_stated(tmp_path: Path) -> None:
    """Norms of the prefixes that stages read among it: codes of 4 bits are reranked by their own width."""
    rows, asked = clustered_rows(ROWS, 64), clustered_rows(100, 64, seed=2)
    least = next(one for one in choose(ROWS, 32) if one.name == "ivf-pq").estimated_bytes
    memory = (least + 4 * ROWS) / 1e6 + 0.01
    path = tmp_path / "index"
    with FunnelIndex.build(
        rows, path, queries=asked, adaptor="pca", dims=(32, 64), memory_mb=memory, progress=False
    ) as index:
        assert index.manifest.settings.coarse == "ivf-pq"
        index.search_vectors(asked, 10, recall=0.9)
        assert index.held_bytes <= memory * 1e6


def test_where_nothing_reaches_the_recall_the_likeliest_is_taken(
    store: VectorStore, space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "RECALL", 1.01)
    chosen, timed = choose_coarse(store, space, LADDER, BASE, None, True, 0, False)
    first: FamilyChoice = fitting(ROWS, LADDER, BASE, None, CPU, True)[0]
    assert (chosen.name, chosen.dim) == (first.name, first.dim)
    assert all(one.us is None for one in timed)


def test_identical_rows_count_as_found(space: Space, tmp_path: Path) -> None:
    """Which of equal rows are returned is no matter of recall."""
    with VectorStore.create(tmp_path / "vectors.npy", ROWS, DIM) as writer:
        writer.write(np.arange(ROWS), np.repeat(clustered_rows(ROWS // 8, DIM, seed=1), 8, axis=0))
    _, timed = choose_coarse(VectorStore.open(tmp_path / "vectors.npy"), space, LADDER, BASE, None, True, 0, False)
    assert any(one.us is not None for one in timed)


def test_the_index_keeps_and_explains_what_was_timed(tmp_path: Path) -> None:
    rows = clustered_rows(ROWS, DIM, seed=1)
    index = FunnelIndex.build(rows, tmp_path / "index", adaptor="pca", progress=False)
    timed = index.manifest.settings.candidates
    assert (index.manifest.settings.coarse, index.manifest.coarse_width) in [(one.coarse, one.width) for one in timed]
    explained = index.explain(recall=0.9)
    assert [one["us"] for one in explained.candidates] == [one.us for one in timed]
    assert "coarse indexes timed on a sample" in str(explained)
    asked = FunnelIndex.build(rows, tmp_path / "asked", adaptor="pca", coarse="hnsw-sq8", progress=False)
    assert asked.manifest.settings.candidates == []
    assert "timed on a sample" not in str(asked.explain(recall=0.9))
