"""The segments beside the first, searched with it: those with a coarse index under the plan, the others exactly."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from funnel.engine.cascade import Cascade, Float32, Int64
from funnel.engine.deadline import Deadline
from funnel.engine.exact import filled_up, filled_up_until
from funnel.engine.segments import ExactRows, Segment, best_of
from funnel.engine.steps import Found, run_until
from funnel.plan import Plan

__all__ = ["Others"]

Answer = tuple[Float32, Int64]


@dataclass(frozen=True, eq=False)
class Others:
    """The further segments of one generation.

    coarse: those with a coarse index, and the cascade of each over its live rows. exact: the rows of those without.
    live: bool [all rows of the index]; None: nothing was deleted. Answers are scores [n, k] and input positions.
    """

    coarse: tuple[tuple[Segment, Cascade], ...]
    exact: ExactRows | None
    live: npt.NDArray[np.bool_] | None

    @property
    def exact_rows(self) -> int:
        """How many rows that were not deleted are searched exactly."""
        exact = self.exact
        if exact is None or self.live is None:
            return 0 if exact is None else exact.count
        return int(np.count_nonzero(self.live[exact.first : exact.first + exact.count]))

    @property
    def rows(self) -> int:
        """How many rows there are that were not deleted."""
        return self.exact_rows + sum(cascade.rows for _, cascade in self.coarse)

    @property
    def nbytes(self) -> int:
        """Bytes held in memory."""
        coarse = sum(
            cascade.coarse.nbytes + sum(values.nbytes for values in cascade.inverse_norms.values())
            for _, cascade in self.coarse
        )
        return coarse + (0 if self.exact is None else self.exact.nbytes)

    def join(self, first: Cascade, prepared: Float32, plan: Plan, k: int, found: Answer) -> Answer:
        """The best k of what was found in the first segment and of what the plan finds in these."""
        answers = [found]
        for segment, cascade in self.coarse:
            scores, rows = filled_up(cascade, prepared, plan, k, *cascade.run(prepared, plan, k))
            answers.append((scores, segment.positions(rows)))
        if self.exact is not None:
            answers.append(self.exact.search(first.as_stored(prepared), k, self.live))
        return best_of(answers, k)

    def nearest(self, first: Cascade, prepared: Float32, k: int) -> Answer:
        """The true best k over these segments, without the first; fewer where there are fewer."""
        none = np.empty((len(prepared), 0), np.float32), np.empty((len(prepared), 0), np.int64)
        return self.truth(first, prepared, min(k, self.rows), none)

    def truth(self, first: Cascade, prepared: Float32, k: int, found: Answer) -> Answer:
        """The true best k over every segment. found: those of the first."""
        answers = [found]
        for segment, cascade in self.coarse:
            scores, rows = cascade.truth(prepared, k)
            answers.append((scores, segment.positions(rows)))
        if self.exact is not None:
            answers.append(self.exact.search(first.as_stored(prepared), k, self.live))
        return best_of(answers, k)

    def join_until(
        self, first: Cascade, prepared: Float32, plan: Plan, k: int, deadline: Deadline, found: Found
    ) -> Found:
        """As `join`, stopped between stages; exact search is always finished, as coarse searches are."""
        answers, done, seen = [(found.scores, found.rows)], found.done, [(found.seen, first.rows)]
        for segment, cascade in self.coarse:
            more = run_until(cascade, prepared, plan, k, deadline)
            more = filled_up_until(cascade, prepared, plan, k, deadline, more)
            answers.append((more.scores, segment.positions(more.rows)))
            done = np.minimum(done, more.done)
            seen.append((more.seen, cascade.rows))
        if self.exact is not None:
            answers.append(self.exact.search(first.as_stored(prepared), k, self.live))
            seen.append((1.0, self.exact_rows))
        scores, rows = best_of(answers, k)
        share = sum(part * rows for part, rows in seen) / max(1, sum(rows for _, rows in seen))
        return replace(found, scores=scores, rows=rows, done=done, seen=share if plan.is_flat else found.seen)
