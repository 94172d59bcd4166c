from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest

from funnel.adaptors import Identity
from funnel.errors import InputError


def test_nothing_changes() -> None:
    vectors = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    np.testing.assert_array_equal(Identity(3).transform(vectors), vectors)


def test_only_the_first_chunk_is_read() -> None:
    def chunks() -> Iterator[npt.NDArray[np.float32]]:
        yield np.zeros((2, 3), np.float32)
        raise AssertionError("the second chunk was asked for")

    assert Identity.fit(chunks()).dim == 3


def test_tensors_are_refused() -> None:
    with pytest.raises(InputError, match="holds neither tensors nor settings"):
        Identity.build(3, (), {}, {"matrix": np.eye(3, dtype=np.float32)})
