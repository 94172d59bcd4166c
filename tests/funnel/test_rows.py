"""Bare vectors: unit rows, .npy files, ids."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from funnel.errors import InputError
from funnel.rows import NpyRows, check_ids, unit_rows


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=6),
        elements=st.floats(-(2.0**127), 2.0**127, width=32),
    )
)
def test_rows_come_out_with_length_one_and_their_direction(batch: np.ndarray) -> None:
    batch[~batch.any(axis=1)] = 1.0
    before = batch.copy()
    rows = unit_rows(batch, 0, "rows")
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(batch, before)
    exact = batch.astype(np.float64)
    exact /= np.abs(exact).max(axis=1, keepdims=True)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    np.testing.assert_allclose(rows, exact, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8, np.uint8, np.int32, ">f4"])
def test_every_number_type_is_taken(dtype: str) -> None:
    rows = unit_rows(np.array([[3, 4], [5, 12]], dtype=dtype), 0, "rows")
    np.testing.assert_allclose(rows, [[0.6, 0.8], [5 / 13, 12 / 13]], rtol=1e-6)


def test_float64_beyond_float32_keeps_its_direction() -> None:
    np.testing.assert_allclose(unit_rows(np.array([[3e200, 4e200]]), 0, "rows"), [[0.6, 0.8]], rtol=1e-6)


def test_no_rows_are_fine() -> None:
    assert unit_rows(np.empty((0, 4), dtype=np.float32), 0, "rows").shape == (0, 4)


def test_bad_rows_are_named_with_their_fault() -> None:
    batch = np.ones((6, 3), dtype=np.float32)
    batch[1, 0], batch[3, 2], batch[4] = np.nan, -np.inf, 0
    with pytest.raises(InputError, match=r"corpus: 3 rows .* row 101 \(NaN\), 103 \(infinite\), 104 \(all zero\) "):
        unit_rows(batch, 100, "corpus")


def test_ten_bad_rows_are_named_and_the_rest_counted() -> None:
    with pytest.raises(InputError, match=r"25 rows .* 9 \(all zero\) and 15 more"):
        unit_rows(np.zeros((25, 2)), 0, "rows")


@pytest.mark.parametrize("array", [np.ones(3), np.ones((1, 2, 3)), np.array([["a"]]), np.ones((2, 2), dtype=bool)])
def test_what_is_no_matrix_of_numbers_is_refused(array: np.ndarray) -> None:
    with pytest.raises(InputError, match="expected float or integer rows"):
        unit_rows(array, 0, "rows")


@given(
    hnp.arrays(
        st.sampled_from([np.dtype(one) for one in ("f4", "f2", "i1", ">f4")]),
        st.tuples(st.integers(0, 20), st.integers(1, 5)),
    ),
    st.integers(1, 25),
)
def test_npy_rows_come_as_they_were_saved(
    tmp_path_factory: pytest.TempPathFactory, array: np.ndarray, batch_rows: int
) -> None:
    path = tmp_path_factory.mktemp("npy") / "rows.npy"
    np.save(path, array)
    rows = NpyRows(path)
    assert (rows.count, rows.dim) == array.shape
    batches = list(rows.read(batch_rows))
    assert all(0 < len(batch) <= batch_rows for batch in batches)
    np.testing.assert_array_equal(np.concatenate([array[:0], *batches]), array)


def test_a_file_cut_short_is_named_with_both_sizes(tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"
    np.save(path, np.ones((10, 4), dtype=np.float32))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"rows\.npy is cut short: 287 bytes, its header promises 288"):
        NpyRows(path)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones(4, dtype=np.float32), r"has shape \[4\], expected rows"),
        (np.ones((2, 2), dtype=np.int64), "holds int64, expected one of float32"),
        (np.asfortranarray(np.ones((2, 2), dtype=np.float32)), "column by column"),
        (np.array([[{}]], dtype=object), "it holds Python objects"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, array: np.ndarray, message: str) -> None:
    path = tmp_path / "rows.npy"
    np.save(path, array)
    with pytest.raises(InputError, match=message):
        NpyRows(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x93NUMPY\x01\x00\x05\x00{'a':", b"\x93NUMPY\x09\x00"])
def test_what_is_no_npy_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows.npy"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"rows\.npy"):
        NpyRows(path)


@given(st.binary(max_size=60) | st.text("(){}[]'\",:0123456789-\\\n descrfotanhp", max_size=60).map(str.encode))
def test_any_header_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, header: bytes) -> None:
    path = tmp_path_factory.mktemp("npy") / "rows.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(InputError, match=r"rows\.npy"):
        NpyRows(path)


def test_a_negative_row_count_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (-2, 4)}\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(InputError, match=r"its shape is \[-2, 4\]"):
        NpyRows(path)


@pytest.mark.parametrize("ids", [["a", "b"], [2, 1], np.array([5, 6]), np.array(["x", "y"])])
def test_good_ids_come_back_as_plain_values(ids: list[str]) -> None:
    checked = check_ids(ids, 2)
    assert checked == list(ids)
    assert type(checked[0]) in (str, int)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a"], "1 ids for 2 vectors"),
        (["a", ""], "1 ids are missing or empty: rows 1"),
        ([None, "a"], "missing or empty: rows 0"),
        (np.array([1.0, np.nan]), "missing or empty: rows 1"),
        (["a", 1], "row 1 is int, row 0 is str"),
        ([1, True], r"row 1 is True \(bool\)"),
        ([1.5, 2.5], r"row 0 is 1.5 \(float\)"),
        ([1, 2**63], "above 64 bits in rows 1"),
        (["a", "a"], "1 duplicate ids: 'a'"),
    ],
)
def test_bad_ids_are_named(ids: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_ids(ids, 2)


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int8])
def test_rows_are_written_where_one_says(kind: npt.DTypeLike) -> None:
    rows = np.arange(1, 13, dtype=kind).reshape(3, 4)
    out = np.full((3, 4), np.nan, dtype=np.float32)
    assert unit_rows(rows, 0, "rows", out) is out
    np.testing.assert_array_equal(out, unit_rows(rows, 0, "rows"))
    np.testing.assert_array_equal(unit_rows(rows[:1], 0, "rows", out[:1]), out[:1])
