"""Indexes that became something else than they were built as: larger, empty, or another one in the same folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from funnel import FLAT, BudgetError, FunnelIndex
from funnel.building import segment as folding
from funnel.building import update
from funnel.cli.main import cli
from funnel.errors import EncoderError, InputError
from tests.funnel.clustered import clustered_rows
from tests.funnel.corpora import DIM, documents, hashed_words


def test_memory_that_was_stated_for_fewer_rows_can_be_stated_again(tmp_path: Path) -> None:
    rows = clustered_rows(4_000, DIM)
    index = FunnelIndex.build(rows[:1_000], tmp_path / "index", memory_mb=0.06, progress=False)
    index.add(rows[1_000:])
    with pytest.raises(InputError, match=r"memory_mb=0.06 is too little for 4,000 rows.*--memory-mb, states another"):
        index.compact()
    with pytest.raises(InputError, match="memory_mb is -1; expected megabytes above 0"):
        index.compact(memory_mb=-1)
    shown = CliRunner().invoke(cli, ["compact", str(index.path), "--memory-mb", "1", "--quiet"])
    assert shown.exit_code == 0, shown.output
    assert index.refresh()
    assert (len(index), len(index.segments), index.manifest.settings.memory_mb) == (4_000, 1, 1.0)


def test_an_index_that_began_small_says_what_plans_for_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (folding, update):
        monkeypatch.setattr(module, "EXACT_ROWS", 300)
    rows = clustered_rows(1_200, DIM)
    index = FunnelIndex.build(rows[:100], tmp_path / "index", coarse="hnsw-sq8", dims=[32], progress=False)
    assert index.certification == "exact: the index is small enough for flat search"
    index.add(rows[100:])
    said = r"for 100 are left, too few to measure, and 1,100 were added since: index.compact\(\)"
    with pytest.raises(InputError, match=said):
        index.tune(progress=False)
    with pytest.raises(BudgetError, match=said):
        index.search(rows[0], latency_ms=1e-4)
    explained = index.explain(5, recall=0.9)
    assert explained.plan == FLAT
    for text in (explained.certificate.note, index.certification):
        assert "index.compact() or funnel compact plans for all of them" in text
    assert "funnel compact plans for what was added" in str(index.info())
    index.compact()
    assert index.searcher.calibration is not None
    index.tune(progress=False)


def test_widths_are_chosen_again_unless_they_were_asked_for(tmp_path: Path) -> None:
    rows: np.ndarray = np.random.default_rng(1).standard_normal((3_000, 128)).astype(np.float32)
    fresh = {}
    for dims in (None, [24]):
        for count in (100, len(rows)):
            index = FunnelIndex.build(
                rows[:count], tmp_path / f"{dims} {count}", adaptor="identity", dims=dims, progress=False
            )
            before = index.manifest.ladder
            if count < len(rows):
                index.add(rows[count:])
                index.compact()
            fresh[str(dims), count] = before, index.manifest.ladder
    (small, grown), (_, whole) = fresh["None", 100], fresh["None", len(rows)]
    assert small != grown == whole
    assert fresh["[24]", 100] == ((24, 128), (24, 128))


def test_an_index_whose_rows_were_all_deleted_finds_nothing(tmp_path: Path) -> None:
    texts = FunnelIndex.build(documents(40), tmp_path / "texts", encoder=hashed_words, progress=False)
    texts.delete([f"d{number}" for number in range(40)])
    assert texts.search("sort a list", 5) == []
    assert texts.search(["sort a list"] * 2, 5, recall=0.9) == [[], []]
    assert texts.search("sort a list", 5, where="year >= 1900") == []
    assert texts.search("sort a list", 5, hybrid=0.5) == []
    ids, scores = texts.search_vectors(hashed_words(["sort"]), 3)
    assert ids.tolist() == [[None] * 3]
    assert np.isneginf(scores).all()
    with pytest.raises(InputError, match="every row of this index was deleted"):
        texts.explain(5, recall=0.9)
    with pytest.raises(InputError, match="k is 0"):
        texts.search("sort a list", 0)
    with pytest.raises(InputError, match=r"expected \[n_queries, 64\]"):
        texts.search_vectors(np.ones((1, 3)), 3)


def other_words(texts: Any) -> np.ndarray:
    return -hashed_words(texts)


def test_an_index_built_anew_in_the_same_folder_has_its_own_encoder(tmp_path: Path) -> None:
    index = FunnelIndex.build(documents(60), tmp_path / "index", encoder=hashed_words, progress=False)
    index.search("sort a list", 3)
    FunnelIndex.build(documents(60), tmp_path / "index", encoder=other_words, overwrite=True, progress=False)
    assert index.refresh()
    for call in (lambda: index.search("sort a list", 3), lambda: index.add([{"_id": "x", "text": "sort"}])):
        with pytest.raises(
            EncoderError, match=r"built again, with the encoder .*other_words instead of .*hashed_words"
        ):
            call()
    assert len(index.search(other_words(["sort a list"])[0], 3)) == 3
    again = FunnelIndex.open(index.path, encoder=other_words)
    assert again.search("sort a list", 3)[0].id == index.search(other_words(["sort a list"])[0], 3)[0].id


def test_what_was_noted_of_another_index_is_not_carried_over(tmp_path: Path) -> None:
    rows = clustered_rows(600, DIM)
    index = FunnelIndex.build(rows, tmp_path / "index", queries=clustered_rows(300, DIM, seed=4), progress=False)
    index.audit(1.0)
    index.search_vectors(rows[:50], 5)
    assert index.health().audits
    FunnelIndex.build(rows[:, :32], tmp_path / "index", overwrite=True, progress=False)
    assert index.refresh()
    assert (index.dim, index.health().audits) == (32, ())


def test_texts_are_not_encoded_where_an_id_is_there_already(tmp_path: Path) -> None:
    encoded: list[str] = []

    def counting(texts: Any) -> np.ndarray:
        encoded.extend(texts)
        return hashed_words(texts)

    index = FunnelIndex.build(documents(40), tmp_path / "index", encoder=counting, progress=False)
    encoded.clear()
    new = [{"_id": f"n{number}", "text": "sort"} for number in range(30)]
    with pytest.raises(InputError, match="1 of the ids are in the index already: d7; use upsert"):
        index.add([*new, {"_id": "d7", "text": "again"}])
    assert encoded == []
    assert index.add(new).added == 30
    assert len(encoded) == 30
