from __future__ import annotations

import pytest

from indexes import CoarseIndexError, IvfPqIndex, IvfSq8Index
from indexes.base import Float32Array
from indexes.ivf import MIN_ROWS_PER_CELL, _IvfIndex, cells


@pytest.mark.parametrize(("n", "expected"), [(1, 1), (7, 1), (100, 12), (10_000, 400), (10**9, 16_384)])
def test_cells_follow_the_number_of_rows(n: int, expected: int) -> None:
    assert cells(n) == expected
    assert cells(n) == 1 or n // cells(n) >= MIN_ROWS_PER_CELL


def test_cells_left_open_are_chosen_in_training(rows: Float32Array) -> None:
    index = IvfSq8Index(rows.shape[1])
    assert index.settings == {"nlist": 0}
    index.train(rows)
    assert index.settings == {"nlist": cells(len(rows))}


def test_efforts_rise_by_an_eighth_up_to_a_quarter_of_the_cells(rows: Float32Array) -> None:
    index = IvfSq8Index(rows.shape[1], nlist=128)
    assert index.efforts() == (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 18, 20, 22, 25, 28, 32)
    assert IvfSq8Index(4, nlist=5).efforts() == (1, 2, 3, 4, 5)
    assert IvfSq8Index(4, nlist=10_000).efforts()[-1] == 256


def test_too_few_training_rows_are_refused(rows: Float32Array) -> None:
    with pytest.raises(CoarseIndexError, match="given 50 rows to train on and needs 64"):
        IvfSq8Index(rows.shape[1], nlist=64).train(rows[:50])
    with pytest.raises(CoarseIndexError, match="given 15 rows to train on and needs 16"):
        IvfPqIndex(rows.shape[1], nlist=2).train(rows[:15])


def test_product_codes_need_an_even_width() -> None:
    with pytest.raises(CoarseIndexError, match="dim is 7; ivf-pq takes a multiple of 2"):
        IvfPqIndex(7)


def test_a_family_must_say_how_rows_are_coded() -> None:
    class Uncoded(IvfSq8Index):
        _codes = _IvfIndex._codes

    with pytest.raises(TypeError, match="_codes"):
        Uncoded(8)


def test_training_prints_nothing(rows: Float32Array, capfd: pytest.CaptureFixture[str]) -> None:
    for kind in (IvfSq8Index, IvfPqIndex):
        kind(rows.shape[1], nlist=100).train(rows)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_product_codes_take_a_quarter_of_a_byte_a_dimension(rows: Float32Array) -> None:
    index = IvfPqIndex(rows.shape[1], nlist=1)
    index.train(rows)
    index.add(rows)
    tables = (1 + 16) * 32 * 4
    assert index.nbytes == tables + 1504 * 8 + len(rows) * 8
