"""Named arrays in one .npz file that can be read by mapping it: what is not looked at is never loaded."""

from __future__ import annotations

import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from funnel.errors import DamagedIndexError, StorageError, of_environment, reason
from indexes.mapping import map_file

__all__ = ["map_arrays", "write_arrays"]

Arrays = Mapping[str, npt.NDArray[Any]]

SUFFIX = ".npy"  # of every member, as np.savez names them
ALIGNED = np.lib.format.ARRAY_ALIGN  # arrays start at its multiples, as numpy pads its own header to them
LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip member (APPNOTE 4.3.7): the lengths of its name and extra field
ZIP64_EXTRA = 20  # bytes that zipfile puts before the extra field of a member that may be large
EXTRA_FIELD = struct.Struct("<HH")  # identifier and length of an extra field (APPNOTE 4.5.1)
PADDING = 0xD935  # the identifier that Android's zipalign uses for padding; other readers skip it
# A compressed member may become so many times as large as the file, and a megabyte beside: no room for bombs.
LARGEST_EXPANSION, SMALL_MEMBER = 64, 1_000_000
# Out of zipfile, zlib and numpy's header parser, which evaluates the header as a Python literal; RecursionError and
# NotImplementedError are RuntimeErrors.
UNREADABLE = (
    *(ValueError, EOFError, struct.error, zipfile.BadZipFile, zlib.error, RuntimeError, SyntaxError),
    *(tokenize.TokenError, MemoryError, OverflowError, TypeError, LookupError),
)


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Write what `np.load` and `map_arrays` read: an uncompressed .npz whose arrays are aligned in the file.

    Raises ValueError for arrays of Python objects, OSError where there is no room.
    """
    with path.open("wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(name + SUFFIX)
            before = file.tell() + LOCAL_HEADER.size + len(member.filename.encode()) + ZIP64_EXTRA + EXTRA_FIELD.size
            padding = -before % ALIGNED
            member.extra = EXTRA_FIELD.pack(PADDING, padding) + bytes(padding)
            with archive.open(member, "w", force_zip64=True) as opened:
                np.lib.format.write_array(opened, np.asanyarray(array), allow_pickle=False)


def map_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Every array of an .npz file by name; the file is mapped, so that only what is looked at is read.

    What is written into an array does not reach the file. Members that are compressed or not aligned, as np.savez
    leaves them, are read into memory instead.

    Raises DamagedIndexError for a file that is not an .npz of plain arrays.
    """
    with path.open("rb") as file:
        try:
            archive = zipfile.ZipFile(file)
            _, whole = map_file(file)
            members = archive.infolist()
            return {member.filename.removesuffix(SUFFIX): _array(archive, member, whole) for member in members}
        except (*UNREADABLE, OSError) as error:  # OSError: a place in the file that cannot be gone to
            if of_environment(error):
                raise StorageError(f"{path} cannot be read now: {reason(error)}") from error
            raise DamagedIndexError(f"{path}: not a readable array file ({error})") from error


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, whole: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    with archive.open(member) as opened:
        shape, fortran, dtype = _header(opened)
        header = opened.tell()
    name, extra = LOCAL_HEADER.unpack_from(whole.data, member.header_offset)
    start = member.header_offset + LOCAL_HEADER.size + name + extra + header
    count = math.prod(shape)
    if any(side < 0 for side in shape) or member.file_size != header + count * dtype.itemsize:
        raise ValueError(f"{member.filename} has {member.file_size} bytes, its header promises {dtype} {list(shape)}")
    if member.file_size > LARGEST_EXPANSION * len(whole) + SMALL_MEMBER:
        raise ValueError(f"{member.filename} would take {member.file_size} bytes, the file has {len(whole)}")
    if member.compress_type != zipfile.ZIP_STORED or fortran or start % dtype.alignment or not count:
        with archive.open(member) as opened:
            array: npt.NDArray[Any] = np.lib.format.read_array(opened, allow_pickle=False)
        return array
    return np.frombuffer(whole, dtype, count, start).reshape(shape)


def _header(opened: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether columns come first, and type. Raises ValueError for what is not a plain array."""
    version = np.lib.format.read_magic(opened)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(opened)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(opened)
    else:
        raise ValueError(f"version {version} of the .npy format; expected (1, 0) or (2, 0)")
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    return shape, fortran, dtype
