"""Exact search over one segment, and the one mask that says which of its rows may be returned.

For less than flat search: the funnel's own answer says which rows need no look.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from funnel.engine.cascade import Cascade, Float32, Int64, padded
from funnel.engine.rerank import CELLS_AT_A_TIME, best, gather_rows
from funnel.engine.workers import workers
from funnel.plan import Plan
from funnel.request import Deadline
from indexes import Projected, PrunedSearch, Pruning, RunningTop, VectorStore, exact_search

__all__ = ["AllowedScan", "allowed_only", "best_of", "over_live", "pruned_exact", "pruning_of"]

# Candidates for k results in the search whose k-th score rules rows out. Of 200,000 rows 24 for 10 lack the k-th true
# score by .004; twice as many cost more than they rule out.
SEEDS_PER_RESULT = 2
FEWEST_SEEDS = 24
# Where a shortlist does not grow with effort (lists), the effort to use: the fourth, eight lists.
LIST_EFFORT = 3
# Up to so many values compared the caller's own thread does it; more are worth handing to workers.
CELLS_OF_ONE_THREAD = 1_600_000
# On a GPU the block of scores bounds it: 1,024 queries x 65,536 rows are 256 MB.
ROWS_AT_A_TIME_CUDA = 65_536


def pruned_exact(cascade: Cascade, norms: Float32, ladder: tuple[int, ...], release: bool, keep: bool) -> PrunedSearch:
    """What FLAT is served by: see `indexes.PrunedSearch`. norms: float32 [n, len(ladder)], may be mapped."""

    def spread(function: Callable[[Sequence[range]], None], pieces: Sequence[Sequence[range]]) -> None:
        workers().run(function, pieces)

    projected = None if cascade.adapted is None else Projected(cascade.adapted, cascade.space.prefixes)
    threads = torch.get_num_threads()
    return PrunedSearch(cascade.store, norms, ladder, _reached(cascade), spread, threads, release, keep, projected)


def over_live(cascade: Cascade, live: npt.NDArray[np.bool_] | None) -> Cascade:
    """The cascade over its live rows alone, bool [n]; None: over all. What it holds in memory is shared."""
    if live is None and cascade.live is None:
        return cascade
    store, exact = cascade.store, cascade.exact

    def flat(queries: Float32, k: int) -> tuple[Float32, Int64]:
        return exact_search(store, queries, k, live=live)

    made = replace(cascade, live=live, truth=flat, exact=flat)
    if isinstance(exact, PrunedSearch):
        made = replace(made, exact=exact.among(live, _reached(made)))
    return made


def allowed_only(cascade: Cascade, mask: npt.NDArray[np.bool_]) -> Cascade:
    """The cascade over the rows alone where mask, bool [n], is set: the coarse index finds no others.

    Deletes are many rows less a few, which `over_live` takes out of what the coarse index finds; what a filter allows
    may be few rows, which exact search gathers.
    """
    scan = AllowedScan(cascade.store, np.flatnonzero(mask))
    return replace(cascade, coarse=cascade.coarse.restricted(scan.rows), exact=scan, truth=scan, live=mask)


class AllowedScan:
    """Exact search over some rows of a store. rows: int64 [a], rising."""

    def __init__(self, store: VectorStore, rows: Int64) -> None:
        self.rows = rows
        self._store = store

    def __call__(self, queries: Float32, k: int) -> tuple[Float32, Int64]:
        """The best k: scores float32 [n, k], falling, and stored rows int64 [n, k]; fewer columns where rows are fewer.

        queries: float32 [n, d], as rows are stored.
        """
        return self.until(queries, k, None)[:2]

    def until(self, queries: Float32, k: int, deadline: Deadline | None) -> tuple[Float32, Int64, float]:
        """The same among the rows compared by the deadline, k at least; and the share of them that was compared."""
        store, k = self._store, min(k, len(self.rows))
        if not k:
            return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64), 1.0
        if store.device.type != "cpu":
            return *self._on_device(queries, k), 1.0
        few = len(self.rows) * store.dim <= CELLS_OF_ONE_THREAD
        count = 1 if few else min(workers().count, len(self.rows) // k)
        scans = [_Scan(store, part, queries, k) for part in np.array_split(self.rows, count)]
        if count == 1:
            scans[0].run(deadline)
        else:
            workers().run(lambda scan: scan.run(deadline), scans)
        scores, rows = best_of([(scan.top.scores, scan.rows()) for scan in scans], k)
        return scores, rows, sum(scan.seen for scan in scans) / len(self.rows)

    def _on_device(self, queries: Float32, k: int) -> tuple[Float32, Int64]:
        """The same where the matrix lies on a GPU: in one go, with torch."""
        store = self._store
        with torch.inference_mode():
            query, rows = torch.from_numpy(queries).to(store.device), torch.from_numpy(self.rows).to(store.device)
            scores = torch.full((len(queries), 0), -torch.inf, device=store.device)
            found = torch.empty((len(queries), 0), dtype=torch.int64, device=store.device)
            for start in range(0, len(rows), ROWS_AT_A_TIME_CUDA):
                part = rows[start : start + ROWS_AT_A_TIME_CUDA]
                products = query @ gather_rows(store, part, 0, store.dim).T
                scores, places = best(torch.cat([scores, products], dim=1), k)
                found = torch.cat([found, part.expand(len(queries), -1)], dim=1).gather(1, places)
            return scores.cpu().numpy(), found.cpu().numpy()


class _Scan:
    """Exact search over some rows, a piece that stays in the cache at a time; on one thread."""

    def __init__(self, store: VectorStore, rows: Int64, queries: Float32, k: int) -> None:
        self._store, self._rows, self._k = store, rows, k
        self.top = RunningTop(queries, k)
        self.seen = 0

    def run(self, deadline: Deadline | None) -> None:
        """Compare piece after piece, one and k rows at least, up to the deadline."""
        size = max(self._k, CELLS_AT_A_TIME // self._store.dim)
        with torch.inference_mode():
            while self.seen < len(self._rows) and not (self.seen and deadline is not None and deadline.passed()):
                part = torch.from_numpy(self._rows[self.seen : self.seen + size])
                self.top.update(gather_rows(self._store, part, 0, self._store.dim).numpy(), self.seen)
                self.seen += len(part)

    def rows(self) -> Int64:
        """The stored rows of the best so far: int64 [q, k]."""
        return np.where(self.top.rows < 0, -1, self._rows[self.top.rows])


def best_of(answers: Sequence[tuple[Float32, Int64]], k: int) -> tuple[Float32, Int64]:
    """The best k of several answers [n, any]: scores falling, with -inf and -1 at the end where there are fewer."""
    if len(answers) == 1:
        return padded(*answers[0], k)
    scores, rows = (np.concatenate(parts, axis=1) for parts in zip(*answers, strict=True))
    scores, rows = padded(scores, rows, max(k, scores.shape[1]))
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


def _reached(cascade: Cascade) -> Callable[[Float32, int], Float32 | None]:
    def reached(queries: Float32, k: int) -> Float32 | None:
        plan = _seeds(cascade, k)
        return None if plan is None else cascade.run(queries, plan, k)[0][:, -1]

    return reached


def _seeds(cascade: Cascade, k: int) -> Plan | None:
    """A cheap search for k rows that score high; None where the coarse index gives too few."""
    coarse, wanted = cascade.coarse, max(FEWEST_SEEDS, SEEDS_PER_RESULT * k)
    enough = [effort for effort in coarse.efforts() if coarse.largest_shortlist(effort) >= wanted]
    if not enough:
        return None
    return Plan(enough[0 if coarse.shortlist_grows else min(LIST_EFFORT, len(enough) - 1)], wanted)


def pruning_of(cascade: Cascade, queries: Float32, k: int, batch: int) -> Pruning | None:
    """How FLAT is run for calls of `batch` such queries; None: every row at full width.

    queries: float32 [q, d], unit rows as the cascade takes them, repeated where a batch needs more.
    """
    exact = cascade.exact
    repeated = np.ascontiguousarray(np.resize(queries, (batch, queries.shape[1])))
    return exact.choose(repeated, k) if isinstance(exact, PrunedSearch) else None
