"""The table of what metadata are stored as, and round trips through every way in and out."""

import csv
import datetime
import enum
import json
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas  # type: ignore[import-untyped]
import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from funnel import FunnelIndex
from funnel.data.documents import Document, DocumentStore
from funnel.data.plain import plain
from funnel.errors import InputError


class Level(enum.Enum):
    LOW = 1


class Colour(str, enum.Enum):  # noqa: UP042
    RED = "red"


DAY = "2024-05-01T00:00:00"
NAME = "12345678-1234-5678-1234-567812345678"
TABLE: list[tuple[Any, Any]] = [
    *((one, None) for one in (None, float("nan"), np.float32("nan"), Decimal("NaN"), pandas.NaT, pandas.NA)),
    *((one, None) for one in (np.datetime64("NaT"), np.timedelta64("NaT", "s"), pyarrow.scalar(None))),
    *((one, True) for one in (True, np.True_, torch.tensor(True), pyarrow.scalar(True))),
    *((one, 7) for one in (7, np.int8(7), np.uint64(7), torch.tensor(7), np.array(7), pyarrow.scalar(7))),
    (10**30, 10**30),
    *((one, 1.5) for one in (1.5, np.float16(1.5), np.longdouble(1.5), Decimal("1.50"), torch.tensor(1.5))),
    (float("inf"), float("inf")),
    (Decimal("0.1"), 0.1),
    (Decimal("0.1234567890123456789"), "0.1234567890123456789"),
    (np.str_("a\0"), "a\0"),
    *((np.datetime64(DAY, unit), DAY) for unit in ("h", "s", "ms", "us", "ns")),
    (pandas.Timestamp(DAY), DAY),
    (datetime.datetime(2024, 5, 1), DAY),
    (np.datetime64("2024-05-01"), "2024-05-01"),
    (datetime.date(2024, 5, 1), "2024-05-01"),
    (np.datetime64(f"{DAY}.000000001"), f"{DAY}.000000001"),
    (np.datetime64(f"{DAY}.500", "ms"), f"{DAY}.500000"),
    *((one, 90) for one in (datetime.timedelta(seconds=90), np.timedelta64(90, "s"), pandas.Timedelta("90s"))),
    (np.timedelta64(1500, "ms"), 1.5),
    (uuid.UUID(NAME), NAME),
    (Level.LOW, 1),
    (Colour.RED, "red"),
    *((one, [1, 2]) for one in ([1, 2], (1, 2), np.array([1, 2]), pandas.Series([1, 2]), pandas.Index([1, 2]))),
    *((one, [1, 2]) for one in (pandas.Categorical([1, 2]), torch.tensor([1, 2]), pyarrow.array([1, 2]))),
    (np.array([DAY, "NaT"], dtype="M8[ns]"), [DAY, None]),
    ({"a": {1: np.int64(2)}}, {"a": {"1": 2}}),
]


@pytest.mark.parametrize(("given_", "stored"), TABLE, ids=range(len(TABLE)))
def test_what_is_stored_as_what(tmp_path: Path, given_: Any, stored: Any) -> None:
    with DocumentStore.create(tmp_path / "documents.sqlite") as store:
        store.append([Document("a", metadata={"field": given_})])
        found = store.get([0])[0].metadata["field"]
    assert (found, type(found)) == (stored, type(stored))


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


def test_files_give_what_dicts_give(tmp_path: Path) -> None:
    records = [{"_id": str(i), "text": "body", "n": i, "price": i / 2, "when": DAY, "zero": "a\0b"} for i in range(3)]
    vectors = np.eye(3, 8, dtype=np.float32)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "rows.parquet")
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(records[0]))
        writer.writeheader()
        writer.writerows(records)

    def encoder(texts: list[str]) -> np.ndarray[Any, Any]:
        return vectors[: len(texts)]

    wheres = ["n >= 1", "price = 0.5", f"when = '{DAY}'", "zero LIKE '%b'", "zero LIKE 'a'"]
    found = {}
    for number, source in enumerate([records, *(tmp_path / f"rows.{one}" for one in ("jsonl", "parquet", "csv"))]):
        index = FunnelIndex.build(source, tmp_path / f"{number}", encoder=encoder, progress=False)
        found[number] = [
            sorted(set(index.search_vectors(vectors[:1], k=3, where=where).ids[0].tolist()) - {None})
            for where in wheres
        ]
    assert found[0] == found[1] == found[2] == found[3]
