"""The true neighbours of the calibration queries, carried on from one generation to the next as rows come and go.

A write costs what it changed: rows that are new are scored, and only queries that lost a neighbour are looked at again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from funnel.engine.segments import ExactRows, best_of
from funnel.monitoring.exchangeability import CELLS, cells_of
from funnel.planning.records import Calibration
from funnel.planning.updated import Updated

__all__ = ["DEPTH", "RANKS", "Neighbours", "Rows"]

RANKS = (0, 9)  # the hits whose scores are compared: the best and the tenth
DEPTH = 20  # neighbours of each query: a plan that misses half of them still has its tenth hit among so many

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of one generation, counted through its segments.

    segments: the identifier of each, and the number after that of its last row; the first is the one that was
    calibrated. exact: those beside it, searched exactly. live: bool [all rows]; None: nothing was deleted. as_stored:
    takes queries to the space of the rows.
    """

    segments: tuple[tuple[str, int], ...]
    exact: ExactRows | None
    live: npt.NDArray[np.bool_] | None
    as_stored: Callable[[Float32], Float32]

    def as_before(self, before: Rows) -> int:
        """How many rows have the numbers they had: those of the segments that both begin with."""
        count = 0
        for (one, stop), (other, _) in zip(self.segments, before.segments, strict=False):
            if one != other:
                break
            count = stop
        return count

    def exact_from(self, number: int) -> ExactRows | None:
        """Those searched exactly, from this row number on; None where there are none."""
        exact = self.exact
        left_out = 0 if exact is None else max(0, number - exact.first)
        if exact is None or left_out >= exact.count:
            return None
        first, count = exact.first + left_out, exact.count - left_out
        return replace(exact, first=first, count=count, buffer=exact.buffer[left_out:])


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The best DEPTH of all live rows for each calibration query.

    queries: float32 [q, d], as rows are stored. near_rows, near_scores: int32 and float32 [q, any], the best of the
    first segment as recorded, falling. scores, numbers: float32 and int64 [q, DEPTH], falling, -inf and -1 at the end
    where there are fewer.
    """

    queries: Float32
    near_rows: npt.NDArray[np.int32]
    near_scores: Float32
    rows: Rows
    scores: Float32
    numbers: Int64

    @classmethod
    def of(cls, calibration: Calibration, rows: Rows, most: int | None = None) -> Neighbours | None:
        """Those of one generation by itself; None where the record does not name the rows that were near.

        most: of so many calibration queries, evenly spaced; None: of all.
        """
        stored = calibration.stored if isinstance(calibration, Updated) else calibration
        run = stored.runs()[1]
        if run is None or run.near_rows is None or run.near_scores is None:
            return None
        few = slice(None, None, 1 if most is None else -(-len(run.queries) // most))
        queries = rows.as_stored(np.ascontiguousarray(run.queries[few]))
        none = np.empty((len(queries), 0), dtype=np.float32)
        made = cls(queries, run.near_rows[few], run.near_scores[few], rows, none, none.astype(np.int64))
        scores, numbers = made._looked_up(np.arange(len(queries)))
        return replace(made, scores=scores, numbers=numbers)

    def then(self, rows: Rows) -> Neighbours:
        """Those of a later generation with the same first segment."""
        kept = rows.as_before(self.rows)
        made = replace(self, rows=rows, scores=self.scores.copy(), numbers=self.numbers.copy())
        made._join(rows.exact_from(kept))
        lost = self.numbers >= kept
        if rows.live is not None:
            there = ~lost & (self.numbers >= 0)
            lost[there] = ~rows.live[self.numbers[there]]
        again = np.flatnonzero(lost.any(axis=1))
        if len(again):
            made.scores[again], made.numbers[again] = made._looked_up(again)
        return made

    def _join(self, new: ExactRows | None) -> None:
        """Put rows among the neighbours that none of them is yet."""
        if new is None:
            return
        scores, numbers = new.search(self.queries, DEPTH, self.rows.live)
        nearer = np.flatnonzero(scores[:, 0] > self.scores[:, -1])
        old = self.scores[nearer], self.numbers[nearer]
        self.scores[nearer], self.numbers[nearer] = best_of([old, (scores[nearer], numbers[nearer])], DEPTH)

    def _looked_up(self, asked: Int64) -> tuple[Float32, Int64]:
        """Scores and row numbers of the neighbours of some queries, from the record and the rows beside it."""
        live, exact = self.rows.live, self.rows.exact
        few = slice(DEPTH) if live is None else slice(None)
        numbers = self.near_rows[asked, few].astype(np.int64)
        gone = numbers < 0
        if live is not None:
            gone |= ~live[numbers]
        answers = [(np.where(gone, np.float32(-np.inf), self.near_scores[asked, few]), numbers)]
        if exact is not None:
            answers.append(exact.search(np.ascontiguousarray(self.queries[asked]), DEPTH, live))
        scores, numbers = best_of(answers, DEPTH)
        return scores, np.where(np.isneginf(scores), -1, numbers)

    @property
    def added(self) -> Float32 | None:
        """The scores of neighbours that were added since calibration, float32 [q, DEPTH]; -inf in place of others."""
        if self.rows.exact is None:
            return None
        return np.where(self.numbers >= self.rows.segments[0][1], self.scores, np.float32(-np.inf))

    def moved_since(self, before: Neighbours) -> float:
        """By how much the scores at RANKS are others: the largest difference of their distribution functions."""
        most = 0.0
        for rank in RANKS:
            now, then = self.scores[:, rank], before.scores[:, rank]
            if (now != then).any():
                counts = (np.bincount(cells_of(scores), minlength=CELLS) for scores in (now, then))
                most = max(most, float(np.abs(np.cumsum(next(counts) - next(counts))).max()) / len(now))
        return most
