"""Compaction: every row that was not deleted into one new segment, with a coarse index and a calibration of its own.

A folder of an older format is upgraded so too: nothing is encoded again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from msgspec import structs

from funnel.building.build import calibrate_searcher, written
from funnel.building.candidates import choose_coarse, fitting
from funnel.building.intake import Intake, Sample
from funnel.building.segment import (
    TURNED_DTYPE,
    as_stored,
    choose_ladder,
    index_rows,
    live_vectors,
    order_rows,
    segment_entry,
    store_rows,
    write_live,
)
from funnel.building.tune import recorded
from funnel.engine.cascade import Float32, Space
from funnel.engine.generation import Opened, open_generation, same_generation
from funnel.engine.measuring import Near
from funnel.engine.searcher import Searcher
from funnel.engine.segments import left
from funnel.errors import InputError, StorageError
from funnel.planning.calibration import SMALLEST_PLANNED, Calibration
from funnel.storage import FORMAT_VERSION, IndexFolder, Transaction
from indexes import FamilyChoice, VectorStore

__all__ = ["compact_index", "needs_compaction", "upgrade_index"]


def needs_compaction(opened: Opened) -> bool:
    """Whether there is anything to merge or to leave out."""
    return len(opened.segments) > 1 or opened.live is not None


def upgrade_index(path: str | os.PathLike[str], progress: bool) -> bool:
    """Commit the live rows in the present format; whether there was anything to do.

    Raises what `FunnelIndex.upgrade` says; nothing is then changed.
    """
    folder = IndexFolder(path)
    opened = open_generation(folder, torch.device("cpu"), "full")
    manifest, space = opened.manifest, opened.searcher.space
    lacking = any(segment.columns is not None and not segment.columns.stored for segment in opened.segments)
    turned = space.adaptor.isometric and not space.own
    if manifest.format_version == FORMAT_VERSION and not lacking and not turned:
        return False
    with folder.begin() as transaction:
        if transaction.previous is None or not same_generation(transaction.previous, manifest):
            raise StorageError(f"{folder.path} was changed while it was read; upgrade it again")
        compact_index(transaction, opened, None, None, progress)
    del opened  # whose lock keeps the old generation
    folder.tidy()
    return True


def compact_index(
    transaction: Transaction,
    opened: Opened,
    memory_mb: float | None,
    seed: int | None,
    progress: bool,
) -> None:
    """Commit the live rows of `opened` as one segment.

    Raises InputError where every row was deleted, or the memory that was stated is too little for those that are left.
    """
    count = opened.searcher.rows
    if not count:
        raise InputError("every row of this index was deleted: add some before compacting, or build it again")
    settings = opened.manifest.settings
    if memory_mb is not None:
        settings = structs.replace(settings, memory_mb=float(memory_mb))
    device, asked = opened.searcher.cascade.store.device, settings.coarse_asked is not False
    if not asked:  # before the rows are written, not after
        with _memory_was_stated():
            fitting(count, opened.manifest.ladder, opened.manifest.ladder[0], settings.memory_mb, device, True)
    seed = settings.seed if seed is None else seed
    folder = transaction.folder("segments")
    documents = transaction.folder("documents") if settings.documents else None
    sample = Sample(opened.manifest.d, seed)
    for rows in _rows(opened):
        sample.update(rows)
    intake = Intake(count, opened.manifest.d, sample.finish()[0], lambda: _rows(opened), documents)
    del sample
    old = opened.searcher.space
    space = Space(old.adaptor, old.adaptor.isometric)
    if space.own and not old.own:  # of an older format
        settings = structs.replace(settings, own=True, dtype=TURNED_DTYPE if space.projects else settings.dtype)
    positions = order_rows(intake, as_stored, space, folder, seed, progress)
    store_rows(intake, as_stored, positions, folder, settings.dtype, progress)
    _number_by_input(opened, folder)
    write_live(opened.segments, opened.live, folder, documents)
    store = VectorStore.open(folder / "vectors.npy", device)
    # Rows that came since may need other widths than those that the index was built with.
    if asked:
        ladder, timed = opened.manifest.ladder, settings.candidates
        choice = FamilyChoice(settings.coarse, settings.coarse_settings, opened.manifest.coarse_width, 0)
    else:
        base, ladder = choose_ladder(store, space, progress)
        with _memory_was_stated():
            choice, timed = choose_coarse(store, space, ladder, base, settings.memory_mb, True, seed, progress)
    searcher = index_rows(store, ladder, choice, space, seed, progress)
    calibration = _calibration(opened, searcher, seed, progress)
    settings = structs.replace(
        settings,
        coarse=choice.name,
        coarse_settings=dict(choice.settings),
        coarse_width=choice.dim,
        coarse_library=searcher.cascade.coarse.library(),
        candidates=timed,
    )
    body = opened.manifest.body() | {
        "ladder": ladder,
        "counts": {"rows": count, "deleted": 0},
        "segments": [segment_entry(transaction, folder, count, documents)],
        "tombstones": [],
        "calibration": written(transaction, calibration),
        "settings": settings,
    }
    transaction.reuse(f"adaptor/{opened.manifest.adaptor}")
    transaction.commit(body, progress=progress)


def _rows(opened: Opened) -> Iterator[Float32]:
    """Every live row as it will be stored, in the order in which they are now, some megabytes at a time."""
    space = opened.searcher.space
    turned = space.adaptor.isometric and not space.own
    for rows in live_vectors(opened.segments, opened.live):
        yield np.ascontiguousarray(space.given(rows)) if turned else rows


def _number_by_input(opened: Opened, folder: Path) -> None:
    """Have order.npy lead to positions in input order, as ids and documents are written, not in that of reading."""
    parts, live = opened.segments, opened.live
    read = np.concatenate([part.positions(np.arange(part.rows)) for part in parts])
    read = read if live is None else read[live]
    new = np.empty(len(read), dtype=np.int64)
    new[np.argsort(read)] = np.arange(len(read))  # of those that are left, the how-manieth each is
    path = folder / "order.npy"
    np.save(path, new[np.load(path, allow_pickle=False)])


@contextmanager
def _memory_was_stated() -> Iterator[None]:
    """Says where a memory that is too little came from."""
    try:
        yield
    except InputError as error:
        raise InputError(
            f"{error}. The memory was stated when this index was built: compact(memory_mb=...), or funnel compact "
            "--memory-mb, states another"
        ) from error


def _calibration(opened: Opened, searcher: Searcher, seed: int, progress: bool) -> Calibration | None:
    """The new coarse index is another one: its plans are measured, on the queries on record."""
    if searcher.rows < SMALLEST_PLANNED:
        return None
    stored, old = opened.stored, opened.searcher
    places = _places(opened, searcher)

    def added(queries: Float32, k: int) -> Near:
        """Among rows that were added, as they were given: they may be rounded only now."""
        assert old.others is not None
        scores, positions = old.others.nearest(queries, k)
        return scores, np.where(positions < 0, -1, places[positions])

    def asked(queries: Float32) -> Float32:
        """As the new segment is asked: its rows may be stored in another way."""
        given = np.ascontiguousarray(queries)
        return given if searcher.space.own == old.space.own else np.ascontiguousarray(old.space.given(given))

    came = None if old.others is None or not old.others.rows else added
    real, given = recorded(opened, bool(stored and stored.corpus_like), places[old.order], came)
    if real.queries is not None:
        real = replace(real, queries=asked(real.queries))
    if given is not None:
        given = replace(given, held_out=asked(given.held_out))
    storage = None if stored is None else stored.storage
    return calibrate_searcher(searcher, real, seed, progress, given, storage)


def _places(opened: Opened, searcher: Searcher) -> npt.NDArray[np.int64]:
    """Where the row of each old input position is stored now, -1: nowhere."""
    places = np.full(opened.segments[-1].stop, -1, dtype=np.int64)
    stored = np.empty(searcher.rows, dtype=np.int64)
    stored[searcher.order] = np.arange(searcher.rows)
    places[np.concatenate([part.first + left(part, opened.live) for part in opened.segments])] = stored
    return places
