"""Small segments put together, so that a thousand single adds do not leave a thousand of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from funnel.building.intake import TextIds
from funnel.building.segment import ADDED_DTYPE, build_coarse, write_norms
from funnel.data.documents import Document, DocumentStore
from funnel.engine.generation import Opened, coarse_width
from funnel.engine.segments import Segment, live_positions
from funnel.storage.ids import Ids
from indexes import VectorStore

__all__ = ["EXACT_ROWS", "fold_from", "live_documents", "write_coarse", "write_folded", "write_ids"]

# Segments of about the same size that are put together: each row is then written again a few times in all.
FOLDED = 8
# Rows without a coarse index at most. Exact search of so many takes one query some 2 ms at 384 dims, of 256 queries
# together 50 us each; a graph over them takes some seconds to build.
EXACT_ROWS = 20_000
ROWS_AT_A_TIME = 4_096

Live = npt.NDArray[np.bool_]


def _level(rows: int) -> int:
    """The size class: 0 for fewer than 8 rows, 1 for fewer than 64, …"""
    return max(0, (max(1, rows).bit_length() - 1) // 3)


def fold_from(segments: Sequence[Segment], count: int) -> int:
    """The first of the segments to be put together with a new one of `count` rows; their number where none is.

    Those at the end that are no larger than the new one's class, once they are seven; the result may be the eighth of
    the next class. All that have no coarse index, where they and the new one are too many to be searched exactly.
    """
    start = len(segments)
    exact = next((i for i, segment in enumerate(segments) if segment.cascade is None), start)
    if segments[-1].stop - (segments[exact].first if exact < start else segments[-1].stop) + count > EXACT_ROWS:
        return exact
    while True:
        level, at = _level(count), start
        while at > exact and _level(segments[at - 1].rows) <= level:
            at -= 1
        if start - at < FOLDED - 1:
            return start
        count += sum(segment.rows for segment in segments[at:start])
        start = at


def write_folded(
    segments: Sequence[Segment], live: Live, newest: Path, count: int, folder: Path, opened: Opened
) -> int:
    """Write what is left of small segments, and the segment in the folder `newest` behind it; gives the row count."""
    stores = [*(segment.store for segment in segments), VectorStore.open(newest / "vectors.npy")]
    alive = [live[segment.first : segment.stop] for segment in segments] + [np.ones(count, dtype=np.bool_)]
    total = sum(int(part.sum()) for part in alive)
    done = 0
    with VectorStore.create(folder / "vectors.npy", total, stores[0].dim, ADDED_DTYPE) as writer:
        for store, part in zip(stores, alive, strict=True):
            for first, rows in store.chunks(ROWS_AT_A_TIME):
                rows = rows[part[first : first + len(rows)]]
                writer.write(np.arange(done, done + len(rows)), rows)
                done += len(rows)
    sources = [*(segment.ids for segment in segments), Ids.open(newest)]
    write_ids(folder, sources, alive)
    if opened.manifest.settings["documents"]:
        with DocumentStore.create(folder / "documents.sqlite") as target:
            for documents in live_documents(segments, live):
                target.append(documents)
            with DocumentStore.open(newest / "documents.sqlite") as last:
                for start in range(0, count, ROWS_AT_A_TIME):
                    target.append(last.get(range(start, min(start + ROWS_AT_A_TIME, count))))
    return total


def write_ids(folder: Path, sources: Sequence[Ids], alive: Sequence[Live | None]) -> None:
    """ids.npy, and of texts id_offsets.npy, of the rows left in several segments. alive: by input position."""
    kept = [
        np.arange(len(ids)) if part is None else np.flatnonzero(part) for ids, part in zip(sources, alive, strict=True)
    ]
    if not sources[0].text:
        np.save(folder / "ids.npy", np.concatenate([ids.at(at) for ids, at in zip(sources, kept, strict=True)]))
        return
    texts = TextIds()
    for ids, positions in zip(sources, kept, strict=True):
        for start in range(0, len(positions), ROWS_AT_A_TIME):
            for text in ids.at(positions[start : start + ROWS_AT_A_TIME]):
                texts.append(text)
    texts.save(folder)


def live_documents(segments: Sequence[Segment], live: Live | None) -> Iterator[list[Document]]:
    """The documents of several segments that were not deleted, in input order, some thousands at a time."""
    for segment in segments:
        assert segment.documents is not None
        mine = live_positions(segment, live)
        positions = np.arange(segment.rows) if mine is None else np.flatnonzero(mine)
        for start in range(0, len(positions), ROWS_AT_A_TIME):
            yield segment.documents.get(positions[start : start + ROWS_AT_A_TIME])


def write_coarse(opened: Opened, folder: Path, progress: bool) -> None:
    """Give a large segment what the first has: norms, a coarse index of the same kind and width, an order."""
    settings, ladder = opened.manifest.settings, opened.manifest.ladder
    store = VectorStore.open(folder / "vectors.npy", opened.searcher.cascade.store.device)
    write_norms(store, ladder, folder / "norms.npy", progress)
    chosen = settings["coarse_settings"]
    assert isinstance(chosen, dict)
    name, seed = str(settings["coarse"]), int(str(settings["seed"]))
    coarse = build_coarse(store, coarse_width(opened.manifest), name, chosen, seed, progress, opened.searcher.adaptor)
    coarse.save(folder / "coarse.faiss")
    np.save(folder / "order.npy", np.arange(store.n, dtype=np.int64))
