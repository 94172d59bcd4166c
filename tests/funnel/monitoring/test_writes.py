"""Drift is looked for over writes: nothing that was seen is lost, one allowance of false alarms, soon found."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from funnel import FunnelIndex
from funnel.errors import DriftWarning
from funnel.monitoring import Monitor
from funnel.monitoring.drift import BLOCK, Reference
from funnel.plan import FLAT
from tests.funnel.clustered import clustered_rows
from tests.funnel.corpora import DIM as WIDTH
from tests.funnel.corpora import funnel_plan
from tests.funnel.living import named
from tests.funnel.monitoring.growing import DIM, Growing, queries_of, see


def live(index: Growing, queries: np.ndarray, every: int, added: int = 0, deleted: int = 0) -> int | None:
    """Search, with a write after each few queries; how many queries had come at the alarm."""
    generator = np.random.default_rng(0)
    more = clustered_rows(added * (len(queries) // every + 1), DIM, seed=99)
    for number, start in enumerate(range(0, len(queries), every)):
        index.search(queries[start : start + every])
        if index.monitor.broken:
            return start + every
        gone = generator.choice(np.flatnonzero(index.live), deleted, replace=False)
        index.write(more[number * added :][:added] if added else None, gone)
        if len(index.segments) > 12:
            index.fold(8)
    return None


@pytest.mark.parametrize("every", [10, 100])
@pytest.mark.parametrize(("added", "deleted"), [(1, 0), (10, 0), (0, 5), (10, 10)])
def test_a_switch_is_found_soon(every: int, added: int, deleted: int) -> None:
    index = Growing(3_000, 600, 1)
    assert live(index, queries_of(1_000, 3), every, added, deleted) is None
    health = index.monitor.health()
    assert health.queries == 1_000
    assert health.compared > 1_000 - BLOCK - 8 * 10
    with pytest.warns(DriftWarning, match="live queries are not like"):
        at = live(index, queries_of(500, 4, "another"), every, added, deleted)
    assert at is not None
    assert at <= 500


@pytest.mark.parametrize(("added", "deleted"), [(20, 0), (0, 15), (20, 20)])
def test_the_same_kind_raises_no_alarm(added: int, deleted: int) -> None:
    """As many rows as there were are added, half of them deleted, or all of them replaced."""
    alarms = 0
    for seed in range(8):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.warn", lambda *_args: None)
            alarms += live(Growing(1_000, 300, seed), queries_of(1_000, 1_000 + seed), 20, added, deleted) is not None
    assert alarms <= 1  # of 8 with probability .01 each: 2 or more in .3 % of runs


def test_a_load_of_rows_raises_no_alarm() -> None:
    """Scores of live queries rise all at once, as those of the calibration queries would."""
    index, more = Growing(1_000, 600, 1), clustered_rows(4_000, DIM, seed=9)
    for start in range(0, 1_000, 50):  # in the middle of a block
        index.search(queries_of(50, 100 + start))
        index.write(more[4 * start : 4 * start + 200])
    assert index.monitor.health().state == "holds"
    assert index.monitor.health().p_value > 0.05
    without = Growing(1_000, 600, 1)
    for start in range(0, 1_000, 50):
        without.rows = index.rows
        without.live = index.live
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.warn", lambda *_args: None)
            without.search(queries_of(50, 100 + start))
    assert without.monitor.broken  # were they compared with scores over the rows of before


def test_a_false_alarm_is_allowed_for_once() -> None:
    """Tests go on where they were, with the share of the allowance that is theirs."""
    index = Growing(1_000, 300, 1)
    index.search(queries_of(3 * BLOCK, 3))
    drift = index.monitor.drift
    assert drift is not None
    (tests,) = drift._watched.values()
    seen = [test.count for test in tests._tests]
    index.write(clustered_rows(3, DIM, seed=4))
    index.search(queries_of(BLOCK, 5))
    assert index.monitor.drift is drift
    assert list(drift._watched.values()) == [tests]
    assert [test.count for test in tests._tests] == [count + BLOCK for count in seen]
    assert tests._window == 1


def test_a_small_write_keeps_the_reference_and_a_large_one_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    index, made = Growing(3_000, 600, 1), []
    original = Reference.__call__

    def returned(*args: Any) -> Any:
        made.append(args)
        return original(*args)

    monkeypatch.setattr(Reference, "__call__", returned)
    index.search(queries_of(BLOCK, 3))
    assert len(made) == 1
    for number in range(10):
        index.write(clustered_rows(1, DIM, seed=10 + number))
        index.search(queries_of(BLOCK, 20 + number))
    assert len(made) <= 3
    before = len(made)
    index.write(clustered_rows(1_500, DIM, seed=5))
    assert len(made) == before  # not by the writer
    index.search(queries_of(BLOCK, 50))
    assert len(made) == before + 1


def test_an_index_that_is_only_written_to_reads_no_record(monkeypatch: pytest.MonkeyPatch) -> None:
    index = Growing(1_000, 300, 1)
    monkeypatch.setattr(Reference, "__call__", lambda *_args: pytest.fail("was read"))
    index.write(clustered_rows(5, DIM, seed=4))
    index.write(deleted=[3])


def test_a_search_that_began_before_a_write_counts() -> None:
    """Its monitor is that of the generation before; what it finds voids the certificates of the one after."""
    index = Growing(1_000, 300, 1)
    before = index.monitor
    index.write(clustered_rows(5, DIM, seed=4))
    low = np.ascontiguousarray(index.flat(queries_of(600, 4, "another"), 10)[0])
    with pytest.warns(DriftWarning):
        see(before, low, FLAT)
    assert before.broken
    assert index.monitor.broken
    assert index.monitor.health().queries == 600


def test_latencies_count_on_and_a_void_promise_stays() -> None:
    index = Growing(1_000, 300, 1)
    index.monitor.punctuality.note(2.0, 1, 3.0)
    with pytest.warns(DriftWarning):
        index.search(queries_of(600, 4, "another"))
    since = index.monitor.health().since
    index.write(clustered_rows(5, DIM, seed=4))
    health = index.monitor.health()
    assert (health.state, health.since) == ("void", since)
    assert [line.calls for line in health.latencies] == [1]


def test_with_another_calibration_all_begins_anew_but_a_void_promise() -> None:
    index = Growing(1_000, 300, 1)
    index.monitor.audit(True)
    index.monitor.punctuality.note(2.0, 1, 3.0)
    index.search(queries_of(300, 3))
    other = Growing(1_000, 400, 2)
    then = index.monitor.then(other.stored, other.flat, other.now(), False)
    health = then.health()
    assert (health.state, health.queries, health.compared, health.p_value) == ("holds", 0, 0, 1.0)
    assert health.latencies == ()
    assert then.running.share
    with pytest.warns(DriftWarning):
        see(then, np.zeros((600, 10), dtype=np.float32) + np.linspace(0.1, 0.2, 600, dtype=np.float32)[:, None], FLAT)
    assert not index.monitor.broken
    assert then.then(index.stored, index.flat, index.now(), False).broken


def test_where_changed_rows_void_the_certificates_health_says_void_and_why() -> None:
    index = Growing(1_000, 300, 1)
    index.search(queries_of(300, 3))
    void = replace(index.stored, void="rows were added that were not measured")
    then: Monitor = index.monitor.then(void, index.flat, index.now(), True)
    see(then, np.zeros((600, 10), dtype=np.float32), FLAT)
    health = then.health()
    assert (health.state, health.why, health.since, health.ok) == ("void", void.void, None, False)
    assert str(health).startswith(f"certificates: void: {void.void}")
    uncertified = replace(void, n_queries=0, queries=None)
    assert index.monitor.then(uncertified, index.flat, index.now(), True).health().state == "not watched"
    assert then.then(None, index.flat, index.now(), True).health().why == "every search is exact"


def test_an_index_that_is_written_to(index: FunnelIndex, unseen: np.ndarray) -> None:
    """Rows are added, replaced and deleted every 20 queries; then others are asked."""
    plan, more = funnel_plan(index), clustered_rows(600, WIDTH, seed=11)
    others = clustered_rows(500, WIDTH, seed=12, spread=1.6)

    def lives(queries: np.ndarray, first: int) -> int | None:
        for start in range(0, len(queries), 20):
            index.search_vectors(queries[start : start + 20], plan=plan)
            if index.health().state == "void":
                return start + 20
            number = first + start // 20
            if number % 3 == 0:
                index.add(more[number : number + 4], ids=named(4 * number, 4))
            elif number % 3 == 1:
                index.upsert(more[number : number + 2], ids=[f"row {number}", *named(4 * number, 1)])
            else:
                index.delete([f"row {1_000 + number}", *named(4 * (number - 2), 1)])
        return None

    assert lives(unseen, 0) is None
    health = index.health()
    assert health.queries == len(unseen)
    assert health.compared > len(unseen) - BLOCK
    with pytest.warns(DriftWarning):
        assert lives(others, 20) is not None
    index.add(more[500:501], ids=["one more"])
    assert index.health().state == "void"


def test_compaction_begins_anew(index: FunnelIndex, unseen: np.ndarray) -> None:
    index.add(clustered_rows(5, WIDTH, seed=11), ids=named(0, 5))
    index.search_vectors(unseen, plan=funnel_plan(index))
    index.search_vectors(unseen[:1], latency_ms=1_000)
    index.search_vectors(unseen[:1], latency_ms=1_000)
    index.delete(["row 3"])
    health = index.health()
    assert (health.queries, health.compared) == (len(unseen) + 2, len(unseen))
    assert [line.calls for line in health.latencies] == [1]
    index.compact()
    health = index.health()
    assert (health.state, health.queries, health.compared, health.latencies) == ("holds", 0, 0, ())
