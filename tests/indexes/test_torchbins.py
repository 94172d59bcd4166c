from __future__ import annotations

import numpy as np
import pytest
import torch

from indexes import CoarseIndexError, TorchBinsIndex
from indexes import _devicerows as devicerows
from indexes.base import Float32Array
from tests.indexes.bins import expected_recall
from tests.indexes.conftest import clustered_rows


def built(rows: Float32Array, **settings: int) -> TorchBinsIndex:
    index = TorchBinsIndex(rows.shape[1], **settings)
    index.train(rows)
    index.add(rows)
    return index


@pytest.mark.parametrize("kept", [1, 2])
def test_bins_lose_what_the_formula_says(monkeypatch: pytest.MonkeyPatch, kept: int) -> None:
    """Rows in cluster order, many chunks: because they are shuffled, neighbours do not share a bin."""
    monkeypatch.setattr(devicerows, "PRODUCTS_AT_A_TIME", 100_000)
    rows = clustered_rows(12_000, 16, seed=5)
    rows = rows[np.lexsort(rows.T[:3])]
    queries = clustered_rows(300, 16, seed=6)
    index = built(rows, kept=kept)
    true = np.argsort(-(queries @ rows.astype(np.float16).astype(np.float32).T), axis=1)[:, :200]
    for effort in index.efforts()[:2]:
        found = index.search(queries, 200, effort)[1]
        shares = np.array([np.isin(t, f).mean() for t, f in zip(true, found, strict=True)])
        expected = expected_recall(len(rows), effort, kept, 200)
        assert abs(shares.mean() - expected) <= 5 * shares.std() / len(shares) ** 0.5 + 1e-3


def test_efforts_double_up_to_a_bin_for_each_row_or_the_most(rows: Float32Array) -> None:
    assert built(rows).efforts() == (1_024, 1_500)
    assert built(rows, kept=4).efforts() == (256, 512, 1_024, 1_500)
    assert built(rows[:50]).efforts() == (50,)
    assert built(rows).largest_shortlist(1_024) == 1_024


def test_no_row_kept_of_a_bin_is_refused() -> None:
    with pytest.raises(CoarseIndexError, match="setting kept of torch-bins is 0; give a whole number from 1"):
        TorchBinsIndex(8, kept=0)


def test_tensors_in_tensors_out(rows: Float32Array, queries: Float32Array) -> None:
    index = built(rows)
    scores, found = index.search_tensors(torch.from_numpy(queries).to(index.device), 20, index.efforts()[-1])
    assert scores.device == found.device == index.device
    expected = index.search(queries, 20, index.efforts()[-1])
    np.testing.assert_array_equal(found.cpu().numpy(), expected[1])
    np.testing.assert_array_equal(scores.cpu().numpy(), expected[0])


def test_a_filter_on_the_device_holds(rows: Float32Array, queries: Float32Array) -> None:
    index = built(rows)
    allowed = torch.zeros(len(rows), dtype=torch.bool, device=index.device)
    allowed[7:19] = True
    scores, found = index.search_tensors(torch.from_numpy(queries).to(index.device), 20, index.efforts()[0], allowed)
    assert set(found.cpu().unique().tolist()) == {-1, *range(7, 19)}  # type: ignore[no-untyped-call]
    assert torch.equal(found < 0, scores.isneginf())


def test_placing_moves_the_rows(rows: Float32Array, queries: Float32Array) -> None:
    index = built(rows)
    before = index.search(queries, 10, index.efforts()[-1])
    index.place(torch.device("cpu"))
    assert index.device == torch.device("cpu")
    np.testing.assert_array_equal(index.search(queries, 10, index.efforts()[-1])[1], before[1])
