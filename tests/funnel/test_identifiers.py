"""Ids from whatever holds them come out plain; what are no ids is refused; files keep every character."""

import array
import enum
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas  # type: ignore[import-untyped]
import pyarrow
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from funnel import FunnelIndex
from funnel.errors import InputError
from funnel.identifiers import id_lines, identifier, identifiers, whole_number


class Colour(str, enum.Enum):  # noqa: UP042
    """A text whose own text is its name."""

    RED = "red"


HOLDERS: list[Callable[[list[int]], Any]] = [
    list, tuple, set, iter, np.array, torch.tensor, pandas.Series, pandas.Index, pandas.Categorical, pyarrow.array,
    lambda ids: list(np.array(ids)), lambda ids: list(torch.tensor(ids)), lambda ids: list(pyarrow.array(ids)),
    lambda ids: array.array("q", ids), lambda ids: dict.fromkeys(ids).keys(), lambda ids: np.array(ids, dtype=object),
    lambda ids: [np.array(one) for one in ids],
]  # fmt: skip


@pytest.mark.parametrize("holder", HOLDERS)
def test_whole_numbers_come_out_of_every_holder(holder: Callable[[list[int]], Any]) -> None:
    found = identifiers(holder([3, 1, 2**62]), "ids")
    assert sorted(found, key=int) == [1, 3, 2**62]
    assert {type(one) for one in found} == {int}


@pytest.mark.parametrize("holder", [list, np.array, pandas.Series, pandas.Categorical, pyarrow.array, iter])
def test_texts_come_out_of_every_holder(holder: Callable[[list[str]], Any]) -> None:
    found = identifiers(holder(["a", " b\n", "c"]), "ids")
    assert found == ["a", " b\n", "c"]
    assert {type(one) for one in found} == {str}


def test_an_enum_of_texts_is_its_value() -> None:
    assert identifier(Colour.RED, "the id") == "red"


NO_IDS = [
    "12", b"12", bytearray(b"12"), memoryview(b"12"), np.array([b"12"]), np.bytes_(b"12"), {"a": 1}, 5, None, 1.5,
    np.eye(2, dtype=int), [b"12"], [True], [np.True_], [1.0], [None], [float("nan")], ["\ud800"], [[1]], [10**5000],
    np.array([1.0, 2.0]), pandas.Series([1, None]), np.array(["2024"], dtype="M8[D]"), pandas.DataFrame({"a": [1]}),
]  # fmt: skip


@pytest.mark.parametrize("ids", NO_IDS, ids=range(len(NO_IDS)))
def test_what_are_no_ids_is_refused(ids: Any) -> None:
    with pytest.raises(InputError) as error:
        identifiers(ids, "ids")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("ids", [b"12", bytearray(b"12"), memoryview(b"12"), np.bytes_(b"12"), True, 1.0, {"a": 1}])
def test_nothing_is_deleted_or_allowed_by_what_is_no_id(tmp_path: Path, ids: Any) -> None:
    vectors = np.random.default_rng(0).standard_normal((100, 8)).astype(np.float32)
    index = FunnelIndex.build(vectors, tmp_path / "index", progress=False)
    with pytest.raises(InputError):
        index.delete(ids)
    with pytest.raises(InputError):
        index.search_vectors(vectors[:1], k=1, allowed_ids=ids)
    assert len(index) == 100


@given(
    st.lists(st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"]), min_size=1)), st.booleans()
)
def test_lines_come_back_as_they_are(ids: list[str], windows: bool) -> None:
    ends = "\r\n" if windows else "\n"
    raw = ends.join(ids).encode()
    marked = b"\xef\xbb\xbf" + raw
    assert list(id_lines(marked, "ids.txt")) == ids


def test_the_line_that_is_not_utf_8_is_named() -> None:
    with pytest.raises(InputError, match=r"ids\.txt:2: byte 1 of the line is not UTF-8"):
        list(id_lines(b"a\nb\xe9\n", "ids.txt"))


@pytest.mark.parametrize(("text", "number"), [("12", 12), (" -3 ", -3), ("1_000", None), ("１２", None), ("1.0", None)])
def test_whole_numbers_are_written_in_digits(text: str, number: int | None) -> None:
    assert whole_number(text) == number
