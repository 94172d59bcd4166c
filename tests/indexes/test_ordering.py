from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from indexes import ClusterTree, CoarseIndexError, stored_order
from indexes.base import Float32Array, Int64Array

MATRICES = npst.arrays(
    np.float32,
    npst.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40),
    elements=st.floats(-1, 1, width=32),
)


@settings(max_examples=40, deadline=None)
@given(MATRICES, st.integers(1, 8))
def test_any_rows_get_leaves_of_the_tree(rows: Float32Array, leaf_size: int) -> None:
    tree = ClusterTree.fit(rows, leaf_size=leaf_size)
    leaves = tree.assign(rows)
    assert leaves.shape == (len(rows),)
    assert leaves.dtype == np.int64
    assert leaves.min() >= 0
    assert leaves.max() < tree.leaves


def test_rows_that_are_alike_make_one_leaf() -> None:
    rows = np.tile(np.array([0.6, 0.8], np.float32), (500, 1))
    tree = ClusterTree.fit(rows, leaf_size=4)
    assert tree.leaves == 1
    assert (tree.assign(rows) == 0).all()


def test_few_distinct_rows_are_told_apart() -> None:
    rows = np.eye(3, dtype=np.float32)[np.arange(900) % 3]
    leaves = ClusterTree.fit(rows, leaf_size=4).assign(rows)
    assert len(set(leaves.tolist())) == 3
    assert all(len(set(leaves[start::3].tolist())) == 1 for start in range(3))


def test_a_sample_smaller_than_a_leaf_makes_one_leaf(rows: Float32Array) -> None:
    assert ClusterTree.fit(rows[:10], leaf_size=10).leaves == 1


def test_leaves_hold_about_what_they_should(rows: Float32Array) -> None:
    tree = ClusterTree.fit(rows, leaf_size=20)
    assert np.bincount(tree.assign(rows)).max() <= 20
    assert len(rows) / 20 <= tree.leaves <= len(rows) / 2


def test_rows_stored_in_order_are_near_their_neighbours(rows: Float32Array) -> None:
    def nearness(order: Int64Array) -> float:
        return float(np.einsum("ij,ij->i", rows[order][1:], rows[order][:-1]).mean())

    order = np.argsort(ClusterTree.fit(rows, leaf_size=16).assign(rows), kind="stable")
    assert nearness(order) > nearness(np.arange(len(rows))) + 0.4


def test_leaves_along_a_line_are_numbered_along_it() -> None:
    angles = np.sort(np.random.default_rng(3).uniform(0, 1.5, 4000))
    arc = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    tree = ClusterTree.fit(arc, leaf_size=50)
    steps = np.diff(tree.assign(arc))
    assert tree.leaves > 16  # two levels at least
    assert (steps >= 0).all() or (steps <= 0).all()


def test_leaves_are_the_same_again_and_in_chunks(rows: Float32Array) -> None:
    leaves = ClusterTree.fit(rows, leaf_size=16, seed=5).assign(rows)
    tree = ClusterTree.fit(rows, leaf_size=16, seed=5)
    np.testing.assert_array_equal(tree.assign(rows), leaves)
    chunks = [tree.assign(chunk) for chunk in np.array_split(rows, 9)]
    np.testing.assert_array_equal(np.concatenate(chunks), leaves)


def test_rows_that_no_split_halves_do_not_recurse_for_ever() -> None:
    rows = (10.0 ** np.linspace(-9, 9, 3000)).astype(np.float32)[:, None]
    assert ClusterTree.fit(rows, leaf_size=1).leaves >= 2


def test_wrong_input_is_refused(rows: Float32Array) -> None:
    with pytest.raises(CoarseIndexError, match=r"a sample of shape \[0, 4\]"):
        ClusterTree.fit(np.empty((0, 4), np.float32))
    with pytest.raises(CoarseIndexError, match="leaf_size is 0"):
        ClusterTree.fit(rows, leaf_size=0)
    with pytest.raises(CoarseIndexError, match=r"rows of shape \[1500, 5\]; this tree takes \[n, 32\]"):
        ClusterTree.fit(rows).assign(rows[:, :5])
    with pytest.raises(CoarseIndexError, match="block_rows is 0"):
        stored_order(np.zeros(3, np.int64), 0)


@given(st.lists(st.integers(0, 20), max_size=200), st.integers(1, 100), st.integers(0, 5))
def test_each_row_is_stored_once_and_blocks_follow_the_leaves(numbers: list[int], block_rows: int, seed: int) -> None:
    leaves = np.array(numbers, np.int64)
    order = stored_order(leaves, block_rows, seed)
    np.testing.assert_array_equal(np.sort(order), np.arange(len(leaves)))
    np.testing.assert_array_equal(order, stored_order(leaves, block_rows, seed))
    blocks = np.array_split(order, max(1, -(-len(leaves) // block_rows)))
    assert all((np.diff(leaves[block]) >= 0).all() for block in blocks)
    assert max(map(len, blocks)) <= block_rows


def test_each_block_spans_all_leaves() -> None:
    leaves = np.repeat(np.arange(10), 1000)
    for block in np.array_split(stored_order(leaves, 2500), 4):
        assert np.bincount(leaves[block], minlength=10).min() > 180
