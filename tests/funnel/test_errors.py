"""A message is one line that can be read, whatever it quotes."""

from __future__ import annotations

import pytest

from funnel.errors import LONGEST, DamagedIndexError, InputError


@pytest.mark.parametrize("error", [InputError, DamagedIndexError])
def test_a_long_value_loses_its_middle_and_a_message_keeps_what_to_do(error: type[Exception]) -> None:
    said = str(error(f"format is {'x' * 100_000}; build the index again"))
    assert len(said) <= LONGEST + 3
    assert said.startswith("format is xxx")
    assert said.endswith("xxx; build the index again")


def test_a_message_is_one_line() -> None:
    assert str(InputError("a title \r\n  of two\nlines")) == "a title of two lines"


def test_a_message_can_be_printed_and_is_not_obeyed() -> None:
    assert str(InputError("é 𝄞 日本 \ud800 \x1b[2J \0 \u2028")) == "é 𝄞 日本 \\ud800 \\x1b[2J \\x00 \\u2028"
