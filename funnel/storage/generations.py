"""CURRENT and the manifest it names: reading them with their hashes checked, and writing them atomically."""

import hashlib
import os
import re
from pathlib import Path

from funnel.errors import DamagedIndexError, FormatVersionError, InputError, NotAnIndexError, StorageError
from funnel.storage.files import REMEDY, Files, is_folder, open_inside, read_chunks, there
from funnel.storage.layout import (
    BOUNDS,
    CURRENT,
    GENERATIONS,
    TEMPORARY_PREFIX,
    generation_name,
    is_generation_name,
)
from funnel.storage.locks import ReaderLock
from funnel.storage.manifest import Manifest, parse

_LINE = re.compile(rb"([0-9]{6,12}) ([0-9a-f]{64})\n")

# A writer may replace the generation between two reads; each retry needs one more commit in that instant.
_READ_ATTEMPTS = 5
_LOCK_ATTEMPTS = 100


def current_line(generation: int, manifest: bytes) -> bytes:
    """The one line of CURRENT: the generation's number and the sha256 of its manifest's bytes."""
    return f"{generation:06d} {hashlib.sha256(manifest).hexdigest()}\n".encode("ascii")


def read_current(root: Path, files: Files) -> tuple[int, str]:
    """The live generation's number and the sha256 of its manifest.

    Raises NotAnIndexError where the folder holds no index, DamagedIndexError where CURRENT is damaged.
    """
    if not is_folder(root):
        state = "is not a folder" if there(root) else "does not exist"
        raise NotAnIndexError(f"{root} {state}: build an index there first")
    if not there(root / CURRENT):
        if any(is_generation_name(name) for name in files.names(root / GENERATIONS)):
            raise DamagedIndexError(
                f"{CURRENT} in {root} is missing: it was removed, or a first build was stopped just "
                "before its end; build the index again"
            )
        raise NotAnIndexError(f"{root} holds no index (it has no file {CURRENT}): build one there first")
    line = _read_small(root, CURRENT, BOUNDS.current_bytes, files)
    match = _LINE.fullmatch(line)
    number = int(match[1]) if match else 0
    if match is None or number == 0 or match[1] != f"{number:06d}".encode():
        raise DamagedIndexError(
            f"{CURRENT} in {root} is damaged: it holds {line[:80]!r}, expected a generation's number and a "
            f"sha256; {REMEDY}"
        )
    return number, match[2].decode("ascii")


def read_manifest(root: Path, files: Files) -> Manifest:
    """The live generation's manifest: its hash checked before it is parsed, then every value.

    Raises NotAnIndexError, FormatVersionError, or DamagedIndexError naming the file.
    """
    for _ in range(_READ_ATTEMPTS - 1):
        before = read_current(root, files)
        try:
            return _read_generation(root, *before, files)
        except DamagedIndexError:
            if read_current(root, files) == before:
                raise
    return _read_generation(root, *read_current(root, files), files)


def read_locked(root: Path, files: Files) -> tuple[Manifest, ReaderLock]:
    """As `read_manifest`, and a lock that keeps this generation's files where they are until it is let go."""
    for _ in range(_LOCK_ATTEMPTS):
        manifest = read_manifest(root, files)
        lock = ReaderLock.take(root, manifest.generation)
        if lock is not None:
            return manifest, lock
    raise StorageError(f"{root} is replaced faster than it can be read: {_LOCK_ATTEMPTS} generations in a row are gone")


def read_old(root: Path, name: str, files: Files) -> Manifest | None:
    """The manifest of an old generation that a reader may have open; None where it cannot be understood.

    Raises StorageError where it cannot be read now.
    """
    try:
        return parse(_read_small(root, f"{GENERATIONS}/{name}", BOUNDS.manifest_bytes, files))
    except (InputError, DamagedIndexError, FormatVersionError):
        return None


def write_generation(root: Path, generation: int, manifest: bytes, files: Files) -> list[Path]:
    """Write the manifest of a generation that CURRENT does not name yet; gives what is to be flushed before it does."""
    folder = root / GENERATIONS
    name = generation_name(generation)
    files.make_folder(folder)
    temporary = folder / f"{TEMPORARY_PREFIX}{name}"
    files.write(temporary, manifest)
    files.replace(temporary, folder / name)
    return [folder / name, folder]


def _read_generation(root: Path, number: int, sha256: str, files: Files) -> Manifest:
    name = f"{GENERATIONS}/{generation_name(number)}"
    if not there(root / name):
        raise DamagedIndexError(
            f"{name} in {root} is missing, and {CURRENT} names it: one of the two is damaged; {REMEDY}"
        )
    data = _read_small(root, name, BOUNDS.manifest_bytes, files)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DamagedIndexError(
            f"{name} in {root} does not match the sha256 in {CURRENT}: one of the two is damaged; {REMEDY}"
        )
    try:
        manifest = parse(data)
    except InputError as error:
        raise DamagedIndexError(f"{name} in {root} cannot be used: {error}") from error
    if manifest.generation != number:
        raise DamagedIndexError(
            f"{name} in {root} says that it is generation {manifest.generation}, and {CURRENT} names {number}"
        )
    return manifest


def _read_small(root: Path, relative: str, most: int, files: Files) -> bytes:
    descriptor = open_inside(root, relative, files)
    try:
        size = os.fstat(descriptor).st_size
        if size > most:
            raise DamagedIndexError(f"{relative} in {root} has {size:,} bytes, expected at most {most:,}")
        return b"".join(read_chunks(descriptor, 0, size, f"{relative} in {root}"))
    finally:
        os.close(descriptor)
