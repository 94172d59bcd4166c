"""Corpora of other shapes, and fields under other names."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from funnel.data.columns import Columns
from funnel.data.corpus import open_corpus
from funnel.data.documents import Document
from funnel.data.queries import open_queries
from funnel.errors import InputError

ROWS = [{"key": "a", "body": "one", "year": 2020, "n": 1}, {"key": "b", "body": "two", "year": 2021, "n": 2}]
NAMED = Columns(text="body", id="key", metadata=["year"])
EXPECTED = [Document("a", text="one", metadata={"year": 2020}), Document("b", text="two", metadata={"year": 2021})]


def read(source: object, columns: Columns | None = None) -> list[Document]:
    return [one for part in open_corpus(source, None, columns).documents(10) for one in part]  # type: ignore[arg-type]


def test_fields_are_named(tmp_path: Path) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    for source in (ROWS, iter(ROWS), tmp_path / "a.jsonl", tmp_path / "a.jsonl.gz"):
        assert read(source, NAMED) == EXPECTED
    with pytest.raises(InputError, match="no field 'words', which was named; its fields are: key, body"):
        read(ROWS, Columns(text="words"))


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
def test_tables_of_other_libraries(library: str) -> None:
    module = pytest.importorskip(library)
    table = module.Table.from_pylist(ROWS) if library == "pyarrow" else module.DataFrame(ROWS)
    assert read(table, NAMED) == EXPECTED


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
    for source in ([[3, 4], [0, 2]], [np.array([3.0, 4.0]), np.array([0.0, 2.0])]):
        rows = next(open_corpus(source).vectors(10))  # type: ignore[arg-type]
        np.testing.assert_allclose(rows, [[0.6, 0.8], [0, 1]], rtol=1e-6)
    with pytest.raises(InputError, match="different lengths"):
        open_corpus([[1.0], [1.0, 2.0]])


def test_what_is_not_supported_is_said() -> None:
    with pytest.raises(InputError, match=r"s3:// is not supported; copy the file"):
        open_corpus("s3://bucket/a.jsonl")
    with pytest.raises(InputError, match=r"https:// is not supported"):
        open_queries("https://host/a.jsonl")
    with pytest.raises(InputError, match=r"numpy\.unpackbits"):
        open_corpus(np.ones((3, 8), dtype=np.uint8))
