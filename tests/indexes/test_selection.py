from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from indexes import CoarseIndexError, choose, family, hnsw_settings
from indexes.selection import FLAT_ROWS, GPU_SHARE, ON_GPU, gpu_candidates

DIMS = st.integers(1, 512)
COUNTS = st.integers(1, 10_000_000)


def test_small_sets_are_searched_flat_and_large_ones_by_a_graph() -> None:
    assert choose(FLAT_ROWS, 64)[0].name == "flat"
    assert [c.name for c in choose(FLAT_ROWS + 1, 64)] == ["hnsw-sq8", "ivf-sq8", "ivf-pq"]


def test_memory_leaves_out_what_does_not_fit() -> None:
    graph, inverted, product = choose(1_000_000, 128)
    assert graph.estimated_bytes > inverted.estimated_bytes > product.estimated_bytes
    assert [c.name for c in choose(1_000_000, 128, inverted.estimated_bytes)] == ["ivf-sq8", "ivf-pq"]
    assert [c.name for c in choose(1_000_000, 128, inverted.estimated_bytes - 1)] == ["ivf-pq"]


def test_nothing_fits_says_how_much_is_needed() -> None:
    least = choose(1_000_000, 128)[-1].estimated_bytes
    with pytest.raises(CoarseIndexError, match=rf"fits in 1000 bytes; the smallest, ivf-pq, needs {least}"):
        choose(1_000_000, 128, 1000)


@pytest.mark.parametrize(("n", "dim"), [(0, 8), (8, 0)])
def test_nothing_to_index_is_refused(n: int, dim: int) -> None:
    with pytest.raises(CoarseIndexError, match="needs at least 1 of each"):
        choose(n, dim)


@given(COUNTS, DIMS)
def test_every_choice_can_be_made_and_says_its_bytes(n: int, dim: int) -> None:
    for choice in choose(n, dim):
        index = family(choice.name)(dim, **choice.settings)
        assert index.settings == choice.settings
        assert choice.estimated_bytes == type(index).estimate_nbytes(n, dim, choice.settings)


@given(COUNTS, COUNTS)
def test_larger_graphs_never_get_fewer_links(n: int, m: int) -> None:
    assert hnsw_settings(min(n, m))["degree"] <= hnsw_settings(max(n, m))["degree"]


@given(COUNTS, DIMS, st.integers(0, 10**9))
def test_choices_keep_their_order_and_fit(n: int, dim: int, memory_bytes: int) -> None:
    everything = choose(n, dim)
    expected = [choice for choice in everything if choice.estimated_bytes <= memory_bytes]
    if expected:
        assert choose(n, dim, memory_bytes) == expected
    else:
        with pytest.raises(CoarseIndexError):
            choose(n, dim, memory_bytes)


def test_a_gpu_is_offered_what_can_be_used_there_and_fits() -> None:
    usable = [name for name in ON_GPU if family(name).missing() is None]
    choices = gpu_candidates(1_000_000, 128, 10**12)
    assert [choice.name for choice in choices] == usable
    assert usable[0] == "torch-bins"
    held = choices[0].estimated_bytes
    assert held == 1_000_000 * (128 * 2 + 4)
    assert gpu_candidates(1_000_000, 128, int(held / GPU_SHARE) + 1)[0].name == "torch-bins"
    assert all(choice.name != "torch-bins" for choice in gpu_candidates(1_000_000, 128, int(held / GPU_SHARE) - 1))


def test_on_a_gpu_its_families_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indexes.selection.free_bytes", lambda _device: 10**12)
    names = [choice.name for choice in choose(1_000_000, 128, device=torch.device("cuda"))]
    assert names[0] == "torch-bins"
    assert names[-3:] == ["hnsw-sq8", "ivf-sq8", "ivf-pq"]
    assert names[-3:] == [choice.name for choice in choose(1_000_000, 128)]
