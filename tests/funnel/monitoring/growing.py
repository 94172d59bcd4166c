"""An index that is written to, by hand: flat search over rows in memory, its calibration, and what watches it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from funnel.engine.segments import ExactRows
from funnel.monitoring import LiveRows, Monitor
from funnel.plan import FLAT, Plan
from funnel.planning.calibration import Calibration
from funnel.planning.run import LARGEST_K, NEAR, Run
from funnel.planning.updated import Updated
from tests.funnel.clustered import clustered_rows
from tests.funnel.planning.made_up import K, make_calibration

__all__ = ["DIM", "Growing", "queries_of"]

DIM = 16
Float32 = npt.NDArray[np.float32]


def queries_of(count: int, seed: int, kind: str = "known") -> Float32:
    """Unit rows; those of another kind lie farther from the rows of the index."""
    return clustered_rows(count, DIM, seed, spread=0.7 if kind == "known" else 1.5)


def see(monitor: Monitor, scores: Float32, plan: Plan) -> None:
    """What a search does with the scores that it found."""
    if monitor.drift is not None and monitor.drift.see(scores, plan):
        monitor.drifted()


class Growing:
    """Rows 0 to `count` are calibrated, those behind are searched exactly. monitor: of the generation that is live."""

    def __init__(self, count: int, n_queries: int, seed: int) -> None:
        self.count = count
        self.rows = clustered_rows(count, DIM, seed + 1_000_000)
        self.live = np.ones(count, dtype=np.bool_)
        self.segments = [("first", count)]
        self.stored = self._calibrated(queries_of(n_queries, seed + 2_000_000))
        self.calibration = self.stored
        self.monitor = Monitor(self.stored, self.flat, self.now())

    def _calibrated(self, queries: Float32) -> Calibration:
        made = make_calibration([0.99, 0.98, 0.96, 0.9, 0.8], len(queries))
        scores, rows = self._best(queries, self.rows, self.live, NEAR)
        none = np.empty((len(queries), 0, 1), dtype=np.float32)
        truth, own = scores[:, :LARGEST_K].copy(), np.full(len(queries), -1)
        numbers = rows.astype(np.int32)
        made.queries = made.corpus = Run(queries, own, truth, (DIM,), numbers[:, :0], none, {}, numbers, scores)
        return made

    @staticmethod
    def _best(
        queries: Float32, rows: Float32, live: npt.NDArray[np.bool_], k: int
    ) -> tuple[Float32, npt.NDArray[np.int64]]:
        scores = queries @ rows.T
        scores[:, ~live] = -np.inf
        best = np.argsort(-scores, axis=1)[:, :k]
        return np.take_along_axis(scores, best, axis=1), best

    def now(self) -> LiveRows:
        """The rows as a monitor is told of them."""
        return len(self.rows), int(np.count_nonzero(~self.live))

    def flat(self, queries: Float32, k: int) -> tuple[Float32, npt.NDArray[np.int64]]:
        """The best k of all live rows."""
        return self._best(queries, self.rows, self.live, k)

    def search(self, queries: Float32) -> None:
        """Search exactly, and have it watched."""
        see(self.monitor, np.ascontiguousarray(self.flat(queries, K)[0]), FLAT)

    def write(self, added: Float32 | None = None, deleted: npt.ArrayLike = ()) -> None:
        """The next generation: rows are added behind the others, and these numbers deleted."""
        if added is not None:
            self.rows = np.concatenate([self.rows, added])
            self.live = np.concatenate([self.live, np.ones(len(added), dtype=np.bool_)])
            self.segments.append((f"segment of {len(self.rows)}", len(self.rows)))
        self.live[np.asarray(deleted, dtype=np.int64)] = False
        self._move()

    def fold(self, segments: int) -> None:
        """The next generation: the last segments become one, without their deleted rows."""
        start = self.segments[-segments - 1][1]
        kept = np.concatenate([np.ones(start, dtype=np.bool_), self.live[start:]])
        self.rows, self.live = self.rows[kept], self.live[kept]
        self.segments[-segments:] = [(f"folded to {len(self.rows)}", len(self.rows))]
        self._move()

    def _move(self) -> None:
        live, everywhere = self.live[: self.count].copy(), self.live.copy()
        if live.all():
            made = replace(self.stored)
        else:
            made = Updated.of(self.stored, live, self._truth(live), self.calibration)
        made.updates = "changed"
        if len(self.rows) > self.count:
            exact = ExactRows(self.count, torch.from_numpy(self.rows[self.count :]))
            made.added = lambda queries: exact.search(queries, LARGEST_K, everywhere)[0]
        self.calibration, self.monitor = made, self.monitor.then(made, self.flat, self.now(), True)

    def _truth(self, live: npt.NDArray[np.bool_]) -> Any:
        return lambda queries, k: self._best(queries, self.rows[: self.count], live, k)
