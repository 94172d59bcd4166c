"""Parts that are each sound and do not belong together: every disagreement is found and named."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from funnel import FunnelIndex
from funnel.errors import DamagedIndexError
from funnel.reports.check import deep_check
from funnel.storage import IndexFolder
from funnel.storage.checks import hash_file
from funnel.storage.layout import split_path
from tests.funnel.corpora import segment_file
from tests.funnel.engine.test_generation import rewrite_manifest

Copy = Callable[[Path], Path]


def sign_again(folder: Path) -> None:
    """Give every file its hash anew, as if it had been written so."""

    def change(document: dict[str, Any]) -> None:
        for path in document["files"]:
            of, _, name = split_path(path)
            form = of.file(name)
            assert form is not None
            document["files"][path] = msgspec.to_builtins(hash_file(folder / path, form.blocks))

    rewrite_manifest(folder, change)


def change_array(path: Path, change: Callable[[np.ndarray], None]) -> None:
    values = np.load(path)
    change(values)
    np.save(path, values)


def test_sound_indexes(graph_folder: Path, text_folder: Path) -> None:
    said = list(deep_check(graph_folder))
    assert len(said) == 5
    assert "3,000 ids, all different" in said
    assert any("documents.sqlite" in line for line in deep_check(text_folder))


def swap_rows(values: np.ndarray) -> None:
    values[[0, 1]] = values[[1, 0]]


def double_first(values: np.ndarray) -> None:
    values[0] = values[1]


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("order.npy", double_first, "order.npy of segment .* is no permutation"),
        ("norms.npy", lambda values: values.__setitem__((7, 0), 0.5), "norms.npy disagrees.* in row 7 at 32 dims"),
        ("vectors.npy", lambda values: values.__setitem__(5, values[5] * 1.1), "row 5"),
        ("vectors.npy", lambda values: values.__setitem__((9, 0), np.nan), "not finite"),
        ("vectors.npy", lambda values: values.__setitem__(slice(None), values[::-1].copy()), "adapted.npy disagrees"),
    ],
)
def test_disagreements_are_named(
    name: str, change: Callable[[np.ndarray], None], said: str, graph_folder: Path, copied: Copy
) -> None:
    folder = copied(graph_folder)
    change_array(segment_file(folder, name), change)
    sign_again(folder)
    IndexFolder(folder).verify(IndexFolder(folder).manifest())
    with pytest.raises(DamagedIndexError, match=said):
        list(deep_check(folder))


def test_an_id_twice(graph_folder: Path, copied: Copy) -> None:
    folder = copied(graph_folder)

    def same_names(values: np.ndarray) -> None:
        values[: len("row 1")] = np.frombuffer(b"row 1", np.uint8)  # "row 0" becomes "row 1"

    change_array(segment_file(folder, "ids.npy"), same_names)
    sign_again(folder)
    with pytest.raises(DamagedIndexError, match="holds an id twice"):
        list(deep_check(folder))


def test_a_coarse_index_of_other_rows(graph_folder: Path, copied: Copy) -> None:
    """Rows and norms are reversed together, so that only the coarse index and the truth are of the old order."""
    folder = copied(graph_folder)
    for name in ("vectors.npy", "adapted.npy", "norms.npy", "order.npy"):
        change_array(segment_file(folder, name), lambda values: values.__setitem__(slice(None), values[::-1].copy()))
    sign_again(folder)
    with pytest.raises(DamagedIndexError, match=r"coarse\.faiss finds"):
        list(deep_check(folder))


def test_other_true_scores(graph_folder: Path, copied: Copy) -> None:
    folder = copied(graph_folder)
    path = next(folder.rglob("calibration.npz"))
    with np.load(path) as arrays:
        values = dict(arrays)
    values["queries/truth"] = values["queries/truth"] - 0.01
    np.savez(path, **values)
    sign_again(folder)
    with pytest.raises(DamagedIndexError, match=r"calibration\.npz holds other true scores"):
        list(deep_check(folder))


def test_documents_of_other_ids(text_folder: Path, copied: Copy) -> None:
    folder = copied(text_folder)
    connection = sqlite3.connect(segment_file(folder, "documents.sqlite"))
    connection.execute("UPDATE documents SET id = 'other' WHERE position = 3")
    connection.commit()
    connection.close()
    sign_again(folder)
    with pytest.raises(DamagedIndexError, match="hold different ids"):
        list(deep_check(folder))


def test_columns_of_other_documents(text_folder: Path, copied: Copy) -> None:
    folder = copied(text_folder)
    connection = sqlite3.connect(segment_file(folder, "columns.sqlite"))
    connection.execute("UPDATE catalogue SET numbers = numbers - 1 WHERE name = 'year'")
    connection.commit()
    connection.close()
    sign_again(folder)
    with pytest.raises(DamagedIndexError, match="hold different metadata"):
        list(deep_check(folder))


NOT_FINITE = [np.nan, np.inf, -np.inf]


@pytest.mark.filterwarnings("ignore::funnel.errors.DriftWarning")  # rows are no queries
@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("fixture", ["graph_folder", "text_folder"])
def test_vectors_that_are_not_finite(
    fixture: str, value: float, rows: np.ndarray, unseen: np.ndarray, copied: Copy, request: pytest.FixtureRequest
) -> None:
    sound = FunnelIndex.open(request.getfixturevalue(fixture))
    folder = copied(sound.path)
    near = rows[np.asarray(sound.searcher.order[:12])]  # to those of the graph that are spoilt
    change_array(segment_file(folder, "vectors.npy"), lambda values: values.__setitem__(slice(12), value))
    sign_again(folder)
    index = FunnelIndex.open(folder)
    spoilt = set(index.searcher.ids.at(np.asarray(index.searcher.order[:12])).tolist())
    refused = []
    for options in ({}, {"recall": 0.8}, {"recall": 1.0}, {"allowed_ids": sound.ids()[:900]}):
        for queries in (unseen[:40], near):
            try:
                answers = index.search_vectors(queries, 10, **options)
            except DamagedIndexError as error:
                refused.append(str(error))
                continue
            assert np.isfinite(answers.scores).all()
            expected = sound.search_vectors(queries, 10, **options).ids
            for got, true in zip(answers.ids, expected, strict=True):
                assert not spoilt & set(got.tolist())
                assert options.get("recall") != 1.0 or set(true.tolist()) - spoilt <= set(got.tolist())
    assert all("not finite" in said for said in refused)
    index.delete([index.ids()[100]])
    with pytest.raises(DamagedIndexError, match="not finite"):
        index.compact()
    with pytest.raises(DamagedIndexError, match=r"vectors\.npy holds values that are not finite"):
        list(deep_check(folder))


@pytest.mark.parametrize("value", NOT_FINITE)
def test_added_vectors_that_are_not_finite(value: float, graph_folder: Path, unseen: np.ndarray, copied: Copy) -> None:
    folder = copied(graph_folder)
    index = FunnelIndex.open(folder)
    index.add(unseen[:20], ids=[f"new {number}" for number in range(20)])
    added = folder / "segments" / index.segments[1].id / "vectors.npy"
    change_array(added, lambda values: values.__setitem__(slice(12), value))
    sign_again(folder)
    with pytest.raises(DamagedIndexError, match=r"vectors\.npy holds values that are not finite"):
        FunnelIndex.open(folder)


@pytest.mark.parametrize("value", [*NOT_FINITE, -1.0])
def test_norms_that_are_none(value: float, graph_folder: Path, copied: Copy) -> None:
    folder = copied(graph_folder)
    change_array(segment_file(folder, "norms.npy"), lambda values: values.__setitem__((7, 0), value))
    sign_again(folder)
    for verify in ("full", "lazy"):
        with pytest.raises(DamagedIndexError, match=r"norms\.npy holds norms that are negative or not finite"):
            FunnelIndex.open(folder, verify=verify)
