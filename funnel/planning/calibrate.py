"""Makes a calibration: runs the queries, times the stages, works out the plans worth testing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import torch

from funnel.cascade import Cascade, Float32
from funnel.plan import Plan
from funnel.planning.calibration import record
from funnel.planning.costs import measure_costs
from funnel.planning.records import CACHED_KS, Calibration, depth_of
from funnel.planning.storage_cost import StorageCost, measure_storage_cost
from indexes import release_freed

__all__ = ["CORPUS_ROWS", "SMALLEST_PLANNED", "Certifying", "Given", "calibrate", "held_out_rows"]

CORPUS_ROWS = 1_000  # held-out rows that order the plans: they resolve recall to a standard error of .003
# Below this many rows flat search takes microseconds and there is nothing to plan.
SMALLEST_PLANNED = 256


Near = tuple[Float32, npt.NDArray[np.int64]]


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


@dataclass(frozen=True)
class Certifying:
    """Certifying queries that certify.

    queries: float32 [q, d], as `Searcher.prepare` gives them, distinct, in random order; None: there are none left.
    left_out: why others do not certify -> how many. corpus_like: see `Calibration`.
    """

    queries: Float32 | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    corpus_like: bool = False


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
