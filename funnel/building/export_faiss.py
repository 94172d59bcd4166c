"""Rows as a plain FAISS index: flat at full width, or the coarse index with the way to it from the user's vectors."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from funnel.building.export_rows import Rows
from indexes import FaissIndex, load_faiss

__all__ = ["labels_of", "takes_coarse", "write_coarse", "write_flat"]

INNER_PRODUCT = 0  # faiss.METRIC_INNER_PRODUCT
UNUSED = 1 << 20  # two fields of FAISS's header that hold nothing any more


def takes_coarse(rows: Rows) -> bool:
    """Whether the coarse index is one of FAISS's, as it lies on disk, over every row and no other."""
    opened = rows.opened
    whole = len(opened.segments) == 1 and opened.live is None and opened.rebuilt is None
    return whole and isinstance(opened.searcher.cascade.coarse, FaissIndex)


def labels_of(rows: Rows) -> npt.NDArray[np.int64] | None:
    """The user's ids int64 [n] in input order, where they are whole numbers; None: input positions stand for them."""
    parts = list(rows.ids())
    return None if any(part.dtype == object for part in parts) else np.concatenate(parts)


def write_flat(rows: Rows, path: Path, progress: bool) -> str:
    """An IndexFlatIP at full width, in an IndexIDMap where ids are not 0, 1, …; what it is, in words.

    Written as FAISS 1.15's `write_index` would (its format since 1.5), but a batch at a time.
    """
    labels = labels_of(rows)
    mapped = labels is not None and not np.array_equal(labels, np.arange(rows.count))
    with path.open("wb") as file:
        if mapped:
            _header(file, b"IxMp", rows.dim, rows.count)
        _header(file, b"IxFI", rows.dim, rows.count)
        file.write(struct.pack("<Q", rows.count * rows.dim))
        for vectors in rows.vectors(progress):
            file.write(vectors.data)
        if mapped:
            assert labels is not None
            file.write(struct.pack("<Q", rows.count))
            file.write(labels.astype("<i8").data)
    return f"IndexFlatIP over {rows.dim} dims, exact, of vectors {rows.space}"


def write_coarse(rows: Rows, path: Path) -> str:
    """The coarse index, labelled by ids; before it, unless rows are adapted, what leads there from the user's vectors.

    Gives what it is, in words.
    """
    faiss, searcher = load_faiss(), rows.opened.searcher
    coarse, width = searcher.cascade.coarse, searcher.cascade.width
    index = faiss.read_index(str(searcher.cascade.store.path.parent / "coarse.faiss"))
    labels = labels_of(rows)
    order = np.asarray(searcher.order, dtype=np.int64)
    labelled = _labelled(faiss, index, order if labels is None else labels[order])
    steps = [] if rows.adapted else _way(faiss, rows, width)
    chained = labelled
    for step in reversed(steps):
        chained = faiss.IndexPreTransform(step, chained)
    with path.open("wb") as file:  # through Python: FAISS's own writer only prints when the last flush fails
        faiss.write_index(chained, faiss.PyCallbackIOWriter(file.write))
    taken = f"the first {width} dims of adapted queries" if rows.adapted else f"your own queries of {rows.dim} dims"
    return f"{type(index).__name__} ({coarse.name}) over {width} dims; it takes {taken}, and its scores are approximate"


def _way(faiss: Any, rows: Rows, width: int) -> list[Any]:
    """From the user's vectors to unit prefixes of adapted ones: FAISS's transforms."""
    searcher = rows.opened.searcher
    normalised = faiss.NormalizationTransform(width, 2.0)
    if searcher.cascade.turn is not None:  # built over the user's own vectors
        return [normalised]
    matrix = searcher.adaptor.transform(np.eye(rows.dim, dtype=np.float32))[:, :width]
    linear = faiss.LinearTransform(rows.dim, width, False)
    faiss.copy_array_to_vector(np.ascontiguousarray(matrix.T).reshape(-1), linear.A)
    linear.is_trained = True
    return [linear, normalised]


def _labelled(faiss: Any, index: Any, labels: npt.NDArray[np.int64]) -> Any:
    """The index in an IndexIDMap, which takes only an empty one."""
    count, index.ntotal = index.ntotal, 0
    mapped = faiss.IndexIDMap(index)
    index.ntotal = mapped.ntotal = count
    faiss.copy_array_to_vector(np.ascontiguousarray(labels), mapped.id_map)
    return mapped


def _header(file: BinaryIO, fourcc: bytes, dim: int, count: int) -> None:
    file.write(fourcc + struct.pack("<iqqq?i", dim, count, UNUSED, UNUSED, True, INNER_PRODUCT))
