"""Rows as .npy files and as parquet."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np

from funnel.building.export_rows import Rows
from funnel.errors import InputError, MissingPackageError
from funnel.plainjson import exact_json

__all__ = ["write_ids", "write_npy", "write_parquet"]

UNICODE_BYTES = 4  # a character of numpy's fixed-width texts
# Ids padded to the longest one: beyond so many bytes, and so many times what the texts take, they are refused.
MOST_PADDED_BYTES, MOST_PADDING = 1 << 30, 16


def write_npy(rows: Rows, path: Path, progress: bool) -> None:
    """The vectors in input order: float32 [n, d]."""
    with path.open("wb") as file:
        _header(file, "<f4", (rows.count, rows.dim))
        for vectors in rows.vectors(progress):
            file.write(vectors.data)


def write_ids(rows: Rows, path: Path) -> None:
    """The ids in input order: int64 [n], or texts [n] of numpy's fixed width, which need no pickle.

    Raises InputError where texts cannot be kept so.
    """
    longest, total, text = 1, 0, False
    for ids in rows.ids():
        if ids.dtype == object:
            text = True
            lengths = [len(one) for one in ids]
            longest, total = max(longest, *lengths), total + sum(lengths)
            ended = next((one for one in ids if one.endswith("\0")), None)
            if ended is not None:
                raise InputError(f"the id {ended!r} ends in a zero character, which numpy drops; export to .parquet")
    padded = rows.count * longest
    if UNICODE_BYTES * padded > MOST_PADDED_BYTES and padded > MOST_PADDING * total:
        raise InputError(
            f"ids of up to {longest:,} characters would take {UNICODE_BYTES * padded:,} bytes as a numpy array, for "
            f"{total:,} characters; export to .parquet"
        )
    kind = np.dtype(f"<U{longest}") if text else np.dtype("<i8")
    with path.open("wb") as file:
        _header(file, kind.str, (rows.count,))
        for ids in rows.ids():
            file.write(ids.astype(kind).data)


def write_parquet(rows: Rows, path: Path, progress: bool) -> None:
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
    text = any(ids.dtype == object for ids in rows.ids())
    fields = [("id", arrow.string() if text else arrow.int64())]
    if rows.documents is not None:
        fields += [(name, arrow.string()) for name in ("title", "text", "metadata")]
    schema = arrow.schema([*fields, ("vector", arrow.list_(arrow.float32(), rows.dim))])
    with parquet.ParquetWriter(path, schema) as writer:
        for batch in rows.batches(progress):
            columns = [arrow.array(batch.ids.tolist(), schema.field("id").type)]
            if batch.documents is not None:
                columns += [
                    arrow.array([document.title for document in batch.documents]),
                    arrow.array([document.text for document in batch.documents]),
                    arrow.array([exact_json(dict(d.metadata)) for d in batch.documents]),
                ]
            flat = arrow.array(batch.vectors.reshape(-1))
            columns.append(arrow.FixedSizeListArray.from_arrays(flat, rows.dim))
            writer.write_batch(arrow.record_batch(columns, schema=schema))


def _header(file: BinaryIO, descr: str, shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
