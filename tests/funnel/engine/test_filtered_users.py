"""Filters as users come to them: a CSV corpus, ids that were given as numbers, an index that is open twice."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from funnel import FunnelIndex
from funnel.errors import InputError
from tests.funnel.corpora import documents, hashed_words

WHERE = "year >= 2020 AND lang = 'en'"


def csv_file(path: Path, numbers: Iterable[int], **others: str) -> Path:
    """Documents of a year each, from 1900 on, in two languages; some have no year, and a zip code is 5 digits."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["_id", "title", "text", "year", "lang", "zip"])
        writer.writeheader()
        for number in numbers:
            fields = {"year": "" if number % 10 == 9 else str(1900 + number), "lang": ("en", "de")[number % 2]}
            texts = {"title": f"part {number}", "text": f"it opens file {number}"}
            writer.writerow({"_id": number, **texts, **fields, "zip": f"{9_900 + number:05}", **others})
    return path


def ids(hits: Any) -> set[int]:
    return {int(hit.id) for hit in hits}


@pytest.fixture
def index(tmp_path: Path) -> FunnelIndex:
    corpus = csv_file(tmp_path / "corpus.csv", range(150))
    return FunnelIndex.build(corpus, tmp_path / "index", encoder=hashed_words, progress=False)


def test_columns_of_a_csv_file_are_compared_with_numbers(index: FunnelIndex) -> None:
    hits = index.search("open a file", k=50, where=WHERE)
    assert ids(hits) == set(range(120, 150, 2))
    assert all(isinstance(hit.metadata["year"], str) for hit in hits)  # as it stands in the file
    assert ids(index.search("file", k=50, where="year = ''")) == set(range(9, 150, 10))
    assert ids(index.search("file", k=50, where="zip < '09910'")) == set(range(10))
    assert ids(index.search("file", k=50, where="id >= 145 AND title LIKE 'part%'")) == set(range(145, 150))
    with pytest.raises(InputError, match=r"'zip' holds texts, of which some, such as '09900', are not written as"):
        index.search("file", where="zip < 9910")


def test_documents_added_later_are_read_in_the_same_way(index: FunnelIndex, tmp_path: Path) -> None:
    index.add([{"_id": 200, "text": "it opens file 200", "year": 2100, "lang": "en"}], progress=False)
    index.add(csv_file(tmp_path / "more.csv", range(150, 160)), progress=False)
    expected = set(range(120, 160, 2)) | {200}
    assert ids(index.search("open a file", k=50, where=WHERE)) == expected
    index.compact(progress=False)
    assert ids(index.search("open a file", k=50, where=WHERE)) == expected


def test_what_an_error_advises_helps(index: FunnelIndex, tmp_path: Path) -> None:
    index.add(csv_file(tmp_path / "more.csv", [150], year="unknown"), progress=False)
    with pytest.raises(InputError, match=r"such as 'unknown', are not written as .* upsert those .* and compact"):
        index.search("file", where=WHERE)
    index.upsert(csv_file(tmp_path / "more.csv", [150]), progress=False)
    index.compact(progress=False)
    assert ids(index.search("open a file", k=50, where=WHERE)) == set(range(120, 152, 2))


def test_ids_given_as_numbers_are_allowed_as_numbers(index: FunnelIndex) -> None:
    for given in ([1, 2], np.array([1, 2]), ["1", 2], {"1", "2"}):
        assert ids(index.search("open a file", k=50, allowed_ids=given)) == {1, 2}  # type: ignore[arg-type]
    assert ids(index.search("open a file", k=50, allowed_ids=[2**70, 3], where="year < 2000")) == {3}
    index.delete([1, 3])
    assert ids(index.search("open a file", k=50, allowed_ids=[1, 2, 3])) == {2}


def test_an_index_that_is_open_twice_filters_on_both(text_folder: Path) -> None:
    one, other = (FunnelIndex.open(text_folder, encoder=hashed_words) for _ in range(2))
    assert len(one.search("socket", k=300, where="year > 2000")) == 199
    expected = {d["_id"] for d in documents(300) if d["title"].startswith("socket")}
    assert {hit.id for hit in other.search("socket", k=300, where="title LIKE 'socket%'")} == expected
    assert {hit.id for hit in one.search("socket", k=300, where="title LIKE 'socket%'")} == expected
