from __future__ import annotations

from funnel.plan import FLAT, Plan
from funnel.planning.costs import Held, Latencies, Latency
from funnel.planning.remembered import MOST

PLANS = tuple(Plan(effort, 100) for effort in (10, 20, 30, 40))


def latencies(ratio: float, quick: list[Plan], held: list[Plan]) -> Latencies:
    """Plans take their effort in milliseconds, and `ratio` times that where it is to be held."""

    def measure(plan: Plan, _k: int, _batch: int) -> Latency:
        quick.append(plan)
        return Latency(plan.effort * 0.9, plan.effort)

    def hold(plan: Plan, _k: int, _batch: int, _allowed: float | None) -> Held:
        held.append(plan)
        largest = plan.effort * ratio
        return Held(largest, largest, 19)

    return Latencies(measure, hold, [])


def test_a_promise_rests_on_the_windows_and_not_on_the_quick_figure() -> None:
    known = latencies(1.5, [], [])
    assert known.within(PLANS[0], 10, 1, 15.0)
    assert not known.within(PLANS[0], 10, 1, 14.9)
    assert "15 ms at the 95th percentile, the largest of 19 windows" in known.said(PLANS[0], 10, 1)


def test_each_is_measured_once() -> None:
    quick: list[Plan] = []
    held: list[Plan] = []
    known = latencies(1.5, quick, held)
    for _ in range(3):
        known.within(PLANS[0], 10, 1, 15.0)
        known.held(PLANS[0], 10, 1)
        known.of(PLANS[0], 10, 1)
    assert quick == held == [PLANS[0]]


def test_what_the_quick_figure_rules_out_is_not_measured_for_seconds() -> None:
    held: list[Plan] = []
    known = latencies(1.5, [], held)
    assert not known.within(PLANS[1], 10, 1, 19.0)
    assert held == []
    assert "20 ms at the 95th percentile" in known.said(PLANS[1], 10, 1)


def test_a_plan_no_quicker_than_one_that_failed_is_not_measured_either() -> None:
    held: list[Plan] = []
    known = latencies(1.5, [], held)
    assert not known.within(PLANS[1], 10, 1, 25.0)  # 30 ms are held
    assert not known.within(Plan(22, 100), 10, 1, 25.0)
    assert held == [PLANS[1]]
    assert known.within(PLANS[0], 10, 1, 25.0)
    assert not known.within(Plan(22, 100), 10, 32, 25.0)  # nothing is known of other batch sizes
    assert held == [PLANS[1], PLANS[0], Plan(22, 100)]
    assert known.tried(PLANS[1], 10, 1)
    assert not known.tried(PLANS[2], 10, 1)


def test_what_was_measured_for_another_latency_is_enough_where_it_decides() -> None:
    held: list[Plan] = []
    known = latencies(1.5, [], held)
    for allowed, within in ((25.0, False), (28.0, False), (30.0, True), (35.0, True), (29.0, False)):
        assert known.within(PLANS[1], 10, 1, allowed) == within
    assert held == [PLANS[1]]


def test_a_latency_granted_on_few_windows_is_none_for_a_shorter_one() -> None:
    asked: list[float | None] = []

    def hold(_plan: Plan, _k: int, _batch: int, allowed: float | None) -> Held:
        asked.append(allowed)
        return Held(1.2, 6.0, 3) if allowed is not None and allowed >= 6.0 else Held(1.3, 1.3, 19)

    known = Latencies(lambda *_: Latency(0.9, 1.0), hold, [])
    assert known.within(PLANS[0], 10, 1, 8.0)
    assert known.within(PLANS[0], 10, 1, 6.0)
    assert known.within(PLANS[0], 10, 1, 2.0)
    assert not known.within(PLANS[0], 10, 1, 1.2)
    assert asked == [8.0, 2.0]


def test_without_windows_the_quick_figure_is_all_there_is() -> None:
    known = Latencies(lambda *_: Latency(1.0, 2.0), None, [])
    assert known.within(FLAT, 10, 1, 2.0)
    assert not known.within(FLAT, 10, 1, 1.9)
    assert known.held(FLAT, 10, 1) is None


def test_records_are_taken_over() -> None:
    quick: list[Plan] = []
    first = latencies(1.0, quick, [])
    first.of(PLANS[0], 10, 1)
    again = Latencies(first._measure, None, first.records())
    assert again.of(PLANS[0], 10, 1) == Latency(9.0, 10)
    assert quick == [PLANS[0]]


def test_a_new_k_in_every_call_takes_no_more_memory() -> None:
    known = latencies(1.5, [], [])
    for k in range(1, MOST + 100):
        known.within(PLANS[0], k, 1, 15.0)
    assert len(known.records()) == len(known._held) == MOST
