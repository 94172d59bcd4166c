"""Have the queries changed since calibration? Scores of live searches against those of the calibration queries.

What is compared, for every live query: the exact score of its best hit, and that of its tenth where ten were asked for.
A plan that misses neighbours lowers the scores (on real embeddings a plan of recall .83 moves the tenth score's
distribution by .07), so the searches of each plan and k are compared with what the same plan returned for the
calibration queries.

Rows that are added and deleted change the scores of either. What is tested is therefore not a score but its place among
those of the calibration queries over the same rows: places go on through updates. Without any the test is exact. With
them it is not: the calibration queries that stand around a place change by chance. Of 400 simulated streams over rows
that grow to six times as many, the smallest p-value was .006 and two were .011, where four below .01 are allowed.

Queries are compared in windows, each with the calibration sample afresh. So the test sees what a sample of that size
can tell, and nothing smaller, however long the traffic; and its memory is bounded.

A query that is asked again within a window is not counted again, in the calibration sample no more than in live
traffic: what is tested is which queries come, not how often each does. In traffic the popular ones come first all the
same: on real embeddings, calls drawn by Zipf's law raised no alarm in 360 streams where what is popular had nothing to
do with its scores, and soon in nearly all where it had. That is a change: the certificate, which is of distinct
queries, does not speak of most calls then.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from threading import Lock
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from funnel.plan import Plan
from funnel.planning.calibration import Calibration
from funnel.planning.run import Float32
from indexes.system import free_in_children

__all__ = ["ALARM", "RANKS", "WINDOW", "Drift", "Exchangeability", "LiveRows", "Reference"]

Floats = npt.NDArray[np.float64]
Returned: TypeAlias = "Callable[[Plan, int], Float32 | None]"  # of the calibration queries, by plan and k
LiveRows: TypeAlias = tuple[int, int]  # how many rows a generation has, and how many of them were deleted

RANKS = slice(0, 10, 9)  # the hits whose scores are compared: the best, and the tenth of ten or more
# Cosines are ranked in cells of this width: rounding (1e-7) must make no rank, and a hundredth of the usual spread
# of top scores (.02 to .15) is fine enough.
CELLS_PER_UNIT = 4_096
CELLS = 2 * CELLS_PER_UNIT + 1  # from -1 to 1
LARGEST_BLOCK = 256  # values ranked against each other at once: 65,536 comparisons take some 20 us
# Bets are the densities of Beta(a, b) for every a and b of these: ranks shifted up or down, drawn together or apart.
SHAPES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0)
A, B = (np.array(shapes) for shapes in zip(*((a, b) for a in SHAPES for b in SHAPES), strict=True))
LOG_BETA = np.array([math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b) for a, b in zip(A, B, strict=True)])
FROM_THE_START = 0.5  # share of the wealth that bets from the first value on; the rest enters as values come
SMALLEST_RANK = 1e-12  # a rank of exactly 0 or 1 would make some bets infinite
EARLIER = np.tri(LARGEST_BLOCK, k=-1, dtype=bool)


class Exchangeability:
    """The wealth of one gambler against "these values go on like the reference".

    reference: float [n], in [-1, 1], in any order. horizon: how many values are to come at most: wealth that enters
    late, for a change that comes late, is spread evenly over them. The bets on a change at each value are those of
    a mixture over its place: Vovk et al. 2021, section 4.
    """

    def __init__(self, reference: npt.NDArray[np.floating], horizon: int, generator: np.random.Generator) -> None:
        self._counts = np.bincount(cells_of(reference), minlength=CELLS)
        self._generator = generator
        self._entering = (1.0 - FROM_THE_START) / horizon
        self._kept = 1.0 - FROM_THE_START  # wealth that has not entered yet
        self._logs = np.full(len(A), math.log(FROM_THE_START / len(A)))  # of what each bet has made
        self.count = 0

    @property
    def log_wealth(self) -> float:
        """The logarithm of the wealth now: 0 at the start; log w is reached by chance with probability 1 / w."""
        return float(np.logaddexp.reduce([*self._logs, math.log(max(self._kept, np.finfo(float).tiny))]))

    def update(self, values: npt.NDArray[np.floating]) -> None:
        """Bet on the next values, float [n], in the order they came."""
        for start in range(0, len(values), LARGEST_BLOCK):
            cells = cells_of(values[start : start + LARGEST_BLOCK])
            ranks = np.clip(self._ranks(cells), SMALLEST_RANK, 1.0 - SMALLEST_RANK)
            growth = (A - 1.0) * np.log(ranks).sum() + (B - 1.0) * np.log1p(-ranks).sum() - len(ranks) * LOG_BETA
            self._logs += growth
            # What enters now was set aside for the values just seen, and bets from the next block on.
            enters = min(self._kept, self._entering * len(ranks))
            self._kept -= enters
            if enters:
                self._logs = np.logaddexp(self._logs, math.log(enters / len(A)))
            self.count += len(ranks)

    def _ranks(self, cells: npt.NDArray[np.int16]) -> Floats:
        """The rank in [0, 1] of each value among the reference, all values before it and itself; these then join."""
        counts = self._counts
        earlier, others, known = EARLIER[: len(cells), : len(cells)], cells[:, None], counts[cells]
        lower = np.cumsum(counts)[cells] - known + ((cells < others) & earlier).sum(axis=1, dtype=np.int16)
        equal = known + ((cells == others) & earlier).sum(axis=1, dtype=np.int16) + 1
        size = counts.sum() + np.arange(1, len(cells) + 1)
        np.add.at(counts, cells, 1)
        ranks: Floats = (lower + self._generator.random(len(cells)) * equal) / size
        return ranks


def cells_of(values: npt.NDArray[np.floating]) -> npt.NDArray[np.int16]:
    """The number of each value's cell; -inf, where a search found nothing, lies in the first."""
    cells: npt.NDArray[np.int16] = np.rint((np.clip(values, -1.0, 1.0) + 1.0) * CELLS_PER_UNIT).astype(np.int16)
    return cells


class Reference:
    """What plans return for the calibration queries at one generation. Nothing is read before it is asked for."""

    def __init__(self, calibration: Calibration) -> None:
        self._calibration = calibration

    @cached_property
    def _added(self) -> Float32 | None:
        """The best scores among rows added since calibration, float32 [q, any]; None where there are none."""
        added, run = self._calibration.added, self._calibration.runs()[1]
        return None if added is None or run is None else added(np.ascontiguousarray(run.queries))

    def __call__(self, plan: Plan, k: int) -> Float32 | None:
        """Of a search for k: the exact scores of the hits at RANKS, float32 [q, 1 or 2], -inf where there is none.

        q: the real queries. None where the plan cannot be followed on the record.
        """
        found = self._followed(plan, k)
        if found is None:
            return None
        if self._added is not None:
            found = -np.sort(-np.concatenate([found, self._added], axis=1), axis=1)
        lacking = max(0, k - found.shape[1])
        return np.pad(found[:, :k], ((0, 0), (0, lacking)), constant_values=-np.inf)[:, RANKS]

    def _followed(self, plan: Plan, k: int) -> Float32 | None:
        run = self._calibration.runs()[1]
        if run is None or plan.is_flat:
            return None if run is None else run.truth[:, :k]
        if not run.follows(plan):
            return None
        scores = torch.from_numpy(run.scores_at(plan.effort, shortlist=plan.shortlist))
        for stage in plan.stages:
            places = torch.topk(scores[:, :, run.widths.index(stage.width)], stage.keep, dim=1).indices
            scores = scores.gather(1, places[:, :, None].expand(-1, -1, scores.shape[2]))
        best: Float32 = torch.topk(scores[:, :, -1], min(k, scores.shape[1]), dim=1).values.numpy()
        if best.shape[1] == k:  # answered exactly where there were too few candidates: see funnel.engine.steps.search
            best = np.where(np.isneginf(best[:, -1:]), run.truth[:, :k], best)
        return best


ALARM = 0.01  # probability of ever raising an alarm, over an endless stream, while nothing has changed
# Queries in a window: as many as a calibration holds at most; with more the calibration sample would be what limits.
WINDOW = 5_000
BLOCK = 128  # live queries between two looks: one takes 200 to 350 us, some 2 us a query; 64 take twice as much
MOST_WATCHED = 16  # plans, for one k each, that are watched, .4 MB each; budgets seldom ask for more than five
# Of one call, evenly spaced: a test costs 2 us a query, which counts where a batch takes 20 of them, and a change of
# queries shows within 160.
MOST_COMPARED = 512
# Queries that came between two writes of weight; fewer are let go, as a reference takes milliseconds to make.
FEWEST_TOGETHER = 8
# A reference goes on until so large a share of the rows was added or deleted: with such a share more, the distribution
# function of the best score of 2,000 queries over 40,000 embeddings moved by .0015 and that of the tenth by .003, and a
# window of 5,000 queries against as many tells .04 from nothing. The search that next needs a new one makes it.
CHANGED = 0.005


class Drift:
    """Watches what live queries get. Safe in threads.

    reference: what a plan returned for the calibration queries when asked for k: see `Reference`. Searches under a plan
    that is not on record are counted and not compared. rows: those that are searched.

    Windows w = 1, 2, … of a plan share the probability of a false alarm as 1 / (w (w + 1)), which sums to 1; so do
    the plans (each for one k) in the order they come; the one or two statistics get an equal part. It is a union
    bound, as all of them meet the same calibration sample.
    """

    def __init__(self, reference: Returned, seed: int = 0, rows: LiveRows = (0, 0)) -> None:
        self._reference, self._rows = reference, rows
        self._written = 0  # rows added or deleted since the reference
        self._generator = np.random.default_rng(seed)
        self._watched: dict[tuple[Plan, int], _Watched] = {}
        self._waiting: dict[tuple[Plan, int], tuple[Returned, list[list[float]]]] = {}
        self._adding, self._testing = free_in_children(Lock()), free_in_children(Lock())
        self.changed = False  # an alarm stays
        self.seen = 0
        self.compared = 0
        self.p_value = 1.0

    def follow(self, reference: Returned, rows: LiveRows) -> None:
        """Rows were added or deleted. reference: as it speaks of them; that before goes on while few have changed."""
        with self._adding:
            self._written += sum(abs(now - then) for now, then in zip(rows, self._rows, strict=True))
            self._rows = rows
            if self._written > CHANGED * rows[0] or not self.seen:
                self._reference, self._written = reference, 0

    def see(self, scores: Float32, plan: Plan) -> bool:
        """Note the exact scores of one call, float32 [n, k], falling; True where they raised the alarm.

        The scores are copied. Every BLOCK queries of a plan are tested together, and so are fewer once rows have
        changed, on the thread that brought the last.
        """
        key = (plan, scores.shape[1])
        with self._adding:
            self.seen += len(scores)
            if self.changed or (len(self._watched) >= MOST_WATCHED and key not in self._watched):
                return False
            reference, waiting = self._waiting.pop(key, (self._reference, []))
            due = []
            if reference is not self._reference:
                due = [(reference, waiting)] if len(waiting) >= FEWEST_TOGETHER else []
                reference, waiting = self._reference, []
            waiting += scores[:: -(-len(scores) // MOST_COMPARED), RANKS].tolist()
            if len(waiting) >= BLOCK:
                due.append((reference, waiting))
            else:
                self._waiting[key] = reference, waiting
                if len(self._waiting) > MOST_WATCHED:
                    del self._waiting[next(iter(self._waiting))]
            if not due:
                return False
        with self._testing:
            return not self.changed and any(self._test(key, *one) for one in due)

    def _test(self, key: tuple[Plan, int], reference: Returned, found: list[list[float]]) -> bool:
        """Compare what waited together; whether that raised the alarm."""
        watched = self._watched.get(key)
        if watched is None or watched.reference is not reference:
            returned = reference(*key)
            if returned is None:
                return False
            if watched is None:
                watched = self._watched[key] = _Watched(returned, len(self._watched) + 1, self._generator)
            watched.follow(reference, returned)
        for start in range(0, len(found), LARGEST_BLOCK):
            compared, p_value = watched.look(found[start : start + LARGEST_BLOCK])
            self.compared += compared
            self.p_value = min(self.p_value, p_value)
            if self.p_value <= ALARM:
                self.changed = True
                break
        return self.changed


class _Watched:
    """The tests of one plan and k, in the window that is running. number: which of the plans it is, from 1."""

    def __init__(self, returned: Float32, number: int, generator: np.random.Generator) -> None:
        self.reference: Returned | None = None
        once = np.unique(returned, axis=0)
        self._evenly = [np.linspace(-1.0, 1.0, len(once) + 2)[1:-1]] * once.shape[1]
        self._share = math.log(len(self._evenly) * number * (number + 1))
        self._generator = generator
        self._window = 0
        self._begin()

    def follow(self, reference: Returned, returned: Float32) -> None:
        """From now on places are those among what this reference gave."""
        self.reference = reference
        self._known = np.sort(cells_of(np.unique(returned, axis=0)), axis=0).T

    def _begin(self) -> None:
        self._window += 1
        self._asked: set[int] = set()  # hashes: queries with the very same scores are one query asked again
        self._tests = [Exchangeability(places, WINDOW, self._generator) for places in self._evenly]

    def look(self, found: list[list[float]]) -> tuple[int, float]:
        """Compare scores at RANKS [n, 1 or 2]: how many were new, and the p-value of the strongest evidence now."""
        fresh = [row for row in dict.fromkeys(map(tuple, found)) if hash(row) not in self._asked]
        self._asked.update(map(hash, fresh))
        least = self._share + math.log(self._window * (self._window + 1))
        p_value = 1.0
        for test, known, scores in zip(self._tests, self._known, zip(*fresh, strict=True), strict=False):
            test.update(self._places(known, cells_of(np.array(scores, dtype=np.float32))))
            p_value = min(p_value, math.exp(min(0.0, least - test.log_wealth)))
        if len(self._asked) >= WINDOW:
            self._begin()
        return len(fresh), p_value

    def _places(self, known: npt.NDArray[np.int16], cells: npt.NDArray[np.int16]) -> Floats:
        """From -1, below all calibration queries, to 1; ties are parted at random."""
        lower = np.searchsorted(known, cells)
        equal = np.searchsorted(known, cells, "right") - lower
        return (lower + self._generator.random(len(cells)) * (equal + 1)) / (len(known) + 1) * 2.0 - 1.0
