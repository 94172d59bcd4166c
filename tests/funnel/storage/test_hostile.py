"""Files that somebody made up: nothing is unpickled, nothing is allocated on their word, nothing outside is touched."""

from __future__ import annotations

import ast
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

import benchmarks
import funnel
import indexes
from funnel.errors import DamagedIndexError
from funnel.planning.calibration import map_arrays
from funnel.storage.arrays import map_npy

PACKAGES = [Path(str(package.__file__)).parent for package in (funnel, indexes, benchmarks)]
RUNS_CODE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
SAFE_KEYWORDS = {"load": "allow_pickle", "write_array": "allow_pickle", "read_array": "allow_pickle"}


def sources() -> list[Path]:
    return sorted(path for package in PACKAGES for path in package.rglob("*.py"))


def is_numpy(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) in ("np", "numpy", "np.lib.format")


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_nothing_is_unpickled_anywhere(package: Path) -> None:
    odd = []
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if {module.split(".")[0] for module in modules} & RUNS_CODE:
                odd.append(f"{path} imports {modules}")
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            if name in ("torch.load", "eval", "exec"):
                odd.append(f"{path}:{node.lineno} calls {name}")
            keyword = SAFE_KEYWORDS.get(name.rsplit(".", 1)[-1]) if is_numpy(node) else None
            given = {one.arg: ast.unparse(one.value) for one in node.keywords}
            if keyword is not None and given.get(keyword) != "False":
                odd.append(f"{path}:{node.lineno} calls {name} without {keyword}=False")
    assert len(sources()) > 100
    assert odd == []


def header(descr: str, shape: tuple[int, ...], by_column: bool = False) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": by_column, "shape": shape})
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not a readable array"),
        (b"PK\x03\x04" + bytes(100), "not a readable array"),
        (b"\x80\x04\x95" + bytes(100), "not a readable array"),
        (header("<i8", (10**15,)), "has 128 bytes, expected 8,000,000,000,000,128"),
        (header("<i8", (2,)) + bytes(15), "has 143 bytes, expected 144"),
        (header("<i8", (2,)) + bytes(17), "has 145 bytes, expected 144"),
        (header("|O", (2,)) + bytes(16), "it holds Python objects"),
        (header(">i8", (2,)) + bytes(16), "it holds >i8, whose byte order"),
        (header("<f4", (2,)) + bytes(8), r"holds float32 \[2\]; expected int64"),
        (header("<i8", (1, 2)) + bytes(16), r"holds int64 \[1, 2\]; expected int64 of 1 dimensions"),
        (header("<i8", (-2,)) + bytes(16), r"its shape is \[-2\]"),
        (b"\x93NUMPY\x03\x00" + bytes(100), r"it has .npy format \(3, 0\)"),
        (b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65_535, "not a readable array"),
    ],
)
def test_an_array_is_checked_before_it_is_mapped(data: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "order.npy"
    path.write_bytes(data)
    with pytest.raises(DamagedIndexError, match=rf"order\.npy: .*{said}"):
        map_npy(path, ("int64",), 1)


def test_columns_are_refused_and_empty_arrays_are_not(tmp_path: Path) -> None:
    np.save(tmp_path / "columns.npy", np.asfortranarray(np.ones((3, 2), np.float32)))
    with pytest.raises(DamagedIndexError, match="column by column"):
        map_npy(tmp_path / "columns.npy", ("float32",), 2)
    np.save(tmp_path / "empty.npy", np.empty((0, 2), np.float32))
    assert map_npy(tmp_path / "empty.npy", ("float16", "float32"), 2).shape == (0, 2)
    np.save(tmp_path / "rows.npy", np.arange(6))
    np.testing.assert_array_equal(map_npy(tmp_path / "rows.npy", ("int64",), 1), np.arange(6))


def zipped(path: Path, data: bytes, method: int) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("truth.npy", data)
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("shape", [(10**18,), (2**63, 2**63), (-1,), (3,)])
def test_members_are_as_long_as_their_headers_say(shape: tuple[int, ...], method: int, tmp_path: Path) -> None:
    path = zipped(tmp_path / "calibration.npz", header("<f4", shape) + bytes(16), method)
    with pytest.raises(DamagedIndexError, match=r"calibration\.npz"):
        map_arrays(path)


def test_members_in_another_byte_order_are_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "calibration.npz", header(">f4", (4,)) + bytes(16), zipfile.ZIP_STORED)
    with pytest.raises(DamagedIndexError, match="byte order"):
        map_arrays(path)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    size = 50_000_000
    path = zipped(tmp_path / "calibration.npz", header("<f4", (size // 4,)) + bytes(size), zipfile.ZIP_DEFLATED)
    with pytest.raises(DamagedIndexError, match=r"truth\.npy is compressed"):
        map_arrays(path)
