"""Compaction: every row that was not deleted into one new segment, with a coarse index and a calibration of its own.

A folder of an older format is upgraded so too: nothing is encoded again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from msgspec import structs

from funnel.building.build import calibrate_searcher, choose_coarse, written
from funnel.building.intake import SAMPLE_BYTES, Intake
from funnel.building.segment import (
    TURNED_DTYPE,
    choose_ladder,
    index_rows,
    live_documents,
    order_rows,
    segment_entry,
    store_rows,
    write_ids,
)
from funnel.building.tune import recorded
from funnel.data.documents import DocumentStore
from funnel.engine.generation import Opened, open_generation, same_generation
from funnel.engine.measuring import Near
from funnel.engine.searcher import Searcher
from funnel.engine.segments import check_finite, live_positions
from funnel.engine.space import Space
from funnel.errors import InputError, StorageError
from funnel.planning.calibration import SMALLEST_PLANNED, Calibration
from funnel.storage import FORMAT_VERSION, IndexFolder, Settings, Transaction
from funnel.storage.layout import DOCUMENTS
from indexes import FamilyChoice, VectorStore

__all__ = ["compact_index", "needs_compaction", "upgrade_index"]

CELLS_AT_A_TIME = 2_097_152  # as read from disk: 8 MB as float32

Float32 = npt.NDArray[np.float32]
Live = npt.NDArray[np.bool_]


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
    asked = _coarse_asked(opened, settings)
    _coarse_choice(opened, settings, asked, count, opened.manifest.ladder)  # before the rows are written, not after
    seed = settings.seed if seed is None else seed
    folder = transaction.folder("segments")
    documents = transaction.folder("documents") if settings.documents else None
    intake = Intake(count, opened.manifest.d, _sample(opened, seed), lambda: _rows(opened), documents)
    old = opened.searcher.space
    space = Space(old.adaptor, old.adaptor.isometric)
    if space.own and not old.own:  # of an older format
        settings = structs.replace(settings, own=True, dtype=TURNED_DTYPE if space.projects else settings.dtype)
    positions = order_rows(intake, _as_stored, space, folder, seed, progress)
    store_rows(intake, _as_stored, positions, folder, settings.dtype, progress)
    _number_by_input(opened, folder)
    alive = [live_positions(segment, opened.live) for segment in opened.segments]
    write_ids(folder, [segment.ids for segment in opened.segments], alive)
    if documents is not None:
        with DocumentStore.create(documents / DOCUMENTS) as target:
            for part in live_documents(opened.segments, opened.live):
                target.append(part)
    store = VectorStore.open(folder / "vectors.npy", opened.searcher.cascade.store.device)
    # Rows that came since may need other widths than those that the index was built with.
    ladder = opened.manifest.ladder if asked else choose_ladder(store, space, progress)
    choice = _coarse_choice(opened, settings, asked, count, ladder)
    searcher = index_rows(store, ladder, choice, space, seed, progress)
    calibration = _calibration(opened, searcher, alive, seed, progress)
    settings = structs.replace(
        settings,
        coarse=choice.name,
        coarse_settings=dict(choice.settings),
        coarse_width=choice.dim,
        coarse_library=searcher.cascade.coarse.library(),
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


def _as_stored(rows: Float32) -> Float32:
    """Rows that were stored are written as they are."""
    return rows


def _rows(opened: Opened) -> Iterator[Float32]:
    """Every live row as it will be stored, in the order in which they are now, some megabytes at a time."""
    space = opened.searcher.space
    turned = space.adaptor.isometric and not space.own
    for segment in opened.segments:
        for first, rows in segment.store.chunks(max(1, CELLS_AT_A_TIME // segment.store.dim)):
            if opened.live is not None:
                start = segment.first + first
                rows = rows[opened.live[start : start + len(rows)]]
            if len(rows):
                check_finite(bool(np.isfinite(rows).all()), segment)
                yield np.ascontiguousarray(space.given(rows)) if turned else rows


def _sample(opened: Opened, seed: int) -> Float32:
    """Rows drawn evenly, to order the others by."""
    size = max(1, SAMPLE_BYTES // (4 * opened.manifest.d))
    total = opened.searcher.rows
    if total <= size:
        return np.concatenate(list(_rows(opened)))
    chosen = np.sort(np.random.default_rng(seed).choice(total, size, replace=False))
    sample, done = np.empty((size, opened.manifest.d), dtype=np.float32), 0
    for rows in _rows(opened):
        begin, end = np.searchsorted(chosen, (done, done + len(rows)))
        sample[begin:end] = rows[chosen[begin:end] - done]
        done += len(rows)
    return sample


def _number_by_input(opened: Opened, folder: Path) -> None:
    """Have order.npy lead to positions in input order, as ids and documents are written, not in that of reading."""
    read = []
    for segment in opened.segments:
        positions = np.arange(segment.rows) if segment.order is None else np.asarray(segment.order)
        if opened.live is not None:
            positions = positions[opened.live[segment.first : segment.stop]]
        read.append(positions + segment.first)
    positions = np.concatenate(read)
    new = np.empty(len(positions), dtype=np.int64)
    new[np.argsort(positions)] = np.arange(len(positions))  # of those that are left, the how-manieth each is
    path = folder / "order.npy"
    np.save(path, new[np.load(path, allow_pickle=False)])


def _choice(opened: Opened, rows: int, ladder: tuple[int, ...], memory_mb: float | None) -> FamilyChoice:
    return choose_coarse(rows, ladder, memory_mb, opened.searcher.cascade.store.device)


def _coarse_now(opened: Opened) -> FamilyChoice:
    settings = opened.manifest.settings
    return FamilyChoice(settings.coarse, settings.coarse_settings, opened.manifest.coarse_width, 0)


def _coarse_asked(opened: Opened, settings: Settings) -> bool:
    """Whether the coarse index or the widths were asked for at build.

    Where that is not on record, whether the coarse index is another one than would have been chosen.
    """
    if settings.coarse_asked is not None:
        return settings.coarse_asked
    then = _choice(opened, opened.segments[0].rows, opened.manifest.ladder, settings.memory_mb)
    now = _coarse_now(opened)
    return (then.name, dict(then.settings), then.dim) != (now.name, dict(now.settings), now.dim)


def _coarse_choice(opened: Opened, settings: Settings, asked: bool, rows: int, ladder: tuple[int, ...]) -> FamilyChoice:
    """What was asked for at build, or what suits so many rows and these widths. settings: those to come."""
    if asked:
        return _coarse_now(opened)
    try:
        return _choice(opened, rows, ladder, settings.memory_mb)
    except InputError as error:
        raise InputError(
            f"{error}. The memory was stated when this index was built: compact(memory_mb=...), or funnel compact "
            "--memory-mb, states another"
        ) from error


def _calibration(
    opened: Opened, searcher: Searcher, alive: Sequence[Live | None], seed: int, progress: bool
) -> Calibration | None:
    """The new coarse index is another one: its plans are measured, on the queries on record."""
    if searcher.rows < SMALLEST_PLANNED:
        return None
    stored, old = opened.stored, opened.searcher
    places = _places(opened, searcher, alive)

    def added(queries: Float32, k: int) -> Near:
        """Among rows that were added, as they were given: they may be rounded only now."""
        assert old.others is not None
        scores, positions = old.others.nearest(old.cascade, queries, k)
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


def _places(opened: Opened, searcher: Searcher, alive: Sequence[Live | None]) -> npt.NDArray[np.int64]:
    """Where the row of each old input position is stored now, -1: nowhere. alive: of each segment, by position."""
    parts = zip(opened.segments, alive, strict=True)
    kept = np.concatenate([np.ones(part.rows, dtype=np.bool_) if left is None else left for part, left in parts])
    stored = np.empty(searcher.rows, dtype=np.int64)
    stored[searcher.order] = np.arange(searcher.rows)
    places = np.full(len(kept), -1, dtype=np.int64)
    places[kept] = stored
    return places
