"""The statistics behind the promise: is the mean of values in [0, 1] above r, and by which bound.

Betting: Waudby-Smith & Ramdas, "Estimating means of bounded random variables by betting", JRSS-B 2023.
A gambler stakes a share of a unit wealth on every value being above r; if the mean is at most r, the expected
wealth never exceeds 1, whatever the stakes, as long as each is chosen before its value is seen: so by Ville's
inequality the wealth ever reaches 1 / delta with probability at most delta. The stakes here aim at 1 / delta with
the values that are left: Voracek & Orabona, "STaR-Bets: sequential target-recalculating bets for tighter
confidence intervals", 2025, arXiv 2505.22422. On recall the bound lies about 1.8 standard errors below the mean,
where a mixture of constant stakes needs 3.
Fixed-sequence testing: Angelopoulos et al., "Learn then Test", 2021, section 2.2 (Bauer 1991): hypotheses in an order
fixed beforehand are each tested at level delta, stopping at the first that is not rejected.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import islice
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = [
    "BETTING",
    "betting_lower_bound",
    "betting_refutes",
    "fixed_sequence",
    "queries_needed",
]

BETTING = "betting"
# The largest stake, as a share of 1 / r, at which a value of nothing would take the whole wealth (.5 to .99 were
# tried on made-up recalls: few queries want a large one, and with .99 a single miss takes all but a hundredth).
LARGEST_STAKE = 0.9
# Before any value is seen the variance is the largest that values in [0, 1] can have; it counts as one value.
PRIOR_MEAN, PRIOR_VARIANCE = 0.5, 0.25
RESOLUTION = 1e-5  # of a lower bound: a tenth of what is shown
BOUNDS_AT_ONCE = 50  # values of r tested together while a bound is narrowed down: three rounds to the resolution
SAMPLES_AT_ONCE = 64  # plans tested together: 64 take hardly longer than one, and sequences seldom fail earlier
# Of queries_needed. Simulated on coins, betas and recalls: the bound is about .72 of sqrt(2 log(1 / delta)) standard
# errors wide, and where stakes are at their largest it takes their growth and about half of that besides.
STANDARD_ERRORS, BESIDES_GROWTH = 0.72, 0.5
FOUR_IN_FIVE = 0.84  # standard deviations that a normal variable stays above with probability .8
MOST_QUERIES = 2**40  # more is no number to name

Observations: TypeAlias = npt.NDArray[np.float64]


def betting_refutes(
    observations: Observations, r: float | npt.NDArray[np.float64], delta: float
) -> npt.NDArray[np.bool_]:
    """Whether "the mean is at most r" is refuted at level delta: bool [m].

    observations: float [n] or [m, n], each in [0, 1], a row's values independent and in the order they were drawn (or
    any order that does not depend on them). r: one value, or [m]. A stake is sqrt(2 left / (values left * variance)),
    with `left` the logarithm of what the wealth must still be multiplied by and the variance that of the values
    seen, and at most LARGEST_STAKE / r. What is refuted at r is refuted at every smaller r: more wealth stakes less,
    but never so much less that it is overtaken before it arrives.
    Source: Waudby-Smith & Ramdas 2023, sections 4 and 5; stakes: Voracek & Orabona 2025, section 4.
    """
    rows = np.atleast_2d(observations)
    count = rows.shape[1]
    r = np.broadcast_to(np.asarray(r, dtype=np.float64), np.broadcast_shapes((len(rows),), np.shape(r)))
    left = np.full(len(r), math.log(1.0 / delta))
    # A stake is sqrt(left) times a factor that is known beforehand, as are the gains.
    factors = np.ascontiguousarray(np.sqrt(2.0 / ((count - np.arange(count)) * _variance_before(rows))).T)
    gains = np.ascontiguousarray(rows.T) - r
    largest = LARGEST_STAKE / np.maximum(r, np.finfo(np.float64).tiny)
    stake = np.empty_like(left)
    for factor, gain in zip(factors, gains, strict=True):
        np.sqrt(left, out=stake)
        stake *= factor
        np.minimum(stake, largest, out=stake)
        stake *= gain
        np.log1p(stake, out=stake)
        left -= stake
        np.maximum(left, 0.0, out=left)  # who has arrived stakes nothing more
    return (left <= 0.0) | (r <= 0.0)


def _variance_before(rows: Observations) -> Observations:
    """The variance of each row's values before each of them: float [m, n]."""
    seen = np.arange(1, rows.shape[1] + 1)
    mean = (PRIOR_MEAN + np.cumsum(rows, axis=1)) / (seen + 1)
    variance = (PRIOR_VARIANCE + np.cumsum((rows - mean) ** 2, axis=1)) / (seen + 1)
    return np.concatenate([np.full((len(rows), 1), PRIOR_VARIANCE), variance[:, :-1]], axis=1)


def betting_lower_bound(observations: Observations, delta: float) -> float:
    """A lower confidence bound on the mean: the largest r that betting refutes at level delta."""
    low, high = 0.0, 1.0
    while high - low > RESOLUTION:
        between = np.linspace(low, high, BOUNDS_AT_ONCE + 1)[1:-1]
        refuted = int(betting_refutes(observations, between, delta).sum())  # those up to the bound
        edges = np.concatenate([[low], between, [high]])
        low, high = float(edges[refuted]), float(edges[refuted + 1])
    return low


def queries_needed(observations: Observations, r: float, delta: float) -> int | None:
    """About how many queries like these it would take to certify r by betting, with four chances in five.

    None where their own mean is not above r, or by so little that no number of queries would tell.
    """
    margin = float(np.mean(observations)) - r if len(observations) else 0.0
    if margin <= RESOLUTION:
        return None
    errors = STANDARD_ERRORS * math.sqrt(2.0 * math.log(1.0 / delta)) + FOUR_IN_FIVE
    needed = (errors * float(np.std(observations)) / margin) ** 2
    stakes = np.linspace(0.0, LARGEST_STAKE / r, BOUNDS_AT_ONCE)
    growth = np.log1p(np.outer(stakes, observations - r))
    rates = growth.mean(axis=1)
    if rates.argmax() == len(stakes) - 1:  # a larger stake would be better still
        rate, spread = float(rates[-1]), FOUR_IN_FIVE * float(growth[-1].std())
        root = (spread + math.sqrt(spread**2 + 4.0 * rate * math.log(1.0 / delta))) / (2.0 * rate)
        needed = max(needed, root**2 + BESIDES_GROWTH * needed)
    return max(1, math.ceil(needed)) if needed < MOST_QUERIES else None


def fixed_sequence(samples: Iterable[Observations], r: float, delta: float) -> int:
    """How many hypotheses, from the head of the sequence, are certified to have a mean above r.

    samples: each float [n], of the same queries. The order must not depend on them. With probability 1 - delta no
    certified mean is at most r, whichever of them is then chosen. Source: Angelopoulos et al. 2021, section 2.2.
    """
    passed, remaining = 0, iter(samples)
    while together := list(islice(remaining, SAMPLES_AT_ONCE)):
        certified = betting_refutes(np.stack(together), r, delta)
        if not certified.all():
            return passed + int(certified.argmin())
        passed += len(together)
    return passed
