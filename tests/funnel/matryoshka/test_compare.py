import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from funnel.errors import InputError
from funnel.matryoshka import compare_truncations


def rows(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)) + 0.5


@settings(max_examples=30)
@given(n=st.integers(3, 30), d=st.integers(3, 12), cut=st.integers(0, 9), seed=st.integers(0, 2**20))
def test_a_prefix_is_its_own_match(n: int, d: int, cut: Any, seed: int) -> None:
    full, width = rows(n, d, seed), max(2, d - cut)
    short = full[:, :width] * np.random.default_rng(seed).uniform(0.1, 9, size=(n, 1))  # lengths do not count
    found = compare_truncations(full, short, same_space=True)
    assert (found.width, found.rows, found.pairs) == (width, n, n * (n - 1) // 2)
    assert found.row_cosine == pytest.approx(1)
    assert found.mean_absolute_error == pytest.approx(0, abs=1e-12)
    assert found.correlation == pytest.approx(1)
    assert found.prefix_mean_cosine == pytest.approx(found.short_mean_cosine)
    assert found.percentage_pairs == 0 or found.mean_absolute_percentage_error == pytest.approx(0, abs=1e-9)


@settings(max_examples=30)
@given(n=st.integers(3, 20), width=st.integers(2, 8), seed=st.integers(0, 2**20))
def test_turned_axes_change_rows_but_no_pairs(n: int, width: int, seed: int) -> None:
    full = rows(n, 10, seed)
    rotation = np.linalg.qr(rows(width, width, seed + 1))[0]
    here, there = (compare_truncations(full, short) for short in (full[:, :width], full[:, :width] @ rotation))
    assert there.mean_absolute_error == pytest.approx(0, abs=1e-9)
    assert there.short_mean_cosine == pytest.approx(here.short_mean_cosine)
    assert there.row_cosine is None
    turned = compare_truncations(full, -full[:, :width], same_space=True)
    assert turned.row_cosine == pytest.approx(-1)


def test_figures_by_hand() -> None:
    full = np.array([[3.0, 0.0, 9.0], [1.0, 1.0, -9.0], [0.0, 2.0, 5.0]])  # prefixes: cosines √½, 0, √½
    short = np.array([[1.0, 0.0], [0.6, 0.8], [0.05, math.sqrt(1 - 0.0025)]])
    expected = np.array([0.6, 0.05, 0.03 + 0.8 * math.sqrt(1 - 0.0025)])
    prefix = np.array([math.sqrt(0.5), 0.0, math.sqrt(0.5)])
    found = compare_truncations(full, short, same_space=True)
    assert found.prefix_mean_cosine == pytest.approx(prefix.mean())
    assert found.short_mean_cosine == pytest.approx(expected.mean())
    assert found.mean_absolute_error == pytest.approx(np.abs(prefix - expected).mean())
    assert found.correlation == pytest.approx(np.corrcoef(prefix, expected)[0, 1])
    assert found.percentage_pairs == 2  # 0.05 is too near to 0 for a percentage
    ratios = np.abs(prefix - expected)[[0, 2]] / expected[[0, 2]]
    assert found.mean_absolute_percentage_error == pytest.approx(100 * ratios.mean())
    row_cosines = [1.0, 1.4 * math.sqrt(0.5), math.sqrt(1 - 0.0025)]
    assert found.row_cosine == pytest.approx(np.mean(row_cosines))


def test_noise_lowers_the_match() -> None:
    full = rows(100, 16)
    errors, correlations = [], []
    for noise in (0.0, 0.3, 1.0):
        found = compare_truncations(full, full[:, :8] + noise * rows(100, 8, seed=1), same_space=True)
        errors.append(found.mean_absolute_error)
        correlations.append(found.correlation)
    assert errors == sorted(errors)
    assert correlations == sorted(correlations, reverse=True)
    assert correlations[2] < 0.9 < correlations[0]


def test_many_rows_are_sampled_the_same_in_both() -> None:
    full = rows(500, 8)
    found = compare_truncations(full, full[:, :4], same_space=True, sample=50, seed=3)
    assert (found.rows, found.pairs) == (50, 1225)
    assert found.row_cosine == pytest.approx(1)
    whole = compare_truncations(full, full[:, :4])
    assert found.prefix_mean_cosine == pytest.approx(whole.prefix_mean_cosine, abs=0.1)
    assert found.prefix_mean_cosine != whole.prefix_mean_cosine


def test_tensors_of_half_precision_are_taken() -> None:
    full = torch.tensor(rows(20, 8), dtype=torch.float16)
    assert compare_truncations(full, full[:, :4].float()).mean_absolute_error == pytest.approx(0, abs=1e-12)


def test_figures_that_do_not_exist_are_nan() -> None:
    one_pair = compare_truncations(np.eye(2), np.eye(2))
    assert math.isnan(one_pair.correlation)
    assert math.isnan(one_pair.mean_absolute_percentage_error)
    assert one_pair.percentage_pairs == 0


def broken(value: Any) -> Any:
    full = rows(5, 8)
    full[2] = value
    return full


@pytest.mark.parametrize(
    ("full", "short", "message"),
    [
        (rows(5, 8), rows(4, 4), r"shape \(5, 8\) and \(4, 4\)"),
        (rows(5, 4), rows(5, 8), "m <= d"),
        (rows(1, 8), rows(1, 4), r"\(1, 8\) and \(1, 4\); .* at least 2 rows"),
        (broken(np.nan), rows(5, 4), r"not finite \(first: row 2\)"),
        (rows(5, 8), broken(np.inf), r"not finite \(first: row 2\)"),
        (broken(0.0), rows(5, 4), "1 rows have a prefix that is zero"),
        (rows(5, 8), broken(0.0), "1 rows have a natively short embedding that is zero"),
        (rows(5, 8)[0], rows(5, 4), r"shape \(8,\)"),
    ],
)
def test_bad_input_is_refused(full: Any, short: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        compare_truncations(full, short)
