from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from funnel.engine import rerank
from funnel.engine.rerank import CELLS_AT_A_TIME, best, carry_on, reranked, rows_at_a_time, scored
from indexes import VectorStore
from tests.funnel.cascades import cascade_over
from tests.funnel.clustered import clustered_rows

DIM = 64


@pytest.fixture(scope="module", params=["float16", "float32"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VectorStore:
    return cascade_over(clustered_rows(300, DIM), tmp_path_factory.mktemp("rerank"), (16, DIM), "flat", request.param)[
        0
    ].store


@pytest.fixture(params=["compiled", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr(rerank, "loops", lambda: None)
    else:
        assert rerank.loops() is not None, "numba is not installed"


def candidates() -> tuple[torch.Tensor, torch.Tensor]:
    generator = np.random.default_rng(0)
    return torch.from_numpy(clustered_rows(9, DIM, seed=3)), torch.from_numpy(generator.integers(0, 300, (9, 40)))


def products(store: VectorStore, queries: np.ndarray, rows: np.ndarray, width: int) -> np.ndarray:
    matrix = store.matrix.double().numpy()
    result: np.ndarray = np.einsum(
        "qd,qsd->qs", queries[:, :width].astype(np.float64), matrix[rows.clip(min=0)][..., :width]
    )
    result[rows < 0] = -np.inf
    return result


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


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("width", [1, 7, 16, 33, 64])
@pytest.mark.parametrize("n", [0, 1, 9])
def test_scores_are_the_dot_products_of_float64(store: VectorStore, width: int, n: int) -> None:
    queries, rows = (each.numpy()[:n].copy() for each in candidates())
    rows[:, 5::7] = -1
    found = scored(store, queries, rows, width)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, products(store, queries, rows, width), atol=1e-6)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("keep", [1, 10, 40, 99])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_best_are_kept_in_falling_order(store: VectorStore, keep: int, weighted: bool) -> None:
    queries, rows = (each.numpy().copy() for each in candidates())
    rows[:, 30:] = -1
    weights = torch.from_numpy(np.random.default_rng(1).uniform(0.5, 2.0, store.n).astype(np.float32))
    scores, found, places = reranked(store, queries, rows, 32, keep, weights if weighted else None)
    expected = products(store, queries, rows, 32) * (weights.numpy()[rows] if weighted else 1.0)
    assert scores.shape == found.shape == places.shape == (9, min(keep, 40))
    np.testing.assert_allclose(scores, -np.sort(-expected, axis=1)[:, :keep], atol=2e-6)
    assert (found == np.take_along_axis(rows, places, axis=1)).all()
    assert all(len(set(row)) == len(row) for row in places.tolist())


@pytest.mark.usefixtures("way")
def test_queries_that_cannot_be_written_to_and_rows_that_lie_apart(store: VectorStore) -> None:
    queries, rows = (each.numpy() for each in candidates())
    apart = np.repeat(rows, 2, axis=1)[:, ::2]
    fixed = queries.copy()
    fixed.flags.writeable = False
    np.testing.assert_array_equal(scored(store, fixed, apart, DIM), scored(store, queries, rows, DIM))


@pytest.mark.usefixtures("way")
def test_a_score_that_is_no_number_is_not_hidden() -> None:
    matrix = torch.ones((30, 8))
    matrix[25] = torch.nan
    scores, rows, _ = reranked(VectorStore.held(matrix), np.ones((1, 8), np.float32), np.arange(30)[None], 8, 5)
    assert np.isnan(scores[0, 0])
    assert rows[0, 0] == 25


@pytest.mark.usefixtures("way")
def test_sums_of_float16_rows_are_taken_in_float32(tmp_path: Path) -> None:
    """In float16 the small terms would be lost beside the large one."""
    row = np.full((1, 1025), 2.0**-11, dtype=np.float32)
    row[0, 0] = 1.0
    with VectorStore.create(tmp_path / "vectors.npy", 1, 1025, "float16") as writer:
        writer.write(np.zeros(1, dtype=np.int64), row)
    store = VectorStore.open(tmp_path / "vectors.npy")
    dots = scored(store, np.ones((1, 1025), np.float32), np.zeros((1, 1), dtype=np.int64), 1025)
    assert dots.item() == pytest.approx(1.5, abs=1e-6)


def test_without_numba_torch_does_it() -> None:
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "import numpy as np, torch\n"
        "from funnel.engine.rerank import loops, scored\n"
        "from indexes import VectorStore\n"
        "assert loops() is None\n"
        "print(scored(VectorStore.held(torch.eye(4)), np.eye(4, dtype='f4'), np.arange(16).reshape(4, 4) % 4, 4).sum())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["4.0"]


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
