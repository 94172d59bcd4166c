"""Corpora of other shapes, and fields under other names."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from funnel.data.corpus import NO_COLUMNS, Columns, open_corpus
from funnel.data.documents import Document
from funnel.data.queries import open_queries
from funnel.errors import InputError
from funnel.request import read_query

ROWS = [{"key": "a", "body": "one", "year": 2020, "n": 1}, {"key": "b", "body": "two", "year": 2021, "n": 2}]
NAMED = Columns(text="body", id="key", metadata=["year"])
EXPECTED = [Document("a", text="one", metadata={"year": 2020}), Document("b", text="two", metadata={"year": 2021})]


def read(source: object, columns: Columns = NO_COLUMNS) -> list[Document]:
    return [one for part in open_corpus(source, None, columns).documents(10) for one in part]  # type: ignore[arg-type]


def test_fields_are_named(tmp_path: Path) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    for source in (ROWS, iter(ROWS), tmp_path / "a.jsonl", tmp_path / "a.jsonl.gz"):
        assert read(source, NAMED) == EXPECTED
    with pytest.raises(InputError, match="no field 'words', which was named; its fields are: key, body"):
        read(ROWS, Columns(text="words"))


def test_metadata_that_no_record_has(tmp_path: Path) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "a.csv").write_text("key,body,year\na,one,2020\n")
    mistyped = Columns(text="body", id="key", metadata=["year", "yeer"])
    said = "metadata names 'yeer', which no record has; their fields are: key, body, year"
    for source in (ROWS, tmp_path / "a.jsonl", tmp_path / "a.csv"):
        with pytest.raises(InputError, match=said):
            open_corpus(source, columns=mistyped)
    once = open_corpus(iter(ROWS), columns=mistyped)
    with pytest.raises(InputError, match=said):
        list(once.documents(1))
    sparse = [*ROWS, {"key": "c", "body": "three", "yeer": 1}]
    for given in (sparse, iter(sparse)):
        assert read(given, mistyped)[2].metadata == {"yeer": 1}


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow", "datasets"])
def test_metadata_that_no_table_has(library: str) -> None:
    vectors = [{"id": "a", "vector": [3.0, 4.0], "year": 2020}, {"id": "b", "vector": [1.0, 0.0], "year": 2021}]
    with pytest.raises(InputError, match="metadata names 'yeer', which no record has; their fields are: id, vector"):
        open_corpus(table_of(library, vectors), columns=Columns(metadata=["yeer"]))


def test_names_for_what_has_none() -> None:
    with pytest.raises(InputError, match="document 0: text='body' names a field, and this is a Document; leave it out"):
        read([Document("a", text="one")], Columns(text="body"))


def test_a_csv_file_without_the_field_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("key,body\na,one\n")
    with pytest.raises(InputError, match=r"a\.csv:1: has no field 'words', which was named; its fields are: key, body"):
        open_corpus(tmp_path / "a.csv", columns=Columns(text="words"))
    with pytest.raises(InputError, match="expected title or text among it; say which is which: text="):
        open_corpus(tmp_path / "a.csv")
    with pytest.raises(InputError, match="expected title or text among it; call the text of a query text or query"):
        open_queries(tmp_path / "a.csv")


LIBRARIES = ["pandas", "polars", "pyarrow", "datasets"]


def table_of(library: str, rows: list[dict[str, object]]) -> Any:
    module = pytest.importorskip(library)
    if library == "datasets":
        return module.Dataset.from_list(rows)
    return module.Table.from_pylist(rows) if library == "pyarrow" else module.DataFrame(rows)


@pytest.mark.parametrize("library", LIBRARIES)
def test_tables_of_other_libraries(library: str) -> None:
    assert read(table_of(library, ROWS), NAMED) == EXPECTED
    queries = open_queries(table_of(library, [{"query": "one"}, {"query": "two"}]))
    assert (queries.texts, queries.ids) == (["one", "two"], ["0", "1"])


@pytest.mark.parametrize("library", LIBRARIES)
def test_columns_of_other_libraries(library: str) -> None:
    table = table_of(library, [{"text": "one", "v": [3.0, 4.0]}, {"text": "two", "v": [0.0, 2.0]}])
    assert [one.text for one in read(table["text"])] == ["one", "two"]
    assert open_queries(table["text"]).texts == ["one", "two"]
    assert read_query(table["text"], 2) == (["one", "two"], None, False)
    unit = [[0.6, 0.8], [0.0, 1.0]]
    np.testing.assert_allclose(next(open_corpus(table["v"]).vectors(10)), unit, rtol=1e-6)
    np.testing.assert_allclose(open_queries(table["v"]).vectors, unit, rtol=1e-6)  # type: ignore[arg-type]
    np.testing.assert_allclose(read_query(table["v"], 2)[1], [[3, 4], [0, 2]])  # type: ignore[arg-type]


def test_a_dict_of_ids() -> None:
    expected = [Document("a", text="one"), Document("b", "t", "two", {"year": 1})]
    assert read({"a": "one", "b": {"title": "t", "text": "two", "year": 1}}) == expected
    queries = open_queries({"q1": "one", "q2": "two"})
    assert (queries.texts, queries.ids) == (["one", "two"], ["q1", "q2"])
    with pytest.raises(InputError, match="'text' of the dict is a list; expected id -> text or id -> record"):
        read({"text": ["one", "two"]})


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "csv", "semicolon.csv", "parquet"])
@pytest.mark.parametrize("field", ["text", "query"])
def test_files_of_queries(suffix: str, field: str, tmp_path: Path) -> None:
    path, rows = tmp_path / f"queries.{suffix}", [{field: "one, two"}, {field: "three"}]
    if suffix == "parquet":
        table_of("pandas", rows).to_parquet(path)  # type: ignore[arg-type]
    elif suffix.endswith("csv"):
        path.write_text(
            f"{field};n\none, two;1\nthree;2\n" if "semi" in suffix else f'{field},n\n"one, two",1\nthree,2\n'
        )
    else:
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(lines) if suffix.endswith("gz") else lines)
    queries = open_queries(path)
    assert (queries.texts, queries.ids) == (["one, two", "three"], ["0", "1"])


def test_queries_of_other_columns_are_refused_by_those_there(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text("question,n\none,1\n")
    with pytest.raises(InputError, match="the header is question, n; expected title or text"):
        open_queries(tmp_path / "q.csv")
    with pytest.raises(InputError, match="query 0: has no text, title or vector; its fields are: question"):
        open_queries([{"question": "one"}])


def test_a_field_that_looks_like_the_vector_is_named() -> None:
    rows = [{"text": "one", "embedding": [float(n) for n in range(1, 33)]}]
    with pytest.warns(
        UserWarning, match="the field 'embedding' holds 32 numbers and is kept as metadata; give vector="
    ):
        assert read(rows)[0].vector is None
    (document,) = read(rows, Columns(vector="embedding"))
    assert document.vector is not None
    assert document.vector.shape == (32,)
    assert document.metadata == {}
    assert read([{"text": "one", "few": [1, 2, 3], "words": ["a"] * 40}])[0].vector is None


def test_semicolons(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("key;body;year\na;one, two;2020\n")
    assert read(path, NAMED) == [Document("a", text="one, two", metadata={"year": "2020"})]


def test_documents_without_ids_are_numbered() -> None:
    expected = [Document("0", text="one"), Document("1", text="two")]
    for source in (["one", "two"], np.array(["one", "two"]), [{"text": "one"}, {"text": "two"}]):
        assert read(source) == expected
    with pytest.raises(InputError, match="document 1: has an id, the first document has none"):
        read([{"text": "one"}, {"_id": "x", "text": "two"}])
    with pytest.raises(InputError, match="document 1: _id is missing"):
        read([{"_id": "x", "text": "one"}, {"text": "two"}])


def test_lists_of_numbers_are_rows() -> None:
    np.testing.assert_allclose(open_queries([[3, 4], [0, 2]]).vectors, [[0.6, 0.8], [0, 1]], rtol=1e-6)  # type: ignore[arg-type]
    for source in ([[3, 4], [0, 2]], [np.array([3.0, 4.0]), np.array([0.0, 2.0])]):
        rows = next(open_corpus(source).vectors(10))  # type: ignore[arg-type]
        np.testing.assert_allclose(rows, [[0.6, 0.8], [0.0, 1.0]], rtol=1e-6)
    with pytest.raises(InputError, match="different lengths"):
        open_corpus([[1.0], [1.0, 2.0]])


def test_what_is_not_supported_is_said() -> None:
    with pytest.raises(InputError, match=r"s3:// is not supported; copy the file"):
        open_corpus("s3://bucket/a.jsonl")
    with pytest.raises(InputError, match=r"https:// is not supported"):
        open_queries("https://host/a.jsonl")
    with pytest.raises(InputError, match=r"numpy\.unpackbits"):
        open_corpus(np.ones((3, 8), dtype=np.uint8))
