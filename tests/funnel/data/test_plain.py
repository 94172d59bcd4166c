"""The table of what metadata are stored as, and round trips through every way in and out."""

import csv
import datetime
import enum
import gzip
import json
import subprocess
import sys
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import numpy as np
import pandas  # type: ignore[import-untyped]
import polars
import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from funnel import FunnelIndex
from funnel.data.corpus import Columns, open_corpus
from funnel.data.documents import Document, DocumentStore, plain
from funnel.errors import InputError


class Level(enum.Enum):
    LOW = 1


class Colour(str, enum.Enum):  # noqa: UP042
    RED = "red"


DAY = "2024-05-01T00:00:00"
NAME = "12345678-1234-5678-1234-567812345678"
TABLE: dict[str, list[tuple[Any, Any]]] = {
    "None, NaN, NaT, pandas.NA": [
        *((one, None) for one in (None, float("nan"), np.float32("nan"), Decimal("NaN"), pandas.NaT, pandas.NA)),
        *((one, None) for one in (np.datetime64("NaT"), np.timedelta64("NaT", "s"), pyarrow.scalar(None))),
    ],
    "bool": [(one, True) for one in (True, np.True_, torch.tensor(True), pyarrow.scalar(True))],
    "whole numbers, of any size": [(7, 7), (10**30, 10**30), (-(2**63), -(2**63))],
    "floats, infinities too": [
        *((one, 1.5) for one in (1.5, np.float16(1.5), np.longdouble(1.5))),
        *((one, one) for one in (float("inf"), float("-inf"))),
        (np.float32(0.1), float(np.float32(0.1))),
    ],
    "Decimal": [
        *((Decimal("1.50"), 1.5), (Decimal("0.1"), 0.1)),
        (Decimal("0.1234567890123456789"), "0.1234567890123456789"),
    ],
    "text": [("é", "é"), (np.str_("a\0"), "a\0"), ("007", "007")],
    "datetime, date, time, datetime64, pandas.Timestamp": [
        *((np.datetime64(DAY, unit), DAY) for unit in ("h", "s", "ms", "us", "ns")),
        *((pandas.Timestamp(DAY), DAY), (datetime.datetime(2024, 5, 1), DAY)),
        *((one, "2024-05-01") for one in (np.datetime64("2024-05-01"), datetime.date(2024, 5, 1))),
        (np.datetime64(f"{DAY}.000000001"), f"{DAY}.000000001"),
        (np.datetime64(f"{DAY}.500", "ms"), f"{DAY}.500000"),
        (datetime.time(7, 30), "07:30:00"),
        (datetime.datetime(2024, 5, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=2))), f"{DAY}+02:00"),
        (pandas.Timestamp(DAY, tz="UTC"), f"{DAY}+00:00"),
        (np.array([DAY, "NaT"], dtype="M8[ns]"), [DAY, None]),
    ],
    "timedelta, timedelta64, pandas.Timedelta": [
        *((one, 90) for one in (datetime.timedelta(seconds=90), np.timedelta64(90, "s"), pandas.Timedelta("90s"))),
        (np.timedelta64(1500, "ms"), 1.5),
    ],
    "UUID": [(uuid.UUID(NAME), NAME)],
    "enum": [(Level.LOW, 1), (Colour.RED, "red")],
    "a scalar of numpy, pandas, torch or pyarrow": [
        *((one, 7) for one in (np.int8(7), np.uint64(7), torch.tensor(7), np.array(7), pyarrow.scalar(7))),
        (torch.tensor(1.5), 1.5),
    ],
    "list, tuple, array, series": [
        *((one, [1, 2]) for one in ([1, 2], (1, 2), np.array([1, 2]), pandas.Series([1, 2]), pandas.Index([1, 2]))),
        *((one, [1, 2]) for one in (pandas.Categorical([1, 2]), torch.tensor([1, 2]), pyarrow.array([1, 2]))),
    ],
    "mapping": [({"a": {1: np.int64(2)}}, {"a": {"1": 2}}), ({"a": [{"b": None}]}, {"a": [{"b": None}]})],
}
CASES = [case for cases in TABLE.values() for case in cases]


def test_the_manual_has_this_table() -> None:
    manual = (Path(__file__).parents[3] / "docs" / "metadata.md").read_text(encoding="utf-8")
    rows = [line.split(" | ")[0].removeprefix("| ") for line in manual.splitlines() if line.startswith("| ")]
    assert rows[1:] == [*TABLE]


@pytest.mark.parametrize(("given_", "stored"), CASES, ids=range(len(CASES)))
def test_what_is_stored_as_what(tmp_path: Path, given_: Any, stored: Any) -> None:
    with DocumentStore.create(tmp_path / "documents.sqlite") as store:
        store.append(next(iter(open_corpus([{"_id": "a", "text": "a file", "field": given_}]).documents(1))))
        found = store.get([0])[0].metadata["field"]
    assert (found, type(found)) == (stored, type(stored))


def test_all_of_the_table_comes_back_from_parquet(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((len(CASES), 8)).astype(np.float32)
    documents = [Document(f"d{i}", metadata={"field": one}, vector=rows[i]) for i, (one, _) in enumerate(CASES)]
    FunnelIndex.build(documents, tmp_path / "first", progress=False).export(tmp_path / "rows.parquet")
    for source in (tmp_path / "rows.parquet", pandas.read_parquet(tmp_path / "rows.parquet")):
        second = [one for batch in open_corpus(source).documents(100) for one in batch]
        assert [one.metadata["field"] for one in second] == [stored for _, stored in CASES]


REFUSED: list[Any] = [
    b"a", bytearray(b"a"), memoryview(b"a"), np.bytes_(b"a"), {1, 2}, 1j, np.complex64(1), object(), print,
    {(1, 2): 3}, {1: "a", "1": "b"}, np.timedelta64(1, "Y"), (one for one in "ab"), "\ud800", {"\ud800": 1}, 10**5000,
]  # fmt: skip


@pytest.mark.parametrize("value", REFUSED, ids=range(len(REFUSED)))
def test_all_else_is_refused(tmp_path: Path, value: Any) -> None:
    with DocumentStore.create(tmp_path / "documents.sqlite") as store:
        with pytest.raises(InputError, match="metadata of document 'a'"):
            store.append([Document("a", metadata={"field": value})])
        assert store.count() == 0


def test_what_holds_itself_is_refused(tmp_path: Path) -> None:
    endless: list[Any] = []
    endless.append(endless)
    with DocumentStore.create(tmp_path / "documents.sqlite") as store, pytest.raises(InputError, match="deep"):
        store.append([Document("a", metadata={"field": endless})])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8")),
    lambda of: st.lists(of, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8")), of, max_size=3),
    max_leaves=8,
)


@given(JSON)
def test_what_is_stored_stays_as_it_is(value: Any) -> None:
    assert plain(value) == value


FIELDS: list[dict[str, Any]] = [
    {"when": DAY, "price": 1.5, "tags": ["a", "b"], "good": True, "metadata": "own", "id": 5, "title": "hidden"},
    {"when": None, "price": 2, "tags": {"deep": [1, None]}, "text": "hidden", "zero": "a\0b", "line": "a\u2028b\r\n"},
]


def test_every_format_gives_the_same(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)
    given_ = [Document(f" {i}", "t", "body", fields, vectors[i]) for i, fields in enumerate(FIELDS)]
    first = FunnelIndex.build(given_, tmp_path / "first", progress=False)
    first.export(tmp_path / "rows.parquet")
    second = FunnelIndex.build(tmp_path / "rows.parquet", tmp_path / "second", progress=False)
    for index in (first, second):
        assert index.ids() == [" 0", " 1"]
        found = {hit.id: hit.metadata for hit in index.search(vectors[0], k=2)}
        assert [found[" 0"], found[" 1"]] == FIELDS


COLUMNS: dict[str, tuple[list[Any], list[Any]]] = {  # as given, as stored
    "whole": ([1, 2, 3], [1, 2, 3]),
    "price": ([1.5, 0.1, 2.25], [1.5, 0.1, 2.25]),
    "far": ([float("inf"), -float("inf"), 1.0], [float("inf"), -float("inf"), 1.0]),
    "gap": ([float("nan"), 2.5, 1.25], [None, 2.5, 1.25]),
    "flag": ([True, False, True], [True, False, True]),
    "word": (["a\0b", "é\u2028", "007"], ["a\0b", "é\u2028", "007"]),
    "some": (["x", None, "y"], ["x", None, "y"]),
    "day": ([datetime.date(2024, 5, day) for day in (1, 2, 3)], [f"2024-05-0{day}" for day in (1, 2, 3)]),
    "moment": (
        [datetime.datetime(2024, month, 1, 12, 30) for month in (5, 6, 7)],
        [f"2024-0{month}-01T12:30:00" for month in (5, 6, 7)],
    ),
    "span": ([datetime.timedelta(seconds=one) for one in (90, 1.5, 0)], [90, 1.5, 0]),
    "exact": ([Decimal("0.10"), Decimal("12345678901234567.25"), Decimal("-3.00")], [0.1, "12345678901234567.25", -3]),
    "tags": ([[1, 2], [], [3]], [[1, 2], [], [3]]),
    "deep": ([{"a": {"b": one}} for one in (1, 2, 3)], [{"a": {"b": one}} for one in (1, 2, 3)]),
}
WHERES = {
    "whole >= 2": "12", "price = 0.1": "1", "price > 1": "02", "day > '2024-05-01'": "12", "word = '007'": "2",
    "word LIKE '%b'": "0", "word LIKE 'a'": "", "exact > 1": "1", "exact < 0": "2", "span < 60": "12",
    "moment < '2024-06'": "0", "some = 'y' OR gap < 2": "2",
}  # fmt: skip
VECTORS = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)


def source_of(kind: str, folder: Path) -> Any:
    given_ = {"_id": list("012"), **{name: values for name, (values, _) in COLUMNS.items()}, "vector": VECTORS.tolist()}
    stored = {**given_, **{name: values for name, (_, values) in COLUMNS.items()}}
    records = [dict(zip(given_, row, strict=True)) for row in zip(*given_.values(), strict=True)]
    if kind == "dicts":
        return records
    lines = [json.dumps(dict(zip(stored, row, strict=True))) + "\n" for row in zip(*stored.values(), strict=True)]
    if kind in ("jsonl", "jsonl.gz"):
        write = gzip.compress if kind == "jsonl.gz" else bytes
        (folder / f"rows.{kind}").write_bytes(write("".join(lines).encode()))
        return folder / f"rows.{kind}"
    if kind == "csv":
        with (folder / "rows.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [*stored, "text"], extrasaction="ignore")
            del stored["vector"]
            writer.fieldnames = [*stored, "text"]
            writer.writeheader()
            for row in zip(*stored.values(), strict=True):
                writer.writerow({**dict(zip(stored, row, strict=True)), "text": row[0]})
        return folder / "rows.csv"
    if kind in ("pandas", "polars"):
        return (pandas if kind == "pandas" else polars).DataFrame(given_)
    table = pyarrow.table(given_)
    if kind == "parquet":
        pyarrow.parquet.write_table(table, folder / "rows.parquet")
        return folder / "rows.parquet"
    return datasets.Dataset(table) if kind == "datasets" else table


def by_id(index: FunnelIndex) -> list[dict[str, Any]]:
    found = {str(hit.id): hit.metadata for hit in index.search(VECTORS[0], k=3)}
    return [found[one] for one in "012"]


@pytest.mark.parametrize(
    "kind", ["dicts", "jsonl", "jsonl.gz", "csv", "parquet", "pandas", "polars", "pyarrow", "datasets"]
)
def test_every_way_in_and_back(kind: str, tmp_path: Path) -> None:
    def encoder(texts: list[str]) -> Any:  # of CSV, which has no vectors; a query may be one of them
        return VECTORS[[int(text) if text in "012" else 0 for text in texts]]

    first = FunnelIndex.build(source_of(kind, tmp_path), tmp_path / "first", encoder=encoder, progress=False)
    first.export(tmp_path / "out.parquet")
    second = FunnelIndex.build(tmp_path / "out.parquet", tmp_path / "second", progress=False)
    expected = [{name: values[row] for name, (_, values) in COLUMNS.items()} for row in range(3)]
    if kind == "csv":
        expected = [{name: "" if one is None else str(one) for name, one in row.items()} for row in expected]
    for index in (first, second):
        assert by_id(index) == expected
        for where, rows in WHERES.items():
            found = index.search_vectors(VECTORS[:1], k=3, where=where).ids[0].tolist()
            assert sorted(set(found) - {None}) == [*rows], where


IDS: list[list[Any]] = [[7, -3, 2**62], ["7", "007", " a\u2028"]]


@pytest.mark.parametrize("ids", IDS, ids=["numbers", "texts"])
@pytest.mark.parametrize("kind", ["parquet", "pandas", "polars", "pyarrow", "datasets"])
def test_ids_of_bare_vectors_keep_their_kind(kind: str, ids: list[Any], tmp_path: Path) -> None:
    first = FunnelIndex.build(VECTORS, tmp_path / "first", ids=ids, progress=False)
    first.export(tmp_path / "out.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    ways = {"pandas": table.to_pandas, "polars": lambda: polars.from_arrow(table), "pyarrow": lambda: table}
    ways |= {"parquet": lambda: tmp_path / "out.parquet", "datasets": lambda: datasets.Dataset(table)}
    corpus = open_corpus(ways[kind]())
    assert (corpus.kind, corpus.count, corpus.dim, corpus.ids) == ("vectors", 3, 8, ids)
    for _ in range(2):
        read = np.concatenate(list(corpus.vectors(2)))
        assert np.abs(read - VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)).max() < 1e-3
    if kind == "parquet":
        second = FunnelIndex.build(tmp_path / "out.parquet", tmp_path / "second", progress=False)
        assert (second.ids(), second.search_vectors(VECTORS, k=1).ids[:, 0].tolist()) == (ids, ids)
        second.export(tmp_path / "again.parquet")
        assert pyarrow.parquet.read_table(tmp_path / "again.parquet").drop("vector") == table.drop("vector")
        first.delete([ids[0]])
        first.add(table.slice(0, 1))
        assert first.ids() == [*ids[1:], ids[0]]


def test_ids_of_two_kinds_are_refused_and_of_documents_texts() -> None:
    with pytest.raises(InputError, match="all text or all whole numbers: row 1 is str, row 0 is int"):
        open_corpus(VECTORS, ids=[7, "007", 8])  # type: ignore[arg-type]
    records = [{"_id": one, "text": "a"} for one in (7, "007")]
    for source in (records, polars.DataFrame([{**one, "_id": str(one["_id"])} for one in records])):
        assert [one.id for one in next(open_corpus(source).documents(5))] == ["7", "007"]  # type: ignore[arg-type]


def test_nanoseconds_without_pandas(tmp_path: Path) -> None:
    table = pyarrow.table({"text": ["a"], "when": pyarrow.array([1], pyarrow.timestamp("ns"))})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    script = (
        "import sys\n"
        "class Without:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'pandas': raise ImportError(name)\n"
        "sys.meta_path.insert(0, Without())\n"
        "import pyarrow.parquet\nfrom funnel.data.corpus import open_corpus\nfrom funnel.errors import InputError\n"
        "for source in (sys.argv[1], pyarrow.parquet.read_table(sys.argv[1])):\n"
        "    try: open_corpus(source)\n    except InputError as error: print('install pandas' in str(error))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "rows.parquet")], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "True"]


NAMES = ["_id", "id", "title", "text", "vector", "score"]


@pytest.mark.parametrize("kind", ["dicts", "jsonl", "csv", "parquet", "pandas", "polars", "pyarrow", "datasets"])
def test_fields_called_as_parts_of_a_document_are_not_lost(kind: str, tmp_path: Path) -> None:
    """Where other fields are named as the parts, those of their names are metadata."""
    named = {"id": "key", "title": "head", "text": "body"} | ({} if kind == "csv" else {"vector": "row"})
    names = [name for name in NAMES if name != "vector" or kind != "csv"]
    records: list[dict[str, Any]] = [
        {"key": f"k{i}", "head": f"h{i}", "body": f"b{i}", **{name: f"{name}{i}" for name in names}} for i in range(3)
    ]
    if kind != "csv":
        records = [{**record, "row": row.tolist()} for record, row in zip(records, VECTORS, strict=True)]
    source: Any = records
    if kind == "jsonl":
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
        source = tmp_path / "rows.jsonl"
    elif kind == "csv":
        pandas.DataFrame(records).to_csv(tmp_path / "rows.csv", index=False)
        source = tmp_path / "rows.csv"
    elif kind in ("pandas", "polars"):
        source = (pandas if kind == "pandas" else polars).DataFrame(records)
    elif kind != "dicts":
        source = pyarrow.Table.from_pylist(records)
        if kind == "parquet":
            pyarrow.parquet.write_table(source, tmp_path / "rows.parquet")
            source = tmp_path / "rows.parquet"
        source = datasets.Dataset(source) if kind == "datasets" else source

    found = [one for batch in open_corpus(source, columns=Columns(**named)).documents(5) for one in batch]  # type: ignore[arg-type]
    assert [(one.id, one.title, one.text) for one in found] == [(f"k{i}", f"h{i}", f"b{i}") for i in range(3)]
    assert [one.metadata for one in found] == [{name: f"{name}{i}" for name in names} for i in range(3)]
    few = next(open_corpus(source, columns=Columns(**named, metadata=["title", "score"])).documents(5))  # type: ignore[arg-type]
    assert few[2].metadata == {"title": "title2", "score": "score2"}
    if kind == "dicts":
        index = FunnelIndex.build(source, tmp_path / "index", **named, progress=False)  # type: ignore[arg-type]
        index.export(tmp_path / "out.parquet")
        for one in (index, FunnelIndex.build(tmp_path / "out.parquet", tmp_path / "again", progress=False)):
            assert one.search(VECTORS[1], k=1)[0].metadata == found[1].metadata
            for name in NAMES:
                column = f'"metadata.{name}"' if name in ("id", "title") else name
                assert one.search(VECTORS[0], k=1, where=f"{column} = '{name}1'")[0].id == "k1"
            assert one.search(VECTORS[0], k=1, where="id = 'k2' AND title = 'h2'")[0].id == "k2"
