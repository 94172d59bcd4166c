"""Texts that are numbers as they are written, and the columns that are compared with numbers for their sake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from funnel.data.documents import Document, DocumentStore
from funnel.errors import InputError
from funnel.filtering.columns import FilterColumns, Values, merged
from funnel.filtering.condition import parse
from funnel.filtering.segment import check_columns
from funnel.filtering.sql import written_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2020", 2020), ("-3", -3), ("0", 0), ("1.5", 1.5), ("1.50", 1.5), ("-0.25", -0.25), ("2020.0", 2020.0),
        ("1e-05", 1e-05), ("2.5e+20", 2.5e20), (str(2**63 - 1), 2**63 - 1),
    ],
)  # fmt: skip
def test_numbers_as_programs_write_them_are_numbers(text: str, number: float) -> None:
    assert repr(written_number(text)) == repr(number)  # of the same type too


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "007", "00", "-01", "01.5", "+1", "1e5", "1e+1", ".5", "5.", " 5", "5 ", "5\n", "1,000",
        "1_000", "0x10", "nan", "inf", "-inf", "1e+400", "²", "٣", "−3", "-", "e+05", str(2**63), "1" * 5_000,
        "0." + "1" * 50, "en",
    ],
)  # fmt: skip
def test_what_is_written_in_another_way_is_text(text: str) -> None:
    assert written_number(text) is None


@given(st.one_of(st.integers(-(2**63) + 1, 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False)))
def test_what_python_writes_is_read(number: float) -> None:
    assert written_number(repr(number)) == number


def columns_of(tmp_path: Path, *records: dict[str, Any]) -> FilterColumns:
    path = tmp_path / "documents.sqlite"
    with DocumentStore.create(path) as made:
        made.append([Document(f"d{i}", f"title {i}", metadata=record) for i, record in enumerate(records)])
    return FilterColumns(DocumentStore.open(path), None)


def found(columns: FilterColumns, where: str) -> list[int]:
    """Positions of a condition that fits the columns."""
    condition = parse(where)
    check_columns(where, condition, columns.catalogue)
    return sorted(columns.positions(condition).tolist())


def test_a_column_of_written_numbers_is_compared_with_numbers_and_with_texts(tmp_path: Path) -> None:
    columns = columns_of(tmp_path, *({"year": year} for year in ("1999", "2020", "2020.5", "", "300")), {})
    assert columns.catalogue["year"] == Values(0, 5, 0, 0, "'1999'", 4)
    assert found(columns, "year >= 2020") == [1, 2]
    assert found(columns, "NOT year >= 2020") == [0, 4]  # an empty text is unknown beside a number
    assert found(columns, "year IN (300, 1999)") == [0, 4]
    assert found(columns, "year BETWEEN 299.5 AND 2020") == [0, 1, 4]
    assert found(columns, "year >= '2020'") == [1, 2, 4]  # in the order of texts
    assert found(columns, "year = '' OR year LIKE '%.5'") == [2, 3]
    assert found(columns, "year IS NULL") == [5]


def test_codes_of_which_some_begin_with_zeros_stay_texts(tmp_path: Path) -> None:
    columns = columns_of(tmp_path, {"zip": "10115"}, {"zip": "01067"}, {"zip": ""}, {"zip": "80331"})
    assert found(columns, "zip = '10115' OR zip = '01067'") == [0, 1]
    assert found(columns, "zip < '80331'") == [0, 1, 2]
    with pytest.raises(InputError) as caught:
        found(columns, "zip < 80331")
    assert "column 'zip' holds texts, of which some, such as '01067', are not written as numbers are" in str(
        caught.value
    )
    assert "compare it with a text between ' and ', or upsert those documents with a number there" in str(caught.value)


def test_an_empty_text_is_no_example_where_there_is_another(tmp_path: Path) -> None:
    columns = columns_of(tmp_path, {"lang": ""}, {"lang": "en"})
    with pytest.raises(
        InputError, match=r"'lang' holds texts, such as 'en', and is compared with a number, which none"
    ):
        found(columns, "lang = 5")


def test_in_a_column_of_numbers_and_texts_written_numbers_count_as_numbers(tmp_path: Path) -> None:
    columns = columns_of(tmp_path, {"part": 3}, {"part": "4"}, {"part": "5b"}, {"part": True})
    assert found(columns, "part >= 3") == [0, 1]
    assert found(columns, "part > '3'") == [1, 2]


def test_all_segments_together_say_what_a_column_holds() -> None:
    numbers, empty, zeros = Values(0, 3, 0, 0, "'2'", 3), Values(0, 1, 0, 0, "''"), Values(0, 2, 0, 0, "'1'", 1, "'01'")
    assert merged([{"a": empty}, {"a": numbers}])["a"].comparable("number")
    assert not merged([{"a": numbers}, {"a": zeros}])["a"].comparable("number")
    assert merged([{"a": numbers}, {"a": zeros}])["a"] == Values(0, 5, 0, 0, "'2'", 4, "'01'")
    assert merged([{"a": numbers}, {"a": Values(1, example="1")}])["a"].comparable("number")
    assert not empty.comparable("number")
