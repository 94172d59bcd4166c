"""Exports: the file's suffix says the format; files appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from funnel.checks import checked_flags, checked_path
from funnel.engine.generation import Opened
from funnel.engine.segments import Segment, left
from funnel.errors import FunnelError, InputError, MissingPackageError, NoSpaceError, StorageError
from funnel.plainjson import exact_json
from funnel.progress import Progress
from funnel.storage.files import is_no_space
from indexes import FaissIndex, load_faiss

__all__ = ["Exported", "export_index"]

CELLS_AT_A_TIME = 2_097_152  # 8 MB of vectors as float32


Part: TypeAlias = tuple[Segment, npt.NDArray[np.int64]]  # a segment, and input positions inside it, rising


class ExportedRows:
    """All rows of an index that were not deleted. adapted: vectors adapted, in place of the user's own.

    Raises InputError where the user's own are asked for and the adaptor cannot be undone.
    """

    def __init__(self, opened: Opened, adapted: bool) -> None:
        self.opened, self.adapted, adaptor = opened, adapted, opened.searcher.adaptor
        self.count, self.dim = opened.searcher.rows, opened.searcher.dim
        self.space = f"as adapted by {adaptor.kind}" if adapted else "in your own space, of unit length"
        if not adapted and not adaptor.isometric:
            raise InputError(
                f"the adaptor of this index is of kind {adaptor.kind!r}, which cannot be undone; export the adapted "
                "vectors (adapted=True, --adapted), or the vectors that the index was built from"
            )

    def ids(self) -> Iterator[npt.NDArray[Any]]:
        """The ids alone, in batches: int64, or str in object arrays."""
        return (segment.ids.at(positions) for segment, positions in self.parts(False))

    def vectors(self, progress: bool) -> Iterator[npt.NDArray[np.float32]]:
        """The vectors alone, in batches float32 [c, d]."""
        return (self.read(part) for part in self.parts(progress))

    def read(self, part: Part) -> npt.NDArray[np.float32]:
        """The vectors of a part, float32 [c, d]."""
        (segment, positions), store = part, part[0].store
        rows = positions if segment.stored is None else segment.stored[positions].astype(np.int64)
        read: npt.NDArray[np.float32] = (
            store.gather(torch.from_numpy(rows).to(store.device), 0, store.dim).float().cpu().numpy()
        )
        space = self.opened.searcher.space
        given = space.adapted(read) if self.adapted else space.given(read)
        return np.ascontiguousarray(given, dtype=np.float32)

    def parts(self, progress: bool) -> Iterator[Part]:
        """Everything, in batches."""
        size = max(1, CELLS_AT_A_TIME // self.dim)
        with Progress(total=self.count, desc="export", unit="rows", unit_scale=True, disable=not progress) as bar:
            for segment in self.opened.segments:
                positions = left(segment, self.opened.live)
                for start in range(0, len(positions), size):
                    yield segment, positions[start : start + size]
                    bar.update(len(positions[start : start + size]))


UNICODE_BYTES = 4  # a character of numpy's fixed-width texts
# Ids padded to the longest one: beyond so many bytes, and so many times what the texts take, they are refused.
MOST_PADDED_BYTES, MOST_PADDING = 1 << 30, 16


def write_npy(rows: ExportedRows, path: Path, progress: bool) -> None:
    """The vectors in input order: float32 [n, d]."""
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (rows.count, rows.dim)}
        np.lib.format.write_array_header_1_0(file, header)
        for vectors in rows.vectors(progress):
            file.write(vectors.data)


def write_ids(rows: ExportedRows, path: Path) -> None:
    """The ids in input order: int64 [n], or texts [n] of numpy's fixed width, which need no pickle.

    Raises InputError where texts cannot be kept so.
    """
    ids = np.concatenate(list(rows.ids()))
    if ids.dtype == object:
        lengths = [len(one) for one in ids]
        longest, total = max(lengths), sum(lengths)
        ended = next((one for one in ids if one.endswith("\0")), None)
        if ended is not None:
            raise InputError(f"the id {ended!r} ends in a zero character, which numpy drops; export to .parquet")
        padded = UNICODE_BYTES * len(ids) * longest
        if padded > max(MOST_PADDED_BYTES, UNICODE_BYTES * MOST_PADDING * total):
            raise InputError(
                f"ids of up to {longest:,} characters would take {padded:,} bytes as a numpy array, for {total:,} "
                "characters; export to .parquet"
            )
        ids = ids.astype(f"<U{max(1, longest)}")
    with path.open("wb") as file:
        np.lib.format.write_array(file, ids, allow_pickle=False)


def write_parquet(rows: ExportedRows, path: Path, progress: bool) -> None:
    """id, title, text and metadata (JSON) where there are documents, and vector (float32, fixed-size list).

    Raises MissingPackageError without pyarrow.
    """
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise MissingPackageError(
            "writing .parquet needs pyarrow; install it with: pip install 'funnel-retrieval[parquet]'"
        ) from error
    fields = [("id", arrow.string() if labels_of(rows) is None else arrow.int64())]
    if rows.opened.documents is not None:
        fields += [(name, arrow.string()) for name in ("title", "text", "metadata")]
    schema = arrow.schema([*fields, ("vector", arrow.list_(arrow.float32(), rows.dim))])
    with parquet.ParquetWriter(path, schema) as writer:
        for part in rows.parts(progress):
            segment, positions = part
            columns = [segment.ids.at(positions).tolist()]
            if segment.documents is not None:
                found = segment.documents.get(positions)
                columns += zip(*((one.title, one.text, exact_json(dict(one.metadata))) for one in found), strict=True)
            arrays = [arrow.array(column, field.type) for column, field in zip(columns, schema, strict=False)]
            vectors = arrow.FixedSizeListArray.from_arrays(arrow.array(rows.read(part).reshape(-1)), rows.dim)
            writer.write_batch(arrow.record_batch([*arrays, vectors], schema=schema))


def labels_of(rows: ExportedRows) -> npt.NDArray[np.int64] | None:
    """The user's ids int64 [n] in input order, where they are whole numbers; None: input positions stand for them."""
    parts = list(rows.ids())
    return None if any(part.dtype == object for part in parts) else np.concatenate(parts)


def write_flat(rows: ExportedRows, path: Path, progress: bool) -> str:
    """An IndexFlatIP at full width, in an IndexIDMap where ids are not 0, 1, …; what it is, in words.

    It is made in memory, where it will be searched.
    """
    faiss, labels = load_faiss(), labels_of(rows)
    index = faiss.IndexFlatIP(rows.dim)
    for vectors in rows.vectors(progress):
        index.add(vectors)
    if labels is not None and not np.array_equal(labels, np.arange(rows.count)):
        index = _mapped(faiss, index, labels)
    _save(faiss, index, path)
    return f"IndexFlatIP over {rows.dim} dims, exact, of vectors {rows.space}"


def _mapped(faiss: Any, index: Any, labels: npt.NDArray[np.int64]) -> Any:
    """The index in an IndexIDMap."""
    count, index.ntotal = index.ntotal, 0  # an IndexIDMap takes only an empty one
    mapped = faiss.IndexIDMap(index)
    index.ntotal = mapped.ntotal = count
    faiss.copy_array_to_vector(np.ascontiguousarray(labels), mapped.id_map)
    return mapped


def _save(faiss: Any, index: Any, path: Path) -> None:
    with path.open("wb") as file:  # through Python: FAISS's own writer only prints when the last flush fails
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))


def write_coarse(rows: ExportedRows, path: Path) -> str:
    """The coarse index, labelled by ids; before it, unless rows are adapted, what leads there from the user's vectors.

    Gives what it is, in words.
    """
    faiss, searcher = load_faiss(), rows.opened.searcher
    coarse, width = searcher.cascade.coarse, searcher.cascade.width
    index = faiss.read_index(str(searcher.cascade.store.path.parent / "coarse.faiss"))
    labels = labels_of(rows)
    order = np.asarray(searcher.order, dtype=np.int64)
    chained = _mapped(faiss, index, order if labels is None else labels[order])
    for step in reversed([] if rows.adapted else _way(faiss, rows, width)):
        chained = faiss.IndexPreTransform(step, chained)
    _save(faiss, chained, path)
    taken = f"the first {width} dims of adapted queries" if rows.adapted else f"your own queries of {rows.dim} dims"
    return f"{type(index).__name__} ({coarse.name}) over {width} dims; it takes {taken}, and its scores are approximate"


def _way(faiss: Any, rows: ExportedRows, width: int) -> list[Any]:
    """From the user's vectors to unit prefixes of adapted ones: FAISS's transforms."""
    searcher = rows.opened.searcher
    normalised = faiss.NormalizationTransform(width, 2.0)
    if searcher.space.own and width == rows.dim:  # built over the user's own vectors
        return [normalised]
    matrix = searcher.adaptor.transform(np.eye(rows.dim, dtype=np.float32))[:, :width]
    linear = faiss.LinearTransform(rows.dim, width, False)
    faiss.copy_array_to_vector(np.ascontiguousarray(matrix.T).reshape(-1), linear.A)
    linear.is_trained = True
    return [linear, normalised]


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
    ids that are whole numbers, else input positions, with the ids in .ids.npy). adapted: vectors as the adaptor gives
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
    rows, beside, what = ExportedRows(opened, adapted), target.with_suffix(".ids.npy"), ""

    def write(file: Path) -> None:
        nonlocal what
        what = f"vectors {rows.space}"
        if target.suffix == ".parquet":
            write_parquet(rows, file, progress)
        elif target.suffix == ".npy":
            write_npy(rows, file, progress)
        else:  # the coarse index where it is one of FAISS's, as it lies on disk, over every row and no other
            coarse = isinstance(opened.searcher.cascade.coarse, FaissIndex) and opened.rebuilt is None
            whole = coarse and len(opened.segments) == 1 and opened.live is None and not flat
            what = write_coarse(rows, file) if whole else write_flat(rows, file, progress)
            what += "; labels are ids" if labelled else f"; labels are input positions, whose ids are in {beside.name}"

    labelled = target.suffix == ".faiss" and labels_of(rows) is not None
    wanted: dict[Path, Callable[[Path], None]] = {target: write}
    if target.suffix != ".parquet" and not labelled:
        wanted[beside] = lambda file: write_ids(rows, file)
    _write(wanted, overwrite)
    return Exported(tuple(wanted), rows.count, what)


def _write(wanted: dict[Path, Callable[[Path], None]], overwrite: bool) -> None:
    """Write each file under a temporary name; once all are whole, rename them."""
    for path in wanted:
        if path.is_dir() or (path.exists() and not overwrite):
            raise InputError(f"{path} exists already; remove it, give another path, or ask to overwrite it")
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in wanted}
    try:
        for path, write in wanted.items():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                write(temporary[path])
            except OSError as error:
                if is_no_space(error):
                    raise NoSpaceError(f"no space left while writing {path}; free some and export again") from error
                if isinstance(error, FunnelError):
                    raise
                raise StorageError(f"cannot write {path}: {error.strerror or error}; give another path") from error
        for path, made in temporary.items():
            os.replace(made, path)
    finally:
        for made in temporary.values():
            with suppress(OSError):  # no such folder, which was said
                made.unlink(missing_ok=True)
