import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from funnel.adaptors import PCA, SecondMoment
from funnel.adaptors import rotation as pca_module
from funnel.errors import InputError


def unit_rows(n: int, dim: int, seed: int) -> np.ndarray:
    """Rows of unit length whose energy falls along hidden axes, as that of embeddings does."""
    rng = np.random.default_rng(seed)
    axes, _ = np.linalg.qr(rng.normal(size=(dim, dim)))
    rows = (rng.normal(size=(n, dim)) / np.arange(1, dim + 1)) @ axes
    result: np.ndarray = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return result


@settings(max_examples=30)
@given(n=st.integers(1, 60), dim=st.integers(1, 96), seed=st.integers(0, 2**31))
def test_all_inner_products_are_kept(n: int, dim: int, seed: int) -> None:
    rows = unit_rows(n, dim, seed)
    adapted = PCA.fit(rows).transform(rows)
    np.testing.assert_allclose(adapted @ adapted.T, rows @ rows.T, atol=1e-5)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), cuts=st.lists(st.integers(0, 50), max_size=4))
def test_chunks_sum_to_the_whole(seed: int, cuts: Any) -> None:
    rows = unit_rows(50, 12, seed)
    moment = SecondMoment(12)
    for chunk in np.split(rows, sorted(cuts)):
        moment.update(chunk)
    assert moment.rows == 50
    np.testing.assert_allclose(moment.rotation(), PCA.fit(rows).matrix.numpy(), atol=1e-4)


def test_prefixes_hold_the_energy_of_the_largest_eigenvalues() -> None:
    rows = unit_rows(400, 16, seed=5)
    energy = np.square(PCA.fit(rows).transform(rows)).mean(axis=0)
    expected = np.linalg.eigvalsh(rows.T.astype(np.float64) @ rows / len(rows))[::-1]
    np.testing.assert_allclose(energy, expected, atol=1e-6)
    assert energy[:4].sum() > 0.8 > np.square(rows).mean(axis=0)[:4].sum()


def test_the_moment_is_not_centred() -> None:
    rows = np.tile(np.array([[3.0, 4.0]], np.float32), (5, 1))
    np.testing.assert_allclose(PCA.fit(rows).transform(rows), [[5.0, 0.0]] * 5, atol=1e-5)


def test_signs_are_fixed() -> None:
    rows = unit_rows(100, 8, seed=1)
    matrix = PCA.fit(rows).matrix.numpy()
    np.testing.assert_array_equal(matrix, PCA.fit(-rows).matrix.numpy())
    assert (matrix[np.abs(matrix).argmax(axis=0), np.arange(8)] > 0).all()


def test_sums_are_kept_in_float64() -> None:
    moment = SecondMoment(1)
    moment.update(np.array([[4096.0]], np.float32))
    for _ in range(10):
        moment.update(np.array([[0.5]], np.float32))
    assert moment._sum[0, 0] == 4096.0**2 + 2.5


def test_blocks_do_not_change_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = unit_rows(50, 6, seed=2)
    whole = PCA.fit(rows).matrix.numpy()
    monkeypatch.setattr(pca_module, "BLOCK_CELLS", 7 * 6)
    np.testing.assert_allclose(PCA.fit(rows).matrix.numpy(), whole, atol=1e-6)


def test_memory_of_a_sum_does_not_grow_with_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pca_module, "BLOCK_CELLS", 131_072)  # 1 MB as float64
    rows = np.tile(unit_rows(4_000, 64, seed=3), (1, 16))  # 33 MB as float64
    moment = SecondMoment(rows.shape[1])
    tracemalloc.start()
    moment.update(rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * rows.shape[1] ** 2 + 4_000_000  # the product that is added, and a few blocks


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_named_over_all_chunks(value: Any) -> None:
    moment = SecondMoment(3)
    moment.update(np.ones((10, 3), np.float32))
    bad = np.ones((4, 3), np.float32)
    bad[[1, 3], 2] = value
    with pytest.raises(InputError, match=r"2 rows hold values that are not finite \(row 11, 13\)"):
        moment.update(bad)
    assert moment.rows == 10


def test_an_empty_moment_has_no_rotation() -> None:
    with pytest.raises(InputError, match="0 rows"):
        SecondMoment(3).rotation()


def test_a_chunk_of_another_width_is_refused() -> None:
    with pytest.raises(InputError, match=r"\(2, 4\) was given; expected \(rows, 3\)"):
        SecondMoment(3).update(np.ones((2, 4), np.float32))


@pytest.mark.usefixtures("bars_at_once")
def test_progress_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    PCA.fit(np.ones((4, 2), np.float32), progress=True)
    PCA.fit(np.ones((4, 2), np.float32), progress=False)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("fitting pca") >= 1
    assert "rows" in captured.err
