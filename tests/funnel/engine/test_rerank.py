from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from funnel.engine.rerank import CELLS_AT_A_TIME, best, carry_on, rows_at_a_time
from indexes import VectorStore
from tests.funnel.cascades import cascade_over
from tests.funnel.clustered import clustered_rows

DIM = 64


@pytest.fixture(scope="module", params=["float16", "float32"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VectorStore:
    return cascade_over(clustered_rows(300, DIM), tmp_path_factory.mktemp("rerank"), (16, DIM), "flat", request.param)[
        0
    ].store


def candidates() -> tuple[torch.Tensor, torch.Tensor]:
    generator = np.random.default_rng(0)
    return torch.from_numpy(clustered_rows(9, DIM, seed=3)), torch.from_numpy(generator.integers(0, 300, (9, 40)))


@torch.inference_mode()
@pytest.mark.parametrize("widths", [(64,), (16, 64), (8, 16, 24, 48, 64), tuple(range(1, 65))])
def test_partial_dot_products_carried_on_are_the_full_dot_product(store: VectorStore, widths: tuple[int, ...]) -> None:
    query, rows = candidates()
    partial, start = None, 0
    for width in widths:
        partial = carry_on(store, query, rows, partial, start, width)
        expected = torch.einsum("qd,qsd->qs", query[:, :width].double(), store.matrix[rows][..., :width].double())
        torch.testing.assert_close(partial.double(), expected, atol=1e-6, rtol=0)
        start = width
    assert partial is not None
    assert partial.dtype == torch.float32


@torch.inference_mode()
def test_sums_of_float16_rows_are_taken_in_float32(tmp_path: Path) -> None:
    """In float16 the small terms would be lost beside the large one."""
    row = np.full((1, 1025), 2.0**-11, dtype=np.float32)
    row[0, 0] = 1.0
    with VectorStore.create(tmp_path / "vectors.npy", 1, 1025, "float16") as writer:
        writer.write(np.zeros(1, dtype=np.int64), row)
    store = VectorStore.open(tmp_path / "vectors.npy")
    dots = carry_on(store, torch.ones(1, 1025), torch.zeros(1, 1, dtype=torch.int64), None, 0, 1025)
    assert dots.item() == pytest.approx(1.5, abs=1e-6)


def test_the_best_are_in_falling_order_with_their_places() -> None:
    scores = torch.tensor([[0.1, 0.9, -torch.inf, 0.5], [3.0, 1.0, 2.0, 0.0]])
    values, places = best(scores, 2)
    assert places.tolist() == [[1, 3], [0, 2]]
    torch.testing.assert_close(values, torch.tensor([[0.9, 0.5], [3.0, 2.0]]))
    assert best(scores, 9)[1].shape == (2, 4)


def test_blocks_fit_their_cells_and_hold_at_least_one_query() -> None:
    cpu = torch.device("cpu")
    assert rows_at_a_time(100, 384, cpu) * 100 * 384 <= CELLS_AT_A_TIME
    assert (rows_at_a_time(100, 384, cpu) + 1) * 100 * 384 > CELLS_AT_A_TIME
    assert rows_at_a_time(10**6, 1024, cpu) == 1
    assert rows_at_a_time(0, 1024, cpu) >= 1
    assert rows_at_a_time(100, 384, torch.device("cuda")) > rows_at_a_time(100, 384, cpu)
