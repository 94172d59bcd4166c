from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexes import CoarseIndexError, families, family
from indexes.base import rising


def test_families_are_found_by_name() -> None:
    on_gpu = {"torch-bins", "faiss-gpu-flat", "faiss-gpu-ivf", "faiss-cagra"}
    assert set(families()) == {"flat", "ivf-sq8", "ivf-pq", "hnsw-sq8", "hnsw-f16", "symqg"} | on_gpu
    assert all(family(name).name == name for name in families())


def test_an_unknown_family_lists_the_known_ones() -> None:
    with pytest.raises(CoarseIndexError, match=r"no coarse index is called 'annoy'; choose one of: flat, "):
        family("annoy")


def test_settings_are_copied_and_completed() -> None:
    index = family("hnsw-sq8")(8, degree=4)
    assert index.settings == {"degree": 4, "ef_construction": 200}
    index.settings["degree"] = 5
    assert index.settings["degree"] == 4


@pytest.mark.parametrize("value", [1.5, True, "16"])
def test_settings_are_whole_numbers(value: object) -> None:
    with pytest.raises(CoarseIndexError, match="give a whole number"):
        family("hnsw-sq8")(8, degree=value)  # type: ignore[arg-type]


@given(st.integers(1, 3000))
def test_rising_numbers_end_where_they_must_in_small_steps(largest: int) -> None:
    numbers = rising(largest, ((0.07, 256), (0.25, 1024)))
    assert numbers[0] == 1
    assert numbers[-1] == min(largest, 1024)
    assert list(numbers) == sorted(set(numbers))
    for one, following in itertools.pairwise(numbers):
        share = 0.07 if following <= 256 else 0.25
        assert following - one <= max(1, (1 + (1 + share) / 2) * share * one + 1)
