"""Writing one segment: rows in order, norms, columns, the widths of its prefixes; small segments put together."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from funnel.building.intake import Intake, TextIds
from funnel.checks import checked_widths
from funnel.data.documents import Document, DocumentStore
from funnel.engine.coarse import BLOCK_BYTES, CELLS_AT_A_TIME, build_coarse, unit_prefixes
from funnel.engine.generation import Opened
from funnel.engine.segments import Segment, live_positions
from funnel.filtering.columns import write_columns
from funnel.progress import Progress
from funnel.storage import PartEntry, Transaction
from funnel.storage.ids import Ids
from funnel.storage.layout import COLUMNS, DOCUMENTS
from indexes import ClusterTree, RunningTop, VectorStore, release_freed, stored_order

__all__ = [
    "ADDED_DTYPE",
    "EXACT_ROWS",
    "NARROWEST",
    "checked_ladder",
    "choose_ladder",
    "fold_from",
    "live_documents",
    "order_rows",
    "segment_entry",
    "steps_above",
    "store_rows",
    "write_coarse",
    "write_folded",
    "write_ids",
    "write_norms",
    "write_rows",
]

# Prefix dims that rows are put in cluster order by: they hold most of the energy after any adaptor.
ORDERED_DIMS = 32
# Rows that are added are searched exactly, and kept as they are given, so that they cost the promise nothing.
ADDED_DTYPE = "float32"


class RowMap(Protocol):
    """What rows go through before they are stored: an adaptor."""

    @property
    def dim(self) -> int:
        """The width."""
        ...

    def unit_transform(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Rows [n, d], adapted and of unit length."""
        ...


def write_rows(intake: Intake, adaptor: RowMap, folder: Path, dtype: str, seed: int, progress: bool) -> None:
    """Adapt every row and store it in cluster order: vectors.npy, and order.npy (stored row -> input position)."""
    store_rows(intake, adaptor, order_rows(intake, adaptor, folder, seed, progress), folder, dtype, progress)


def order_rows(
    intake: Intake,
    adaptor: RowMap,
    folder: Path,
    seed: int,
    progress: bool,
    watch: Callable[[npt.NDArray[np.float32]], object] | None = None,
) -> npt.NDArray[np.int64]:
    """Put the rows in cluster order: order.npy (stored row -> input position). Gives input position -> stored row.

    watch: is shown all rows as given, batch by batch, in input order.
    """
    width = min(ORDERED_DIMS, intake.dim)
    tree = ClusterTree.fit(_adapted_prefixes(intake.sample, adaptor, width), seed=seed)
    intake.drop_sample()
    release_freed()
    leaves = np.empty(intake.count, dtype=np.int64)
    done = 0
    with Progress(total=intake.count, desc="order", unit="rows", unit_scale=True, disable=not progress) as bar:
        for rows in intake.rows():
            leaves[done : done + len(rows)] = tree.assign(_adapted_prefixes(rows, adaptor, width))
            if watch is not None:
                watch(rows)
            done += len(rows)
            bar.update(len(rows))
    # A block's prefixes are at most as wide as the matrix; the coarse width is chosen after the rows are stored.
    order = stored_order(leaves, BLOCK_BYTES // (4 * min(intake.dim, 256)), seed)
    del leaves
    positions = np.empty(intake.count, dtype=np.int64)
    positions[order] = np.arange(intake.count)
    np.save(folder / "order.npy", order)
    return positions


def store_rows(
    intake: Intake, adaptor: RowMap, positions: npt.NDArray[np.int64], folder: Path, dtype: str, progress: bool
) -> None:
    """Adapt every row and store it where it belongs: vectors.npy. positions: input position -> stored row."""
    done = 0
    with (
        VectorStore.create(folder / "vectors.npy", intake.count, intake.dim, dtype) as writer,
        Progress(total=intake.count, desc="store", unit="rows", unit_scale=True, disable=not progress) as bar,
    ):
        for rows in intake.rows():
            writer.write(positions[done : done + len(rows)], adaptor.unit_transform(rows))
            done += len(rows)
            bar.update(len(rows))
    release_freed()


def _adapted_prefixes(rows: npt.NDArray[np.float32], adaptor: RowMap, width: int) -> npt.NDArray[np.float32]:
    """Unit prefixes of rows [n, d] as the adaptor maps them: float32 [n, width]."""
    prefixes = np.empty((len(rows), width), dtype=np.float32)
    size = max(1, CELLS_AT_A_TIME // adaptor.dim)
    for start in range(0, len(rows), size):
        prefixes[start : start + size] = unit_prefixes(adaptor.unit_transform(rows[start : start + size]), width)
    return prefixes


def write_norms(store: VectorStore, ladder: Sequence[int], path: Path, progress: bool) -> None:
    """norms.npy: the norm of every prefix of every stored row, float32 [n, len(ladder)]."""
    header = {"descr": "<f4", "fortran_order": False, "shape": (store.n, len(ladder))}
    with (
        path.open("wb") as file,
        Progress(total=store.n, desc="norms", unit="rows", unit_scale=True, disable=not progress) as bar,
    ):
        np.lib.format.write_array_header_1_0(file, header)
        for _, rows in store.chunks(max(1, CELLS_AT_A_TIME // store.dim)):
            edges = [0, *ladder]
            squares = [np.einsum("nd,nd->n", rows[:, a:b], rows[:, a:b]) for a, b in itertools.pairwise(edges)]
            np.sqrt(np.cumsum(np.stack(squares, axis=1), axis=1, dtype=np.float32)).tofile(file)
            bar.update(len(rows))


Float32: TypeAlias = npt.NDArray[np.float32]


CANDIDATES = (32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
NARROWEST = CANDIDATES[0]
PROBES = 256  # held-out rows that widths are judged on: the standard error at .98 is .003
PROBED_ROWS = 200_000  # rows they are judged against
RUNS = 64  # in which those are read
LADDER_CELLS_AT_A_TIME = 6_291_456  # as read from disk: 25 MB as float32
DEPTH, SHORTLIST = 10, 50
# A prefix is wide enough when a shortlist of 50 holds this share of the true top 10: then recall .99 is within
# reach of a few hundred candidates, and a narrower graph loses more recall than its cheaper hops win.
ENOUGH = 0.98


def steps_above(width: int, dim: int) -> tuple[int, ...]:
    """The ladder from the coarse width: half-octave steps, each a multiple of 8, then the full width."""
    ladder, step = [width], 0
    while True:
        step += 1
        following = int(width * 2 ** (step // 2) * (1.5 if step % 2 else 1)) // 8 * 8
        if following >= dim * 3 / 4:
            break
        if following > ladder[-1]:
            ladder.append(following)
    return (*ladder, dim) if width < dim else (dim,)


def checked_ladder(dims: Sequence[int], dim: int) -> tuple[int, ...]:
    """The user's widths, rising, with the full width at the end.

    Raises InputError unless they are whole numbers from 1 to d that rise.
    """
    ladder = checked_widths(dims, dim)
    return ladder if ladder[-1] == dim else (*ladder, dim)


def choose_ladder(store: VectorStore, seed: int, progress: bool = False) -> tuple[int, ...]:
    """The narrowest coarse width whose shortlist holds enough of the true neighbours, and the steps above it."""
    widths = [width for width in CANDIDATES if width < store.dim]
    ranges = _probed_ranges(store)
    total = sum(stop - start for start, stop in ranges)
    depth = min(DEPTH, total - 1)
    if depth < 1 or not widths:
        return (store.dim,)
    probes = np.sort(np.random.default_rng(seed).choice(total, min(PROBES, total), replace=False))
    queries = np.concatenate([rows[_inside(probes, first, len(rows))] for first, rows in _read(store, ranges)])
    truth = RunningTop(queries, depth + 1)
    found = {width: RunningTop(unit_prefixes(queries, width), SHORTLIST + 1) for width in widths}
    with Progress(total=total, desc="compare widths", unit="rows", unit_scale=True, disable=not progress) as bar:
        for first, rows in _read(store, ranges):
            truth.update(rows, first)
            for width, top in found.items():
                top.update(unit_prefixes(rows, width), first)
            bar.update(len(rows))
    enough = (width for width in widths if _held(truth.rows, found[width].rows, probes, depth) >= ENOUGH)
    return steps_above(next(enough, store.dim), store.dim)


def _probed_ranges(store: VectorStore) -> list[tuple[int, int]]:
    """Runs of rows spread over the whole matrix, which is in cluster order."""
    share = min(1.0, PROBED_ROWS / store.n)
    run = -(-store.n // RUNS)
    starts = range(0, store.n, run)
    return [(start, start + max(1, round(min(run, store.n - start) * share))) for start in starts]


def _read(store: VectorStore, ranges: list[tuple[int, int]]) -> Iterator[tuple[int, Float32]]:
    """Batches of the rows in the ranges, numbered from 0 as if they lay together."""
    size, done = max(1, LADDER_CELLS_AT_A_TIME // store.dim), 0
    for start, stop in ranges:
        for _, rows in store.chunks(size, start, stop):
            yield done, rows
            done += len(rows)


def _inside(numbers: npt.NDArray[np.int64], first: int, count: int) -> npt.NDArray[np.int64]:
    """Which of the rising numbers lie in [first, first + count), counted from first."""
    begin, end = np.searchsorted(numbers, (first, first + count))
    return numbers[begin:end] - first


def _held(truth: npt.NDArray[np.int64], found: npt.NDArray[np.int64], own: npt.NDArray[np.int64], depth: int) -> float:
    """The mean share of the true neighbours, the query's own row left out, that the shortlists hold."""
    shares = []
    for true, short, mine in zip(truth, found, own, strict=True):
        wanted = [row for row in true if row != mine][:depth]
        shares.append(np.isin(wanted, short).mean())
    return float(np.mean(shares))


# Segments of about the same size that are put together: each row is then written again a few times in all.
FOLDED = 8
# Rows without a coarse index at most. Exact search of so many takes one query some 2 ms at 384 dims, of 256 queries
# together 50 us each; a graph over them takes some seconds to build.
EXACT_ROWS = 20_000
ROWS_AT_A_TIME = 4_096

Live = npt.NDArray[np.bool_]
Written: TypeAlias = tuple[Path, Path | None]
"""The folders of a segment and of its documents, None for bare vectors."""


def _level(rows: int) -> int:
    """The size class: 0 for fewer than 8 rows, 1 for fewer than 64, …."""
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


def write_folded(segments: Sequence[Segment], live: Live, newest: Written, count: int, target: Written) -> int:
    """Write what is left of small segments, and the segment that is written already behind it; gives the row count."""
    folder, documents = target
    stores = [*(segment.store for segment in segments), VectorStore.open(newest[0] / "vectors.npy")]
    alive = [live[segment.first : segment.stop] for segment in segments] + [np.ones(count, dtype=np.bool_)]
    total = sum(int(part.sum()) for part in alive)
    done = 0
    with VectorStore.create(folder / "vectors.npy", total, stores[0].dim, ADDED_DTYPE) as writer:
        for store, part in zip(stores, alive, strict=True):
            for first, rows in store.chunks(ROWS_AT_A_TIME):
                rows = rows[part[first : first + len(rows)]]
                writer.write(np.arange(done, done + len(rows)), rows)
                done += len(rows)
    sources = [*(segment.ids for segment in segments), Ids.open(newest[0])]
    write_ids(folder, sources, alive)
    if documents is not None and newest[1] is not None:
        with DocumentStore.create(documents / DOCUMENTS) as joined:
            for some in live_documents(segments, live):
                joined.append(some)
            with DocumentStore.open(newest[1] / DOCUMENTS) as last:
                for start in range(0, count, ROWS_AT_A_TIME):
                    joined.append(last.get(range(start, min(start + ROWS_AT_A_TIME, count))))
    return total


def segment_entry(
    transaction: Transaction, folder: Path, rows: int, documents: Path | None, exact: bool = False
) -> PartEntry:
    """The entry of a segment that was written.

    documents: the folder of its documents, whose columns are written here; None: bare vectors.
    """
    if documents is None:
        return PartEntry(transaction.identifier(folder), rows, exact)
    columns = transaction.folder("columns")
    with DocumentStore.open(documents / DOCUMENTS) as store:
        write_columns(store, columns / COLUMNS)
    beside = (transaction.identifier(documents), transaction.identifier(columns))
    return PartEntry(transaction.identifier(folder), rows, exact, *beside)


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
    made = (settings.coarse, settings.coarse_settings, settings.seed)
    coarse = build_coarse(store, opened.manifest.coarse_width, *made, progress, opened.searcher.adaptor)
    coarse.save(folder / "coarse.faiss")
    np.save(folder / "order.npy", np.arange(store.n, dtype=np.int64))
