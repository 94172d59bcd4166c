"""The stored rows that a filter allows, searched exactly or by a plan that sees no others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from funnel.engine.cascade import Cascade, Float32, Int64
from funnel.engine.deadline import Deadline
from funnel.engine.rerank import CELLS_AT_A_TIME, best, gather_rows
from funnel.engine.steps import Found, run_until
from funnel.engine.workers import workers
from funnel.plan import FLAT, Plan
from indexes import RunningTop, VectorStore

__all__ = ["AllowedRows"]

# Up to so many values compared the caller's own thread does it; more are worth handing to workers.
CELLS_OF_ONE_THREAD = 1_600_000
# On a GPU the block of scores bounds it: 1,024 queries x 65,536 rows are 256 MB.
ROWS_AT_A_TIME_CUDA = 65_536


@dataclass(eq=False)
class AllowedRows:
    """What a filter allows of the rows under one cascade.

    rows: int64 [a], rising stored rows. of: the cascade over all rows.
    """

    rows: Int64
    of: Cascade

    @classmethod
    def from_mask(cls, mask: npt.NDArray[np.bool_], cascade: Cascade) -> AllowedRows:
        """Of the rows where mask, bool [n], is set."""
        return cls(np.flatnonzero(mask), cascade)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def nbytes(self) -> int:
        """Bytes held: row numbers, and the coarse index's own form of them."""
        return self.rows.nbytes + self.of.store.n // 8

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """bool [n]."""
        mask = np.zeros(self.of.store.n, dtype=np.bool_)
        mask[self.rows] = True
        return mask

    @cached_property
    def cascade(self) -> Cascade:
        """The cascade whose coarse index returns allowed rows only, so that every stage sees no other."""

        def truth(queries: Float32, k: int) -> tuple[Float32, Int64]:
            return self._flat(self.of.as_stored(queries), k)

        return replace(self.of, coarse=self.of.coarse.restricted(self.rows), exact=self._flat, truth=truth)

    def exact(self, queries: Float32, k: int, deadline: Deadline | None = None) -> Found:
        """The true best k allowed rows of each query: every one is compared at full width, up to the deadline.

        queries: float32 [q, d] as the cascade takes them. k: at most as many as are allowed; k rows at least are seen.
        """
        return self._scanned(self.of.as_stored(queries), k, deadline)

    def _flat(self, asked: Float32, k: int) -> tuple[Float32, Int64]:
        found = self._scanned(asked, k, None)
        return found.scores, found.rows

    def _scanned(self, asked: Float32, k: int, deadline: Deadline | None) -> Found:
        """As `exact`, of queries as rows are stored."""
        store = self.of.store
        done = np.full(len(asked), FLAT.steps, dtype=np.int64)
        if store.device.type != "cpu":
            return Found(*self._on_device(asked, k), done)
        count = 1 if len(self) * store.dim <= CELLS_OF_ONE_THREAD else min(workers().count, len(self) // k)
        scans = [_Scan(store, part, asked, k) for part in np.array_split(self.rows, count)]
        if count == 1:
            scans[0].run(deadline)
        else:
            workers().run(lambda scan: scan.run(deadline), scans)
        scores, rows = scans[0].top.scores, scans[0].rows()
        if count > 1:
            scores = np.concatenate([scan.top.scores for scan in scans], axis=1)
            order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            rows = np.take_along_axis(np.concatenate([scan.rows() for scan in scans], axis=1), order, axis=1)
            scores = np.take_along_axis(scores, order, axis=1)
        seen = sum(scan.seen for scan in scans)
        if seen < len(self):
            done[:] = 0
        return Found(scores, rows, done, seen / len(self))

    def run(self, queries: Float32, plan: Plan, k: int) -> tuple[Float32, Int64]:
        """The best k allowed rows under the plan: float32 [q, k] and stored rows int64 [q, k], falling.

        k: at most as many as are allowed. Where a plan finds fewer for a query, that one is answered exactly.
        """
        if plan.is_flat:
            found = self.exact(queries, k)
            return found.scores, found.rows
        scores, rows = self.cascade.run(queries, plan, k)
        short = np.flatnonzero(rows[:, -1] < 0)
        if len(short):
            found = self.exact(np.ascontiguousarray(queries[short]), k)
            scores, rows = np.array(scores), np.array(rows)
            scores[short], rows[short] = found.scores, found.rows
        return scores, rows

    def run_until(self, queries: Float32, plan: Plan, k: int, deadline: Deadline) -> Found:
        """As `run`, but no step is begun after the deadline."""
        if plan.is_flat:
            return self.exact(queries, k, deadline)
        found = run_until(self.cascade, queries, plan, k, deadline)
        short = np.flatnonzero(found.rows[:, -1] < 0)
        if len(short) and not deadline.passed():
            exact = self.exact(np.ascontiguousarray(queries[short]), k, deadline)
            if exact.seen == 1.0:
                found.scores[short], found.rows[short] = exact.scores, exact.rows
        return found

    def _on_device(self, asked: Float32, k: int) -> tuple[Float32, Int64]:
        """The same where the matrix lies on a GPU: in one go, with torch."""
        store = self.of.store
        with torch.inference_mode():
            query, rows = torch.from_numpy(asked).to(store.device), torch.from_numpy(self.rows).to(store.device)
            scores = torch.full((len(asked), 0), -torch.inf, device=store.device)
            found = torch.empty((len(asked), 0), dtype=torch.int64, device=store.device)
            for start in range(0, len(self), ROWS_AT_A_TIME_CUDA):
                part = rows[start : start + ROWS_AT_A_TIME_CUDA]
                products = query @ gather_rows(store, part, 0, store.dim).T
                scores, places = best(torch.cat([scores, products], dim=1), k)
                found = torch.cat([found, part.expand(len(asked), -1)], dim=1).gather(1, places)
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
        return self._rows[self.top.rows]
