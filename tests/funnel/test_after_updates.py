"""Filters, hybrid search, exports and explanations over several segments and deleted rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from funnel import FunnelIndex
from tests.funnel.corpora import hashed_words

WORDS = ("river", "mountain", "engine", "harbour", "lantern", "meadow", "copper", "violin")


def document(number: int, year: int) -> dict[str, object]:
    words = f"{WORDS[number % 8]} {WORDS[(number // 8) % 8]} number {number}"
    return {"_id": f"d{number}", "title": WORDS[number % 8], "text": words, "year": year}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> FunnelIndex:
    """300 documents of 1990 to 2019; then 20 of year 3000, ten deleted, one replaced."""
    path = tmp_path_factory.mktemp("updated") / "index"
    made = FunnelIndex.build(
        [document(i, 1990 + i % 30) for i in range(300)], path, encoder=hashed_words, progress=False
    )
    made.add([document(i, 3000) for i in range(300, 320)])
    made.delete([f"d{i}" for i in range(0, 100, 10)])
    made.upsert([document(5, 3001)])
    return made


def ids(hits: object) -> list[str]:
    return [hit.id for hit in hits]  # type: ignore[attr-defined]


def test_a_condition_sees_added_rows_and_no_deleted_ones(index: FunnelIndex) -> None:
    assert sorted(ids(index.search("river", 50, where="year = 3000"))) == sorted(f"d{i}" for i in range(300, 320))
    assert ids(index.search("river", 5, where="year = 3001")) == ["d5"]
    alive = {f"d{i}" for i in range(300) if 1990 + i % 30 == 1990 and not (i < 100 and i % 10 == 0)}
    assert set(ids(index.search("river", 50, where="year = 1990"))) == alive
    assert ids(index.search("river", 5, where="id = 'd10'")) == []


def test_given_ids(index: FunnelIndex) -> None:
    assert set(ids(index.search("river", 5, allowed_ids=["d10", "d11", "d310", "nowhere"]))) == {"d11", "d310"}


def test_a_filter_over_added_rows_alone_is_explained(index: FunnelIndex) -> None:
    explained = index.explain(5, where="year = 3000")
    assert explained.plan.is_flat
    assert "20 allowed rows" in str(explained)


def test_words_are_found_in_every_segment_and_in_no_deleted_row(index: FunnelIndex) -> None:
    found = ids(index.search("number 310", 5, hybrid=1.0))
    assert found[0] == "d310"
    assert "d10" not in ids(index.search("number 10", 20, hybrid=0.5))
    assert ids(index.search("number 5", 5, hybrid=1.0, where="year = 3001")) == ["d5"]
    assert ids(index.search("number 5", 5, hybrid=1.0, where="year = 1995 AND id = 'd5'")) == []


def test_what_is_exported_is_what_is_there(index: FunnelIndex, tmp_path: Path) -> None:
    index.export(tmp_path / "out.npy")
    assert np.load(tmp_path / "out.ids.npy").tolist() == index.ids()
    vectors = np.load(tmp_path / "out.npy")
    texts = {hit.id: f"{hit.title} {hit.text}" for hit in index.search("river", len(index), recall=1.0)}
    expected = hashed_words([texts[one] for one in index.ids()])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors, expected, atol=2e-3)  # float16 as stored


def test_numbers_beyond_int64_are_unknown_ids(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((300, 16)).astype(np.float32)
    index = FunnelIndex.build(rows, tmp_path / "numbers", progress=False)
    changes = index.delete([2**70, 3])
    assert (changes.deleted, changes.unknown) == (1, 1)
