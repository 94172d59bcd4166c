"""A folder of an older format, rewritten into the present one: nothing is encoded, and no vector copied."""

from __future__ import annotations

import os
from dataclasses import replace

import torch

from funnel.engine.generation import open_generation, same_generation
from funnel.engine.segments import Segment
from funnel.errors import StorageError
from funnel.filtering.columns import write_columns
from funnel.storage import FORMAT_VERSION, IndexFolder, Manifest, PartEntry, Transaction
from funnel.storage.layout import COLUMNS, DOCUMENTS

__all__ = ["upgrade_index"]


def upgrade_index(path: str | os.PathLike[str], progress: bool) -> bool:
    """Commit the live generation in the present format; whether there was anything to do.

    Raises what `FunnelIndex.upgrade` says; nothing is then changed.
    """
    folder = IndexFolder(path)
    done = _commit(folder, progress)
    if done:
        folder.tidy()
    return done


def _commit(folder: IndexFolder, progress: bool) -> bool:
    opened = open_generation(folder, torch.device("cpu"), "full")
    manifest = opened.manifest
    lacking = [segment for segment in opened.segments if segment.columns is not None and not segment.columns.stored]
    if manifest.format_version == FORMAT_VERSION and not lacking:
        return False
    with folder.begin() as transaction:
        if transaction.previous is None or not same_generation(transaction.previous, manifest):
            raise StorageError(f"{folder.path} was changed while it was read; upgrade it again")
        parts = [
            _upgraded(transaction, manifest, part, segment) if segment in lacking else part
            for part, segment in zip(manifest.segments, opened.segments, strict=True)
        ]
        tombstones = [path for part in manifest.tombstones for path in manifest.paths("tombstones", part.id).values()]
        transaction.reuse(*manifest.shared(parts), *tombstones)
        transaction.commit(manifest.body() | {"segments": parts}, progress=progress)
    return True


def _upgraded(transaction: Transaction, manifest: Manifest, part: PartEntry, segment: Segment) -> PartEntry:
    """The entry of a segment whose documents and columns are parts of their own; its files are links."""
    assert segment.documents is not None
    if part.documents is None:
        documents, rest = transaction.folder("documents"), transaction.folder("segments")
        for name, path in manifest.paths("segments", part.id).items():
            transaction.link(path, documents if name == DOCUMENTS else rest)
        part = replace(part, id=transaction.identifier(rest), documents=transaction.identifier(documents))
    columns = transaction.folder("columns")
    write_columns(segment.documents, columns / COLUMNS)
    return replace(part, columns=transaction.identifier(columns))
