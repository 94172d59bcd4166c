"""Documents from files: what is read, and every fault named with its place."""

import datetime
import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from funnel.data.corpus import READERS, document_from_record, json_objects, located
from funnel.data.documents import Document
from funnel.errors import InputError, MissingPackageError

UNICODE = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
RECORDS = st.lists(
    st.fixed_dictionaries(
        {"_id": UNICODE.filter(bool), "title": UNICODE, "text": UNICODE},
        optional={"year": st.integers(0, 3000), "tags": st.lists(UNICODE, max_size=2)},
    ),
    max_size=5,
)


def _read(path: Path) -> list[Document]:
    return [document for _, document in located(READERS[path.suffix](path))]


def _fields(document: Document) -> dict[str, object]:
    return {"_id": document.id, "title": document.title, "text": document.text, **document.metadata}


@given(RECORDS, st.booleans(), st.sampled_from(["\n", "\r\n"]))
def test_json_lines_come_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, object]], ascii_only: bool, end: str
) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "corpus.jsonl"
    lines = [json.dumps(record, ensure_ascii=ascii_only) + end for record in records]
    path.write_bytes("".join([*lines, end, end]).encode())
    assert [_fields(document) for document in _read(path)] == records


@given(RECORDS)
def test_parquet_comes_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, object]]
) -> None:
    path = tmp_path_factory.mktemp("parquet") / "corpus.parquet"
    rows = [{"year": 0, "tags": [], **record} for record in records]
    schema = pyarrow.schema(
        {
            "_id": pyarrow.string(), "title": pyarrow.string(), "text": pyarrow.string(),
            "year": pyarrow.int64(), "tags": pyarrow.list_(pyarrow.string()),
        }
    )  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), path)
    assert [_fields(document) for document in _read(path)] == rows


def test_where_counts_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"_id": 1, "text": "a"}\n\n{"_id": 2, "text": "b"}\n')
    assert [where for where, _ in READERS[".jsonl"](path)] == [f"{path}:1", f"{path}:3"]


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "corpus.csv"
    path.write_bytes(b"\xef\xbb\xbfid,text\r\n1,a\r\n")
    assert _read(path) == [Document("1", text="a")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"_id": "x", ', r":2: not JSON \("),
        (b"[1, 2]", r":2: expected a JSON object, got list"),
        (b"[" * 100_000, ":2: not JSON"),
        (b'{"text": "a"}', ":2: _id is missing or empty"),
        (b'{"_id": "", "text": "a"}', ":2: _id is missing or empty"),
        (b'{"_id": null, "text": "a"}', ":2: _id is missing or empty"),
        (b'{"_id": 1.5, "text": "a"}', r":2: _id is 1.5 \(float\), expected text or a whole number"),
        (b'{"_id": true, "text": "a"}', r":2: _id is True \(bool\)"),
        (b'{"_id": "x", "body": "a"}', ":2: has no text, title or vector; its fields are: _id, body"),
        (b'{"_id": "x", "text": 5}', ":2: text is int, expected text"),
        (b'{"_id": "x", "title": ["a"], "text": ""}', ":2: title is list, expected text"),
        (b'{"_id": "x", "text": "a\\ud800"}', ":2: text has a lone surrogate at character 1"),
        (b'{"_id": "x", "text": "\xff"}', ":2: byte 22 of the line is not UTF-8"),
        (b'{"_id": "x", "vector": "abc"}', ":2: vector is not a list of numbers"),
        (b'{"_id": "x", "vector": []}', ":2: vector is not a list of numbers"),
        (b'{"_id": "x", "vector": [[1, 2], [3]]}', ":2: vector is not a list of numbers"),
        (b'{"_id": "x", "vector": [1, NaN]}', ":2: vector has NaN, infinite or only zero values"),
        (b'{"_id": "x", "vector": [0, 0]}', ":2: vector has NaN, infinite or only zero values"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(b'{"_id": "fine", "text": "a"}\n' + line + b"\n")
    with pytest.raises(InputError, match=r"corpus\.jsonl" + message):
        _read(path)


def test_ids_become_text_and_null_texts_empty() -> None:
    record = {"_id": 7, "title": None, "text": "a", "id": "inner"}
    assert document_from_record(record, "here") == Document("7", "", "a", {"id": "inner"})
    assert document_from_record({"id": np.int64(7), "text": "a"}, "here") == Document("7", text="a")
    assert document_from_record(Document(7, text="a"), "here").id == "7"


def test_vectors_are_scaled_to_unit_length() -> None:
    for record in ({"_id": "x", "vector": [3, 4]}, Document("x", vector=np.array([3, 4], dtype=np.float32))):
        vector = document_from_record(record, "here").vector
        assert vector is not None
        assert vector.dtype == np.float32
        np.testing.assert_allclose(vector, [0.6, 0.8], rtol=1e-6)


def test_json_objects_carry_their_place(tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    path.write_text('\n{"a": 1}')
    assert list(json_objects(path)) == [(f"{path}:2", {"a": 1})]


def test_csv_columns_and_quoted_line_breaks(tmp_path: Path) -> None:
    path = tmp_path / "corpus.csv"
    path.write_text('year,_id,title,text\n1999,a,"one, two","line\nbreak ""quoted"""\n\n2000,b,,\n', newline="")
    assert _read(path) == [
        Document("a", "one, two", 'line\nbreak "quoted"', {"year": "1999"}),
        Document("b", "", "", {"year": "2000"}),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("body,headline\na,b\n", ":1: the header is body, headline; expected title or text"),
        ("id,body\na,b\n", ":1: the header is id, body; expected title or text"),
        ("id,text,text\na,b,c\n", ":1: the header names text more than once"),
        ("id,text,vector\na,b,c\n", ":1: a CSV file cannot carry vectors"),
        ("id,text\na,b\nc\n", ":3: 1 columns, the header has 2"),
        ("id,text\na,b,c\n", ":2: 3 columns, the header has 2"),
        ("id,text\n,b\n", ":2: id is missing or empty"),
        ('id,text\na,"open\n', ":2: unexpected end of data"),
    ],
)
def test_csv_faults_are_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "corpus.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=r"corpus\.csv" + message):
        _read(path)


def test_parquet_vectors_nulls_and_dates(tmp_path: Path) -> None:
    path = tmp_path / "corpus.parquet"
    vectors = pyarrow.array([[3.0, 4.0], [1.0, 0.0]], type=pyarrow.list_(pyarrow.float32(), 2))
    day = datetime.date(2024, 2, 29)
    table = pyarrow.table({"id": [1, 2], "title": ["a", None], "day": [day, None], "vector": vectors})
    pyarrow.parquet.write_table(table, path)
    first, second = _read(path)
    assert (first.id, first.title, first.metadata) == ("1", "a", {"day": day})
    assert (second.id, second.title) == ("2", "")
    assert first.vector is not None
    assert second.vector is not None
    np.testing.assert_allclose([first.vector, second.vector], [[0.6, 0.8], [1.0, 0.0]], rtol=1e-6)


def test_a_parquet_row_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    path = tmp_path / "corpus.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"_id": ["a", None], "text": ["x", "y"]}), path)
    with pytest.raises(InputError, match=r"corpus\.parquet: row 1: _id is missing"):
        _read(path)


def test_parquet_with_nothing_but_vectors_is_numbered(tmp_path: Path) -> None:
    path = tmp_path / "corpus.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"vector": [[1.0, 2.0], [3.0, 4.0]]}), path)
    assert [document.id for document in _read(path)] == ["0", "1"]


@pytest.mark.parametrize("content", [b"", b"PAR1 nothing of the kind PAR1"])
def test_what_is_no_parquet_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "corpus.parquet"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"corpus\.parquet cannot be read as parquet"):
        _read(path)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingPackageError, match=r"funnel-retrieval\[parquet\]"):
        _read(tmp_path / "corpus.parquet")
