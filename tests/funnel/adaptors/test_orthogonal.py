from typing import Any

import numpy as np
import pytest

from funnel.adaptors import PCA
from funnel.errors import InputError


def test_the_matrix_multiplies_from_the_right() -> None:
    quarter_turn = np.array([[0, 1], [-1, 0]], np.float32)
    np.testing.assert_array_equal(PCA(quarter_turn).transform(np.array([[2, 3]])), [[-3, 2]])


def test_a_matrix_that_stretches_is_refused() -> None:
    matrix = np.eye(4, dtype=np.float32)
    matrix[2, 2] = 1.0001
    with pytest.raises(InputError, match=r"not orthogonal: .* = 0\.0002, at most 1e-05"):
        PCA(matrix)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.zeros((2, 3), np.float32), r"shape \(2, 3\)"),
        (np.full((2, 2), np.nan, np.float32), "not orthogonal: .* = nan"),
    ],
)
def test_a_matrix_of_no_use_is_refused(matrix: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        PCA(matrix)


def test_the_tensors_must_be_those_expected() -> None:
    with pytest.raises(InputError, match=r"the tensors are \{'other': \(2, 2\)\} and the settings \{\}, expected"):
        PCA.build(2, (), {}, {"other": np.eye(2, dtype=np.float32)})
    with pytest.raises(InputError, match=r"\{'matrix': \(2, 2\)\} .* expected \{'matrix': \(3, 3\)\}"):
        PCA.build(3, (), {}, {"matrix": np.eye(2, dtype=np.float32)})
