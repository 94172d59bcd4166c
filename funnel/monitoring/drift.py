"""Have the queries changed since calibration? Live top scores against those of the calibration queries.

What is compared, for every live query: the exact score of its best hit, and of its tenth where ten were asked for. A
plan that misses neighbours lowers both (on real embeddings a plan of recall .83 moves the tenth score's distribution
by .07), so the searches of each plan are compared with what the same plan returned for the calibration queries.

Queries are compared in windows, each with the calibration sample afresh. So the test sees what a sample of that size
can tell, and nothing smaller, however long the traffic; and its memory is bounded.

A query that is asked again within a window is not counted again, in the calibration sample no more than in live
traffic: what is tested is which queries come, not how often each does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from threading import Lock

import numpy as np
import numpy.typing as npt

from funnel.monitoring.exchangeability import LARGEST_BLOCK, Exchangeability
from funnel.plan import Plan

__all__ = ["ALARM", "RANKS", "WINDOW", "Drift"]

ALARM = 0.01  # probability of ever raising an alarm, over an endless stream, while nothing has changed
# Queries in a window: as many as a calibration holds at most; with more the calibration sample would be what limits.
WINDOW = 5_000
BLOCK = 64  # live queries between two looks: one takes some 200 us, 3 us a query
RANKS = (0, 9)  # the hits whose scores are compared: the best and the tenth
MOST_PLANS = 64  # plans that are watched, .5 MB each; budgets seldom ask for more than five

Scores = npt.NDArray[np.float32]


class Drift:
    """Watches the top scores of live queries. Safe in threads.

    reference: the scores at RANKS that a plan returned for the calibration queries, float32 [n, 2], NaN where it
    returned fewer; None where it is not on record: searches under such a plan are counted and not compared.

    Windows w = 1, 2, … of a plan share the probability of a false alarm as 1 / (w (w + 1)), which sums to 1; so do
    the plans in the order they come; the two statistics halve it. It is a union bound, as all of them meet the same
    calibration sample.
    """

    def __init__(self, reference: Callable[[Plan], Scores | None], seed: int = 0) -> None:
        self._reference = reference
        self._generator = np.random.default_rng(seed)
        self._plans: dict[Plan, _Watched | None] = {}
        self._pending: dict[Plan, _Pending] = {}
        self._adding, self._testing = Lock(), Lock()
        self.seen = 0
        self.compared = 0
        self.p_value = 1.0

    @property
    def changed(self) -> bool:
        """Whether the queries have changed: an alarm, that stays."""
        return self.p_value <= ALARM

    def see(self, scores: Scores, plan: Plan) -> bool:
        """Note the exact scores of one call, float32 [n, k], falling; True where they raised the alarm.

        The scores are copied. Every BLOCK queries of a plan are tested together, on the thread that brought the last.
        """
        kept = np.empty((len(scores), len(RANKS)), dtype=np.float32)
        kept[:, 0] = scores[:, 0]
        kept[:, 1] = scores[:, RANKS[1]] if scores.shape[1] > RANKS[1] else math.nan
        with self._adding:
            self.seen += len(kept)
            if self.changed:
                return False
            pending = self._pending.get(plan)
            if pending is None:
                pending = self._pending[plan] = _Pending()
            pending.parts.append(kept)
            pending.count += len(kept)
            if pending.count < BLOCK:
                return False
            del self._pending[plan]
        with self._testing:
            if self.changed:
                return False
            self._test(np.concatenate(pending.parts), plan)
            return self.changed

    def _test(self, columns: Scores, plan: Plan) -> None:
        """Compare float32 [n, 2]."""
        if plan not in self._plans:
            reference = self._reference(plan) if len(self._plans) < MOST_PLANS else None
            number = len(self._plans) + 1
            self._plans[plan] = None if reference is None else _Watched(reference, number, self._generator)
        watched = self._plans[plan]
        if watched is None:
            return
        for start in range(0, len(columns), LARGEST_BLOCK):
            compared, p_value = watched.look(columns[start : start + LARGEST_BLOCK])
            self.compared += compared
            self.p_value = min(self.p_value, p_value)
            if self.changed:
                return


class _Pending:
    """Scores of one plan that wait for a look."""

    def __init__(self) -> None:
        self.parts: list[Scores] = []
        self.count = 0


class _Watched:
    """The tests of one plan, in the window that is running. number: which plan it is, from 1."""

    def __init__(self, reference: Scores, number: int, generator: np.random.Generator) -> None:
        columns = np.ascontiguousarray(reference, dtype=np.float32)
        self._reference = columns[np.unique(_keys(columns), return_index=True)[1]]
        self._share = math.log(len(RANKS) * number * (number + 1))
        self._generator = generator
        self._window = 0
        self._begin()

    def _begin(self) -> None:
        self._window += 1
        self._asked: set[int] = set()
        self._tests = [
            Exchangeability(column[~np.isnan(column)], WINDOW, self._generator) for column in self._reference.T
        ]

    def look(self, columns: Scores) -> tuple[int, float]:
        """Compare float32 [n, 2]: how many were new, and the p-value of the strongest evidence now."""
        fresh = columns[self._fresh(columns)]
        least = self._share + math.log(self._window * (self._window + 1))
        p_value = 1.0
        for test, column in zip(self._tests, fresh.T, strict=True):
            test.update(column[~np.isnan(column)])
            p_value = min(p_value, math.exp(min(0.0, least - test.log_wealth)))
        if len(self._asked) >= WINDOW:
            self._begin()
        return len(fresh), p_value

    def _fresh(self, columns: Scores) -> list[int]:
        """The places of those that were not asked in this window before."""
        places = []
        for place, key in enumerate(_keys(columns).tolist()):
            if key not in self._asked:
                self._asked.add(key)
                places.append(place)
        return places


def _keys(columns: Scores) -> npt.NDArray[np.int64]:
    """One number for each row of two scores: queries with the very same scores are one query asked again."""
    keys: npt.NDArray[np.int64] = np.ascontiguousarray(columns).view(np.int64).ravel()
    return keys
