from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from funnel.engine.timing import (
    FEWEST_TIMINGS,
    MOST_TIMINGS,
    fingerprint,
    measure_costs,
    median_ms,
    timed_efforts,
    times_ms,
)
from funnel.plan import FLAT, Plan, Stage
from funnel.planning.costs import BATCH_SIZES, Costs, batch_class, rising
from tests.funnel.planning.conftest import DIM, Recorded

COSTS = Costs(
    machine={"processor": "made up"},
    sizes=(16, 64, 256),
    coarse={batch: {16: 1.0 * batch, 64: 3.0 * batch} for batch in BATCH_SIZES},
    rerank={batch: {16: [0.1, 0.4, 1.6], 32: [0.2, 0.8, 3.2], 64: [0.4, 1.6, 6.4]} for batch in BATCH_SIZES},
    flat={1: 50.0, 32: 500.0, 256: 3000.0},
    base={1: 0.05, 32: 0.5, 256: 3.0},
)


@given(st.integers(1, 100_000))
def test_the_next_larger_batch_stands_for_a_call(count: int) -> None:
    size = batch_class(count)
    assert size >= count
    assert size in BATCH_SIZES or size < 2 * count
    assert all(smaller < count for smaller in BATCH_SIZES if smaller < size)


def test_a_batch_above_the_largest_measured_one_costs_in_proportion() -> None:
    plan = Plan(64, 256)
    assert COSTS.predict(plan, 1024, DIM) == pytest.approx(4 * COSTS.predict(plan, 256, DIM))
    assert COSTS.predict(FLAT, 512, DIM) == pytest.approx(2 * COSTS.predict(FLAT, 256, DIM))


def test_a_prediction_is_the_sum_of_its_stages() -> None:
    plan = Plan(64, 256, (Stage(32, 64), Stage(48, 16)))
    # coarse; 256 candidates over 32 columns; 64 over the next 16; 16 over the last 16
    stages = COSTS.stages(plan, 1, DIM)
    assert stages == pytest.approx([3.0, 3.2, 0.4, 0.1])
    assert COSTS.predict(plan, 1, DIM) == pytest.approx(sum(stages) + 0.05)
    assert COSTS.predict(Plan(16, 16), 256, DIM) == pytest.approx(256 + 0.4 + 3.0)
    assert COSTS.predict(FLAT, 32, DIM) == pytest.approx(500.5)


def test_between_measured_sizes_costs_are_linear() -> None:
    def exact(candidates: int) -> float:
        return COSTS.stages(Plan(16, candidates), 1, DIM)[-1]

    assert exact(160) == pytest.approx(4.0)  # half way from 64 to 256
    assert exact(512) == pytest.approx(12.8)  # in proportion beyond the last
    columns = COSTS.stages(Plan(16, 64, (Stage(24, 16),)), 1, DIM)
    assert columns[1] == pytest.approx(0.6)  # 24 columns, half way from 16 to 32
    assert columns[2] == pytest.approx(0.25)  # the remaining 40


def test_json_round_trip() -> None:
    assert again(COSTS) == COSTS


def test_the_fingerprint_names_what_costs_depend_on() -> None:
    found = fingerprint(torch.device("cpu"))
    assert set(found) == {"processor", "cores", "threads", "device", "torch", "faiss"}
    assert all(found.values())
    assert found == fingerprint(torch.device("cpu"))
    assert found["threads"] == str(torch.get_num_threads())


def test_calls_are_warmed_and_numbered() -> None:
    seen: list[int] = []
    times = times_ms(seen.append, seconds=0.0)
    assert seen == list(range(FEWEST_TIMINGS + 1))
    assert len(times) == FEWEST_TIMINGS
    assert len(times_ms(lambda _: None, seconds=10.0)) == MOST_TIMINGS


def test_milliseconds_are_milliseconds() -> None:
    assert 5.0 <= median_ms(lambda _: time.sleep(0.005)) < 50.0


def test_costs_are_measured_for_every_effort_size_and_batch(recorded: Callable[[str], Recorded]) -> None:
    cascade, corpus, _ = recorded("hnsw-sq8")
    calls: list[tuple[int, Plan, int]] = []

    def search(queries: np.ndarray, plan: Plan, k: int) -> object:
        calls.append((len(queries), plan, k))
        return cascade.run(queries, plan, k)

    efforts = (16, 22, 26, 63)
    costs = measure_costs(cascade, corpus.queries, efforts, corpus.widths, search)
    assert costs.machine == fingerprint(cascade.store.device)
    assert set(costs.coarse) == set(costs.rerank) == set(costs.flat) == set(costs.base) == set(BATCH_SIZES)
    assert {size for size, _, _ in calls} == set(BATCH_SIZES)
    assert costs.sizes == (16, efforts[-1])
    for batch in BATCH_SIZES:
        assert set(costs.coarse[batch]) == set(efforts)
        assert (np.diff([costs.coarse[batch][effort] for effort in efforts]) >= 0).all()
        assert all(ms > 0 for table in costs.rerank[batch].values() for ms in table)
        assert all(len(table) == len(costs.sizes) for table in costs.rerank[batch].values())
        assert {16, DIM} <= set(costs.rerank[batch])
        assert (np.diff(list(costs.rerank[batch].values()), axis=0) >= 0).all()
        assert costs.base[batch] >= 0
        # Every plan of the grid can be predicted.
        for plan in (FLAT, Plan(efforts[0], 16), Plan(efforts[1], 24, (Stage(32, 16), Stage(48, 10)))):
            assert costs.predict(plan, batch, DIM) > 0
    assert costs.flat[256] > costs.flat[1]
    assert again(costs) == costs


def again(costs: Costs) -> Costs:
    """Written and read."""
    read = msgspec.convert(msgspec.json.decode(msgspec.json.encode(costs)), Costs, str_keys=True)
    read.check()
    return read


def test_what_was_predicted_is_predicted_again() -> None:
    for plan in (Plan(16, 16), Plan(64, 100), Plan(64, 256, (Stage(32, 64), Stage(48, 16)))):
        assert [COSTS.predict(plan, 1, DIM) for _ in range(2)] == [again(COSTS).predict(plan, 1, DIM)] * 2


@given(st.lists(st.floats(0, 2000), min_size=1, max_size=20))
def test_noisy_times_are_made_to_rise(times: list[float]) -> None:
    made = rising(times)
    assert (np.diff(made) >= 0).all()
    assert min(times) <= made[0] <= made[-1] <= max(times)
    np.testing.assert_array_equal(rising(sorted(times)), sorted(times))
    table = rising(rising([times, times[::-1]]), 1)
    assert (np.diff(table, axis=0) >= 0).all()
    assert (np.diff(table, axis=1) >= 0).all()


def test_one_time_that_is_off_moves_its_neighbours_by_half() -> None:
    assert rising([1.0, 5.0, 2.0, 6.0]).tolist() == [1.0, 3.5, 3.5, 6.0]


def test_efforts_are_timed_an_octave_apart() -> None:
    efforts = (*range(1, 23), *range(24, 200, 3), 250)
    timed = timed_efforts(efforts)
    assert (timed[0], timed[-1]) == (1, 250)
    assert set(timed) <= set(efforts)
    assert len(timed) < 20
    assert all(b / a <= 2.1 for a, b in itertools.pairwise(timed))
    assert timed_efforts((0,)) == [0]
    assert timed_efforts((5, 6)) == [5, 6]
