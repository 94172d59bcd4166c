from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from funnel.engine import timing as windows
from funnel.engine.timing import held_ms, window_p95s
from funnel.planning.costs import Held


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "WINDOW_SECONDS", 0.02)


class Clock:
    """A clock that stands still but for the calls that are timed by it."""

    def __init__(self) -> None:
        self.now, self._lock = 0.0, threading.Lock()

    def perf_counter(self) -> float:
        return self.now

    def on(self, seconds: float) -> None:
        with self._lock:
            self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(windows, "time", made)
    return made


def test_every_window_has_its_percentile(clock: Clock) -> None:
    found = window_p95s(lambda _: clock.on(0.001), windows=5, seconds=0.03, callers=1)
    assert found == pytest.approx([1.0] * 5)


def test_so_many_threads_call_at_once_and_each_makes_other_calls() -> None:
    lock, inside, most = threading.Lock(), [0], [0]
    numbers: dict[str, set[int]] = {}

    def call(number: int) -> None:
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            numbers.setdefault(threading.current_thread().name, set()).add(number)
        time.sleep(0.002)
        with lock:
            inside[0] -= 1

    window_p95s(call, windows=3, seconds=0.03)
    assert most[0] == 2
    first, second = [seen for name, seen in numbers.items() if name != threading.current_thread().name]
    assert not first & second


def test_a_call_belongs_to_the_window_in_which_it_began(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """One call of many is slow, from the first window to the fifth: it shows where it began, and none began between."""
    monkeypatch.setattr(windows, "MOST_SECONDS", 1.0)
    found = window_p95s(lambda number: clock.on(0.15 if number == 10 else 0.002), windows=6, seconds=0.04, callers=1)
    assert found[0] > 50
    assert found[1:] == pytest.approx([2.0] * 2)


@pytest.mark.parametrize(("most", "asked", "measured"), [(1.0, 19, 19), (0.21, 19, 6), (0.001, 19, 3), (0.001, 2, 2)])
def test_slow_calls_get_fewer_windows_and_no_fewer_than_three(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, most: float, asked: int, measured: int
) -> None:
    monkeypatch.setattr(windows, "MOST_SECONDS", most)
    assert len(window_p95s(lambda _: clock.on(1 / 32), windows=asked, seconds=0.001, callers=1)) == measured


def test_an_error_in_a_call_is_raised_and_nothing_hangs() -> None:
    def call(number: int) -> None:
        if number > 4:
            raise ValueError("call 5")

    with pytest.raises(ValueError, match="call 5"):
        window_p95s(call, windows=3, seconds=0.02)


@pytest.mark.usefixtures("quick")
def test_two_call_at_once() -> None:
    lock, inside = threading.Lock(), [0]

    def call(_: int) -> None:
        with lock:
            inside[0] += 1
            slower = inside[0]
        time.sleep(0.004 if slower == 1 else 0.1)
        with lock:
            inside[0] -= 1

    held = held_ms(call)
    assert held.ms == held.largest >= 50
    assert "called by two threads at once" in str(held)


def test_measuring_ends_when_the_answer_is_known(clock: Clock) -> None:
    def call(_: int) -> None:
        clock.on(0.004)

    plenty, too_little = held_ms(call, 1_000.0), held_ms(call, 2.0)
    assert plenty.windows == too_little.windows == windows.FEWEST_WINDOWS
    assert plenty.largest * 20 / (plenty.windows + 1) == pytest.approx(plenty.ms)
    assert plenty.ms <= 1_000.0
    assert too_little.largest > 2.0


def test_the_nearer_the_latency_the_more_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every window takes 1 ms; what is allowed decides how many are looked at."""
    taken: list[int] = []

    def found(_call: object, count: int) -> list[float]:
        taken.append(count)
        return [1.0] * count

    monkeypatch.setattr(windows, "window_p95s", found)
    for allowed, expected in ((5.0, 3), (4.9, 19), (1.0, 19)):
        held = held_ms(lambda _: None, allowed)
        assert (held.windows, held.ms) == (expected, pytest.approx(20 / (expected + 1)))  # type: ignore[comparison-overlap]
    assert held_ms(lambda _: None, 0.9) == Held(1.0, 5.0, 3)


def test_slow_calls_are_promised_on_the_windows_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "MOST_SECONDS", 0.2)
    held = held_ms(lambda _: time.sleep(0.06), 200.0)
    assert held.windows <= 2 * windows.FEWEST_WINDOWS
    assert held.ms == held.largest < 200.0


@pytest.mark.parametrize("tail", [0.7, 1.0, 2.0, None])
def test_a_latency_granted_early_is_exceeded_once_in_twenty_at_most(tail: float | None) -> None:
    """The rule of `CAUTION` on windows made up, whatever is allowed; None: lognormal ones."""
    generator, shape = np.random.default_rng(4), (20_000, windows.WINDOWS + 1)
    p95s = generator.lognormal(0, 1, shape) if tail is None else 1 + generator.pareto(tail, shape)
    for allowed in np.quantile(p95s[:1_000], np.linspace(0.6, 0.999, 15)):
        granted, refused = np.zeros(len(p95s), dtype=bool), np.zeros(len(p95s), dtype=bool)
        for look, factor in ((windows.FEWEST_WINDOWS, windows.CAUTION), (windows.WINDOWS, 1.0)):
            largest = p95s[:, :look].max(axis=1)
            refused |= ~granted & (largest > allowed)
            granted |= ~refused & (largest * factor <= allowed)
        broken = (granted & (p95s[:, -1] > allowed)).mean()
        assert broken <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / len(p95s))


@pytest.mark.parametrize("tail", [1.5, 4.0])
def test_the_next_window_is_above_the_largest_of_19_once_in_twenty(tail: float) -> None:
    """Windows of calls of which some are slow together, simulated."""
    generator = np.random.default_rng(3)
    level = 1 + generator.pareto(tail, (2_000, windows.WINDOWS + 1, 1))
    calls = level * (1 + generator.exponential(0.1, (2_000, windows.WINDOWS + 1, 40)))
    p95s = np.percentile(calls, windows.PERCENTILE, axis=2)
    broken = (p95s[:, -1] > p95s[:, :-1].max(axis=1)).mean()
    assert abs(broken - 0.05) < 3 * np.sqrt(0.05 * 0.95 / 2_000)
