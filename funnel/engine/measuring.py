"""Makes a calibration: runs queries at every effort, scores what they find, measures what storage costs."""

from __future__ import annotations

import math
import tempfile
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from funnel.engine.cascade import Cascade, Float32, Int64
from funnel.engine.rerank import scored
from funnel.engine.timing import measure_costs
from funnel.plan import Plan
from funnel.planning.calibration import CACHED_KS, Calibration, depth_of
from funnel.planning.run import (
    LARGEST_K,
    MISSING,
    NEAR,
    TIE_TOLERANCE,
    Places,
    Run,
    StorageCost,
    given_scores,
    without_own,
)
from funnel.progress import Progress
from indexes import release_freed
from indexes.system import claim

__all__ = ["CORPUS_ROWS", "Certifying", "Given", "Near", "Search", "calibrate", "held_out_rows", "record", "score"]

# Of a pass over a matrix that memory does not hold: candidates that are sorted together (32 MB), and scored together.
PAIRS_SORTED, PAIRS_SCORED = 1_000_000, 4_096
CELLS_AT_A_TIME = 2_097_152  # of the matrix, as read: 8 MB as float32


def score(cascade: Cascade, queries: Float32, rows: npt.NDArray[Any], widths: Sequence[int], result: Float32) -> None:
    """Fill result float32 [q, s, len(widths)]: each candidate's score at each width; -inf where the row is -1.

    queries: float32 [q, d], unit rows. rows: int [q, s]. widths: rising. A score is the cosine on the prefix up to the
    query's norm, and the inner product at full width.
    """
    store = cascade.store
    if store.exceeds_memory and store.placement == "mapped":
        at_a_time = max(1, PAIRS_SORTED // max(1, rows.shape[1]))
        for begin in range(0, len(rows), at_a_time):
            part = slice(begin, begin + at_a_time)
            _score_in_a_pass(cascade, queries[part], rows[part], widths, result[part])
        return

    def piece(places: slice | Int64) -> None:
        wanted = rows[places].astype(np.int64)
        for column, width in enumerate(widths):
            asked = queries[places] if cascade.adapted is None else cascade.space.prefixes(queries[places], width)
            products = scored(cascade.at(width), asked, wanted, width)
            if width != store.dim:
                products *= cascade.inverse_norms[width].cpu().numpy()[wanted]
            result[places, :, column] = products

    cascade.spread(queries, piece)


def _score_in_a_pass(
    cascade: Cascade, queries: Float32, rows: npt.NDArray[Any], widths: Sequence[int], result: Float32
) -> None:
    """The same in one pass over each matrix: gathered query by query, every row would be read from the disk anew.

    Within 300 MB of memory and over 750 MB of rows, the disk gave 14,000 of them a second.
    """
    result[...] = -np.inf
    asked, places = np.nonzero(rows >= 0)
    order = np.argsort(rows[asked, places], kind="stable")
    asked, places = asked[order], places[order]
    wanted = rows[asked, places].astype(np.int64)
    for store in {cascade.at(width) for width in widths}:
        mine = [(column, width) for column, width in enumerate(widths) if cascade.at(width) is store]
        query = queries if cascade.adapted is None else cascade.space.prefixes(queries, store.dim)
        size = max(1, CELLS_AT_A_TIME // store.dim)
        for first in range(0, store.n, size):
            begin, end = np.searchsorted(wanted, (first, first + size))
            block = store.block(first, first + size).cpu().numpy() if begin < end else None
            for start in range(begin, end, PAIRS_SCORED):
                assert block is not None
                pairs = slice(start, min(start + PAIRS_SCORED, end))
                numbers = wanted[pairs]
                products = block[numbers - first] * query[asked[pairs]]
                for column, width in mine:
                    known = width == cascade.store.dim
                    scale = 1.0 if known else cascade.inverse_norms[width].cpu().numpy()[numbers]
                    result[asked[pairs], places[pairs], column] = products[:, :width].sum(axis=1) * scale
        store.release()


CORPUS_ROWS = 1_000  # held-out rows that order the plans: they resolve recall to a standard error of .003


Near = tuple[Float32, npt.NDArray[np.int64]]
Search = Callable[[Float32, int], Near]


@dataclass(frozen=True)
class Given:
    """Exact search over the rows as given, worked out while they streamed by.

    held_out: float32 [c, d], rows as queries, as `Searcher.prepare` gives them; own: int64 [c], the stored rows that
    they are. near, real_near: what held-out rows and real queries found: scores and stored rows [., NEAR + 1] or less.
    """

    held_out: Float32
    own: npt.NDArray[np.int64]
    near: Near
    real_near: Near | None

    @classmethod
    def again(
        cls, stored: Calibration | None, places: npt.NDArray[np.int64], added: Search | None = None
    ) -> Given | None:
        """What was worked out then, for the queries on record, of rows some of which went and others came since.

        places: int64 [rows then], where each row is stored now, -1: nowhere. added: exact search over the rows that
        came, as given, for recorded queries and k: scores, and the rows as they are stored now. None where truth was
        that of the rows as stored, or so many rows went that the nearest LARGEST_K of some query are not on record.
        """
        if stored is None or not stored.as_given:
            return None
        corpus, queries = stored.runs()
        nears = []
        for run in (corpus, queries):
            if run is None:
                continue
            if run.near_scores is None or run.near_rows is None:
                return None
            came = None if added is None else added(np.ascontiguousarray(run.queries), run.near_rows.shape[1])
            near = _carried((run.near_scores, run.near_rows.astype(np.int64)), places, came)
            if near is None:
                return None
            nears.append(near)
        own = np.where(corpus.own_rows < 0, -1, places[corpus.own_rows])
        return cls(np.array(corpus.queries), own, nears[0], nears[1] if queries is not None else None)

    def without(self, those: npt.NDArray[np.bool_]) -> Given:
        """The same without some of the real queries."""
        if self.real_near is None:
            return self
        return replace(self, real_near=(self.real_near[0][~those], self.real_near[1][~those]))


def _carried(near: Near, places: npt.NDArray[np.int64], came: Near | None) -> Near | None:
    """See `Given.again`. What came and lies beyond the last that is on record is let go: others may lie between."""
    scores, rows = near[0], np.where(near[1] < 0, -1, places[near[1]])
    if came is not None:
        known = came[0] >= scores[:, -1:]
        scores = np.concatenate([scores, came[0]], axis=1)
        rows = np.concatenate([rows, np.where(known, came[1], -1)], axis=1)
    scores = np.where(rows < 0, np.float32(-np.inf), scores)
    width = int((rows >= 0).sum(axis=1).min())
    if width < LARGEST_K:
        return None
    order = np.argsort(-scores, axis=1, kind="stable")[:, :width]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


@dataclass(frozen=True)
class Certifying:
    """Certifying queries that certify.

    queries: float32 [q, d], as `Searcher.prepare` gives them, distinct, in random order; None: there are none left.
    left_out: why others do not certify -> how many. corpus_like: see `Calibration`.
    """

    queries: Float32 | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    corpus_like: bool = False

    def without(self, those: npt.NDArray[np.bool_], why: str) -> Certifying:
        """The same without some of the queries: bool [q], True for those to leave out."""
        if self.queries is None or not those.any():
            return self
        left = np.ascontiguousarray(self.queries[~those])
        left_out = {**self.left_out, why: self.left_out.get(why, 0) + int(those.sum())}
        return replace(self, queries=left if len(left) else None, left_out=left_out)


def held_out_rows(cascade: Cascade, seed: int) -> tuple[Float32, npt.NDArray[np.int64]]:
    """Rows drawn from the index to be used as queries: float32 [c, d] scaled to unit length, and their numbers."""
    store = cascade.store
    count = min(CORPUS_ROWS, cascade.rows // 2)
    drawn_from = store.n if cascade.live is None else np.flatnonzero(cascade.live)
    own = np.sort(np.random.default_rng(seed).choice(drawn_from, count, replace=False)).astype(np.int64)
    rows = store.gather(torch.from_numpy(own).to(store.device), 0, store.dim).float().cpu().numpy()
    return rows / np.linalg.norm(rows, axis=1, keepdims=True), own


def calibrate(
    cascade: Cascade,
    widths: tuple[int, ...],
    real: Certifying,
    search: Callable[[Float32, Plan, int], object],
    seed: int,
    progress: bool,
    given: Given | None = None,
    storage: StorageCost | None = None,
) -> Calibration:
    """Everything that planning needs to know of this index, with or without real queries.

    widths: rerank widths, the last is d. search: see measure_costs. given: where the rows as given are at hand, they
    are the truth, and what storage costs is measured; where not, the rows as stored are, and storage is what was
    measured when they were at hand.
    The real queries have no part in which plans are tested, in what order, or in what they are said to cost.
    """
    rows, own = held_out_rows(cascade, seed) if given is None else (given.held_out, given.own)
    queries = real.queries
    folder = cascade.store.path.parent  # beside the vectors there is room for large files
    near, real_near = (None, None) if given is None else (given.near, given.real_near)
    corpus = record(cascade, rows, own, widths, None, progress, "calibrate on rows", folder, near)
    ran = None
    if queries is not None:
        label = "calibrate on queries"
        ran = record(cascade, queries, None, widths, corpus.efforts, progress, label, folder, real_near)
    release_freed()
    if given is not None:
        storage = measure_storage_cost(cascade, ran or corpus)
    costs = measure_costs(cascade, rows, corpus.efforts, widths, search, progress=progress)
    release_freed()
    calibration = Calibration(
        costs=costs,
        by_effort=cascade.coarse.shortlist_grows,
        dim=cascade.store.dim,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        n_queries=0 if queries is None else len(queries),
        n_corpus_rows=len(rows),
        depth=depth_of(cascade.rows),
        left_out=dict(real.left_out),
        corpus_like=real.corpus_like,
        storage=storage,
        as_given=given is not None,
        corpus=corpus,
        queries=ran,
    )
    for k in CACHED_KS:
        calibration.frontier(k)
    return calibration


# Efforts rise until held-out rows miss fewer than this share of the true top 100: a thousand perfect queries certify
# no recall above .997, five thousand none above .9994.
ENOUGH_RECALL = 0.999


# They end as well where the coarse search alone takes this share of the time of flat search, in batch and for a single
# query: with reranking and its lower recall such a plan is never worth serving. In batch flat search is a product of
# matrices, so that there it may be as quick as a graph that answers a single query in a tenth of its time.
DEAREST = 0.6


SINGLE_CALLS = 7  # of each that are compared; medians, as other processes disturb some


# Candidates of all efforts held at once (64 MB as int32): some 2,000 queries of a graph, 400 of lists. In fewer pieces
# the workers wait for each other, and fewer neighbours walk the same part of a graph together.
CELLS_LISTED = 16_000_000


def record(
    cascade: Cascade,
    queries: Float32,
    own_rows: Int64 | None,
    widths: Sequence[int],
    efforts: Sequence[int] | None = None,
    progress: bool = False,
    label: str = "calibrate",
    folder: Path | None = None,
    near: tuple[Float32, Int64] | None = None,
) -> Run:
    """Truth, shortlists and scores of the queries at every effort.

    queries: float32 [q, d], unit rows as stored; own_rows: int64 [q] or None; widths: rerank widths, the last is d.
    efforts: which to run; None: those up to the first that finds all but a share of 1e-3 of the true neighbours, or
    takes most of the time of flat search in batch and by itself. folder: where scores and shortlists are kept, in files
    without a name that go with the record; None, or one that cannot be written to: in memory. near: what exact search
    over the rows as given found for the queries, scores and stored rows [q, min(NEAR + 1, n)]; None: the rows as stored
    are the truth.
    """
    own = np.full(len(queries), -1, dtype=np.int64) if own_rows is None else own_rows
    depth = min(NEAR, cascade.rows - (1 if own_rows is not None else 0))
    near_scores, near_rows = near or cascade.truth(queries, min(depth + 1, cascade.rows))
    near_scores, near_rows = without_own(near_scores, near_rows, own, depth)
    truth = np.ascontiguousarray(near_scores[:, :LARGEST_K])
    wanted = _worth_running(cascade, queries, own, near_rows) if efforts is None else tuple(efforts)
    sizes = {effort: cascade.coarse.largest_shortlist(effort) for effort in wanted}
    places = {effort: _kept((len(queries), size), np.uint16, folder) for effort, size in sizes.items()}
    found = []
    with Progress(total=len(queries), desc=label, unit="queries", even=False, disable=not progress) as bar:
        at_a_time = max(1, CELLS_LISTED // sum(sizes.values()))
        for start in range(0, len(queries), at_a_time):
            part = slice(start, start + at_a_time)
            listed = {}
            spent = 0
            for effort, size in sizes.items():
                rows = _drop_own(cascade.shortlist(queries[part], size, effort), own[part])
                listed[effort] = rows.astype(np.int32)
                spent += effort + 1  # time grows with effort: queries are counted by the share of theirs that is over
                bar.update(start + len(rows) * spent // (sum(sizes) + len(sizes)) - bar.n)
            found.append(_place(listed, {effort: table[part] for effort, table in places.items()}, cascade.store.n))
    candidates = _side_by_side(found)
    scores = _kept((*candidates.shape, len(widths)), np.float32, folder)
    score(cascade, queries, candidates, widths, scores)
    kept = near_rows.astype(np.int32)
    run = Run(queries, own, truth, tuple(widths), candidates, scores, places, kept, near_scores)
    if near is None:
        return run
    return replace(run, given=given_scores((near_scores, near_rows), candidates, scores[:, :, -1]))


def _worth_running(cascade: Cascade, queries: Float32, own: Int64, near_rows: Int64) -> tuple[int, ...]:
    """The efforts up to the first that finds enough or is too dear; looked for by halves, as both grow with effort.

    What counts as found are the true neighbours by the rows as stored: storage is not the coarse index's to mend.
    """
    offered, depth = cascade.coarse.efforts(), min(LARGEST_K, near_rows.shape[1])
    started = time.perf_counter()
    truth = without_own(*cascade.truth(queries, min(depth + 1, cascade.rows)), own, depth)[0]
    flat_seconds = time.perf_counter() - started
    single_seconds = _single_seconds(queries, lambda query: cascade.exact(query, depth))

    def ends(effort: int) -> bool:
        size = cascade.coarse.largest_shortlist(effort)
        started = time.perf_counter()
        found = cascade.shortlist(queries, size, effort)
        dear = time.perf_counter() - started > DEAREST * flat_seconds
        if dear and size >= 2 * depth:  # room for every k, whatever the clock says
            single = _single_seconds(queries, lambda query: cascade.shortlist(query, size, effort))
            if single > DEAREST * single_seconds:
                return True
        rows = _drop_own(found, own)
        scores = np.empty((*rows.shape, 1), dtype=np.float32)
        score(cascade, queries, rows, (cascade.store.dim,), scores)
        true = (scores[:, :, 0] >= truth[:, -1:] - TIE_TOLERANCE).sum(axis=1).clip(max=depth)
        return bool(true.mean() >= ENOUGH_RECALL * depth)

    return offered[: bisect_left(offered[:-1], True, key=ends) + 1]


def _single_seconds(queries: Float32, call: Callable[[Float32], object]) -> float:
    """The median of single queries, in seconds."""
    times = []
    for number in range(min(SINGLE_CALLS, len(queries))):
        started = time.perf_counter()
        call(queries[number : number + 1])
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def _place(listed: dict[int, npt.NDArray[np.int32]], places: dict[int, Places], rows: int) -> npt.NDArray[np.int32]:
    """Fill the places of some queries' shortlists; returns their distinct candidates int32 [q, u], -1 at the end.

    rows: how many are stored. The candidates of the largest effort come first, in its order.
    """
    efforts = sorted(listed, reverse=True)
    edges = np.cumsum([listed[effort].shape[1] for effort in efforts])[:-1]
    first_seen = np.empty(rows + 1, dtype=np.int64)  # of a row, where it stands first; -1 is the last of the table
    standing = np.arange(sum(listed[effort].shape[1] for effort in efforts))
    distinct = []
    for query in range(len(listed[efforts[0]])):
        candidates = np.concatenate([listed[effort][query] for effort in efforts])
        first_seen[candidates[::-1]] = standing[::-1]
        first = first_seen[candidates]
        new = (first == standing) & (candidates >= 0)
        numbers = np.cumsum(new) - 1
        at = np.where(candidates >= 0, numbers[first], MISSING)
        for effort, part in zip(efforts, np.split(at, edges), strict=True):
            places[effort][query] = part
        distinct.append(candidates[new])
    return _side_by_side([one[None, :] for one in distinct])


def _side_by_side(parts: Sequence[npt.NDArray[np.int32]]) -> npt.NDArray[np.int32]:
    """Rows of several tables under each other, filled up with -1 to the widest: int32 [q, u], u at least 1."""
    width = max([1, *(part.shape[1] for part in parts)])
    result = np.full((sum(map(len, parts)), width), -1, dtype=np.int32)
    done = 0
    for part in parts:
        result[done : done + len(part), : part.shape[1]] = part
        done += len(part)
    return result


def _drop_own(rows: Int64, own: Int64) -> Int64:
    """Shortlists with each query's own row taken out, the rest moved up, -1 at the end."""
    mine = (rows == own[:, None]) & (own[:, None] >= 0)
    if not mine.any():
        return rows
    order = np.argsort(mine, axis=1, kind="stable")
    moved = np.take_along_axis(rows, order, axis=1)
    moved[np.take_along_axis(mine, order, axis=1)] = -1
    return moved


def _kept(shape: tuple[int, ...], dtype: npt.DTypeLike, folder: Path | None) -> npt.NDArray[Any]:
    """An array to fill; in a mapped file where there is a folder, as the system can then take its pages back."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if folder is None or not size:
        return np.empty(shape, dtype=dtype)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            claim(file.fileno(), 0, size)  # a full disk then shows here, and not as a signal on writing
            return np.asarray(np.memmap(file, dtype, "r+", shape=shape))  # the map keeps the file
    except OSError:  # no room, or no right to write: an index that is only opened needs neither
        return np.empty(shape, dtype=dtype)


MEASURED_ON = 5_000  # queries: with 5,000 that lose nothing the cost is at most .0012 with confidence .995


FLOAT32_BYTES = 4


def measure_storage_cost(cascade: Cascade, run: Run) -> StorageCost | None:
    """Search the rows as stored exactly, for the queries of a run whose truth is that of the rows as given.

    None for float32, the type of that truth: a turned row moves a score by some 1e-7, which ties allow for; unless the
    measurement says otherwise.
    """
    queries = np.ascontiguousarray(run.queries[:MEASURED_ON])
    own, depth = run.own_rows[:MEASURED_ON], min(LARGEST_K, run.truth.shape[1])
    scores, rows = without_own(*cascade.truth(queries, min(depth + 1, cascade.rows)), own, depth)
    assert run.near_rows is not None, "kept since it is recorded"
    assert run.near_scores is not None, "kept since it is recorded"
    near = run.near_scores[:MEASURED_ON], run.near_rows[:MEASURED_ON]
    cost = StorageCost(given_scores(near, rows, scores), run.truth[:MEASURED_ON, :depth])
    return None if cascade.store.dtype.itemsize == FLOAT32_BYTES and cost.exact(depth) else cost
