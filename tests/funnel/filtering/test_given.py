"""Allowed ids of every kind on indexes of texts and of whole numbers, as deleting takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from funnel.data.documents import Document, DocumentStore
from funnel.errors import InputError
from funnel.filtering import segment
from funnel.filtering.segment import GivenIds, SegmentRows
from funnel.storage.ids import Ids

TEXTS = ["5", "b", "07", str(2**63), "-1"]
NUMBERS = [5, 7, 2**63 - 1]


def text_ids(texts: list[str]) -> Ids:
    encoded = [text.encode() for text in texts]
    offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    return Ids(np.frombuffer(b"".join(encoded), dtype=np.uint8), offsets)


def held(rows: SegmentRows, given: Any) -> list[int]:
    return np.flatnonzero(rows.holding(GivenIds.read(given))).tolist()


@pytest.mark.parametrize(
    ("given", "positions"),
    [
        ([5], [0]),
        ([5, 7], [0]),  # 7 is not 07
        (["5", "b"], [0, 1]),
        ([5, "b"], [0, 1]),
        ({np.int64(-1), "07"}, [2, 4]),
        (np.array([5, -1]), [0, 4]),
        (np.array([5], dtype=np.uint8), [0]),
        (np.array([2**63, 5], dtype=np.uint64), [0, 3]),
        ([2**63, 2**70], [3]),
        (range(4, 6), [0]),
        (np.array(["b", "c"]), [1]),
        ([], []),
    ],
)
@pytest.mark.parametrize("looked_up", [0, 2_000])
def test_whole_numbers_are_texts_where_ids_are(
    tmp_path: Path, given: Any, positions: list[int], looked_up: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment, "LOOKED_UP", looked_up)
    with DocumentStore.create(tmp_path / "documents.sqlite") as made:
        made.append([Document(text) for text in TEXTS])
    with DocumentStore.open(tmp_path / "documents.sqlite") as documents:
        assert held(SegmentRows(text_ids(TEXTS), np.arange(len(TEXTS)), documents, None), given) == positions


def test_ids_of_whole_numbers_are_told_from_texts() -> None:
    rows = SegmentRows(Ids(np.array(NUMBERS), None), np.arange(3), None, None)
    assert held(rows, [7, 2**63 - 1, 8]) == [1, 2]
    assert held(rows, np.array([5], dtype=np.uint64)) == [0]
    for given, said in (
        (["5"], "texts"), ([5, "b"], "texts"), ([5, 2**63], "a number beyond 64 bits"),
        (np.array([2**63], dtype=np.uint64), "a number beyond 64 bits"),
    ):  # fmt: skip
        with pytest.raises(
            InputError, match=f"allowed_ids holds {said}; the ids of this index are whole numbers, such as 5"
        ):
            held(rows, given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("d1", r"allowed_ids is 'd1' \(str\); expected a list, set or array"),
        (5, r"allowed_ids is 5 \(int\); expected a list"),
        ([1, True], r"an id of allowed_ids is True \(bool\), expected text or a whole number"),
        (["a", 1.5], r"an id of allowed_ids is 1.5 \(float\)"),
        (np.array([True]), r"an id of allowed_ids is True \(bool\)"),
        (np.array([[1], [2]]), r"allowed_ids is an array of 2 dimensions"),
    ],
)
def test_what_are_no_ids_is_refused(given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        GivenIds.read(given)


def test_filters_of_the_same_ids_have_the_same_name() -> None:
    assert GivenIds.read([1, 2]).digest == GivenIds.read(np.array([1, 2], dtype=np.int8)).digest
    assert GivenIds.read([1, 2]).digest != GivenIds.read([12]).digest != GivenIds.read(["1", "2"]).digest
