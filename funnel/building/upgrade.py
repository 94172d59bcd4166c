"""A folder of an older format, rewritten into the present one: nothing is encoded."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import torch
from msgspec import structs

from funnel.building.segment import TURNED_DTYPE
from funnel.engine.generation import open_generation, same_generation
from funnel.engine.segments import Segment
from funnel.engine.space import Space
from funnel.errors import StorageError
from funnel.filtering.columns import write_columns
from funnel.planning.calibration import Calibration
from funnel.planning.run import Float32, Run
from funnel.progress import Progress
from funnel.storage import FORMAT_VERSION, IndexFolder, Manifest, PartEntry, Transaction
from funnel.storage.layout import ADAPTED, COLUMNS, DOCUMENTS, VECTORS
from indexes import VectorStore

__all__ = ["upgrade_index"]

CELLS_AT_A_TIME = 2_097_152  # as read from disk: 8 MB as float32


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
    manifest, space = opened.manifest, opened.searcher.space
    lacking = [segment for segment in opened.segments if segment.columns is not None and not segment.columns.stored]
    # A coarse index over the full width of adapted rows stays as it is: its queries would be turned all the same.
    narrow = manifest.coarse_width < manifest.d or space.whole
    projects = Space(space.adaptor, space.adaptor.isometric).projects
    turned = narrow and projects and not space.own
    if manifest.format_version == FORMAT_VERSION and not lacking and not turned:
        return False
    with folder.begin() as transaction:
        if transaction.previous is None or not same_generation(transaction.previous, manifest):
            raise StorageError(f"{folder.path} was changed while it was read; upgrade it again")
        body = manifest.body()
        parts = [
            _with_columns(transaction, manifest, part, segment, turned) if segment in lacking else part
            for part, segment in zip(manifest.segments, opened.segments, strict=True)
        ]
        if turned:
            pairs = zip(parts, opened.segments, strict=True)
            parts = [_as_given(transaction, manifest, part, segment, space, progress) for part, segment in pairs]
            body["settings"] = structs.replace(manifest.settings, own=True, dtype=TURNED_DTYPE)
            if opened.stored is not None:
                body["calibration"] = _turned_queries(transaction, opened.stored, space)
        elif not projects:  # rows that nothing turns are as they were given
            body["settings"] = structs.replace(manifest.settings, own=space.adaptor.isometric)
        tombstones = [path for part in manifest.tombstones for path in manifest.paths("tombstones", part.id).values()]
        calibration = f"calibrations/{manifest.calibration}/"
        kept = [path for path in manifest.shared(parts) if not path.startswith(calibration)]
        same = body["calibration"] == manifest.calibration
        transaction.reuse(*(manifest.shared(parts) if same else kept), *tombstones)
        transaction.commit(body | {"segments": parts}, progress=progress)
    return True


def _with_columns(
    transaction: Transaction, manifest: Manifest, part: PartEntry, segment: Segment, turned: bool
) -> PartEntry:
    """The entry of a segment whose documents and columns are parts of their own; its files are links.

    turned: whether the rest of it is written anew.
    """
    assert segment.documents is not None
    if part.documents is None:
        documents, rest = transaction.folder("documents"), None if turned else transaction.folder("segments")
        for name, path in manifest.paths("segments", part.id).items():
            target = documents if name == DOCUMENTS else rest
            if target is not None:
                transaction.link(path, target)
        part = replace(part, documents=transaction.identifier(documents))
        part = part if rest is None else replace(part, id=transaction.identifier(rest))
    columns = transaction.folder("columns")
    write_columns(segment.documents, columns / COLUMNS)
    return replace(part, columns=transaction.identifier(columns))


def _as_given(
    transaction: Transaction, manifest: Manifest, part: PartEntry, segment: Segment, space: Space, progress: bool
) -> PartEntry:
    """The entry of a segment whose rows are turned back into the user's own space; its other files are links."""
    target, store = transaction.folder("segments"), segment.store
    for name, path in manifest.paths("segments", segment.id).items():
        if name not in (VECTORS, DOCUMENTS):
            transaction.link(path, target)
    width = 0 if segment.cascade is None or len(manifest.ladder) == 1 else manifest.ladder[-2]
    with ExitStack() as files:
        rows = files.enter_context(VectorStore.create(target / VECTORS, store.n, store.dim, TURNED_DTYPE))
        adapted = None
        if width:
            adapted = files.enter_context(VectorStore.create(target / ADAPTED, store.n, width, "float16"))
        bar = files.enter_context(
            Progress(total=store.n, desc="turn back", unit="rows", unit_scale=True, disable=not progress)
        )
        for first, stored in store.chunks(max(1, CELLS_AT_A_TIME // store.dim)):
            places = np.arange(first, first + len(stored))
            rows.write(places, np.ascontiguousarray(space.given(stored), dtype=np.float32))
            if adapted is not None:
                adapted.write(places, np.ascontiguousarray(stored[:, :width]))
            bar.update(len(stored))
    return replace(part, id=transaction.identifier(target))


def _turned_queries(transaction: Transaction, stored: Calibration, space: Space) -> str:
    """The calibration with its queries in the user's own space. Its identifier."""
    corpus, queries = stored.runs()

    def given(run: Run) -> Float32:
        return space.given(np.ascontiguousarray(run.queries))

    made = replace(
        stored,
        corpus=replace(corpus, queries=given(corpus)),
        queries=None
        if queries is None
        else replace(queries, queries=space.given(np.ascontiguousarray(queries.queries))),
    )
    folder = transaction.folder("calibrations")
    made.save(folder)
    return transaction.identifier(folder)
