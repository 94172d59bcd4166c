"""An adaptor on disk: `adaptor.json` describes it, `adaptor.safetensors` holds its float32 tensors.

The description carries the sha256 of the tensors' file, so that a change is found before it is parsed.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from funnel.errors import DamagedIndexError, FormatVersionError, InputError

# Raised by one with every change that an older reader would misread.
FORMAT_VERSION = 1
TENSOR_FILE = "adaptor.safetensors"
HEADER_FILE = "adaptor.json"

LONGEST_SHOWN = 80  # characters of a bad value in a message
REMEDY = "restore the file or fit the adaptor again"

Field = TypeVar("Field", str, int, bool, list[Any], dict[str, Any])


@dataclass(frozen=True)
class AdaptorHeader:
    """What `adaptor.json` says of the adaptor; `sha256` is that of the tensors' file, once there is one.

    seen_queries: hashes of the queries that trained or chose it, rising: see `funnel.data.queries.query_hashes`.
    """

    kind: str
    dim: int
    dims: tuple[int, ...]
    isometric: bool
    settings: Mapping[str, int]
    sha256: str = ""
    seen_queries: tuple[str, ...] = ()


def write_adaptor(folder: Path, header: AdaptorHeader, tensors: Mapping[str, NDArray[np.float32]]) -> None:
    """Write both files; the description comes last, so that an interrupted write is found on reading."""
    folder.mkdir(parents=True, exist_ok=True)
    payload = save_tensors({name: np.ascontiguousarray(value, np.float32) for name, value in tensors.items()})
    fields = {
        "format_version": FORMAT_VERSION,
        "kind": header.kind,
        "dim": header.dim,
        "dims": list(header.dims),
        "isometric": header.isometric,
        "settings": dict(header.settings),
        "sha256": hashlib.sha256(payload).hexdigest(),
        **({"seen_queries": list(header.seen_queries)} if header.seen_queries else {}),
    }
    (folder / TENSOR_FILE).write_bytes(payload)
    (folder / HEADER_FILE).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def read_header(folder: Path) -> AdaptorHeader:
    """Read and check `adaptor.json`.

    Raises:
        InputError: there is no such folder.
        FormatVersionError: the file is of a newer format.
        DamagedIndexError: the file is missing, unreadable or incomplete.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give one that holds {HEADER_FILE} and {TENSOR_FILE}")
    path = folder / HEADER_FILE
    fields = _read_fields(path)
    version = _field(path, fields, "format_version", int)
    if version > FORMAT_VERSION:
        raise FormatVersionError(
            f"{path} is of format {version}; this version reads up to {FORMAT_VERSION}; upgrade funnel-retrieval"
        )
    header = AdaptorHeader(
        kind=_field(path, fields, "kind", str),
        dim=_field(path, fields, "dim", int),
        dims=tuple(_numbers(path, "dims", _field(path, fields, "dims", list))),
        isometric=_field(path, fields, "isometric", bool),
        settings=_settings(path, _field(path, fields, "settings", dict)),
        sha256=_field(path, fields, "sha256", str),
        seen_queries=_hashes(path, _field(path, {"seen_queries": [], **fields}, "seen_queries", list)),
    )
    if header.dim < 1:
        raise DamagedIndexError(f"{path}: dim is {header.dim}, expected at least 1; {REMEDY}")
    return header


def read_tensors(folder: Path, header: AdaptorHeader) -> dict[str, NDArray[np.float32]]:
    """Read `adaptor.safetensors`, its checksum first.

    Raises:
        DamagedIndexError: the file is missing, changed, or holds anything but finite float32 tensors.
    """
    path = folder / TENSOR_FILE
    payload = _read_bytes(path)
    found = hashlib.sha256(payload).hexdigest()
    if found != header.sha256:
        raise DamagedIndexError(f"{path} has sha256 {found[:12]}…, {HEADER_FILE} says {header.sha256[:12]}…; {REMEDY}")
    try:
        tensors = load_tensors(payload)
    except SafetensorError as error:
        raise DamagedIndexError(f"{path} is not a safetensors file ({error}); {REMEDY}") from error
    for name, tensor in tensors.items():
        if tensor.dtype != np.float32:
            raise DamagedIndexError(f"{path}: tensor {name} is {tensor.dtype}, expected float32; {REMEDY}")
        if not np.isfinite(tensor).all():
            raise DamagedIndexError(f"{path}: tensor {name} holds values that are not finite; {REMEDY}")
    return tensors


def _read_fields(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(_read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise DamagedIndexError(f"{path} is not readable as JSON ({error}); {REMEDY}") from error
    if not isinstance(fields, dict):
        raise DamagedIndexError(f"{path} holds a {type(fields).__name__}, expected an object; {REMEDY}")
    return fields


def _field(path: Path, fields: dict[str, Any], name: str, expected: type[Field]) -> Field:
    if name not in fields:
        raise DamagedIndexError(f"{path} lacks the field {name!r}; {REMEDY}")
    value = fields[name]
    # By type and not isinstance: True is an int to Python, and not to this format.
    if type(value) is not expected:
        raise DamagedIndexError(
            f"{path}: {name} is {repr(value)[:LONGEST_SHOWN]}, expected {expected.__name__}; {REMEDY}"
        )
    return value


def _numbers(path: Path, name: str, values: list[Any]) -> list[int]:
    if any(type(value) is not int for value in values):
        raise DamagedIndexError(f"{path}: {name} is {repr(values)[:LONGEST_SHOWN]}, expected whole numbers; {REMEDY}")
    return values


def _hashes(path: Path, values: list[Any]) -> tuple[str, ...]:
    if any(type(value) is not str for value in values):
        raise DamagedIndexError(f"{path}: seen_queries holds values that are no texts; {REMEDY}")
    return tuple(values)


def _settings(path: Path, values: dict[str, Any]) -> dict[str, int]:
    _numbers(path, "settings", list(values.values()))
    return values


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DamagedIndexError(f"{path} is missing; {REMEDY}") from error
