"""Writing one segment: rows in order, norms, columns, the widths of its prefixes; small segments put together."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from funnel.building.intake import Intake, TextIds
from funnel.checks import checked_widths
from funnel.data.documents import Document, DocumentStore
from funnel.engine.cascade import Float32, Space, unit_prefixes
from funnel.engine.coarse import BLOCK_BYTES, CELLS_AT_A_TIME, build_coarse
from funnel.engine.generation import Opened, make_cascade, rerank_widths
from funnel.engine.searcher import Searcher
from funnel.engine.segments import Segment, check_finite, left
from funnel.filtering.columns import write_columns
from funnel.planning.run import without_own
from funnel.progress import Progress
from funnel.storage import PartEntry, Transaction
from funnel.storage.arrays import map_npy
from funnel.storage.ids import Ids
from funnel.storage.layout import ADAPTED, COLUMNS, DOCUMENTS
from indexes import ClusterTree, FamilyChoice, RunningTop, VectorStore, release_freed, stored_order

__all__ = [
    "ADDED_DTYPE",
    "EXACT_ROWS",
    "TURNED_DTYPE",
    "as_stored",
    "checked_ladder",
    "choose_ladder",
    "fold_from",
    "index_rows",
    "live_documents",
    "live_vectors",
    "order_rows",
    "segment_entry",
    "steps_above",
    "store_rows",
    "write_coarse",
    "write_folded",
    "write_live",
    "write_norms",
    "write_prefixes",
]

# Prefix dims that rows are put in cluster order by: they hold most of the energy after any adaptor.
ORDERED_DIMS = 32
# Rows that are added are searched exactly, and kept as they are given, so that they cost the promise nothing.
ADDED_DTYPE = "float32"
# Rows that were rounded once, and then turned, are not rounded again: what was measured of them stays true.
TURNED_DTYPE = "float32"


RowMap: TypeAlias = Callable[[Float32], Float32]  # what rows [n, d] go through before they are stored


def order_rows(
    intake: Intake,
    stored: RowMap,
    space: Space,
    folder: Path,
    seed: int,
    progress: bool,
    watch: Callable[[npt.NDArray[np.float32]], object] | None = None,
) -> npt.NDArray[np.int64]:
    """Put the rows in cluster order: order.npy (stored row -> input position). Gives input position -> stored row.

    watch: is shown all rows as given, batch by batch, in input order.
    """
    width = min(ORDERED_DIMS, intake.dim)
    tree = ClusterTree.fit(_prefixes(intake.sample, stored, space, width), seed=seed)
    intake.drop_sample()
    release_freed()
    leaves = np.empty(intake.count, dtype=np.int64)
    done = 0
    with Progress(total=intake.count, desc="order", unit="rows", unit_scale=True, disable=not progress) as bar:
        for rows in intake.rows():
            leaves[done : done + len(rows)] = tree.assign(_prefixes(rows, stored, space, width))
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
    intake: Intake, stored: RowMap, positions: npt.NDArray[np.int64], folder: Path, dtype: str, progress: bool
) -> None:
    """Store every row where it belongs: vectors.npy. positions: input position -> stored row."""
    done = 0
    with (
        VectorStore.create(folder / "vectors.npy", intake.count, intake.dim, dtype) as writer,
        Progress(total=intake.count, desc="store", unit="rows", unit_scale=True, disable=not progress) as bar,
    ):
        for rows in intake.rows():
            writer.write(positions[done : done + len(rows)], stored(rows))
            done += len(rows)
            bar.update(len(rows))
    release_freed()


def _prefixes(rows: Float32, stored: RowMap, space: Space, width: int) -> Float32:
    """Unit prefixes of rows [n, d] as they are adapted: float32 [n, width]."""
    size = max(1, CELLS_AT_A_TIME // rows.shape[1])
    parts = (rows[start : start + size] for start in range(0, len(rows), size))
    return np.concatenate([unit_prefixes(space.prefixes(stored(part), width)) for part in parts])


def index_rows(
    store: VectorStore, ladder: tuple[int, ...], choice: FamilyChoice, space: Space, seed: int, progress: bool
) -> Searcher:
    """Write prefixes, norms and the coarse index beside the vectors of a segment; gives a searcher of it."""
    folder = store.path.parent
    adapted = write_prefixes(store, space, ladder, progress)
    source = adapted if choice.dim < store.dim else store
    coarse = build_coarse(source, store.dim, choice.dim, choice.name, choice.settings, seed, progress, space.whole_rows)
    coarse.save(folder / "coarse.faiss")
    widths = rerank_widths(ladder, choice.name, choice.dim)
    cascade = make_cascade(coarse, store, folder, ladder, widths, space, release=True)
    return Searcher(cascade, Ids.open(folder), map_npy(folder / "order.npy", ("int64",), 1), widths)


def write_prefixes(store: VectorStore, space: Space, ladder: Sequence[int], progress: bool) -> VectorStore:
    """norms.npy, and adapted.npy where the prefixes of the ladder are not in the stored rows. Gives what holds them."""
    folder = store.path.parent
    if not space.projects or len(ladder) == 1:
        write_norms(store, ladder, folder / "norms.npy", progress)
        return store
    with (
        VectorStore.create(folder / ADAPTED, store.n, ladder[-2], "float16") as writer,
        Progress(total=store.n, desc="project", unit="rows", unit_scale=True, disable=not progress) as bar,
    ):
        for first, rows in store.chunks(max(1, CELLS_AT_A_TIME // store.dim)):
            writer.write(np.arange(first, first + len(rows)), space.prefixes(rows, ladder[-2]))
            bar.update(len(rows))
    release_freed()
    adapted = VectorStore.open(folder / ADAPTED)
    write_norms(adapted, ladder[:-1], folder / "norms.npy", progress, store)
    return adapted


def write_norms(
    store: VectorStore, ladder: Sequence[int], path: Path, progress: bool, whole: VectorStore | None = None
) -> None:
    """norms.npy: the norm of every prefix of every stored row, and of the row of `whole`: float32 [n, widths]."""
    header = {"descr": "<f4", "fortran_order": False, "shape": (store.n, len(ladder) + (whole is not None))}
    size = max(1, CELLS_AT_A_TIME // (store.dim if whole is None else whole.dim))
    with (
        path.open("wb") as file,
        Progress(total=store.n, desc="norms", unit="rows", unit_scale=True, disable=not progress) as bar,
    ):
        np.lib.format.write_array_header_1_0(file, header)
        for first, rows in store.chunks(size):
            edges = [0, *ladder]
            squares = [np.einsum("nd,nd->n", rows[:, a:b], rows[:, a:b]) for a, b in itertools.pairwise(edges)]
            norms = np.sqrt(np.cumsum(np.stack(squares, axis=1), axis=1, dtype=np.float32))
            if whole is not None:
                own = _run(whole, first, first + len(rows))
                norms = np.column_stack([norms, np.sqrt(np.einsum("nd,nd->n", own, own))])
            norms.astype(np.float32).tofile(file)
            bar.update(len(rows))


CANDIDATES = (32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
STEPS = (*CANDIDATES, 1536, 2048)
# Narrower widths, of which norms are stored too, 4 bytes a row each: a plan by hand may begin there.
BELOW = (8, 16, 32, 64)
PROBES = 256  # held-out rows that widths are judged on: the standard error at .98 is .003
PROBED_ROWS = 200_000  # rows they are judged against
RUNS = 64  # in which those are read, spread over the whole matrix, which is in cluster order
DEPTH, SHORTLIST = 10, 50
# A prefix is wide enough when a shortlist of 50 holds this share of the true top 10: then recall .99 is within
# reach of a few hundred candidates, and a narrower graph loses more recall than its cheaper hops win.
ENOUGH = 0.98


def steps_above(width: int, dim: int) -> tuple[int, ...]:
    """The ladder from the coarse width: half-octave steps up to half of the full width; then it.

    Prefixes up to the widest step below full width take space on disk.
    """
    above = tuple(step for step in STEPS if width < step <= dim / 2)
    return (width, *above, dim) if width < dim else (dim,)


def checked_ladder(dims: Sequence[int], dim: int) -> tuple[int, ...]:
    """The user's widths, rising, with the full width at the end.

    Raises InputError unless they are whole numbers from 1 to d that rise.
    """
    ladder = checked_widths(dims, dim)
    return ladder if ladder[-1] == dim else (*ladder, dim)


def choose_ladder(store: VectorStore, space: Space, progress: bool = False) -> tuple[int, tuple[int, ...]]:
    """The narrowest width that is enough for a coarse index; and the ladder: it, the steps above it, some below."""
    width = enough_width(store, space, CANDIDATES, progress)
    ladder = steps_above(width, store.dim)
    return width, ladder if len(ladder) == 1 else (*(below for below in BELOW if below < width), *ladder)


def enough_width(store: VectorStore, space: Space, among: Sequence[int], progress: bool = False) -> int:
    """The narrowest of some rising widths whose shortlist holds enough of the true neighbours; d where none does."""
    widths = [width for width in among if width < store.dim]
    step = -(-store.n // RUNS)
    runs = [(start, min(start + min(step, PROBED_ROWS // RUNS), store.n)) for start in range(0, store.n, step)]
    firsts = np.cumsum([0, *(stop - start for start, stop in runs)])  # numbered as if they lay together
    depth = min(DEPTH, int(firsts[-1]) - 1)
    if depth < 1 or not widths:
        return store.dim
    probes = np.unique(np.linspace(0, firsts[-1] - 1, PROBES).astype(np.int64))
    own = [probes[(probes >= a) & (probes < b)] for a, b in itertools.pairwise(firsts)]
    queries = np.concatenate([_run(store, *run)[mine - at] for run, at, mine in zip(runs, firsts, own, strict=False)])
    truth = RunningTop(queries, depth + 1)
    adapted = space.prefixes(queries, widths[-1])
    found = {width: RunningTop(unit_prefixes(adapted[:, :width]), SHORTLIST + 1) for width in widths}
    total = int(firsts[-1])
    with Progress(total=total, desc="compare widths", unit="rows", unit_scale=True, disable=not progress) as bar:
        for run, at in zip(runs, firsts.tolist(), strict=False):
            rows = _run(store, *run)
            truth.update(rows, at)
            adapted = space.prefixes(rows, widths[-1])
            for width, top in found.items():
                top.update(unit_prefixes(adapted[:, :width]), at)
            bar.update(len(rows))
    enough = (width for width in widths if _held(truth.rows, found[width].rows, probes, depth) >= ENOUGH)
    return next(enough, store.dim)


def _run(store: VectorStore, start: int, stop: int) -> Float32:
    return next(iter(store.chunks(stop - start, start, stop)))[1]


def _held(truth: npt.NDArray[np.int64], found: npt.NDArray[np.int64], own: npt.NDArray[np.int64], depth: int) -> float:
    """The mean share of the true neighbours, the query's own row left out, that the shortlists hold."""
    neighbours = without_own(truth.astype(np.float32), truth, own, depth)[1]
    return float((neighbours[:, :, None] == found[:, None, :]).any(axis=2).mean())


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
    store, first = VectorStore.open(newest[0] / "vectors.npy"), segments[-1].stop
    with ExitStack() as opened:
        last = None if newest[1] is None else opened.enter_context(DocumentStore.open(newest[1] / DOCUMENTS))
        parts = [*segments, Segment("", first, store, Ids.open(newest[0]), None, None, last, None)]
        live = np.concatenate([live[:first], np.ones(count, dtype=np.bool_)])
        total = sum(len(left(part, live)) for part in parts)
        empty = np.empty((0, store.dim), dtype=np.float32)
        intake = Intake(total, store.dim, empty, lambda: live_vectors(parts, live), target[1])
        store_rows(intake, as_stored, np.arange(total), target[0], ADDED_DTYPE, False)
        write_live(parts, live, *target)
    return total


def as_stored(rows: Float32) -> Float32:
    """Rows that were stored are written as they are."""
    return rows


def live_vectors(segments: Sequence[Segment], live: Live | None) -> Iterator[Float32]:
    """The rows of several segments that were not deleted, as and in the order in which they are stored.

    Raises DamagedIndexError where they are not finite.
    """
    for segment in segments:
        for first, rows in segment.store.chunks(max(1, CELLS_AT_A_TIME // segment.store.dim)):
            start = segment.first + first
            rows = rows if live is None else rows[live[start : start + len(rows)]]
            if len(rows):
                check_finite(bool(np.isfinite(rows).all()), segment)
                yield rows


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


def write_live(segments: Sequence[Segment], live: Live | None, folder: Path, documents: Path | None) -> None:
    """The ids of what was not deleted, in input order, and the documents into a folder of theirs, if there is one."""
    if segments[0].ids.text:
        texts = TextIds()
        for segment in segments:
            positions = left(segment, live)
            for start in range(0, len(positions), ROWS_AT_A_TIME):
                texts.extend(segment.ids.at(positions[start : start + ROWS_AT_A_TIME]))
        texts.save(folder)
    else:
        np.save(folder / "ids.npy", np.concatenate([part.ids.at(left(part, live)) for part in segments]))
    if documents is not None:
        with DocumentStore.create(documents / DOCUMENTS) as target:
            for some in live_documents(segments, live):
                target.append(some)


def live_documents(segments: Sequence[Segment], live: Live | None) -> Iterator[list[Document]]:
    """The documents of several segments that were not deleted, in input order, some thousands at a time."""
    for segment in segments:
        assert segment.documents is not None
        positions = left(segment, live)
        for start in range(0, len(positions), ROWS_AT_A_TIME):
            yield segment.documents.get(positions[start : start + ROWS_AT_A_TIME])


def write_coarse(opened: Opened, folder: Path, progress: bool) -> None:
    """Give a large segment what the first has: norms, a coarse index of the same kind and width, an order."""
    settings, searcher = opened.manifest.settings, opened.searcher
    store = VectorStore.open(folder / "vectors.npy", searcher.cascade.store.device)
    np.save(folder / "order.npy", np.arange(store.n, dtype=np.int64))
    choice = FamilyChoice(settings.coarse, settings.coarse_settings, opened.manifest.coarse_width, 0)
    index_rows(store, opened.manifest.ladder, choice, searcher.space, settings.seed, progress)
