"""Whether live calls keep their latency: counted, and said in health."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from funnel import FunnelIndex
from funnel.monitoring import Monitor
from funnel.monitoring.monitor import FEWEST, MOST, RECENT, Punctuality
from funnel.plan import FLAT

THREADS, EACH = 8, 500


def test_calls_are_counted_by_latency_and_batch_size() -> None:
    seen = Punctuality()
    for ms in (1.0, 1.9, 2.1):
        seen.note(2.0, 1, ms)
    seen.note(20.0, 32, 3.0)
    first, second = seen.lines()
    assert (first.latency_ms, first.batch, first.calls, first.late) == (2.0, 1, 3, 1)
    assert first.p95_ms == pytest.approx(np.percentile([1.0, 1.9, 2.1], 95))
    assert (second.batch, second.late, second.held) == (32, 0, True)


def test_a_latency_is_not_held_where_more_than_a_twentieth_is_late() -> None:
    for late, held in ((4, True), (8, False)):
        seen = Punctuality()
        for number in range(FEWEST):
            seen.note(2.0, 1, 3.0 if number < late else 1.0)
        (line,) = seen.lines()
        assert line.held is held
        assert ("not held" in str(line)) is not held


def test_a_handful_of_calls_says_nothing() -> None:
    seen = Punctuality()
    for _ in range(FEWEST - 1):
        seen.note(2.0, 1, 3.0)
    assert seen.lines()[0].held


def test_it_is_of_the_last_calls() -> None:
    """A machine that was busy and is no longer."""
    seen = Punctuality()
    for _ in range(RECENT):
        seen.note(2.0, 1, 3.0)
    assert not seen.lines()[0].held
    for _ in range(RECENT):
        seen.note(2.0, 1, 1.0)
    (line,) = seen.lines()
    assert line.held
    assert (line.calls, line.late) == (2 * RECENT, RECENT)


def test_threads_lose_no_call() -> None:
    seen = Punctuality()
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda _: [seen.note(2.0, 1, 3.0) for _ in range(EACH)], range(THREADS)))  # type: ignore[func-returns-value]
    (line,) = seen.lines()
    assert line.calls == line.late == THREADS * EACH


def test_health_shows_it() -> None:
    monitor = Monitor(None, lambda prepared, _k: (prepared, np.zeros((1, 1), dtype=np.int64)))
    for _ in range(FEWEST):
        monitor.punctuality.note(2.0, 1, 3.0)
    health = monitor.health()
    assert not health.ok
    assert health.state == "not watched"  # of certificates it says nothing
    assert "latency 2 ms at batch 1: 95th percentile 3 ms of the last 100 calls" in str(health)
    assert json.loads(json.dumps(health.to_json()))["latencies"][0]["held"] is False


def test_calls_of_an_index_are_timed_and_those_that_are_planned_first_are_not(
    graph: FunnelIndex, unseen: np.ndarray
) -> None:
    index = FunnelIndex.open(graph.path)
    for number in range(6):
        index.search_vectors(unseen[number : number + 1], 5, latency_ms=1_000)
    index.search(unseen[:3], 5, latency_ms=1_000)  # planned at another batch size
    index.search(unseen[:3], 5, latency_ms=1_000)
    index.search_vectors(unseen[:1], 5)
    index.search_vectors(unseen[:1], 5, plan=FLAT)
    one, several = index.health().latencies
    assert (one.latency_ms, one.batch, one.calls, one.late) == (1_000, 1, 5, 0)
    assert 0.0 < one.p95_ms < 1_000
    assert (several.batch, several.calls) == (32, 1)


def test_a_new_latency_in_every_call_takes_no_more_memory() -> None:
    seen = Punctuality()
    for number in range(MOST + 50):
        seen.note(5.0, 1, 1.0)
        seen.note(10.0 + number / 7, 1, 1.0)
    lines = {line.latency_ms: line for line in seen.lines()}
    assert len(lines) == MOST
    assert lines[5.0].calls == MOST + 50
