"""Exports: the file's suffix says the format; files appear whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from funnel.building.export_arrays import write_ids, write_npy, write_parquet
from funnel.building.export_faiss import labels_of, takes_coarse, write_coarse, write_flat
from funnel.building.export_rows import Rows
from funnel.checks import checked_flags, checked_path
from funnel.engine.generation import Opened
from funnel.errors import FunnelError, InputError, NoSpaceError, StorageError

__all__ = ["Exported", "export_index"]

SUFFIXES = (".npy", ".parquet", ".faiss")


@dataclass(frozen=True)
class Exported:
    """What was written. files: their paths. rows: how many. what: the format and the space of the vectors, in words."""

    files: tuple[Path, ...]
    rows: int
    what: str

    def __str__(self) -> str:
        return f"{', '.join(map(str, self.files))}: {self.rows:,} rows; {self.what}"


def export_index(
    folder: Path,
    opened: Opened,
    path: str | os.PathLike[str],
    *,
    adapted: bool = False,
    flat: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> Exported:
    """Write every row of an index in input order, in a format that is read without funnel.

    folder: of the index. path: .npy (vectors float32 [n, d]; ids beside them in .ids.npy), .parquet (id, title, text,
    metadata as JSON, vector), or .faiss (the coarse index where it is one of FAISS's, else an IndexFlatIP; labels are
    ids that are whole numbers, else input positions, with the ids in .ids.npy). adapted: vectors as the index searches
    them; else the user's own, scaled to unit length, up to the rounding of how they are stored. flat: an IndexFlatIP in
    any case. overwrite: replace files that are there.

    Raises InputError for another suffix, a path that is taken or inside the index, or an adaptor that cannot be undone;
    MissingPackageError without pyarrow; NoSpaceError when the disk is full. Nothing is left behind then.
    """
    checked_flags(adapted=adapted, flat=flat, overwrite=overwrite, progress=progress)
    target = checked_path("the path of the export", path)
    if target.suffix not in SUFFIXES:
        raise InputError(f"{target} has the suffix {target.suffix or '(none)'}; export to {', '.join(SUFFIXES)}")
    if flat and target.suffix != ".faiss":
        raise InputError(f"flat says which FAISS index is written, and {target} is none; leave it out")
    if folder.resolve() in target.resolve().parents:
        raise InputError(f"{target} lies inside the index {folder}; export to another folder")
    rows, beside = Rows(opened, adapted), target.with_suffix(".ids.npy")
    wanted: dict[Path, Callable[[Path], None]]
    if target.suffix == ".parquet":
        wanted = {target: lambda file: write_parquet(rows, file, progress)}
        what = f"vectors {rows.space}"
    elif target.suffix == ".npy":
        wanted = {target: lambda file: write_npy(rows, file, progress), beside: lambda file: write_ids(rows, file)}
        what = f"vectors {rows.space}"
    else:
        return _export_faiss(rows, target, beside, flat, overwrite, progress)
    _write(wanted, overwrite)
    return Exported(tuple(wanted), rows.count, what)


def _export_faiss(rows: Rows, target: Path, beside: Path, flat: bool, overwrite: bool, progress: bool) -> Exported:
    said: list[str] = []
    coarse = takes_coarse(rows) and not flat
    wanted: dict[Path, Callable[[Path], None]] = {
        target: lambda file: said.append(write_coarse(rows, file) if coarse else write_flat(rows, file, progress))
    }
    labels = "labels are ids"
    if labels_of(rows) is None:
        wanted[beside] = lambda file: write_ids(rows, file)
        labels = f"labels are input positions, whose ids are in {beside.name}"
    _write(wanted, overwrite)
    return Exported(tuple(wanted), rows.count, f"{said[0]}; {labels}")


def _write(wanted: dict[Path, Callable[[Path], None]], overwrite: bool) -> None:
    """Write each file under a temporary name; once all are whole, rename them."""
    for path in wanted:
        if path.is_dir() or (path.exists() and not overwrite):
            raise InputError(f"{path} exists already; remove it, give another path, or ask to overwrite it")
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in wanted}
    try:
        for path, write in wanted.items():
            with _full_disk(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                write(temporary[path])
        for path, made in temporary.items():
            os.replace(made, path)
    finally:
        for made in temporary.values():
            with suppress(OSError):  # no such folder, which was said
                made.unlink(missing_ok=True)


@contextmanager
def _full_disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpaceError(f"no space left while writing {path}; free some and export again") from error
        if isinstance(error, FunnelError):
            raise
        raise StorageError(f"cannot write {path}: {error.strerror or error}; give another path") from error
