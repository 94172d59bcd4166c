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
from funnel.planning.costs import BATCH_SIZES, Costs, batch_class, fit_rising
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
        assert {16, 32, 48, DIM} <= set(costs.rerank[batch])
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


@given(
    st.lists(st.floats(1, 2000), min_size=1, max_size=20, unique=True).map(sorted),
    st.tuples(*[st.floats(0, 5)] * 3),
    st.integers(0, 2**32 - 1),
)
def test_a_curve_through_noisy_times_rises(at: list[float], weights: tuple[float, ...], seed: int) -> None:
    x = np.array(at)
    times = (0.1 + weights[0] + weights[1] * np.sqrt(x) + weights[2] * x) * np.random.default_rng(seed).uniform(
        0.9, 1.1, len(x)
    )
    wanted = np.linspace(1, 2500, 200)
    fitted = fit_rising(at, times.tolist(), wanted.tolist())
    assert (np.diff(fitted) >= -1e-9 * max(fitted)).all()
    assert min(fitted) > 0


def test_a_curve_smooths_noise_and_fills_gaps() -> None:
    x = np.array([1, 2, 4, 8, 16, 32, 64, 128, 256, 512])
    true = 0.05 + 0.002 * x
    noisy = true * np.random.default_rng(0).uniform(0.95, 1.05, len(x))
    wanted = np.arange(1, 513)
    fitted = np.array(fit_rising(x.tolist(), noisy.tolist(), wanted.tolist()))
    assert np.abs(fitted / (0.05 + 0.002 * wanted) - 1).max() < 0.05
    assert fit_rising([7], [0.3], [7]) == pytest.approx([0.3])


def test_efforts_are_timed_an_octave_apart() -> None:
    efforts = (*range(1, 23), *range(24, 200, 3), 250)
    timed = timed_efforts(efforts)
    assert (timed[0], timed[-1]) == (1, 250)
    assert set(timed) <= set(efforts)
    assert len(timed) < 20
    assert all(b / a <= 2.1 for a, b in itertools.pairwise(timed))
    assert timed_efforts((0,)) == [0]
    assert timed_efforts((5, 6)) == [5, 6]
