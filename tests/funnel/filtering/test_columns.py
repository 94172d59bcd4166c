"""Conditions run over documents: the same rows as plain Python finds, from a file of columns and without one."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from funnel.data.documents import Document, DocumentStore
from funnel.errors import DamagedIndexError, InputError, NoSpaceError
from funnel.filtering import columns as columns_module
from funnel.filtering.columns import FilterColumns, Values, merged, write_columns
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


def made(store: DocumentStore, path: Path) -> FilterColumns:
    write_columns(store, path)
    return FilterColumns(store, path)


def tables(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as connection:
        return {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}


def found(columns: FilterColumns, where: str | Condition) -> list[int]:
    condition = parse(where) if isinstance(where, str) else where
    return sorted(columns.positions(condition).tolist())


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
    assert found(made(store, tmp_path / "columns.sqlite"), where) == positions
    assert found(FilterColumns(store, None), where) == positions


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(records, min_size=1, max_size=8), st.lists(conditions, min_size=1, max_size=8))
def test_the_same_rows_as_plain_python(
    tmp_path_factory: pytest.TempPathFactory, documents: list[dict[str, Any]], asked: list[Condition]
) -> None:
    folder = tmp_path_factory.mktemp("columns")
    with stored(folder / "documents.sqlite", documents) as store:
        columns = made(store, folder / "columns.sqlite")
        for condition in asked:
            expected = [i for i, record in enumerate(documents) if holds(condition, record) is True]
            assert found(columns, condition) == expected
            assert found(FilterColumns(store, None), condition) == expected


@pytest.mark.parametrize("kept", [True, False])
def test_a_catalogue_says_what_columns_hold(store: DocumentStore, tmp_path: Path, kept: bool) -> None:
    columns = made(store, tmp_path / "columns.sqlite") if kept else FilterColumns(store, None)
    assert list(columns.catalogue) == ["id", "title", "year", "lang", "done", "tags", "big"]
    assert columns.catalogue["year"] == Values(2, 1, 0, 0, "2019", 1)
    assert columns.catalogue["tags"] == Values(0, 0, 0, 1, "['a']")


def test_documents_are_read_no_more_once_columns_are_written(store: DocumentStore, tmp_path: Path) -> None:
    columns = made(store, tmp_path / "columns.sqlite")
    store.close()
    assert found(columns, "year >= 2019 AND unheard IS NULL") == [0, 1, 2]


def test_fields_that_come_late_are_read_from_the_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns_module, "STORED", 4)  # id, title and two fields
    with stored(tmp_path / "documents.sqlite", [{"a": 1, "b": 2}, {"a": 2, "c": 3}, {"c": 4, "d": "x"}]) as store:
        columns = made(store, tmp_path / "columns.sqlite")
        assert list(columns.catalogue) == ["id", "title", "a", "b", "c", "d"]
        assert tables(tmp_path / "columns.sqlite") == {"catalogue", "c0", "c1", "c2", "c3"}
        wheres = ["c >= 3", "a = 2 AND c = 3", "a = 1 OR d = 'x'", "c IS NULL", "a IS NULL"]
        assert [found(columns, where) for where in wheres] == [[1, 2], [1], [0, 2], [0], [2]]


def test_a_file_of_many_fields_is_bounded(tmp_path: Path) -> None:
    with stored(tmp_path / "documents.sqlite", [{f"k{number}": number for number in range(300)}]) as store:
        columns = made(store, tmp_path / "columns.sqlite")
        assert len(tables(tmp_path / "columns.sqlite")) == 1 + 2 + 256
        assert found(columns, "k299 = 299 AND k0 = 0") == [0]


def test_no_documents_have_columns_too(tmp_path: Path) -> None:
    with stored(tmp_path / "documents.sqlite", []) as store:
        columns = made(store, tmp_path / "columns.sqlite")
        assert (list(columns.catalogue), found(columns, "id IS NULL OR id <> 'a'")) == (["id", "title"], [])


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE VIEW other AS SELECT 1",
        "CREATE INDEX other ON c0 (text)",
        "ALTER TABLE c1 ADD COLUMN more AS (hex(zeroblob(9)))",
        "DROP TABLE c3",
        "DROP TABLE catalogue",
        "UPDATE catalogue SET texts = 'many'",
        "UPDATE catalogue SET number = number + 7",
        "UPDATE catalogue SET name = 'x' WHERE number = 0",
        "UPDATE c2 SET position = position + 100",
        "UPDATE c2 SET position = -position",
    ],
)
def test_a_file_that_is_not_our_own_is_refused(store: DocumentStore, tmp_path: Path, statement: str) -> None:
    made(store, tmp_path / "columns.sqlite")
    with closing(sqlite3.connect(tmp_path / "columns.sqlite", isolation_level=None)) as connection:
        connection.execute(statement)
    with pytest.raises(DamagedIndexError, match=r"columns.sqlite"):
        found(FilterColumns(store, tmp_path / "columns.sqlite"), "year >= 2019 AND lang IS NOT NULL OR year > 0")


def test_damaged_documents_give_no_columns(store: DocumentStore, tmp_path: Path) -> None:
    with closing(sqlite3.connect(store.path)) as connection, connection:
        connection.execute("DELETE FROM documents WHERE position = 3")
    with DocumentStore.open(store.path) as damaged:
        with pytest.raises(DamagedIndexError, match="lacks the document at position 3"):
            write_columns(damaged, tmp_path / "columns.sqlite")
        with pytest.raises(DamagedIndexError, match="lacks the document at position 3"):
            found(FilterColumns(damaged, None), "year = 1")


def test_a_full_disk_is_said(store: DocumentStore) -> None:
    with pytest.raises(NoSpaceError, match="no space left while writing /dev/full"):
        write_columns(store, Path("/dev/full"))


def test_threads_share_columns(store: DocumentStore, tmp_path: Path) -> None:
    columns = made(store, tmp_path / "columns.sqlite")
    wheres = ["year >= 2019", "lang LIKE 'e_'", "done = TRUE OR done = FALSE", "title LIKE '%'"] * 4
    with ThreadPoolExecutor(4) as pool:
        sizes = [len(result) for result in pool.map(lambda where: found(columns, where), wheres)]
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
        columns = made(store, tmp_path / "columns.sqlite")
        wheres = ["id = 'a'", '"metadata.id" = 5', '"metadata.title" >= 7', "title = 'u'", '"metadata.id" IS NULL']
        wheres += ['"metadata.metadata.id" = 8', '"metadata.x" = 9']
        assert [found(columns, where) for where in wheres] == [[0], [0], [0], [1], [1], [0], [0]]


def test_conditions_over_many_columns(tmp_path: Path) -> None:
    with DocumentStore.create(tmp_path / "documents.sqlite") as store:
        store.append([Document(str(n), metadata={f"c{j}": j + n for j in range(200)}) for n in range(3)])
        columns = made(store, tmp_path / "columns.sqlite")
        for count in (63, 64, 65, 200):
            assert found(columns, " AND ".join(f"c{j} >= {j + 1}" for j in range(count))) == [1, 2]
            assert found(columns, " OR ".join(f"c{j} = {j}" for j in range(count))) == [0]
