"""The widths that an index uses."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from funnel.adaptors import Identity
from funnel.building.segment import checked_ladder, choose_ladder, steps_above
from funnel.engine.cascade import Space
from funnel.errors import InputError
from indexes import VectorStore
from tests.funnel.clustered import clustered_rows


def stored(rows: np.ndarray, folder: Path) -> VectorStore:
    with VectorStore.create(folder / "vectors.npy", len(rows), rows.shape[1], np.float32) as writer:
        writer.write(np.arange(len(rows)), rows)
    return VectorStore.open(folder / "vectors.npy")


@given(st.integers(1, 4096), st.integers(1, 4096))
def test_steps_rise_by_half_octaves_to_full_width(width: int, dim: int) -> None:
    width = min(width, dim)
    ladder = steps_above(width, dim)
    assert ladder[-1] == dim
    assert ladder[0] == width
    assert all(a < b for a, b in itertools.pairwise(ladder))
    assert all(inner % 8 == 0 and inner <= dim / 2 for inner in ladder[1:-1])


def test_steps_of_a_usual_model() -> None:
    assert steps_above(64, 384) == (64, 96, 128, 192, 384)
    assert steps_above(384, 384) == (384,)


def test_the_users_widths() -> None:
    assert checked_ladder([32, 64], 128) == (32, 64, 128)
    assert checked_ladder((32, 128), 128) == (32, 128)
    assert checked_ladder(np.array([16]), 32) == (16, 32)  # type: ignore[arg-type]
    assert checked_ladder([8], 8) == (8,)


@pytest.mark.parametrize("dims", [[], [0, 8], [-8], [64, 32], [32, 32], [129], [32.0], [True], "32", 64, None])
def test_widths_that_cannot_be_used(dims: object) -> None:
    with pytest.raises(InputError, match="dims is"):
        checked_ladder(dims, 128)  # type: ignore[arg-type]


def chosen(store: VectorStore) -> tuple[int, tuple[int, ...]]:
    return choose_ladder(store, Space(Identity(store.dim), True))


def test_a_narrow_prefix_is_enough_where_it_holds_the_energy(tmp_path: Path) -> None:
    rows = clustered_rows(2_000, 128)
    rows[:, 40:] *= 0.01
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    width, ladder = chosen(stored(rows, tmp_path))
    assert width <= 48
    below = [each for each in (8, 16, 32) if each < width]
    assert ladder == (*below, *steps_above(width, 128))


def test_full_width_where_no_prefix_is_enough(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(2_000, 96)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert chosen(stored(rows, tmp_path)) == (96, (96,))


@pytest.mark.parametrize(("count", "dim"), [(1, 64), (2, 64), (5, 20), (1, 1)])
def test_few_rows(count: int, dim: int, tmp_path: Path) -> None:
    assert chosen(stored(clustered_rows(count, dim), tmp_path))[1][-1] == dim


def test_the_same_rows_give_the_same_ladder(tmp_path: Path) -> None:
    store = stored(clustered_rows(1_000), tmp_path)
    assert chosen(store) == chosen(store)
