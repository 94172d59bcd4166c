import pytest
from hypothesis import given
from hypothesis import strategies as st

from funnel.adaptors import checked_widths, default_widths
from funnel.errors import InputError


@given(st.integers(1, 4096))
def test_default_widths_rise_and_leave_room(dim):
    widths = default_widths(dim)
    assert widths == checked_widths(widths, dim)
    assert widths[-1] <= max(1, dim / 2)


def test_default_widths_of_the_usual_models():
    assert default_widths(384) == (32, 48, 64, 96, 128, 192)
    assert default_widths(256) == (32, 48, 64, 96, 128)
    assert default_widths(1536) == (32, 48, 64, 96, 128, 192, 256)
    assert default_widths(20) == (10,)


@pytest.mark.parametrize("dims", [[], [0, 4], [4, 4], [8, 4], [4, 65], [4.5], ["4"], [True], 16, None])
def test_widths_that_cannot_be(dims):
    with pytest.raises(InputError, match="dims is"):
        checked_widths(dims, 64)
