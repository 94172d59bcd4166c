from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from indexes._prefixcodes import (
    Float32Codes,
    Int8Codes,
    PrefixCodes,
    gamma,
    int8_products_are_exact,
    norms_of,
    tail_norms,
)
from indexes.base import Float32Array

needs_int8 = pytest.mark.skipif(not int8_products_are_exact(), reason="no exact int8 products on this processor")


def float32_codes(rows: Float32Array, width: int) -> PrefixCodes:
    return Float32Codes(width, largest_norm(rows))


def int8_codes(rows: Float32Array, width: int) -> PrefixCodes:
    # Half the largest value, so that some codes are cut off and their error has to be counted.
    largest, tails = float(np.abs(rows[:, :width]).max()) / 2, upper_tails(rows, width)
    return Int8Codes(width, largest_norm(rows), largest, float(tails.max()))


def largest_norm(rows: Float32Array) -> float:
    return float(np.linalg.norm(rows.astype(np.float64), axis=1).max()) * (1 + 4 * gamma(rows.shape[1] + 8))


def stored_norms(rows: Float32Array, width: int) -> Float32Array:
    """As norms.npy has them: float32 throughout."""
    result: Float32Array = np.sqrt(np.einsum("nd,nd->n", rows[:, :width], rows[:, :width])).astype(np.float32)
    return result


def upper_tails(rows: Float32Array, width: int) -> Float32Array:
    return tail_norms(stored_norms(rows, width), stored_norms(rows, rows.shape[1]), rows.shape[1])


@st.composite
def matrices(draw: st.DrawFn) -> tuple[Float32Array, Float32Array, int]:
    """Rows as stored, queries, a width: decaying or flat spectra, zero tails or prefixes, duplicates, tiny values."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dim = draw(st.integers(2, 70))
    width = draw(st.integers(1, dim - 1))
    decay = draw(st.sampled_from([0.0, 0.5, 2.0]))
    scale = (1 + np.arange(dim)) ** -decay
    rows = generator.normal(size=(draw(st.integers(1, 40)), dim)) * scale
    queries = generator.normal(size=(draw(st.integers(1, 5)), dim)) * scale
    if draw(st.booleans()):
        rows[::2, width:] = 0
    if draw(st.booleans()):
        rows[1::3, :width] = 0
        queries[-1, :width] = 0
    if draw(st.booleans()):
        queries[0] = rows[0]
    if draw(st.booleans()):
        rows[:, 0] *= draw(st.sampled_from([1e-20, 1e4]))
    if draw(st.booleans()):
        rows[len(rows) // 2 :] = rows[0] * generator.choice([1, 1 + 1e-7], (len(rows) - len(rows) // 2, 1))
    rows, queries = unit(rows), unit(queries)
    stored = np.float16 if draw(st.booleans()) else np.float32
    return rows.astype(stored).astype(np.float32), queries.astype(np.float32), width


def unit(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    result: np.ndarray = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    return result


@pytest.mark.parametrize("make", [float32_codes, pytest.param(int8_codes, marks=needs_int8)])
@given(matrices())
@settings(max_examples=150, deadline=None)
def test_a_row_that_reaches_tau_is_above_the_limit(
    make: Callable[[Float32Array, int], PrefixCodes], drawn: tuple[Float32Array, Float32Array, int]
) -> None:
    rows, queries, width = drawn
    codes, scores = make(rows, width), queries.astype(np.float64) @ rows.astype(np.float64).T
    tails = torch.from_numpy(upper_tails(rows, width))
    coded = codes.rows(torch.from_numpy(rows[:, :width].copy()), tails, 0)
    asked = codes.queries(queries[:, :width], norms_of(queries[:, width:]))
    products = torch.empty((len(queries), len(rows)), dtype=codes.product)
    codes.multiply(asked, slice(0, len(queries)), coded, products)
    for row in range(len(rows)):  # tau exactly at this row's true score: the nearest tie there can be
        limits = codes.limits(asked, scores[:, row], coded.residual)
        assert (products.numpy()[:, row] > limits).all()


@given(matrices())
@settings(max_examples=150, deadline=None)
def test_tails_are_never_below_the_norm_of_what_is_left(drawn: tuple[Float32Array, Float32Array, int]) -> None:
    rows, _, width = drawn
    true = np.linalg.norm(rows[:, width:].astype(np.float64), axis=1)
    upper = upper_tails(rows, width).astype(np.float64)
    assert (upper >= true).all()
    # And not far above: by the square root of what rounding leaves open, of rows that are a little longer than 1.
    assert (upper <= true + 1.05 * np.sqrt(2 * gamma(rows.shape[1] + 16)) * (1 + 1e-3)).all()


@needs_int8
def test_the_error_of_a_block_is_measured_once_and_kept_by_number() -> None:
    rows = unit(np.random.default_rng(0).normal(size=(64, 24))).astype(np.float32)
    codes, tails = Int8Codes(16, 1.001, 0.9, 1.0), torch.ones(64)
    prefixes = torch.from_numpy(rows[:, :16].copy())
    first = codes.rows(prefixes, tails, 64).residual
    assert first > 0
    assert codes.rows(prefixes, tails, 64).residual == first
    assert codes.rows(prefixes * 0.5, tails, 0).residual != first
    np.testing.assert_array_equal(prefixes.numpy(), rows[:, :16])  # what was given is left as it was


@needs_int8
def test_the_limit_is_near_the_bound() -> None:
    """A limit of minus infinity would pass every other test."""
    generator = np.random.default_rng(1)
    rows = unit(generator.normal(size=(500, 48)) * np.linspace(1, 0.1, 48)).astype(np.float32)
    queries = unit(generator.normal(size=(8, 48)) * np.linspace(1, 0.1, 48)).astype(np.float32)
    width, tails = 32, upper_tails(rows, 32)
    bound = queries[:, :width] @ rows[:, :width].T + np.linalg.norm(queries[:, width:], axis=1)[:, None] * tails
    tau = np.sort(queries @ rows.T, axis=1)[:, -10].astype(np.float64)
    fine = Int8Codes(width, largest_norm(rows), float(np.abs(rows).max()), float(tails.max()))
    for codes, slack in ((float32_codes(rows, width), 1e-4), (fine, 0.06)):
        coded = codes.rows(torch.from_numpy(rows[:, :width].copy()), torch.from_numpy(tails), 0)
        asked = codes.queries(queries[:, :width], norms_of(queries[:, width:]))
        products = torch.empty((8, 500), dtype=codes.product)
        codes.multiply(asked, slice(0, 8), coded, products)
        kept = products.numpy() > codes.limits(asked, tau, coded.residual)[:, None]
        assert not kept[bound < tau[:, None] - slack].any()
        assert kept[bound >= tau[:, None]].all()
