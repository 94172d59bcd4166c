from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from funnel.errors import DamagedIndexError
from funnel.planning.calibration import ALIGNED, map_arrays, write_arrays

ARRAYS = st.dictionaries(
    st.text("abc/0ü", min_size=1, max_size=9),
    hnp.arrays(
        st.sampled_from([np.uint8, np.int32, np.int64, np.float16, np.float32]),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    ),
    max_size=6,
)


def same(found: dict[str, npt.NDArray[np.generic]], arrays: dict[str, npt.NDArray[np.generic]]) -> bool:
    return list(found) == list(arrays) and all(
        found[name].dtype == array.dtype
        and found[name].shape == array.shape
        and found[name].tobytes() == array.tobytes()
        for name, array in arrays.items()
    )


@settings(max_examples=60, deadline=None)
@given(arrays=ARRAYS)
def test_what_is_written_is_read(
    arrays: dict[str, npt.NDArray[np.generic]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("arrays") / "some.npz"
    write_arrays(path, arrays)
    assert same(map_arrays(path), arrays)
    with np.load(path, allow_pickle=False) as plain:  # any other reader of .npz
        assert same(dict(plain), arrays)


@settings(max_examples=40, deadline=None)
@given(arrays=ARRAYS)
def test_what_numpy_writes_is_read(
    arrays: dict[str, npt.NDArray[np.generic]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("arrays")
    np.savez(folder / "plain.npz", allow_pickle=False, **arrays)
    assert same(map_arrays(folder / "plain.npz"), arrays)


def test_arrays_are_mapped_and_aligned(tmp_path: Path) -> None:
    rows = np.arange(3_000, dtype=np.float32).reshape(-1, 3)
    write_arrays(tmp_path / "some.npz", {"odd": np.ones(7, np.uint8), "rows": rows, "a longer name": rows * 2})
    for name, array in map_arrays(tmp_path / "some.npz").items():
        assert not array.flags.owndata, name
        assert array.ctypes.data % ALIGNED == 0, name
    found = map_arrays(tmp_path / "some.npz")["rows"]
    found[0] = -1  # a copy of the page, not the file
    np.testing.assert_array_equal(map_arrays(tmp_path / "some.npz")["rows"], rows)


def resident_kb() -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("RssAnon")).split()[1])


def test_a_large_array_takes_no_memory_until_it_is_read(tmp_path: Path) -> None:
    write_arrays(tmp_path / "some.npz", {"zeros": np.zeros((64, 1 << 18), np.float32)})  # 67 MB
    before = resident_kb()
    found = map_arrays(tmp_path / "some.npz")["zeros"]
    assert found[5].sum() == 0
    assert resident_kb() - before < 8_000


@pytest.mark.parametrize("contents", [b"", b"PK\x03\x04 not a zip", b"\x93NUMPY"])
def test_other_files_are_refused(contents: bytes, tmp_path: Path) -> None:
    (tmp_path / "some.npz").write_bytes(contents)
    with pytest.raises(DamagedIndexError, match=r"some\.npz: not a readable array file"):
        map_arrays(tmp_path / "some.npz")


def test_a_compressed_file_is_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "small.npz", allow_pickle=False, zeros=np.zeros(10_000_000))
    with pytest.raises(DamagedIndexError, match=r"small\.npz: .*zeros\.npy is compressed"):
        map_arrays(tmp_path / "small.npz")


def test_objects_are_neither_written_nor_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Object arrays"):
        write_arrays(tmp_path / "some.npz", {"objects": np.array([{}], dtype=object)})
    np.savez(tmp_path / "pickled.npz", objects=np.array([{}], dtype=object))
    with pytest.raises(DamagedIndexError, match="Python objects"):
        map_arrays(tmp_path / "pickled.npz")


@pytest.mark.parametrize("share", [0.3, 0.6, 0.99])
def test_a_file_cut_short_is_refused(share: float, tmp_path: Path) -> None:
    path = tmp_path / "some.npz"
    write_arrays(path, {"rows": np.arange(10_000)})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DamagedIndexError, match=r"some\.npz"):
        map_arrays(path)
