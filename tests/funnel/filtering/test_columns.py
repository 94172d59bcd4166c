"""Conditions run over documents: the same rows as plain Python finds, and a cache that may be damaged at any time."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from funnel.data.documents import Document, DocumentStore
from funnel.errors import InputError, NoSpaceError
from funnel.filtering import columns as sidefile
from funnel.filtering.columns import FORMAT, ColumnCache, Values, merged
from funnel.filtering.condition import Condition, parse
from funnel.filtering.segment import check_columns
from tests.funnel.filtering.evaluate import holds
from tests.funnel.filtering.strategies import conditions, records

RECORDS: list[dict[str, Any]] = [
    {"year": 2019, "lang": "en", "done": True},
    {"year": 2020.5, "lang": "EN", "done": False},
    {"year": "2021", "lang": None, "tags": ["a"]},
    {"year": float("nan"), "lang": "de%", "big": 10**400},
    {"lang": "it's", "big": -(2**70)},
]


@pytest.fixture
def store(tmp_path: Path) -> DocumentStore:
    return stored(tmp_path / "documents.sqlite", RECORDS)


def stored(path: Path, records: list[dict[str, Any]]) -> DocumentStore:
    with DocumentStore.create(path) as made:
        made.append([Document(f"d{i}", f"title {i}", metadata=record) for i, record in enumerate(records)])
    return DocumentStore.open(path)


def found(cache: ColumnCache, where: str | Condition) -> list[int]:
    condition = parse(where) if isinstance(where, str) else where
    return sorted(cache.positions(condition).tolist())


@pytest.mark.parametrize(
    ("where", "positions"),
    [
        ("year >= 2019", [0, 1, 2]),  # a text that is written as a number is one
        ("NOT year >= 2020", [0]),  # a missing year is neither in it nor in its opposite
        ("lang > 0 OR NOT lang > 0", []),  # nor is another text
        ("year = '2021'", [2]),
        ("year IS NULL", [3, 4]),
        ("lang LIKE 'e_'", [0, 1]),
        ("lang LIKE '%!%' ESCAPE '!'", [3]),
        ("lang = 'it''s' OR done = TRUE", [0, 4]),
        ("lang NOT IN ('en', 'EN')", [3, 4]),
        ("year BETWEEN 2019 AND 2020.5 AND done <> TRUE", [1]),
        ("tags IS NOT NULL", [2]),
        ("big > 1e300", [3]),
        ("big < -1e21", [4]),
        ("id IN ('d1', 'd3') AND title <> 'title 3'", [1]),
        ("unheard IS NULL", [0, 1, 2, 3, 4]),
        ("unheard = 1 OR NOT unheard = 1", []),
    ],
)
def test_conditions_select(store: DocumentStore, tmp_path: Path, where: str, positions: list[int]) -> None:
    assert found(ColumnCache(store, "key", tmp_path / "cache"), where) == positions


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(records, min_size=1, max_size=8), st.lists(conditions, min_size=1, max_size=8))
def test_the_same_rows_as_plain_python(
    tmp_path_factory: pytest.TempPathFactory, documents: list[dict[str, Any]], asked: list[Condition]
) -> None:
    folder = tmp_path_factory.mktemp("columns")
    with stored(folder / "documents.sqlite", documents) as store:
        cache = ColumnCache(store, "key", folder / "cache")
        for condition in asked:
            expected = [i for i, record in enumerate(documents) if holds(condition, record) is True]
            assert found(cache, condition) == expected


def test_a_second_cache_reads_what_the_first_took_out(store: DocumentStore, tmp_path: Path) -> None:
    assert found(ColumnCache(store, "key", tmp_path / "cache"), "year >= 2019") == [0, 1, 2]
    store.close()  # documents are not read again
    second = ColumnCache(store, "key", tmp_path / "cache")
    assert found(second, "year >= 2020") == [1, 2]
    assert second.catalogue()["year"] == Values(2, 1, 0, 0, "2019", 1)


def test_columns_and_indexes_are_made_on_demand(store: DocumentStore, tmp_path: Path) -> None:
    cache = ColumnCache(store, "key", tmp_path / "cache")

    def made() -> set[str]:
        (path,) = (tmp_path / "cache").glob("*.sqlite")
        connection = sqlite3.connect(path)
        names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE name LIKE 'c%'")}
        connection.close()
        return names - {"catalogue"}

    cache.catalogue()
    assert made() == set()
    number = {name: f"c{place}" for place, name in enumerate(cache.catalogue())}
    found(cache, "lang LIKE 'e%'")
    assert made() == {number["lang"]}
    found(cache, "year > 5 AND lang <> 'x'")
    assert made() == {number["lang"], number["year"], f"{number['year']}_number"}


def test_documents_are_never_written(store: DocumentStore, tmp_path: Path) -> None:
    before = store.path.read_bytes()
    found(ColumnCache(store, "key", tmp_path / "cache"), "year > 5")
    assert store.path.read_bytes() == before


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage", [flip, lambda path: os.truncate(path, 100), lambda path: path.write_bytes(b"junk"), Path.unlink]
)
def test_a_damaged_cache_is_made_anew(store: DocumentStore, tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    folder = tmp_path / "cache"
    assert found(ColumnCache(store, "key", folder), "year >= 2019") == [0, 1, 2]
    (path,) = folder.glob("*.sqlite")
    damage(path)
    assert found(ColumnCache(store, "key", folder), "year >= 2019") == [0, 1, 2]
    (again,) = folder.glob("*.sqlite")
    assert again.read_bytes()[:15] == b"SQLite format 3"


def test_every_flipped_byte_is_found(store: DocumentStore, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    found(ColumnCache(store, "key", folder), "year >= 2019")
    (path,) = folder.glob("*.sqlite")
    sound = path.read_bytes()
    for offset in range(0, len(sound), max(1, len(sound) // 50)):
        data = bytearray(sound)
        data[offset] ^= 1 << offset % 8
        path.write_bytes(data)
        assert sidefile.SideFile(f"key-{FORMAT}", folder).connection() is None
        assert not path.exists()
        path.write_bytes(sound)


def test_a_cache_that_breaks_while_open_is_made_anew(store: DocumentStore, tmp_path: Path) -> None:
    cache = ColumnCache(store, "key", tmp_path / "cache")
    assert found(cache, "year >= 2019") == [0, 1, 2]
    (path,) = (tmp_path / "cache").glob("*.sqlite")
    with open(path, "r+b") as file:  # the same file that is open
        file.write(b"\xff" * path.stat().st_size)
    assert found(cache, "year >= 2019 AND lang = 'en'") == [0]


def test_a_folder_that_cannot_be_made_is_replaced(store: DocumentStore, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    assert found(ColumnCache(store, "key", blocked / "cache"), "year >= 2019") == [0, 1, 2]


def test_no_room_anywhere_is_said(store: DocumentStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(NoSpaceError, match=r"the columns that filters need cannot be kept in .*FUNNEL_CACHE"):
        found(ColumnCache(store, "key", tmp_path / "cache"), "year >= 2019")


def test_side_files_are_bounded(store: DocumentStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache"
    found(ColumnCache(store, "old", folder), "year >= 2019")
    (size,) = (path.stat().st_size for path in folder.iterdir())
    monkeypatch.setattr(sidefile, "LARGEST_FOLDER", size + 1)
    found(ColumnCache(store, "new", folder), "year >= 2019")
    assert [path.name[:3] for path in folder.iterdir()] == ["new"]


def test_threads_share_a_cache(store: DocumentStore, tmp_path: Path) -> None:
    cache = ColumnCache(store, "key", tmp_path / "cache")
    wheres = ["year >= 2019", "lang LIKE 'e_'", "done = TRUE OR done = FALSE", "title LIKE '%'"] * 4
    with ThreadPoolExecutor(4) as pool:
        sizes = [len(result) for result in pool.map(lambda where: found(cache, where), wheres)]
    assert sizes == [3, 2, 2, 5] * 4


COLUMNS: Mapping[str, Values] = {
    "year": Values(number=3, example="2019"),
    "lang": Values(text=3, example="'en'"),
    "tags": Values(other=1, example="['a']"),
    "empty": Values(),
}


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("yeer = 1", r"no column 'yeer'; did you mean 'year'\? the columns are empty, lang, tags, year; character 1"),
        ("year = 1 AND zzz IS NULL", r"no column 'zzz'; the columns are .*; character 14"),
        ("year = '2019'", r"'year' holds numbers, such as 2019, and is compared with a text"),
        ("lang IN (1)", r"'lang' holds texts, such as 'en', and is compared with a number"),
        ("tags LIKE 'a'", r"'tags' holds lists or objects, such as \['a'\]"),
    ],
)
def test_columns_are_checked(where: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_columns(where, parse(where), COLUMNS)


def test_columns_of_several_segments_are_known_together() -> None:
    columns = merged([{"a": Values(1, example="1")}, {"a": Values(0, 2, example="'x'"), "b": Values()}])
    assert columns == {"a": Values(1, 2, 0, 0, "1"), "b": Values()}
    check_columns("a = 'x' AND a = 1 AND b = 1", parse("a = 'x' AND a = 1 AND b = 1"), columns)


def test_a_field_called_as_an_own_column_has_a_name_of_its_own(tmp_path: Path) -> None:
    with DocumentStore.create(tmp_path / "documents.sqlite") as store:
        metadata = {"id": 5, "title": 7, "metadata.id": 8, "metadata.x": 9}
        store.append([Document("a", "t", metadata=metadata), Document("b", "u")])
        cache = ColumnCache(store, "f" * 64, tmp_path / "columns")
        wheres = ["id = 'a'", '"metadata.id" = 5', '"metadata.title" >= 7', "title = 'u'", '"metadata.id" IS NULL']
        wheres += ['"metadata.metadata.id" = 8', '"metadata.x" = 9']
        assert [found(cache, where) for where in wheres] == [[0], [0], [0], [1], [1], [0], [0]]


def test_conditions_over_many_columns(tmp_path: Path) -> None:
    with DocumentStore.create(tmp_path / "documents.sqlite") as store:
        store.append([Document(str(n), metadata={f"c{j}": j + n for j in range(200)}) for n in range(3)])
        cache = ColumnCache(store, "e" * 64, tmp_path / "columns")
        for columns in (64, 65, 200):
            assert found(cache, " AND ".join(f"c{j} >= {j + 1}" for j in range(columns))) == [1, 2]
            assert found(cache, " OR ".join(f"c{j} = {j}" for j in range(columns))) == [0]
