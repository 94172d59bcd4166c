from hypothesis import given
from hypothesis import strategies as st

from funnel.adaptors import default_widths
from funnel.checks import checked_widths


@given(st.integers(1, 4096))
def test_default_widths_rise_and_leave_room(dim: int) -> None:
    widths = default_widths(dim)
    assert widths == checked_widths(widths, dim)
    assert widths[-1] <= max(1, dim / 2)


def test_default_widths_of_the_usual_models() -> None:
    assert default_widths(384) == (32, 48, 64, 96, 128, 192)
    assert default_widths(256) == (32, 48, 64, 96, 128)
    assert default_widths(1536) == (32, 48, 64, 96, 128, 192, 256)
    assert default_widths(20) == (10,)
