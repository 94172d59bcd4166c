"""Have the queries changed since calibration? Statistics of live searches against those of the calibration queries.

What is compared, for every live query: the exact score of its best hit, that of its tenth where ten were asked for, and
the depth of its hits in the coarse shortlist, where there is one. A plan that misses neighbours lowers the scores (on
real embeddings a plan of recall .83 moves the tenth score's distribution by .07) and has a depth of its own, so the
searches of each plan and k are compared with what the same plan returned for the calibration queries.

Rows that are added and deleted change the scores of either. What is tested is therefore not a score but its place among
those of the calibration queries over the same rows: places go on through updates. Without any the test is exact. With
them it is not: the calibration queries that stand around a place change by chance. A window ends before that counts for
much (see FAR), and simulated streams keep well within the allowance.

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
from collections.abc import Sequence
from threading import Lock

import numpy as np
import numpy.typing as npt

from funnel.engine.depth import Kept
from funnel.monitoring.exchangeability import CELLS, LARGEST_BLOCK, Exchangeability, cells_of
from funnel.monitoring.neighbours import RANKS
from funnel.monitoring.waiting import MOST_COMPARED, STATISTICS, Group, Reference, Waiting
from funnel.plan import Plan
from funnel.planning.remembered import Remembered
from indexes.forks import free_in_children

__all__ = ["ALARM", "MOST_COMPARED", "RANKS", "STATISTICS", "WINDOW", "Drift"]

ALARM = 0.01  # probability of ever raising an alarm, over an endless stream, while nothing has changed
# Queries in a window: as many as a calibration holds at most; with more the calibration sample would be what limits.
WINDOW = 5_000
BLOCK = 128  # live queries between two looks: one takes some 150 us, a little over 1 us a query; 64 take 2 us
MOST_WATCHED = 64  # plans, for one k each, that are watched, .7 MB each; budgets seldom ask for more than five
# A window ends where the distribution function of a reference differs from that at its beginning by more than this, as
# it does with a third more rows. Of 400 streams over rows that grow to six times as many, with 100 calibration queries,
# the smallest p-value was .11; with windows that do not end so, one was .006 and two were .011.
FAR = 0.1
# Queries that came between two writes of weight; fewer are let go, as a reference takes milliseconds to make.
FEWEST_TOGETHER = 8

Float32 = npt.NDArray[np.float32]


class Drift:
    """Watches what live queries get. Safe in threads.

    reference: what a plan returned for the calibration queries when asked for k, float32 [n, STATISTICS]: scores at
    RANKS and depth, NaN where there is none; None where it is not on record: searches under such a plan are counted
    and not compared.

    Windows w = 1, 2, … of a plan share the probability of a false alarm as 1 / (w (w + 1)), which sums to 1; so do
    the plans (each for one k) in the order they come; the two or three statistics get an equal part. It is a union
    bound, as all of them meet the same calibration sample.
    """

    def __init__(self, reference: Reference, seed: int = 0) -> None:
        self._reference = reference
        self._generator = np.random.default_rng(seed)
        self._watched: dict[tuple[Plan, int], _Watched | None] = {}
        self._waiting: Remembered[tuple[Plan, int], Waiting] = Remembered(most=MOST_WATCHED)
        self._adding, self._testing = free_in_children(Lock()), free_in_children(Lock())
        self.changed = False  # an alarm stays
        self.seen = 0
        self.compared = 0
        self.p_value = 1.0

    def see(self, scores: Float32, plan: Plan, kept: Kept = (), reference: Reference | None = None) -> bool:
        """Note the exact scores of one call, float32 [n, k], falling; True where they raised the alarm.

        kept: as `Cascade.traced` gives it; () where the depth is not known. reference: that of the rows which were
        searched; None: the first. The scores are copied. Every BLOCK queries of a plan are tested together, on the
        thread that brought the last.
        """
        key = (plan, scores.shape[1])
        with self._adding:
            self.seen += len(scores)
            if self.changed:
                return False
            if key not in self._watched and len(self._watched) >= MOST_WATCHED:
                return False
            waiting = self._waiting.get(key)
            if waiting is None:
                waiting = self._waiting[key] = Waiting()
            if waiting.add(scores, kept, plan, self._reference if reference is None else reference) < BLOCK:
                return False
            del self._waiting[key]
        with self._testing:
            if not self.changed:
                self._test(waiting.groups, *key)
                return self.changed
            return False

    def _test(self, groups: Sequence[Group], kind: Plan, k: int) -> None:
        """Compare what waited together."""
        for group in groups:
            columns = group.columns()
            if len(groups) > 1 and len(columns) < FEWEST_TOGETHER:
                continue
            watched = self._watching(group, kind, k)
            if watched is None:
                return
            for start in range(0, len(columns), LARGEST_BLOCK):
                compared, p_value = watched.look(columns[start : start + LARGEST_BLOCK])
                self.compared += compared
                self.p_value = min(self.p_value, p_value)
                self.changed = self.p_value <= ALARM
                if self.changed:
                    return

    def _watching(self, group: Group, kind: Plan, k: int) -> _Watched | None:
        """The tests of this kind of plan, ready for a group; None where there is nothing to compare it with."""
        key = (kind, k)
        watched = self._watched.get(key)
        if watched is None and (key in self._watched or len(self._watched) >= MOST_WATCHED):
            return None
        if watched is not None and group.takes(watched.plan, watched.reference):
            return watched
        found = group.reference(group.plan, k)
        places = None if found is None else _Places(found, group.plan)
        if watched is None:
            number = len(self._watched) + 1
            watched = self._watched[key] = None if places is None else _Watched(places, number, self._generator)
        if watched is None or places is None:
            return None
        watched.go_on(group.plan, group.reference, places)
        return watched


class _Places:
    """Where live searches stand among the calibration queries. reference: what a plan returned for these."""

    def __init__(self, reference: Float32, plan: Plan) -> None:
        columns = np.ascontiguousarray(reference, dtype=np.float32)
        self._deepest = max(1, plan.shortlist)  # places are compared as shares of it
        once = columns[np.unique(_keys(columns), return_index=True)[1]]
        known = ~np.isnan(once)
        self.cells = {i: np.sort(self._cells(once[known[:, i]], i)) for i in range(STATISTICS) if known[:, i].any()}

    def _cells(self, columns: Float32, i: int) -> npt.NDArray[np.int16]:
        return cells_of(columns[:, i] / self._deepest if i == STATISTICS - 1 else columns[:, i])

    def apart(self, other: _Places) -> float:
        """The largest difference of the distribution functions of a statistic that both know."""
        most = 0.0
        for i in self.cells.keys() & other.cells.keys():
            one, two = (np.bincount(cells, minlength=CELLS) / len(cells) for cells in (self.cells[i], other.cells[i]))
            most = max(most, float(np.abs(np.cumsum(one - two)).max()))
        return most

    def of(self, columns: Float32, i: int, generator: np.random.Generator) -> npt.NDArray[np.float64]:
        """The places by one statistic, from -1, below all calibration queries, to 1; ties are parted at random."""
        known, asked = self.cells[i], self._cells(columns[~np.isnan(columns[:, i])], i)
        lower = np.searchsorted(known, asked)
        equal = np.searchsorted(known, asked, "right") - lower
        shares = (lower + generator.random(len(asked)) * (equal + 1)) / (len(known) + 1)
        places: npt.NDArray[np.float64] = 2.0 * shares - 1.0
        return places


class _Watched:
    """The tests of one kind of plan, in the window that is running. number: which kind of plan it is, from 1."""

    def __init__(self, places: _Places, number: int, generator: np.random.Generator) -> None:
        self.plan: Plan | None = None
        self.reference: Reference | None = None
        self._places = places
        self._counts = {i: len(cells) for i, cells in places.cells.items()}
        self._share = math.log(max(1, len(self._counts)) * number * (number + 1))
        self._generator = generator
        self._window = 0
        self._begin()

    def go_on(self, plan: Plan, reference: Reference, places: _Places) -> None:
        """From now on places are those among what this reference gave of this plan."""
        self.plan, self.reference, self._places = plan, reference, places
        if places.apart(self._first) > FAR:
            self._begin()

    def _begin(self) -> None:
        self._window += 1
        self._first = self._places
        self._asked: set[int] = set()
        evenly = {i: np.linspace(-1.0, 1.0, count + 2)[1:-1] for i, count in self._counts.items()}
        self._tests = {i: Exchangeability(places, WINDOW, self._generator) for i, places in evenly.items()}

    def look(self, columns: Float32) -> tuple[int, float]:
        """Compare float32 [n, STATISTICS]: how many were new, and the p-value of the strongest evidence now."""
        fresh = columns[self._fresh(columns)]
        least = self._share + math.log(self._window * (self._window + 1))
        p_value = 1.0
        for i, test in self._tests.items():
            if i in self._places.cells:
                test.update(self._places.of(fresh, i, self._generator))
            p_value = min(p_value, math.exp(min(0.0, least - test.log_wealth)))
        if len(self._asked) >= WINDOW:
            self._begin()
        return len(fresh), p_value

    def _fresh(self, columns: Float32) -> list[int]:
        """The places of those that were not asked in this window before."""
        places = []
        for place, key in enumerate(_keys(columns).tolist()):
            if key not in self._asked:
                self._asked.add(key)
                places.append(place)
        return places


def _keys(columns: Float32) -> npt.NDArray[np.int64]:
    """One number for each row: queries with the very same scores are one query asked again."""
    keys: npt.NDArray[np.int64] = np.ascontiguousarray(columns[:, : len(RANKS)]).view(np.int64).ravel()
    return keys
