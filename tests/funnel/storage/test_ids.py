from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from funnel.errors import DamagedIndexError
from funnel.storage.ids import Ids, JoinedIds

texts = st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=12), min_size=1, max_size=30)


def packed(values: list[str]) -> tuple[np.ndarray, np.ndarray]:
    encoded = [value.encode() for value in values]
    offsets = np.cumsum([0, *map(len, encoded)]).astype(np.int64)
    return np.frombuffer(b"".join(encoded), dtype=np.uint8), offsets


def written(folder: Path, values: list[str] | list[int]) -> Ids:
    if isinstance(values[0], str):
        run, offsets = packed(values)
        np.save(folder / "ids.npy", run)
        np.save(folder / "id_offsets.npy", offsets)
    else:
        np.save(folder / "ids.npy", np.array(values, dtype=np.int64))
    return Ids.open(folder)


@given(texts)
def test_texts_come_back_in_order(values: list[str]) -> None:
    ids = Ids(*packed(values))
    assert len(ids) == len(values)
    assert ids.all() == values


@given(texts, st.data())
def test_texts_at_any_positions(values: list[str], data: st.DataObject) -> None:
    positions = data.draw(st.lists(st.integers(-1, len(values) - 1), min_size=1, max_size=8))
    found = Ids(*packed(values)).at(np.array(positions, dtype=np.int64))
    assert found.dtype == object
    assert found.tolist() == [None if position < 0 else values[position] for position in positions]


@pytest.mark.parametrize("values", [["a", "é𝄞", "long id " * 9], [7, -3, 2**62]])
def test_both_kinds_from_disk(tmp_path: Path, values: list[str] | list[int]) -> None:
    ids = written(tmp_path, values)
    assert len(ids) == 3
    assert ids.all() == values
    found = ids.at(np.array([[2, 0], [1, -1]]))
    assert found.shape == (2, 2)
    missing = None if isinstance(values[0], str) else -1
    assert found.tolist() == [[values[2], values[0]], [values[1], missing]]


def test_numbers_are_int64(tmp_path: Path) -> None:
    ids = written(tmp_path, [5, 6])
    assert ids.at(np.array([0, 1])).dtype == np.int64
    assert ids.at(np.array([0, -1])).tolist() == [5, -1]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "ids.npy").write_bytes(b"no array")
    with pytest.raises(DamagedIndexError, match=r"ids\.npy"):
        Ids.open(tmp_path)


def test_a_file_cut_short_is_named(tmp_path: Path) -> None:
    written(tmp_path, list(range(1000)))
    path = tmp_path / "ids.npy"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DamagedIndexError, match=r"ids\.npy"):
        Ids.open(tmp_path)


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "ids.npy").touch()
    with pytest.raises(DamagedIndexError, match=r"ids\.npy"):
        Ids.open(tmp_path)


def test_an_empty_run_of_bytes_can_be_opened(tmp_path: Path) -> None:
    assert written(tmp_path, [""]).all() == [""]


@given(texts, st.data())
def test_positions_of_texts(values: list[str], data: st.DataObject) -> None:
    """The first of equal ones may be any of them; those not there are -1."""
    ids = Ids(*packed(values))
    wanted = data.draw(st.lists(st.sampled_from([*values, "not there at all"]), max_size=10))
    for one, position in zip(wanted, ids.find(wanted).tolist(), strict=True):
        assert (values[position] if position >= 0 else None) == (one if one in values else None)


@pytest.mark.parametrize("values", [[0, 1, 2, 3], [3, 7, 2**62], [9, -4, 5]])
def test_positions_of_numbers(tmp_path: Path, values: list[int]) -> None:
    ids = written(tmp_path, values)
    assert ids.find([*reversed(values), 1_000]).tolist() == [*reversed(range(len(values))), -1]
    assert ids.largest == max(values)
    assert not ids.text


def test_ids_with_the_same_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("funnel.storage.ids.hash", lambda text: len(text), raising=False)
    ids = Ids(*packed(["ab", "cd", "e", "fg"]))
    assert ids.find(["fg", "ab", "zz", "e", "cd"]).tolist() == [3, 0, -1, 2, 1]


@given(st.lists(texts, min_size=1, max_size=4), st.data())
def test_joined_ids_are_those_of_the_parts(parts: list[list[str]], data: st.DataObject) -> None:
    joined = JoinedIds([Ids(*packed(values)) for values in parts])
    everything = [value for values in parts for value in values]
    assert joined.all() == everything
    assert len(joined) == len(everything)
    assert joined.text
    positions = data.draw(st.lists(st.integers(-1, len(everything) - 1), min_size=1, max_size=12))
    expected = [None if position < 0 else everything[position] for position in positions]
    assert joined.at(np.array(positions)).tolist() == expected


def test_joined_numbers(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    joined = JoinedIds([written(tmp_path / "a", [4, 5]), written(tmp_path / "b", [1])])
    found = joined.at(np.array([[2, 0], [-1, 1]]))
    assert found.dtype == np.int64
    assert found.tolist() == [[1, 4], [-1, 5]]
