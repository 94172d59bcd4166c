"""The true recall of live searches: flat search is run for a sample of them, and an interval kept that is always valid.

Confidence sequence by betting: Waudby-Smith & Ramdas, "Estimating means of bounded random variables by betting",
JRSS-B 2023, sections 4 and 5. For each r a gambler bets on the mean being above it, another on its being below, each
with a fixed mixture of stakes; the interval holds every r at which neither has reached 2 / delta. As the stakes do not
depend on the values, neither does the wealth on their order: how often each recall was seen is all that is kept.

Flat search runs over the rows as stored. What storage was measured to cost against the rows as given is taken off, and
its bound, at a tenth of delta, widens the interval: of k rows returned, those among the true top k by the rows as given
differ in number from those by the rows as stored by no more than the true ones that storage lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock

import numpy as np
import numpy.typing as npt

from funnel.errors import InputError
from funnel.planning.remembered import Remembered
from funnel.planning.run import SHARE_OF_DELTA, TIE_TOLERANCE
from indexes.system import free_in_children

__all__ = ["AUDIT_DELTA", "DEFAULT_AUDIT", "Audit", "AuditLine", "checked_share", "running_interval", "true_recalls"]

DEFAULT_AUDIT = 0.01  # share of searches: where flat takes 100 times as long, time doubles
AUDIT_DELTA = 0.05  # the interval covers the mean, at all times together, with probability .95 at least
BROKEN_DELTA = 0.01  # a promise counts as broken where its recall is refuted at this level
STAKES = 32  # on the grid; twice as many move the interval by less than 1e-3
SMALLEST_STAKE = 1e-3  # as a share of the largest, at which one value of nothing would take all
MOST_LINES = 256  # budgets and ks that are counted apart; of others those that came last
HALVINGS = 20  # of [0, 1]: 1e-6, below the resolution of any recall

Counts = npt.NDArray[np.int64]
# k and delta -> what storage costs of recall@k: the mean, and at most with confidence 1 - delta; None: nothing.
Lost = Callable[[int, float], tuple[float, float]]


def true_recalls(returned: npt.NDArray[np.float32], true: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """How many of the true top k were returned, ties counted: int64 [n], 0..k.

    returned: exact scores float32 [n, k] of the rows returned, -inf where fewer were. true: those of flat search.
    """
    counts: npt.NDArray[np.int64] = (returned >= true[:, -1:] - TIE_TOLERANCE).sum(axis=1)
    return counts


def running_interval(counts: Counts, delta: float = AUDIT_DELTA) -> tuple[float, float]:
    """An interval that covers the mean recall, however often it is looked at, with probability 1 - delta.

    counts: int64 [k + 1], how many queries had 0, 1, …, k of their true top k. (0, 1) where there were none.
    """
    shares = np.arange(len(counts)) / (len(counts) - 1)
    return _lowest(counts, shares, delta / 2.0), 1.0 - _lowest(counts, 1.0 - shares, delta / 2.0)


def _lowest(counts: Counts, values: npt.NDArray[np.float64], delta: float) -> float:
    """The largest r that "the mean is at most r" is refuted for: what is refuted at r is at every smaller one."""
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        r = (low + high) / 2.0
        stakes = np.geomspace(SMALLEST_STAKE, 1.0 - SMALLEST_STAKE, STAKES) / r
        wealth = np.log1p(np.outer(stakes, values - r)) @ counts
        largest = wealth.max()
        refuted = largest + math.log(np.exp(wealth - largest).mean()) >= math.log(1.0 / delta)
        low, high = (r, high) if refuted else (low, r)
    return low


@dataclass(frozen=True, slots=True)
class AuditLine:
    """What the audit found for one budget and k.

    promised: the recall that was asked for; None for a latency or a plan. n_queries: searches compared with flat
    search. recall: their mean recall@k by the rows as given, as far as is known: against flat search over the rows as
    stored, less what storage costs. low, high: an interval around it, valid at any time with confidence .95, as long as
    the queries stay of one kind. broken: whether they refute at level .01 that the recall is what was asked. storage,
    storage_most: what was taken off for storage, and its bound, which is in the interval; None where nothing was.
    """

    budget: str
    k: int
    promised: float | None
    n_queries: int
    recall: float
    low: float
    high: float
    broken: bool
    storage: float | None = None
    storage_most: float | None = None

    def __str__(self) -> str:
        return (
            f"audit of {self.budget} at k={self.k}: recall {self.recall:.4f}, interval [{self.low:.4f}, "
            f"{self.high:.4f}], {self.n_queries:,} searches"
            + (
                ""
                if self.storage is None
                else f", storage taken off: {self.storage:.4f}, at most {self.storage_most:.4f}"
            )
        )


class Audit:
    """Draws the searches to compare, and keeps what was found by budget and k. Safe in threads.

    share: of live queries, in [0, 1].
    """

    def __init__(self, share: float, seed: int = 0) -> None:
        self.share = share
        self._found: Remembered[tuple[str, int], tuple[float | None, Counts]] = Remembered(most=MOST_LINES)
        self._lock = free_in_children(Lock())
        self._generator = np.random.default_rng(seed)

    def draw(self, n_queries: int, share: float) -> npt.NDArray[np.int64]:
        """The numbers of the queries of one call that are compared, each drawn with probability `share`."""
        with self._lock:
            return np.flatnonzero(self._generator.random(n_queries) < share)

    def add(
        self, budget: str, k: int, promised: float | None, found: npt.NDArray[np.int64], lost: Lost | None = None
    ) -> AuditLine:
        """Note how many of the true top k some searches got: int64 [n]; gives the line as it then is."""
        with self._lock:
            known = self._found.get((budget, k))
            if known is None:
                known = self._found[budget, k] = (promised, np.zeros(k + 1, dtype=np.int64))
            counts = known[1]
            counts += np.bincount(found, minlength=k + 1)
            seen = counts.copy()
        return _line(budget, k, promised, seen, lost)

    def lines(self, lost: Lost | None = None) -> tuple[AuditLine, ...]:
        """What was found so far, by budget and k."""
        with self._lock:
            found = [(budget, k, promised, counts.copy()) for (budget, k), (promised, counts) in self._found.items()]
        return tuple(_line(*line, lost) for line in sorted(found, key=lambda line: line[:2]))


def _line(budget: str, k: int, promised: float | None, counts: Counts, lost: Lost | None) -> AuditLine:
    n_queries, shares = int(counts.sum()), np.arange(k + 1) / k
    taken, most = (0.0, 0.0) if lost is None else lost(k, AUDIT_DELTA * SHARE_OF_DELTA)
    rest = 1.0 if lost is None else 1.0 - SHARE_OF_DELTA
    low, high = running_interval(counts, AUDIT_DELTA * rest)
    low, high = max(0.0, low - most), min(1.0, high + most)
    mean = max(0.0, float(counts @ shares) / n_queries - taken) if n_queries else math.nan
    broken = False
    if promised is not None:
        most_broken = 0.0 if lost is None else lost(k, BROKEN_DELTA * SHARE_OF_DELTA)[1]
        broken = 1.0 - _lowest(counts, 1.0 - shares, BROKEN_DELTA * rest) + most_broken < promised
    off = (None, None) if lost is None else (taken, most)
    return AuditLine(budget, k, promised, n_queries, mean, low, high, broken, *off)


def checked_share(value: object, name: str) -> float:
    """The share of searches to compare: True is all, False and None are none. InputError for what is no share."""
    if value is None or isinstance(value, bool):
        return float(bool(value))
    if not isinstance(value, int | float | np.number) or not 0.0 <= value <= 1.0:
        raise InputError(f"{name} is {value!r}; expected True, False, or a share in [0, 1], such as 0.01")
    return float(value)
