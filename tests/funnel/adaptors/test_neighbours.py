from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from funnel.adaptors import sampling as neighbours
from funnel.adaptors.sampling import nearest, scaled


@given(st.integers(1, 30), st.integers(1, 60), st.integers(0, 1000), st.integers(1, 500))
def test_nearest_is_the_sorted_products(n_queries: Any, n_rows: Any, seed: int, at_a_time: Any) -> None:
    rng = np.random.default_rng(seed)
    queries, rows = rng.standard_normal((n_queries, 5)), rng.standard_normal((n_rows, 5))
    k = int(rng.integers(1, n_rows + 1))
    before = neighbours.SCORES_AT_A_TIME
    neighbours.SCORES_AT_A_TIME = at_a_time
    try:
        scores, found = nearest(torch.from_numpy(queries), torch.from_numpy(rows), k)
    finally:
        neighbours.SCORES_AT_A_TIME = before
    products = queries @ rows.T
    np.testing.assert_array_equal(found.numpy(), np.argsort(-products, axis=1)[:, :k])
    np.testing.assert_allclose(scores.numpy(), -np.sort(-products, axis=1)[:, :k])


def test_a_row_is_not_its_own_neighbour() -> None:
    rows = scaled(torch.randn(50, 4, generator=torch.Generator().manual_seed(0)))
    own = torch.arange(50)
    found = nearest(rows, rows, 49, own=own)[1]
    assert not (found == own[:, None]).any()
    assert (found.sort(dim=1).values == torch.stack([torch.cat([own[:i], own[i + 1 :]]) for i in range(50)])).all()


def test_scaled_leaves_zeros() -> None:
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert torch.equal(scaled(vectors), torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
