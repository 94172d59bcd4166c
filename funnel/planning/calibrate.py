"""Makes a calibration: runs the queries, times the stages, works out the plans worth testing."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import torch

from funnel.cascade import Cascade, Float32
from funnel.plan import Plan
from funnel.planning.calibration import record
from funnel.planning.costs import measure_costs
from funnel.planning.records import CACHED_KS, CORPUS_LIKE_QUERIES, Calibration, depth_of
from indexes import release_freed

__all__ = ["CORPUS_ROWS", "SMALLEST_PLANNED", "calibrate", "held_out_rows"]

CORPUS_ROWS = 1_000  # held-out rows that order the plans: they resolve recall to a standard error of .003
# A cosine that short of 1 is that of a vector to itself: rows are stored as float16, which moves it by up to 2e-4.
EQUAL_ROWS = 5e-4
# Below this many rows flat search takes microseconds and there is nothing to plan.
SMALLEST_PLANNED = 256


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
    queries: Float32 | None,
    search: Callable[[Float32, Plan, int], object],
    encoder_ms: dict[int, float],
    seed: int,
    progress: bool,
    corpus_like_limit: float = CORPUS_LIKE_QUERIES,
) -> Calibration:
    """Everything that planning needs to know of this index, with or without real queries.

    widths: rerank widths, the last is d. queries: float32 [q, d], adapted unit rows in random order, or None.
    search: see measure_costs. encoder_ms, corpus_like_limit: see Calibration.
    """
    rows, own = held_out_rows(cascade, seed)
    folder = cascade.store.path.parent  # beside the vectors there is room for large files
    corpus = record(cascade, rows, own, widths, None, progress, "calibrate on rows", folder)
    real = None
    if queries is not None:
        real = record(cascade, queries, None, widths, corpus.efforts, progress, "calibrate on queries", folder)
    release_freed()
    timed = rows if queries is None else queries
    costs = measure_costs(cascade, timed, corpus.efforts, widths, search, progress=progress)
    release_freed()
    calibration = Calibration(
        costs=costs,
        by_effort=cascade.coarse.shortlist_grows,
        dim=cascade.store.dim,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        n_queries=0 if queries is None else len(queries),
        n_corpus_rows=len(rows),
        depth=depth_of(cascade.rows),
        encoder_ms=encoder_ms,
        corpus_like=0.0 if real is None else float((real.truth[:, 0] >= 1.0 - EQUAL_ROWS).mean()),
        corpus_like_limit=corpus_like_limit,
        corpus=corpus,
        queries=real,
    )
    for k in CACHED_KS:
        calibration.frontier(k)
    return calibration
