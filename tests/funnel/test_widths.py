from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from funnel.checks import checked_widths
from funnel.errors import InputError


@given(st.sets(st.integers(1, 4096), min_size=1), st.booleans())
def test_rising_widths_come_back_as_plain_numbers(widths: Any, as_numpy: Any) -> None:
    rising = sorted(widths)
    given_ = list(np.array(rising)) if as_numpy else rising
    for dim in (None, rising[-1], rising[-1] + 1):
        found = checked_widths(given_, dim)
        assert found == tuple(rising)
        assert all(type(width) is int for width in found)


@pytest.mark.parametrize("dims", [[], [0, 4], [4, 4], [8, 4], [4.5], ["4"], [True], 16, None])
@pytest.mark.parametrize("dim", [None, 64])
def test_widths_that_cannot_be(dims: Any, dim: int | None) -> None:
    with pytest.raises(InputError, match=r"dims is .*; expected rising w"):
        checked_widths(dims, dim)


def test_widths_beyond_the_vectors_are_refused() -> None:
    assert checked_widths([4, 65]) == (4, 65)
    with pytest.raises(InputError, match=r"dims is \[4, 65\]; expected rising widths from 1 to 64, the width"):
        checked_widths([4, 65], 64)
