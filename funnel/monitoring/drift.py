"""Have the queries changed since calibration? Live top scores against those of the calibration queries.

What is compared, for every live query: the exact score of its best hit, and of its tenth where ten were asked for.
Both are full-width scores, whatever plan ran; a plan that misses a neighbour lowers them a little, far less than
what the test can see (benchmarks: drift). Queries are compared in windows, each with the calibration sample afresh: so
the test sees what a sample of that size can tell, no slow change inside the live traffic that the certificate's own
margin covers, and its memory is bounded.

A query that is asked again within a window is not counted again, in the calibration sample no more than in live
traffic: what is tested is which queries come, not how often each does.
"""

from __future__ import annotations

import math
from threading import Lock

import numpy as np
import numpy.typing as npt

from funnel.monitoring.exchangeability import LARGEST_BLOCK, Exchangeability

__all__ = ["ALARM", "WINDOW", "Drift"]

ALARM = 0.01  # probability of ever raising an alarm, over an endless stream, while nothing has changed
# Queries in a window: as many as a calibration holds at most; with more the calibration sample would be what limits.
WINDOW = 5_000
BLOCK = 64  # live queries between two looks: one takes some 200 us, 3 us a query
RANKS = (0, 9)  # the hits whose scores are compared: the best and the tenth

Scores = npt.NDArray[np.float32]


class Drift:
    """Watches the top scores of live queries. Safe in threads.

    reference: float32 [n, at least 10], the true scores of the calibration queries, falling.

    Windows w = 1, 2, … share the probability of a false alarm as 1 / (w (w + 1)), which sums to 1, and the two
    statistics halve it: a union bound, as all of them meet the same calibration sample.
    """

    def __init__(self, reference: Scores, seed: int = 0) -> None:
        columns = np.ascontiguousarray(reference[:, RANKS], dtype=np.float32)
        self._reference = columns[np.sort(np.unique(_keys(columns), return_index=True)[1])]
        self._generator = np.random.default_rng(seed)
        self._pending: list[Scores] = []
        self._waiting = 0
        self._seen = 0
        self._adding, self._testing = Lock(), Lock()
        self.compared = 0
        self.p_value = 1.0
        self._window = 0
        self._begin()

    def _begin(self) -> None:
        self._window += 1
        self._keys: set[int] = set()
        self._tests = [Exchangeability(column, WINDOW, self._generator) for column in self._reference.T]
        self._shares = math.log(len(RANKS) * self._window * (self._window + 1))

    @property
    def seen(self) -> int:
        """Live queries so far, repeats among them."""
        return self._seen

    @property
    def changed(self) -> bool:
        """Whether the queries have changed: an alarm, that stays."""
        return self.p_value <= ALARM

    def see(self, scores: Scores) -> bool:
        """Note the exact scores of one call, float32 [n, k], falling; True where they raised the alarm.

        The scores are copied; every BLOCK queries are tested together, on the thread that brought the last.
        """
        kept = np.empty((len(scores), len(RANKS)), dtype=np.float32)
        kept[:, 0] = scores[:, 0]
        kept[:, 1] = scores[:, RANKS[1]] if scores.shape[1] > RANKS[1] else math.nan
        with self._adding:
            self._seen += len(kept)
            if self.changed:
                return False
            self._pending.append(kept)
            self._waiting += len(kept)
            if self._waiting < BLOCK:
                return False
            pending, self._pending, self._waiting = self._pending, [], 0
        with self._testing:
            before = self.changed
            self._test(np.concatenate(pending))
            return self.changed and not before

    def _test(self, columns: Scores) -> None:
        """Compare float32 [n, 2]."""
        for start in range(0, len(columns), LARGEST_BLOCK):
            if self.changed:
                return
            self._look(self._fresh(columns[start : start + LARGEST_BLOCK]))
            if len(self._keys) >= WINDOW:
                self._begin()

    def _fresh(self, columns: Scores) -> Scores:
        """Those that were not asked in this window before."""
        fresh = []
        for number, key in enumerate(_keys(columns).tolist()):
            if key not in self._keys:
                self._keys.add(key)
                fresh.append(number)
        return columns[fresh]

    def _look(self, columns: Scores) -> None:
        self.compared += len(columns)
        for test, column in zip(self._tests, columns.T, strict=True):
            test.update(column[~np.isnan(column)])
            self.p_value = min(self.p_value, math.exp(min(0.0, self._shares - test.log_wealth)))


def _keys(columns: Scores) -> npt.NDArray[np.int64]:
    """One number for each row of two scores: queries with the very same scores are one query asked again."""
    keys: npt.NDArray[np.int64] = np.ascontiguousarray(columns).view(np.int64).ravel()
    return keys
