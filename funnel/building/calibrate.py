"""Makes a calibration: runs the queries, times the stages, works out the plans worth testing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import torch

from funnel.engine.cascade import Cascade, Float32
from funnel.plan import Plan
from funnel.planning.calibration import LARGEST_K, record
from funnel.planning.costs import measure_costs
from funnel.planning.records import CACHED_KS, Calibration, depth_of
from funnel.planning.storage_cost import StorageCost, measure_storage_cost
from indexes import release_freed

__all__ = ["CORPUS_ROWS", "SMALLEST_PLANNED", "Certifying", "Given", "calibrate", "held_out_rows"]

CORPUS_ROWS = 1_000  # held-out rows that order the plans: they resolve recall to a standard error of .003
# Below this many rows flat search takes microseconds and there is nothing to plan.
SMALLEST_PLANNED = 256


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
    return cascade.as_asked(rows / np.linalg.norm(rows, axis=1, keepdims=True)), own


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
