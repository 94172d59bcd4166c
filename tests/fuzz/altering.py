"""Alterations of a valid index folder by somebody who can change its checksums too."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import sqlite3
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from funnel.planning.calibration import write_arrays
from funnel.storage.checks import hash_file
from tests.fuzz.mutation import mutated

__all__ = ["alter"]

Random = np.random.Generator

NUMBERS = (
    0,
    1,
    2,
    -1,
    3,
    7,
    64,
    1_000,
    65_536,
    2**31 - 1,
    2**31,
    2**32,
    2**40,
    2**62,
    2**63 - 1,
    2**63,
    -(2**63),
    10**400,
)
FLOATS = (0.0, -0.0, 0.5, -1.0, 1e-300, 1e300, 1e39, float("nan"), float("inf"), float("-inf"))
TEXTS = (
    "",
    "x",
    "../..",
    "/etc/passwd",
    "é",
    "\0",
    "NaN",
    "12",
    "flat",
    "ivf-sq8",
    "hnsw-sq8",
    "pca",
    "cuda",
    "x" * 100_000,
)
OTHERS: tuple[Any, ...] = (None, True, False, [], {}, [[]], [0], {"": 0}, [None] * 1_000)
STATEMENTS = (
    "UPDATE documents SET {column} = {value}",
    "UPDATE documents SET {column} = {value} WHERE position = {row}",
    "DELETE FROM documents WHERE position = {row}",
    "DELETE FROM documents",
    "UPDATE documents SET position = {value} WHERE position = {row}",
    "INSERT INTO documents VALUES ({value}, 'new', 'a', 'b', '{{}}')",
    "DROP TABLE documents",
    "ALTER TABLE documents RENAME TO d2; CREATE VIEW documents AS SELECT * FROM d2",
    "CREATE TRIGGER t AFTER INSERT ON documents BEGIN SELECT 1; END",
    "CREATE INDEX i ON documents(title)",
    "PRAGMA user_version = {number}",
    "PRAGMA writable_schema = ON; UPDATE sqlite_master SET {master} = {value}",
    "PRAGMA writable_schema = ON; UPDATE sqlite_master SET {master} = {value} WHERE name = 'documents'",
    "DROP TABLE lexical",
    "UPDATE lexical_data SET block = {value}",
    "UPDATE lexical_docsize SET sz = {value}",
    "UPDATE lexical_config SET v = {value}",
    "DELETE FROM lexical_data WHERE id > 1",
    "DELETE FROM lexical_docsize",
    "INSERT INTO lexical_config VALUES ('rank', 'bm25(1)')",
)
VALUES = (
    *("NULL", "0", "-1", "3", "9223372036854775807", "1.5", "1e999", "''", "'x'", "x'ff'", "zeroblob(50000000)"),
    *(
        "'[1]'",
        "'{\"a\": NaN}'",
        "'{\"year\": {}}'",
        "'{\"year\": 1e400}'",
        "CAST(x'ff' AS TEXT)",
        "'[' || hex(zeroblob(9))",
    ),
    *("replace(hex(zeroblob(20000)), '00', '[')", "replace(hex(zeroblob(20000)), '00', '{\"a\":')", "position"),
)
MASTER = ("type", "name", "tbl_name", "rootpage", "sql")
COLUMNS = ("id", "title", "text", "metadata")


def alter(root: Path, others: list[Path], random: Random) -> str:
    """Change one or two files of the index in `root`, then its checksums; says what was changed.

    others: valid folders, whose files may be put in the place of those here.
    """
    manifest = json.loads(_manifest(root).read_bytes())
    said = []
    for _ in range(1 if random.random() < 0.8 else 2):
        names = sorted(manifest["files"])
        if random.random() < 0.35 or not names:
            said.append(f"manifest: {_json_value(manifest, random, top=True)}")
            if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
                break
            continue
        kinds = sorted({name.rsplit("/", 1)[-1] for name in names})
        kind = _one(kinds, random)
        name = _one([name for name in names if name.endswith(kind)], random)
        alike = [path for other in others for path in other.glob(f"{name.split('/')[0]}/**/{kind}")]
        said.append(f"{name}: {_file(root / name, alike, random)}")
        if not (root / name).exists():
            manifest["files"].pop(name, None)
    _seal(root, manifest, random)
    return "; ".join(said)


def _manifest(root: Path) -> Path:
    return root / "generations" / f"{(root / 'CURRENT').read_text().split()[0]}.json"


def _one(choices: Any, random: Random) -> Any:
    return choices[int(random.integers(len(choices)))]


def _seal(root: Path, manifest: Any, random: Random) -> None:
    """Write the manifest with the hashes of the files as they are, and CURRENT with its own."""
    files: Any = manifest.get("files") if isinstance(manifest, dict) else None
    for name in list(files) if isinstance(files, dict) else []:
        with suppress(OSError, ValueError, UnicodeError):
            if name.endswith("adaptor.json"):
                _seal_adaptor(root / name)
            if isinstance(files[name], dict) and (root / name).is_file():
                entry = msgspec.to_builtins(hash_file(root / name, "blocks" in files[name]))
                files[name].update({key: value for key, value in entry.items() if key in files[name]})
    try:
        data = json.dumps(manifest, sort_keys=True, indent=2).encode()
    except (TypeError, ValueError, RecursionError):
        data = json.dumps(manifest).encode()
    data = data.replace(b'"DEEP"', b"[" * 60_000 + b"]" * 60_000)
    if random.random() < 0.03:
        data = mutated(data, random)
    path = _manifest(root)
    path.write_bytes(data)
    (root / "CURRENT").write_text(f"{path.stem} {hashlib.sha256(data).hexdigest()}\n")


def _seal_adaptor(path: Path) -> None:
    header = json.loads(path.read_bytes())
    if isinstance(header, dict) and header.get("sha256") is not None and path.with_suffix(".safetensors").exists():
        header["sha256"] = hashlib.sha256(path.with_suffix(".safetensors").read_bytes()).hexdigest()
        path.write_text(json.dumps(header))


def _file(path: Path, others: list[Path], random: Random) -> str:
    if random.random() < 0.1:
        if random.random() < 0.3:
            path.unlink()
            return "removed"
        other = _one(others, random)
        shutil.copyfile(other, path)
        return f"that of {other}"
    own = {".json": _json_file, ".npy": _npy_file, ".npz": _npz_file, ".sqlite": _sqlite_file}
    own |= {".safetensors": _tensors_file}
    change = own.get(path.suffix)
    if change is not None and random.random() >= 0.15:
        with suppress(Exception):  # an earlier change may have left nothing of its kind
            return change(path, random)
    path.write_bytes(mutated(path.read_bytes(), random))
    return "bytes"


def _json_file(path: Path, random: Random) -> str:
    document = json.loads(path.read_bytes())
    said = _json_value(document, random)
    path.write_bytes(json.dumps(document).encode().replace(b'"DEEP"', b"[" * 60_000 + b"]" * 60_000))
    return said


def _json_value(document: Any, random: Random, top: bool = False) -> str:
    """Change one value somewhere; says which, and what it is now."""
    at, parents = "", []
    value = document
    while isinstance(value, dict | list) and value:
        key: Any = _one(sorted(value), random) if isinstance(value, dict) else int(random.integers(len(value)))
        if top and at == "" and key == "files" and random.random() < 0.7:
            key = "settings"
        parents.append((value, key))
        at += f".{key}"
        value = value[key]
    if not parents:
        return "nothing"
    parent, key = parents[int(random.integers(len(parents)))] if random.random() < 0.3 else parents[-1]
    chance = random.random()
    if chance < 0.1:
        del parent[key]
        return f"{at[:80]} without {str(key)[:40]}"
    if chance < 0.15 and isinstance(parent, dict):
        parent["new"] = _value(random)
        return f"{at[:80]} more"
    if chance < 0.2 and isinstance(parent, list):
        parent.extend(parent[:1] * int(_one([1, 2, 1_000], random)))
        return f"{at[:80]} longer"
    parent[key] = _value(random)
    return f"{at[:80]} ({str(key)[:40]}) = {str(parent[key])[:60]}"


def _value(random: Random) -> Any:
    if random.random() < 0.05:
        return "DEEP"
    return _one(_one((NUMBERS, NUMBERS, FLOATS, TEXTS, OTHERS), random), random)


def _npy_file(path: Path, random: Random) -> str:
    data, said = _npy(path.read_bytes(), random)
    path.write_bytes(data)
    return said


def _npy(data: bytes, random: Random) -> tuple[bytes, str]:
    array = np.load(io.BytesIO(data), allow_pickle=False)
    if random.random() < 0.3:
        return _npy_header(data, array, random)
    if random.random() < 0.3:
        return _saved(_other_shape(array, random))
    array = array.copy()
    flat, count = array.reshape(-1), array.size
    if not count:
        return _saved(np.zeros(3, array.dtype))
    chosen: Any = (
        slice(None) if random.random() < 0.2 else random.integers(count, size=int(_one([1, 1, 3, 50], random)))
    )
    if array.dtype.kind == "f":
        with np.errstate(all="ignore"):
            flat[chosen] = np.array(_one(FLOATS, random)).astype(array.dtype)
    else:
        limits = np.iinfo(array.dtype)
        values = [0, -1, 1, len(array), len(array) - 1, limits.max, limits.min, limits.max // 2, 2**31, int(flat[0])]
        flat[chosen] = min(max(int(_one(values, random)), limits.min), limits.max)
    return _saved(array)


def _saved(array: Any) -> tuple[bytes, str]:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue(), f"{array.dtype} {list(array.shape)}"


def _other_shape(array: Any, random: Random) -> Any:
    with np.errstate(all="ignore"):
        ways: tuple[Callable[[], Any], ...] = (
            lambda: array[:-1], lambda: array[:0], lambda: np.concatenate([array, array[:1]]), lambda: array[None],
            lambda: array.reshape(-1), lambda: array[::-1], lambda: array.astype(np.float64),
            lambda: array.astype(np.int32), lambda: array.astype(np.uint8), lambda: array.astype("S3"),
            lambda: array.astype(array.dtype.newbyteorder()), lambda: array[..., :-1], lambda: array.T,
            lambda: np.array(3), lambda: array.astype(np.bool_), lambda: array.astype(np.complex64),
        )  # fmt: skip
        return _one(ways, random)()


def _npy_header(data: bytes, array: Any, random: Random) -> tuple[bytes, str]:
    length = int.from_bytes(data[8:10], "little")
    body = data[10 + length :]
    shapes = ((-1,), (2**62,), (2**31, 2**31, 2**31), (0,), (), (10**30,), (len(array), 0), (2**40, 0), "(" * 300, "x")
    shape = _one((*shapes, array.shape, array.shape), random)
    kind = _one(
        ("<i8", "<f4", "|O", "<f2", ">f4", "<U9999999", "|V0", "<m8[s]", [("a", "<f4")], "?", "no", 3, None), random
    )
    order = _one((False, True, 1, "x"), random)
    header = (
        f"{{'descr': {kind!r}, 'fortran_order': {order!r}, 'shape': {shape if shape == '(' * 300 else repr(shape)}, }}"
    )
    text = header.encode().ljust(117) + b"\n"
    version = _one((b"\x01\x00", b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x00"), random)
    size = len(text).to_bytes(2 if version[0] < 2 else 4, "little")
    return data[:6] + version + size + text + body, f"header {header[:90]}"


def _npz_file(path: Path, random: Random) -> str:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = _one(sorted(members), random)
    chance = random.random()
    if chance < 0.1:
        del members[name]
        said = "without it"
    elif chance < 0.2:
        members[name], said = members[_one(sorted(members), random)], "another in its place"
    else:
        members[name], said = _npy(members[name], random)
    try:
        arrays = {one.removesuffix(".npy"): np.load(io.BytesIO(data)) for one, data in members.items()}
        if any(array.size > len(members[f"{one}.npy"]) for one, array in arrays.items()):
            raise ValueError("values of no bytes: writing so many would never end")
        write_arrays(path, arrays)
    except Exception:  # a member that only a zip file can hold
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if chance < 0.5 else zipfile.ZIP_STORED) as archive:
            for one, data in members.items():
                archive.writestr(one, data)
    return f"{name}: {said}"


def _sqlite_file(path: Path, random: Random) -> str:
    statement = _one(STATEMENTS, random).format(
        column=_one(COLUMNS, random), value=_one(VALUES, random), row=int(random.integers(60)),
        number=_one(NUMBERS[:10], random), master=_one(MASTER, random),
    )  # fmt: skip
    connection = sqlite3.connect(path)
    try:
        connection.executescript(f"PRAGMA journal_mode = OFF; {statement}")
        connection.commit()
    except sqlite3.Error as error:
        return f"{statement[:100]} ({error})"
    finally:
        connection.close()
    result: str = statement[:120]
    return result


def _tensors_file(path: Path, random: Random) -> str:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    if random.random() < 0.5 and len(data) > 8 + length:
        values = np.frombuffer(data[8 + length :], "<f4").copy()
        chosen: Any = slice(None) if random.random() < 0.3 else random.integers(len(values), size=3)
        with np.errstate(all="ignore"):
            values[chosen] = np.float32(_one(FLOATS, random))
        path.write_bytes(data[: 8 + length] + values.tobytes())
        return "values"
    said = _json_value(header, random)
    try:
        text = json.dumps(header).encode().replace(b'"DEEP"', b"[" * 60_000)
    except ValueError:
        return "nothing"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    return f"header {said}"
