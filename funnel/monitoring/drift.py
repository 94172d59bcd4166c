"""Have the queries changed since calibration? Statistics of live searches against those of the calibration queries.

What is compared, for every live query: the exact score of its best hit, that of its tenth where ten were asked for, and
the depth of its hits in the coarse shortlist, where there is one. A plan that misses neighbours lowers the scores (on
real embeddings a plan of recall .83 moves the tenth score's distribution by .07) and has a depth of its own, so the
searches of each plan and k are compared with what the same plan returned for the calibration queries.

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
import torch

from funnel.depth import Kept, depths
from funnel.monitoring.exchangeability import LARGEST_BLOCK, Exchangeability
from funnel.plan import Plan

__all__ = ["ALARM", "RANKS", "STATISTICS", "WINDOW", "Drift"]

ALARM = 0.01  # probability of ever raising an alarm, over an endless stream, while nothing has changed
# Queries in a window: as many as a calibration holds at most; with more the calibration sample would be what limits.
WINDOW = 5_000
BLOCK = 128  # live queries between two looks: one takes some 150 us, a little over 1 us a query; 64 take 2 us
RANKS = (0, 9)  # the hits whose scores are compared: the best and the tenth
STATISTICS = len(RANKS) + 1  # the last is the depth
# Of one call, evenly spaced: a test costs 1 us a query, which counts where a batch takes 20 of them, and a change of
# queries shows within 160.
MOST_COMPARED = 512
MOST_WATCHED = 64  # plans, for one k each, that are watched, .7 MB each; budgets seldom ask for more than five

Float32 = npt.NDArray[np.float32]
Reference = Callable[[Plan, int], Float32 | None]


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
        self._pending: dict[tuple[Plan, int], _Pending] = {}
        self._adding, self._testing = Lock(), Lock()
        self.changed = False  # an alarm stays
        self.seen = 0
        self.compared = 0
        self.p_value = 1.0

    def see(self, scores: Float32, plan: Plan, kept: Kept = ()) -> bool:
        """Note the exact scores of one call, float32 [n, k], falling; True where they raised the alarm.

        kept: as `Cascade.traced` gives it; () where the depth is not known. The scores are copied. Every BLOCK queries
        of a plan are tested together, on the thread that brought the last.
        """
        key = (plan, scores.shape[1])
        with self._adding:
            self.seen += len(scores)
            if self.changed:
                return False
            pending = self._pending.get(key)
            if pending is None:
                pending = self._pending[key] = _Pending()
            if pending.add(scores, kept) < BLOCK:
                return False
            del self._pending[key]
        with self._testing:
            if not self.changed:
                self._test(pending.columns(), *key)
                return self.changed
            return False

    def _test(self, columns: Float32, plan: Plan, k: int) -> None:
        """Compare float32 [n, STATISTICS]."""
        key = (plan, k)
        if key not in self._watched:
            reference = self._reference(plan, k) if len(self._watched) < MOST_WATCHED else None
            number = len(self._watched) + 1
            self._watched[key] = None if reference is None else _Watched(reference, plan, number, self._generator)
        watched = self._watched[key]
        if watched is None:
            return
        for start in range(0, len(columns), LARGEST_BLOCK):
            compared, p_value = watched.look(columns[start : start + LARGEST_BLOCK])
            self.compared += compared
            self.p_value = min(self.p_value, p_value)
            self.changed = self.p_value <= ALARM
            if self.changed:
                return


class _Pending:
    """Searches under one plan that wait for a look. Single queries are noted as numbers: half a microsecond each."""

    def __init__(self) -> None:
        self._count = 0
        self._best: list[float] = []
        self._tenth: list[float] = []
        self._kept: list[Kept] = []
        self._parts: list[Float32] = []

    def add(self, scores: Float32, kept: Kept) -> int:
        """Take in one call, float32 [n, k]; gives how many queries wait."""
        count, k = scores.shape
        if count > 1:
            step = -(-count // MOST_COMPARED)
            few = tuple(places[::step] for places in kept)
            self._parts.append(_columns(scores[::step], few))
        else:
            self._best.append(scores.item(0))
            self._tenth.append(scores.item(RANKS[1]) if k > RANKS[1] else math.nan)
            self._kept.append(kept if scores.item(k - 1) > -math.inf else ())
        self._count += count
        return self._count

    def columns(self) -> Float32:
        """Everything that waits: float32 [n, STATISTICS]."""
        single = np.full((len(self._best), STATISTICS), math.nan, dtype=np.float32)
        single[:, 0], single[:, 1] = self._best, self._tenth
        single[np.isneginf(single)] = math.nan
        known = [number for number, kept in enumerate(self._kept) if kept]
        if known:
            steps = zip(*(self._kept[number] for number in known), strict=True)
            single[known, -1] = depths(tuple(torch.cat(step) for step in steps))
        return np.concatenate([single, *self._parts])


def _columns(scores: Float32, kept: Kept) -> Float32:
    """What is compared of one call: float32 [n, STATISTICS]."""
    found = np.full((len(scores), STATISTICS), math.nan, dtype=np.float32)
    found[:, 0] = scores[:, 0]
    if scores.shape[1] > RANKS[1]:
        found[:, 1] = scores[:, RANKS[1]]
    found[np.isneginf(found)] = math.nan  # fewer rows than hits asked for
    if kept:
        found[:, -1] = depths(kept)
        found[scores[:, -1] == -math.inf, -1] = math.nan  # places without a candidate are nowhere
    return found


class _Watched:
    """The tests of one plan, in the window that is running. number: which plan it is, from 1."""

    def __init__(self, reference: Float32, plan: Plan, number: int, generator: np.random.Generator) -> None:
        columns = np.ascontiguousarray(reference, dtype=np.float32)
        self._deepest = max(1, *(part.shortlist for part in plan.parts))  # places are compared as shares of it
        once = self._scaled(columns[np.unique(_keys(columns), return_index=True)[1]])
        known = ~np.isnan(once)
        self._reference = {i: once[known[:, i], i] for i in range(STATISTICS) if known[:, i].any()}
        self._share = math.log(max(1, len(self._reference)) * number * (number + 1))
        self._generator = generator
        self._window = 0
        self._begin()

    def _scaled(self, columns: Float32) -> Float32:
        scaled = columns.copy()
        scaled[:, -1] /= self._deepest
        return scaled

    def _begin(self) -> None:
        self._window += 1
        self._asked: set[int] = set()
        self._tests = {i: Exchangeability(values, WINDOW, self._generator) for i, values in self._reference.items()}

    def look(self, columns: Float32) -> tuple[int, float]:
        """Compare float32 [n, STATISTICS]: how many were new, and the p-value of the strongest evidence now."""
        fresh = self._scaled(columns[self._fresh(columns)])
        least = self._share + math.log(self._window * (self._window + 1))
        p_value = 1.0
        for i, test in self._tests.items():
            column = fresh[:, i]
            test.update(column[~np.isnan(column)])
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
