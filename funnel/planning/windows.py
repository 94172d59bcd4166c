"""How long a call takes, so that it can be promised: the 95th percentile over short windows, by one and two callers."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

__all__ = ["CALLERS", "PERCENTILE", "Held", "held_ms", "window_p95s"]

# A latency is promised to so many threads that call at once: whichever is slower counts. Two are it nearly always, so
# that they come first: what fails, fails sooner.
CALLERS = (2, 1)
PERCENTILE = 95.0
# The next window's percentile is above the largest of 19 with a probability of at most 1/20, whatever the times are
# distributed like, so long as windows are exchangeable.
WINDOWS = 19
# With `CALLERS` 11 seconds a plan. At .15 s one stall of the machine was 5 % of a window's calls of 6 ms, and 20 ms
# were refused. Percentiles of whole seconds vary less than these.
WINDOW_SECONDS = 0.3
MOST_SECONDS = 20.0  # of calls so slow that a window holds one, fewer windows are measured
FEWEST_WINDOWS = 3
# After how many windows it is looked at whether more are needed. One above what is allowed decides against a plan, as
# would the largest of 19. For it decide n of them where their largest, times 20 / (n + 1), is allowed: with a Pareto
# tail of exponent 1, which has no mean, the next is above that as often as above the largest of 19. Looking at each of
# these four, a latency was granted and then exceeded with a probability of .04 there, .024 at exponent 2 and .019 on
# lognormal windows, as with all 19 (simulated; see the tests).
LOOKS = (3, 7, 13, WINDOWS)


@dataclass(frozen=True, slots=True)
class Held:
    """What the 95th percentile of calls was in short windows, in milliseconds.

    callers: threads that called at once where it was largest. typical: of the median window; largest: of all of them.
    ms: what can be promised; where measuring was given up, as too much was taken already, infinite.
    """

    callers: int
    typical: float
    largest: float
    ms: float
    windows: int

    def __str__(self) -> str:
        threads = "one thread" if self.callers == 1 else f"{self.callers} threads at once"
        return f"{self.typical:.3g} to {self.largest:.3g} ms in {self.windows} windows, called by {threads}"


def held_ms(call: Callable[[int], object], allowed: float | None = None) -> Held:
    """The 95th percentile of call(0), call(1), … that is kept in 19 windows of 20, by one caller and by two.

    call must be safe to be made by several threads at once. allowed: milliseconds; measuring ends as soon as it is
    known whether so many can be promised. None: all 19 windows.
    """
    measured = []
    for callers in CALLERS:
        measured.append(_held(call, callers, allowed))
        if measured[-1].ms == math.inf:
            break
    return max(measured, key=lambda held: held.ms)


def _held(call: Callable[[int], object], callers: int, allowed: float | None) -> Held:
    """What so many callers hold."""
    found: list[float] = []
    asked, enough = 0, WINDOWS
    for look in LOOKS if allowed is not None else (WINDOWS,):
        more, started = min(look, enough) - asked, time.perf_counter()
        found += window_p95s(call, callers, more, WINDOW_SECONDS, MOST_SECONDS)
        asked += more
        if allowed is None or max(found) > allowed:
            break
        if look == LOOKS[0]:  # calls may be so slow that all of the windows would take too long
            seconds = (time.perf_counter() - started) / more
            enough = max(FEWEST_WINDOWS, min(WINDOWS, int(MOST_SECONDS / seconds)))
        if asked >= enough or max(found) * _caution(len(found)) <= allowed:
            break
    if allowed is None or max(found) <= allowed:
        ms = max(found) * (_caution(len(found)) if allowed is not None and asked < enough else 1.0)
    else:
        ms = math.inf
    return Held(callers, float(np.median(found)), max(found), ms, len(found))


def _caution(windows: int) -> float:
    """What the largest of so few windows is multiplied by, see LOOKS."""
    return (WINDOWS + 1) / (windows + 1)


def window_p95s(
    call: Callable[[int], object], callers: int, windows: int, seconds: float, most_seconds: float = math.inf
) -> list[float]:
    """The 95th percentile of the calls that began in each of some windows, one after the other: milliseconds.

    callers: threads that call in a closed loop, at once. A call belongs to the window in which it began, so that one
    may end after it; a window in which none began is left out. A caller that the machine kept from them all makes one
    call after the last, and it belongs there. Windows are longer where a single call takes longer, and fewer where so
    many would take more than most_seconds.
    """
    call(0)
    begun: list[list[tuple[float, float]]] = [[] for _ in range(callers)]
    start = time.perf_counter()
    call(1)
    length = max(seconds, time.perf_counter() - start)
    windows = _fitting(windows, length * callers, most_seconds)
    failed: list[BaseException] = []
    together = threading.Barrier(callers + 1)
    until = [0.0]

    def caller(number: int) -> None:
        times, turn = begun[number], number
        try:
            call(turn)  # a thread's first call makes its buffers
        except BaseException as error:
            failed.append(error)
        together.wait()
        together.wait()
        while not failed and ((start := time.perf_counter()) < until[0] or not times):
            turn += callers
            try:
                call(turn)
            except BaseException as error:
                failed.append(error)
                break
            times.append((start, (time.perf_counter() - start) * 1e3))

    threads = [threading.Thread(target=caller, args=(number,), daemon=True) for number in range(callers)]
    for thread in threads:
        thread.start()
    together.wait()
    first = time.perf_counter()
    until[0] = first + windows * length
    together.wait()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    calls = [each for times in begun for each in times]
    numbers = np.array([min(int((start - first) / length), windows - 1) for start, _ in calls])
    took = np.array([ms for _, ms in calls])
    return [float(np.percentile(took[numbers == i], PERCENTILE)) for i in range(windows) if (numbers == i).any()]


def _fitting(windows: int, seconds: float, most_seconds: float) -> int:
    """As many of the windows of so many seconds as fit, and never fewer than 3 of those asked for."""
    return max(min(windows, FEWEST_WINDOWS), int(min(windows, most_seconds / seconds)))
