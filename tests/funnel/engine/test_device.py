"""The way of a GPU, on CPU tensors: the same code, but for the copies there and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from funnel import FunnelIndex
from funnel.engine.cascade import Cascade, Float32
from funnel.engine.measuring import record
from funnel.engine.rerank import to_device, to_host
from funnel.errors import InputError
from funnel.plan import Plan, Stage
from indexes import VectorStore
from tests.funnel.cascades import cascade_over, stored_rows
from tests.funnel.clustered import clustered_rows

DIM, ROWS = 48, 1_200
LADDER = (16, 24, 32, DIM)
PLANS = (
    Plan(ROWS, 60),
    Plan(ROWS, 200, (Stage(24, 50),)),
    Plan(1_024, 300, (Stage(24, 100), Stage(32, 40))),
)
# What cannot be done without the values themselves, and so waits for the device.
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal")


class NoWaiting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fails at an operation that would wait for a device."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        assert not any(name in str(func) for name in WAITING), f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("device")


@pytest.fixture(scope="module")
def cascade(folder: Path) -> Cascade:
    made = cascade_over(clustered_rows(ROWS, DIM), folder, LADDER, "torch-bins", "float16")[0]
    made.coarse.place(torch.device("cpu"))
    return made


@pytest.fixture(scope="module")
def queries() -> Float32:
    return clustered_rows(90, DIM, seed=5)


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("placement", ["mapped", "device", "host"])
def test_the_way_of_a_device_gives_what_the_cpu_gives(
    cascade: Cascade, queries: Float32, plan: Plan, placement: str
) -> None:
    there = replace(cascade, store=VectorStore.open(cascade.store.path, "cpu", placement))
    for k in (1, 10, 70):
        expected = cascade.run(queries, plan, k)
        for found in (there.piece_on_device(queries, plan, k), there.run(queries, plan, k)):
            np.testing.assert_allclose(found[0], expected[0], atol=1e-6)
            np.testing.assert_array_equal(found[1], expected[1])


def test_nothing_between_the_way_there_and_back_waits(cascade: Cascade, queries: Float32) -> None:
    there = replace(cascade, store=VectorStore.open(cascade.store.path, "cpu", "device"))
    query = torch.from_numpy(queries)
    with torch.inference_mode(), NoWaiting():  # type: ignore[no-untyped-call]
        for plan in PLANS:
            there.on_tensors(query, plan, 10)


def test_int8_stages_end_with_exact_scores(cascade: Cascade, queries: Float32) -> None:
    coded = replace(cascade, store=VectorStore.open(cascade.store.path, "cpu", "int8"))
    true = queries.astype(np.float64) @ stored_rows(cascade).astype(np.float64).T
    for plan in PLANS:
        scores, rows = coded.piece_on_device(queries, plan, 10)
        np.testing.assert_allclose(scores, np.take_along_axis(true, rows, axis=1), atol=1e-6)
        expected = cascade.run(queries, plan, 10)[1]
        shared = [len(set(a) & set(b)) for a, b in zip(rows.tolist(), expected.tolist(), strict=True)]
        assert np.mean(shared) >= 9.9  # codes order a stage's candidates all but as the rows themselves do


def test_calibration_records_what_the_codes_rank(cascade: Cascade, queries: Float32) -> None:
    """What is recorded below full width is what a stage sees, and at full width what the answer says."""
    coded = replace(cascade, store=VectorStore.open(cascade.store.path, "cpu", "int8"))
    effort = cascade.coarse.efforts()[-1]  # given, as which ones are worth running depends on the clock
    runs = [record(each, queries, None, LADDER[1:], (effort,)) for each in (coded, cascade)]
    scores = [run.scores_at(effort, slice(0, len(queries)), 20) for run in runs]
    difference = np.abs(scores[0] - scores[1]).max(axis=(0, 1))
    assert (difference[:-1] > 0).all()
    assert (difference[:-1] < 0.01).all()
    assert difference[-1] <= 1e-6


def test_a_filter_holds_on_the_way_of_a_device(cascade: Cascade, queries: Float32) -> None:
    allowed = torch.zeros(ROWS, dtype=torch.bool)
    allowed[::9] = True
    true = queries.astype(np.float64) @ stored_rows(cascade).astype(np.float64).T
    expected = np.argsort(-true[:, ::9], axis=1)[:, :10] * 9
    for plan in PLANS:
        rows = cascade.piece_on_device(queries, plan, 10, allowed)[1]
        assert (rows % 9 == 0).all()
        assert np.mean([np.isin(t, f).mean() for t, f in zip(expected, rows, strict=True)]) >= 0.95


def test_places_without_a_candidate_stay_empty(queries: Float32, tmp_path: Path) -> None:
    cascade = cascade_over(clustered_rows(30, DIM), tmp_path, LADDER, "torch-bins", "float16")[0]
    scores, rows = cascade.piece_on_device(queries[:3], Plan(30, 64, (Stage(24, 50),)), 40)
    assert (np.sort(rows[:, :30], axis=1) == np.arange(30)).all()
    assert (rows[:, 30:] == -1).all()
    assert np.isneginf(scores[:, 30:]).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_to_a_device_and_back() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    there = to_device(array, torch.device("cuda"))
    assert there.device.type == "cuda"
    doubled, same = to_host(there * 2, there)
    np.testing.assert_array_equal(doubled, array * 2)
    np.testing.assert_array_equal(same, array)


def test_on_the_cpu_nothing_is_copied() -> None:
    array = np.arange(4, dtype=np.float32)
    tensor = to_device(array, torch.device("cpu"))
    assert np.shares_memory(to_host(tensor)[0], array)


def test_an_index_over_bins_is_built_opened_and_searched(tmp_path: Path) -> None:
    rows, queries = clustered_rows(1_500, DIM), clustered_rows(450, DIM, seed=8)
    built = FunnelIndex.build(
        rows, tmp_path / "index", adaptor="pca", queries=queries[:300], dims=LADDER, coarse="torch-bins", progress=False
    )
    for placement in ("auto", "int8", "host"):
        index = FunnelIndex.open(built.path, device="cpu", placement=placement)
        ids, _ = index.search_vectors(queries[300:], k=10, recall=0.9)
        true = np.argsort(-(queries[300:] @ rows.T), axis=1)[:, :10]
        assert np.mean([np.isin(t, f).mean() for t, f in zip(true, ids, strict=True)]) >= 0.88
    with pytest.raises(InputError, match="placement is 'gpu'; choose one of"):
        FunnelIndex.open(built.path, placement="gpu")
