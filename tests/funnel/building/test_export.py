"""Exports, read by numpy, pyarrow and faiss alone."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow.parquet as parquet
import pytest

from funnel import FunnelIndex
from funnel.adaptors import MLP
from funnel.building import export as exported_rows
from funnel.errors import InputError, NoSpaceError
from tests.funnel.clustered import clustered_rows
from tests.funnel.corpora import DIM, brute_force, documents, hashed_words

Float32 = np.ndarray


def unit(rows: Float32) -> Float32:
    result: Float32 = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return result


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exported_rows, "CELLS_AT_A_TIME", 700 * DIM)


@pytest.fixture(scope="module")
def numbered(rows: Float32, tmp_path_factory: pytest.TempPathFactory) -> FunnelIndex:
    """A graph over 32 dims of a rotated space, with whole numbers for ids, float16."""
    path = tmp_path_factory.mktemp("numbered") / "index"
    ids = (np.arange(len(rows)) * 7 + 3).tolist()
    return FunnelIndex.build(rows, path, ids=ids, adaptor="pca", dims=[32], coarse="hnsw-sq8", progress=False)


def test_npy(graph: FunnelIndex, rows: Float32, tmp_path: Path) -> None:
    done = graph.export(tmp_path / "out.npy")
    vectors, ids = np.load(tmp_path / "out.npy"), np.load(tmp_path / "out.ids.npy", allow_pickle=False)
    assert done.files == (tmp_path / "out.npy", tmp_path / "out.ids.npy")
    assert done.rows == len(rows)
    assert vectors.dtype == np.float32
    assert np.abs(vectors - unit(rows)).max() < 1e-5
    assert ids.tolist() == [f"row {number}" for number in range(len(rows))]
    assert "in your own space" in str(done)


def test_npy_of_numbers_in_float16(numbered: FunnelIndex, rows: Float32, tmp_path: Path) -> None:
    numbered.export(tmp_path / "out.npy")
    assert np.load(tmp_path / "out.ids.npy").tolist() == numbered.ids()
    assert np.abs(np.load(tmp_path / "out.npy") - unit(rows)).max() < 2e-3  # the rounding of storage, turned back


def test_adapted(numbered: FunnelIndex, rows: Float32, tmp_path: Path) -> None:
    done = numbered.export(tmp_path / "out.npy", adapted=True)
    assert "as adapted by pca" in done.what
    adapted = numbered.searcher.adaptor.transform(unit(rows))
    assert np.abs(np.load(tmp_path / "out.npy") - adapted).max() < 1e-3


def test_parquet_with_documents(texts: FunnelIndex, tmp_path: Path) -> None:
    texts.export(tmp_path / "out.parquet")
    table = parquet.read_table(tmp_path / "out.parquet")
    assert table.column_names == ["id", "title", "text", "metadata", "vector"]
    given = documents(300)
    read = table.to_pylist()
    assert [(row["id"], row["title"], row["text"]) for row in read] == [
        (one["_id"], one["title"], one["text"]) for one in given
    ]
    assert [json.loads(row["metadata"]) for row in read] == [{"year": one["year"]} for one in given]
    vectors = np.array([row["vector"] for row in read], dtype=np.float32)
    assert np.abs(vectors - unit(hashed_words([f"{one['title']} {one['text']}" for one in given]))).max() < 2e-3


def test_parquet_of_vectors_alone_can_be_built_from(numbered: FunnelIndex, tmp_path: Path) -> None:
    numbered.export(tmp_path / "out.parquet")
    table = parquet.read_table(tmp_path / "out.parquet")
    assert table.column_names == ["id", "vector"]
    assert table["id"].to_pylist() == numbered.ids()
    again = FunnelIndex.build(tmp_path / "out.parquet", tmp_path / "again", adaptor="identity", progress=False)
    assert len(again) == len(numbered)


def test_the_coarse_index_takes_queries_as_they_are(
    numbered: FunnelIndex, rows: Float32, unseen: Float32, tmp_path: Path
) -> None:
    done = numbered.export(tmp_path / "out.faiss")
    assert "IndexHNSWSQ" in done.what
    assert "your own queries of 64 dims" in done.what
    assert "labels are ids" in done.what
    index = faiss.read_index(str(tmp_path / "out.faiss"))
    assert (index.d, index.ntotal) == (DIM, len(rows))
    scores, labels = index.search(unseen, 10)
    adapted = numbered.searcher.adaptor.transform(unit(unseen))[:, :32]
    stored = numbered.searcher.adaptor.transform(unit(rows))[:, :32]
    best, cosines = brute_force(stored, adapted, 10)  # of the prefix: what the graph looks for
    expected = np.array(numbered.ids())[best]
    assert np.mean([len(set(mine) & set(true)) / 10 for mine, true in zip(labels, expected, strict=True)]) > 0.8
    assert np.abs(scores[:, 0] - cosines[:, 0]).mean() < 0.02


def test_the_coarse_index_as_adapted(numbered: FunnelIndex, unseen: Float32, tmp_path: Path) -> None:
    assert "first 32 dims of adapted queries" in numbered.export(tmp_path / "a.faiss", adapted=True).what
    numbered.export(tmp_path / "b.faiss")
    adapted, own = faiss.read_index(str(tmp_path / "a.faiss")), faiss.read_index(str(tmp_path / "b.faiss"))
    prefixes = np.ascontiguousarray(numbered.searcher.adaptor.transform(unit(unseen))[:, :32])
    same = adapted.search(prefixes, 10)[1] == own.search(unseen, 10)[1]
    assert same.mean() > 0.98  # a query's length and rounding change a walk now and then


def test_a_flat_index_is_what_faiss_would_write(
    numbered: FunnelIndex, graph: FunnelIndex, rows: Float32, unseen: Float32, tmp_path: Path
) -> None:
    done = numbered.export(tmp_path / "out.faiss", flat=True)
    assert "IndexFlatIP over 64 dims, exact" in done.what
    index = faiss.read_index(str(tmp_path / "out.faiss"))
    again = faiss.serialize_index(index).tobytes()
    assert (tmp_path / "out.faiss").read_bytes() == again
    best, _ = brute_force(rows, unseen, 5)
    labels = index.search(unseen, 5)[1]
    assert (labels == np.array(numbered.ids())[best]).mean() > 0.98  # float16 swaps near ties
    plain = graph.export(tmp_path / "plain.faiss", flat=True)
    assert "input positions, whose ids are in plain.ids.npy" in plain.what
    assert type(faiss.read_index(str(tmp_path / "plain.faiss"))) is faiss.IndexFlatIP
    ids = np.load(tmp_path / "plain.ids.npy")
    found = faiss.read_index(str(tmp_path / "plain.faiss")).search(unseen, 5)[1]
    assert ids[found[0, 0]] == f"row {best[0, 0]}"


def test_a_coarse_index_that_is_none_of_faiss(rows: Float32, tmp_path: Path) -> None:
    pytest.importorskip("rabitqlib")
    index = FunnelIndex.build(rows, tmp_path / "index", adaptor="identity", dims=[32], coarse="symqg", progress=False)
    assert "IndexFlatIP" in index.export(tmp_path / "out.faiss").what


def test_an_adaptor_that_cannot_be_undone(rows: Float32, tmp_path: Path) -> None:
    adaptor = MLP(DIM, [32])  # it changes nothing yet, and its kind may
    index = FunnelIndex.build(rows, tmp_path / "index", adaptor=adaptor, dims=[32], coarse="flat", progress=False)
    with pytest.raises(InputError, match=r"'mlp', which cannot be undone; export the adapted vectors"):
        index.export(tmp_path / "out.npy")
    index.export(tmp_path / "out.npy", adapted=True)
    assert np.allclose(np.linalg.norm(np.load(tmp_path / "out.npy"), axis=1), 1, atol=1e-3)


def test_paths_that_are_refused(numbered: FunnelIndex, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"suffix \.csv; export to \.npy, \.parquet, \.faiss"):
        numbered.export(tmp_path / "out.csv")
    with pytest.raises(InputError, match="lies inside the index"):
        numbered.export(numbered.path / "out.npy")
    with pytest.raises(InputError, match="which FAISS index"):
        numbered.export(tmp_path / "out.npy", flat=True)
    (tmp_path / "out.ids.npy").write_text("mine")
    with pytest.raises(InputError, match=r"out\.ids\.npy exists already"):
        numbered.export(tmp_path / "out.npy")
    assert (tmp_path / "out.ids.npy").read_text() == "mine"
    numbered.export(tmp_path / "out.npy", overwrite=True)
    assert np.load(tmp_path / "out.ids.npy").tolist() == numbered.ids()
    numbered.export(tmp_path / "deep" / "er" / "out.npy")


@pytest.mark.parametrize("name", ["out.npy", "out.faiss", "out.parquet"])
def test_a_full_disk_leaves_nothing(
    numbered: FunnelIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(exported_rows.ExportedRows, "read", full)
    with pytest.raises(NoSpaceError, match=name):
        numbered.export(tmp_path / name, **({"flat": True} if name.endswith("faiss") else {}))
    assert list(tmp_path.iterdir()) == []


def test_ids_that_numpy_cannot_hold(tmp_path: Path) -> None:
    rows = clustered_rows(50)
    ids = [f"row {number}" for number in range(49)]
    dropped = FunnelIndex.build(rows, tmp_path / "zero", ids=[*ids, "end\0"], adaptor="identity", progress=False)
    with pytest.raises(InputError, match=r"ends in a zero character"):
        dropped.export(tmp_path / "out.npy")
    long = FunnelIndex.build(rows, tmp_path / "long", ids=[*ids, "x" * 6_000_000], adaptor="identity", progress=False)
    with pytest.raises(InputError, match=r"ids of up to 6,000,000 characters would take"):
        long.export(tmp_path / "out.npy")
    long.export(tmp_path / "out.parquet")
    assert [path.name for path in tmp_path.glob("out*")] == ["out.parquet"]
