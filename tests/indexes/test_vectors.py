from __future__ import annotations

import os
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from indexes import CoarseIndexError, VectorStore
from indexes.base import Float32Array, Int64Array

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")),
]


def written(path: Path, rows: Float32Array, dtype: npt.DTypeLike = np.float16) -> Path:
    with VectorStore.create(path, len(rows), rows.shape[1], dtype) as writer:
        writer.write(np.arange(len(rows)), rows)
    return path


@pytest.fixture
def path(tmp_path: Path, rows: Float32Array) -> Path:
    return written(tmp_path / "vectors.npy", rows)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("device", DEVICES)
def test_a_store_gives_back_what_was_written(
    tmp_path: Path, rows: Float32Array, dtype: npt.DTypeLike, device: str
) -> None:
    store = VectorStore.open(written(tmp_path / "vectors.npy", rows, dtype), device)
    assert (store.n, store.dim, store.dtype) == (len(rows), rows.shape[1], np.dtype(dtype))
    assert store.device.type == device
    assert store.nbytes == rows.size * np.dtype(dtype).itemsize
    assert store.resident_bytes == (0 if device == "cpu" else store.nbytes)
    np.testing.assert_array_equal(store.matrix.cpu().numpy(), rows.astype(dtype))


def test_the_file_is_plain_npy(path: Path, rows: Float32Array) -> None:
    np.testing.assert_array_equal(np.load(path, allow_pickle=False), rows.astype(np.float16))


def test_a_file_that_numpy_saved_is_read(tmp_path: Path, rows: Float32Array) -> None:
    np.save(tmp_path / "theirs.npy", rows)
    np.testing.assert_array_equal(VectorStore.open(tmp_path / "theirs.npy").matrix.numpy(), rows)


def test_a_matrix_larger_than_memory_is_read_where_it_is_asked(
    path: Path, rows: Float32Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexes.vectors.machine_bytes", lambda: 1)
    store, stored = VectorStore.open(path), rows.astype(np.float16)
    for start, stop in ((0, 1), (7, 40), (len(rows) - 1, len(rows) + 5), (0, len(rows))):
        np.testing.assert_array_equal(store.block(start, stop).numpy(), stored[start:stop].astype(np.float32))
        np.testing.assert_array_equal(store.prefixes(start, stop, 2).numpy(), stored[start:stop, :2])
    np.testing.assert_array_equal(store.gather(torch.tensor([3, 0, 9]), 0, store.dim).numpy(), stored[[3, 0, 9]])


@given(st.integers(1, 200), st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_rows_of_a_large_matrix_go_by_way_of_buckets(count: int, bucket_bytes: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    rows, order = generator.standard_normal((count, 3), dtype=np.float32), generator.permutation(count)
    sizes = np.sort(generator.integers(0, count + 1, 4))
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.multiple("indexes.vectors", LARGE_BYTES=0, BUCKET_BYTES=bucket_bytes),
    ):
        path = Path(folder) / "v.npy"
        with VectorStore.create(path, count, 3, np.float32) as writer:
            for chunk in np.split(np.arange(count), sizes):
                writer.write(order[chunk], rows[chunk])
        np.testing.assert_array_equal(np.load(path, allow_pickle=False)[order], rows)


def test_a_row_that_a_large_matrix_is_given_twice_is_refused(
    tmp_path: Path, rows: Float32Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexes.vectors.LARGE_BYTES", 0)
    writer = VectorStore.create(tmp_path / "v.npy", 10, rows.shape[1], np.float32)
    writer.write(np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 8]), rows[:10])
    with pytest.raises(CoarseIndexError, match="0 to 9 twice"):
        writer.close()


def test_rows_are_scattered_to_their_positions(tmp_path: Path, rows: Float32Array) -> None:
    order = np.random.default_rng(0).permutation(len(rows))
    with VectorStore.create(tmp_path / "v.npy", len(rows), rows.shape[1], np.float32) as writer:
        for chunk in np.array_split(np.arange(len(rows)), 7):
            writer.write(order[chunk], rows[chunk])
        writer.write(order[:0], rows[:0])
    stored = VectorStore.open(tmp_path / "v.npy").matrix.numpy()
    np.testing.assert_array_equal(stored[order], rows)


@pytest.mark.parametrize("device", DEVICES)
def test_gather_takes_the_dimensions_asked_for(path: Path, rows: Float32Array, device: str) -> None:
    store = VectorStore.open(path, device)
    wanted = torch.tensor([5, 0, 1499, 5], device=device)
    for start, stop in ((0, 8), (8, 32), (0, 32), (0, 8)):
        expected = rows.astype(np.float16)[[5, 0, 1499, 5], start:stop]
        np.testing.assert_array_equal(store.gather(wanted, start, stop).cpu().numpy(), expected)
    out = torch.empty((4, 24), dtype=torch.float16, device=device)
    assert store.gather(wanted, 8, 32, out=out) is out
    np.testing.assert_array_equal(out.cpu().numpy(), rows.astype(np.float16)[[5, 0, 1499, 5], 8:])


def test_gather_refuses_rows_outside(path: Path) -> None:
    with pytest.raises((IndexError, RuntimeError), match="out of range"):
        VectorStore.open(path).gather(torch.tensor([1500]), 0, 8)


@given(size=st.integers(1, 60), start=st.integers(0, 60), stop=st.none() | st.integers(0, 60))
def test_chunks_pass_over_the_rows_in_order(
    tmp_path_factory: pytest.TempPathFactory, size: int, start: int, stop: int | None
) -> None:
    folder = tmp_path_factory.getbasetemp() / "chunks"
    rows = np.arange(100, dtype=np.float32).reshape(50, 2)
    if not folder.exists():
        folder.mkdir()
        written(folder / "v.npy", rows)
    chunks = list(VectorStore.open(folder / "v.npy").chunks(size, start, stop))
    assert all(chunk.dtype == np.float32 and len(chunk) <= size for _, chunk in chunks)
    joined = np.concatenate([np.empty((0, 2), np.float32), *(chunk for _, chunk in chunks)])
    np.testing.assert_array_equal(joined, rows[start:stop])
    assert [first for first, _ in chunks] == list(range(start, min(50, 50 if stop is None else stop), size))


def test_chunks_of_no_rows_are_refused(path: Path) -> None:
    with pytest.raises(CoarseIndexError, match="chunks of 0 rows"):
        next(VectorStore.open(path).chunks(0))


def test_a_file_cut_after_opening_is_noticed(path: Path) -> None:
    store = VectorStore.open(path)
    os.truncate(path, path.stat().st_size - 64)
    with pytest.raises(CoarseIndexError, match="ends within rows 1400 to 1499"):
        list(store.chunks(100))


def test_the_space_is_claimed_at_once(tmp_path: Path) -> None:
    VectorStore.create(tmp_path / "v.npy", 1000, 64)
    stat = (tmp_path / "v.npy").stat()
    assert stat.st_size >= 128_000
    assert stat.st_blocks * 512 >= 128_000


def test_a_full_disk_shows_before_any_row_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int, _start: int, _size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        VectorStore.create(tmp_path / "v.npy", 10, 4)


def test_a_writer_refuses_what_does_not_belong(tmp_path: Path, rows: Float32Array) -> None:
    writer = VectorStore.create(tmp_path / "v.npy", 10, 32)
    with pytest.raises(CoarseIndexError, match=r"vectors of shape \[2, 32\] for 3 positions; give \[3, 32\]"):
        writer.write(np.arange(3), rows[:2])
    with pytest.raises(CoarseIndexError, match="positions 9 to 10; the matrix has rows 0 to 9"):
        writer.write(np.array([9, 10]), rows[:2])
    with pytest.raises(CoarseIndexError, match="positions -1 to 3"):
        writer.write(np.array([3, -1]), rows[:2])
    with pytest.raises(CoarseIndexError, match="was given 0 of 10 rows"):
        writer.close()
    with pytest.raises(CoarseIndexError, match="float16 or float32, not int8"):
        VectorStore.create(tmp_path / "v.npy", 10, 32, np.int8)
    with pytest.raises(CoarseIndexError, match="a matrix of 10 x 0"):
        VectorStore.create(tmp_path / "v.npy", 10, 0)


def test_an_error_while_writing_is_the_one_that_shows(tmp_path: Path) -> None:
    with pytest.raises(KeyError), VectorStore.create(tmp_path / "v.npy", 10, 4):
        raise KeyError


def test_no_rows_are_a_store_too(tmp_path: Path) -> None:
    with VectorStore.create(tmp_path / "v.npy", 0, 4) as writer:
        assert writer.rows == 0
    store = VectorStore.open(tmp_path / "v.npy")
    assert store.matrix.shape == (0, 4)
    assert list(store.chunks(5)) == []


def test_changes_in_memory_do_not_reach_the_file(path: Path, rows: Float32Array) -> None:
    VectorStore.open(path).matrix[0] = 7
    np.testing.assert_array_equal(np.load(path)[0], rows[0].astype(np.float16))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(4, np.float32), r"row-major float32 array of shape \[4\]"),
        (np.zeros((2, 3), np.float64), r"row-major float64 array of shape \[2, 3\]"),
        (np.zeros((2, 3), np.float32, order="F"), "column-major float32 array"),
        (np.zeros((2, 3), ">f4"), "row-major >f4 array"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, array: npt.NDArray[np.float32], message: str) -> None:
    np.save(tmp_path / "v.npy", array)
    with pytest.raises(CoarseIndexError, match=rf"v\.npy holds a {message}"):
        VectorStore.open(tmp_path / "v.npy")


def test_files_that_are_not_such_a_matrix_are_refused(path: Path) -> None:
    contents = path.read_bytes()
    for damaged, message in (
        (contents[:-1], r"vectors\.npy has \d+ bytes; a float16 matrix of \[1500, 32\] has"),
        (contents + b"x", "bytes; a float16 matrix"),
        (b"PK" + contents, "is not a .npy file"),
        (contents[:20], "is not a .npy file"),
        (contents[:6] + b"\x02" + contents[7:], "is not a .npy file"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(CoarseIndexError, match=message):
            VectorStore.open(path)


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.array([[{}]], object), allow_pickle=True)
    with pytest.raises(CoarseIndexError, match="it holds Python objects"):
        VectorStore.open(tmp_path / "v.npy")


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="resident pages are read from /proc")
def test_released_pages_are_no_longer_resident(path: Path, rows: Float32Array) -> None:
    def resident_kb() -> int:
        lines = iter(Path("/proc/self/smaps").read_text().splitlines())
        return sum(
            int(next(line for line in lines if line.startswith("Rss:")).split()[1])
            for start in lines
            if start.endswith(str(path))
        )

    store = VectorStore.open(path)
    store.matrix.sum()
    assert resident_kb() >= store.nbytes // 1024
    store.release()
    assert resident_kb() == 0
    np.testing.assert_array_equal(store.matrix.numpy(), rows.astype(np.float16))


def test_a_guard_sees_the_rows_of_every_read_first(path: Path, rows: Float32Array) -> None:
    store, seen = VectorStore.open(path), []
    store.guard(lambda wanted: seen.append(wanted.tolist()))
    store.gather(torch.tensor([3, 1]), 0, 8)
    np.testing.assert_array_equal(store.block(1498, 1502).numpy(), rows[1498:].astype(np.float16))
    assert seen == [[3, 1], [1498, 1499]]


def test_a_guard_that_refuses_stops_the_read(path: Path) -> None:
    def refuse(wanted: Int64Array) -> None:
        raise KeyError(int(wanted[0]))

    store = VectorStore.open(path)
    store.guard(refuse)
    with pytest.raises(KeyError, match="7"):
        store.gather(torch.tensor([7]), 0, 8)
