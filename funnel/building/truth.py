"""Truth by the rows as given: exact search while they stream by, before they are rounded to be stored."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from funnel.adaptors import Adaptor
from funnel.building.calibrate import CORPUS_ROWS, Near
from funnel.building.intake import Intake
from funnel.building.queries import SAME_COSINE
from funnel.planning.calibration import NEAR, given_scores, without_own
from funnel.planning.storage_cost import EXACT_ENOUGH, StorageCost
from indexes import RunningTop

__all__ = ["RowsAsGiven"]

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

# Rows compared at a time: 25 MB as float32. Smaller blocks spend their time on joining answers.
CELLS_AT_A_TIME = 6_291_456
# There is no third type between them. On 400 groups of 25 near-equal rows of 768 dims, a few of which are large, exact
# search over float16 keeps .50 of the true top 10; over float16 of columns scaled to one range .50, as its 11 bits are
# relative anyway; of rows less their mean .991; over float32 cut to 24 bits .915; over float16 and the rest as int8, 3
# bytes together, .998. None reaches what is called exact, and each would need kernels of its own.
NARROW, WIDE = "float16", "float32"
JUDGED_AT = 10  # the k at which float16 is judged
# Sums of two rows that float16 is judged on, beside the rows: queries from afar. To them, rows that lie close together
# differ by more than ties allow for: of 40 groups of copies 1e-4 apart, float16 keeps all that rows find, and
# .28 of what queries find. On other sets sums lie up to .0004 below rows, and real queries between the two.
BETWEEN = 500
SUMS_KEPT = 0.998
SMALLEST_SUM = 1e-3  # of two unit rows: below it they point away from each other, and rounding is all that is left


class RowsAsGiven:
    """Exact search for held-out rows and real queries, over rows that are shown batch by batch in input order.

    held_out: float32 [c, d], rows drawn evenly, as given; own: int64 [c], their input positions. real: float32 [q, d]
    unit rows, or None. Truth of an adaptor that changes the full width lies in its own space.
    """

    def __init__(self, intake: Intake, adaptor: Adaptor, real: Float32 | None, judge: bool, seed: int) -> None:
        drawn = np.random.default_rng(seed).permutation(len(intake.sample))[: min(CORPUS_ROWS, -(-intake.count // 2))]
        self.held_out, self.own = intake.sample[drawn], intake.sampled[drawn]
        self._adaptor, self._dim = adaptor, intake.dim
        self._depth = min(JUDGED_AT, intake.count - 1)
        judge = judge and self._depth > 0
        between = _sums(self.held_out[: BETWEEN + 1] if judge else self.held_out[:0])
        real = between[:0] if real is None else real
        self._starts = np.cumsum([len(self.held_out), len(between)])
        queries = np.concatenate([self.held_out, between, real])
        self._true = RunningTop(self._in_space(queries), min(NEAR + 1, intake.count))
        self._narrow: RunningTop | None = None
        if judge:
            self._narrow = RunningTop(adaptor.unit_transform(queries[: self._starts[1]]), self._depth + 1)
        # Where truth lies in another space, whether a query is a row is still asked in the user's own.
        self._own_space = None if real is None or adaptor.isometric else RunningTop(real, 1)
        self._waiting: list[Float32] = []
        self._cells = self._done = 0

    def watch(self, rows: Float32) -> None:
        """Take in the next rows as given: float32 [c, d]."""
        self._waiting.append(rows)
        self._cells += rows.size
        if self._cells >= CELLS_AT_A_TIME:
            self._compare()

    def finish(self) -> None:
        """Compare with what is still waiting."""
        if self._waiting:
            self._compare()

    def near(self, positions: Int64) -> tuple[Near, Near | None]:
        """What the held-out rows and the real queries found: scores and stored rows. positions: input -> stored."""
        (count, start), rows = self._starts, positions[self._true.rows]
        real = (self._true.scores[start:], rows[start:]) if len(rows) > start else None
        return (self._true.scores[:count], rows[:count]), real

    def equal(self) -> npt.NDArray[np.bool_]:
        """Which of the real queries are, up to rounding, rows of the corpus: bool [q]."""
        best = self._true.scores[self._starts[1] :] if self._own_space is None else self._own_space.scores
        equal: npt.NDArray[np.bool_] = best[:, 0] >= SAME_COSINE
        return equal

    def narrowest(self) -> tuple[str, float]:
        """The type to store rows in, and the share of the true top 10 that exact search over float16 rows keeps.

        The top 10 of held-out rows; of sums of two of them where that is what tells against float16.
        """
        if self._narrow is None:
            return NARROW, 1.0
        count, stop = self._starts
        near = self._true.scores[:stop], self._true.rows[:stop]
        own = np.concatenate([self.own, np.full(stop - count, -1)])  # a sum is no row
        true = without_own(*near, own, self._depth)[0]
        scores, rows = without_own(self._narrow.scores, self._narrow.rows, own, self._depth)
        each = StorageCost(given_scores(near, rows, scores), true).kept(self._depth)
        kept, between = float(each[:count].mean()), float(each[count:].mean()) if stop > count else 1.0
        if between < SUMS_KEPT:
            return WIDE, min(kept, between)
        return (NARROW if kept >= EXACT_ENOUGH else WIDE), kept

    def _in_space(self, rows: Float32) -> Float32:
        """Rows where truth lies: the user's own space, unless the adaptor changes the full width."""
        return np.ascontiguousarray(rows if self._adaptor.isometric else self._adaptor.unit_transform(rows))

    def _compare(self) -> None:
        block = self._waiting[0] if len(self._waiting) == 1 else np.concatenate(self._waiting)
        self._waiting, self._cells = [], 0
        self._true.update(self._in_space(block), self._done)
        if self._own_space is not None:
            self._own_space.update(block, self._done)
        if self._narrow is not None:
            stored = self._adaptor.unit_transform(block).astype(np.float16).astype(np.float32)
            self._narrow.update(stored, self._done)
        self._done += len(block)


def _sums(rows: Float32) -> Float32:
    """Of each row and the next, scaled to unit length: float32 [c - 1, d]; of opposite rows there is none."""
    sums = rows[:-1] + rows[1:]
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    between: Float32 = (sums / np.maximum(norms, np.finfo(np.float32).tiny))[norms[:, 0] > SMALLEST_SUM]
    return between
