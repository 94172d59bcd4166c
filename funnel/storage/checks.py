"""Hashing and verification: whole files, blocks on first touch, and the report behind `funnel check`."""

import hashlib
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from funnel.errors import DamagedIndexError, InputError
from funnel.progress import Progress
from funnel.storage.files import CHUNK_BYTES, FILES, REMEDY, Files, open_inside, read_chunks
from funnel.storage.generations import read_current, read_manifest, read_old
from funnel.storage.layout import (
    BLOCK_BYTES,
    CURRENT,
    CURRENT_TEMPORARY,
    GENERATIONS,
    LOCK,
    TEMPORARY_PREFIX,
    generation_name,
    is_cache,
    is_generation_name,
)
from funnel.storage.manifest import BlockHashes, FileEntry, Manifest
from indexes.system import Descriptor, disk_pool, free_in_children

VerifyMode = Literal["full", "lazy"]


@dataclass(frozen=True)
class Verification:
    """What a verification found: damaged caches (path: why) and, in lazy mode, who checks the big files."""

    damaged_caches: dict[str, str] = field(default_factory=dict)
    verifiers: dict[str, "BlockVerifier"] = field(default_factory=dict)


@dataclass(frozen=True)
class FileStatus:
    """One line of a check: the file, `ok`, `damaged`, `rebuildable` or `stray`, and why."""

    file: str
    status: Literal["ok", "damaged", "rebuildable", "stray"]
    detail: str = ""


@dataclass(frozen=True)
class CheckReport:
    """What `check` found, file by file."""

    lines: tuple[FileStatus, ...]

    @property
    def ok(self) -> bool:
        """Whether the index can be used: damaged caches and stray files do not stand in the way."""
        return all(line.status != "damaged" for line in self.lines)


@dataclass(frozen=True)
class _Piece:
    """A stretch of a file with one known hash: a whole file, or one block."""

    path: str
    offset: int
    length: int
    sha256: str
    block: int | None = None


class BlockVerifier:
    """Checks the blocks of one file when they are touched for the first time; safe in many threads.

    It holds the file open, so that blocks can still be checked after a later commit removed its name.
    """

    def __init__(self, root: Path, path: str, entry: FileEntry, files: Files = FILES) -> None:
        """Open the file. Raises DamagedIndexError where it is missing or has another size."""
        if entry.blocks is None:
            raise InputError(f"{path} has no block hashes; verify it in full")
        self._name = f"{path} in {root}"
        self._pieces = list(_pieces(path, entry))
        self._block_bytes = entry.blocks.block_bytes
        self._size = entry.size
        self._verified = np.zeros(len(self._pieces), dtype=np.bool_)
        self._complete = not self._pieces
        self._lock = free_in_children(threading.Lock())
        self._file = Descriptor(_open_checked(root, path, entry, files))

    @property
    def complete(self) -> bool:
        """Whether every block has been checked, after which every further check is free."""
        return self._complete

    def ensure(self, offset: int, length: int) -> None:
        """Check the blocks that hold the bytes `offset` to `offset + length`.

        Raises DamagedIndexError naming file, block and bytes; InputError for bytes outside the file.
        """
        if length:
            self.ensure_rows(np.zeros(1, dtype=np.int64), length, offset)

    def ensure_rows(self, rows: npt.NDArray[np.int64], row_bytes: int, header_bytes: int) -> None:
        """Check the blocks that hold `rows` (int64, any shape) of a file of rows behind a header.

        Raises DamagedIndexError naming file, block and bytes; InputError for a row outside the file.
        """
        if self._complete or rows.size == 0:
            return
        low, high = int(rows.min()), int(rows.max())
        if low < 0 or header_bytes < 0 or header_bytes + (high + 1) * row_bytes > self._size:
            said = f"rows {low:,} to {high:,} of {row_bytes:,} bytes behind {header_bytes:,}"
            raise InputError(f"{said} lie outside {self._name}, which has {self._size:,}")
        start = rows.ravel() * row_bytes + header_bytes
        first, last = start // self._block_bytes, (start + row_bytes - 1) // self._block_bytes
        span = int((last - first).max())
        blocks = np.minimum(first[:, None] + np.arange(span + 1), last[:, None])
        pending = np.unique(blocks[~self._verified[blocks]])
        if pending.size == 0:
            return
        with self._lock:
            for block in pending[~self._verified[pending]].tolist():
                _check_piece(self._file.fileno(), self._pieces[block], self._name)
                self._verified[block] = True
            self._complete = bool(self._verified.all())


def hash_file(path: Path, blocks: bool, files: Files = FILES, block_bytes: int = BLOCK_BYTES) -> FileEntry:
    """Hash one file in one pass: the whole, and with `blocks` each block of `block_bytes` too."""
    descriptor = files.open(path)
    try:
        size = os.fstat(descriptor).st_size
        whole = hashlib.sha256()
        hashes: list[str] = []
        for offset in range(0, size, block_bytes):
            block = hashlib.sha256()
            for chunk in read_chunks(descriptor, offset, min(block_bytes, size - offset), str(path)):
                whole.update(chunk)
                if blocks:
                    block.update(chunk)
            hashes.append(block.hexdigest())
    finally:
        os.close(descriptor)
    return FileEntry(whole.hexdigest(), size, BlockHashes(block_bytes, tuple(hashes)) if blocks else None)


def verify(
    root: Path, manifest: Manifest, mode: VerifyMode = "full", progress: bool = False, files: Files = FILES
) -> Verification:
    """Check the files of a generation before anything is parsed.

    `full` hashes every file. `lazy` hashes only the first block (where the header lies) of the files that
    have block hashes, and gives a `BlockVerifier` for the rest of each.
    Raises DamagedIndexError naming the file; damage to a cache is reported instead. InputError for a mode
    that does not exist.
    """
    if mode not in ("full", "lazy"):
        raise InputError(f"verify is {mode!r}, expected 'full' or 'lazy'")
    whole = {path: entry for path, entry in manifest.files.items() if mode == "full" or entry.blocks is None}
    problems = _problems(root, whole, progress, files)
    for path, problem in problems.items():
        if not is_cache(path):
            raise problem
    blocks = {path: entry for path, entry in manifest.files.items() if path not in whole}
    verifiers = {path: BlockVerifier(root, path, entry, files) for path, entry in blocks.items()}
    for path, verifier in verifiers.items():
        verifier.ensure(0, min(1, blocks[path].size))
    return Verification({path: str(problem) for path, problem in problems.items()}, verifiers)


def check(path: str | os.PathLike[str], progress: bool = False, files: Files = FILES) -> CheckReport:
    """Check CURRENT, the manifest and every file it names, and name the files that belong to nothing.

    Damage is reported, not raised. Raises NotAnIndexError where the folder holds no index and
    FormatVersionError where a newer funnel wrote it.
    """
    root = Path(path)
    try:
        generation, _ = read_current(root, files)
    except DamagedIndexError as error:
        return CheckReport((FileStatus(CURRENT, "damaged", str(error)),))
    name = f"{GENERATIONS}/{generation_name(generation)}"
    try:
        manifest = read_manifest(root, files)
    except DamagedIndexError as error:
        return CheckReport((FileStatus(CURRENT, "ok"), FileStatus(name, "damaged", str(error))))
    problems = _problems(root, manifest.files, progress, files)
    found = {file: FileStatus(file, "ok") for file in (CURRENT, name, *manifest.files)}
    for file, problem in problems.items():
        found[file] = FileStatus(file, "rebuildable" if is_cache(file) else "damaged", str(problem))
    return CheckReport((*found.values(), *_strays(root, manifest, files)))


def _pieces(path: str, entry: FileEntry) -> Iterator[_Piece]:
    if entry.blocks is None or not entry.size:
        yield _Piece(path, 0, entry.size, entry.sha256)
        return
    for block, sha256 in enumerate(entry.blocks.sha256):
        offset = block * entry.blocks.block_bytes
        yield _Piece(path, offset, min(entry.blocks.block_bytes, entry.size - offset), sha256, block)


def _open_checked(root: Path, path: str, entry: FileEntry, files: Files) -> int:
    descriptor = open_inside(root, path, files)
    size = os.fstat(descriptor).st_size
    if size != entry.size:
        os.close(descriptor)
        state = "is cut short" if size < entry.size else "is too long"
        raise DamagedIndexError(f"{path} in {root} {state}: it has {size:,} bytes, expected {entry.size:,}; {REMEDY}")
    return descriptor


def _check_piece(descriptor: int, piece: _Piece, name: str) -> None:
    digest = hashlib.sha256()
    for chunk in read_chunks(descriptor, piece.offset, piece.length, name):
        digest.update(chunk)
    if digest.hexdigest() == piece.sha256:
        return
    end = piece.offset + piece.length
    where = "" if piece.block is None else f" in block {piece.block} (bytes {piece.offset:,} to {end:,})"
    raise DamagedIndexError(
        f"{name} is damaged{where}: its sha256 begins {digest.hexdigest()[:12]}, expected {piece.sha256[:12]}; {REMEDY}"
    )


def _problems(
    root: Path, entries: Mapping[str, FileEntry], progress: bool, files: Files
) -> dict[str, DamagedIndexError]:
    """The first problem of each damaged file, found on a few threads."""
    problems: dict[str, DamagedIndexError] = {}
    pieces = [piece for path, entry in entries.items() for piece in _pieces(path, entry)]

    def problem(piece: _Piece) -> DamagedIndexError | None:
        try:
            descriptor = _open_checked(root, piece.path, entries[piece.path], files)
            try:
                _check_piece(descriptor, piece, f"{piece.path} in {root}")
            finally:
                os.close(descriptor)
        except DamagedIndexError as error:
            return error
        return None

    total = sum(piece.length for piece in pieces)
    mapped = map if total < CHUNK_BYTES else disk_pool().map  # a few small files are read before a thread is up
    with Progress(total=total, desc="checking", unit="B", unit_scale=True, disable=not progress) as bar:
        for piece, found in zip(pieces, mapped(problem, pieces), strict=True):
            bar.update(piece.length)
            if found is not None:
                problems.setdefault(piece.path, found)
    return problems


def _strays(root: Path, manifest: Manifest, files: Files) -> Iterator[FileStatus]:
    known = {LOCK, CURRENT, f"{GENERATIONS}/{generation_name(manifest.generation)}", *manifest.files}
    older = _older(root, files)
    for file in sorted(root.rglob("*")):
        path = file.relative_to(root).as_posix()
        if path in known or (file.is_dir() and not file.is_symlink()):
            continue
        detail = "belongs to nothing"
        if path == CURRENT_TEMPORARY or TEMPORARY_PREFIX in path:
            detail = "left by an unfinished write, or being written"
        elif path in older:
            detail = f"of generation {older[path]}, which a reader has open, or which goes with the next write"
        yield FileStatus(path, "stray", detail)


def _older(root: Path, files: Files) -> dict[str, int]:
    """The files of generations that stand beside the live one, and whose they are."""
    found: dict[str, int] = {}
    for name in files.names(root / GENERATIONS):
        manifest = read_old(root, name, files) if is_generation_name(name) else None
        if manifest is not None:
            found |= dict.fromkeys((f"{GENERATIONS}/{name}", *manifest.files), manifest.generation)
    return found
