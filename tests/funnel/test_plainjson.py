"""JSON that every parser reads."""

from __future__ import annotations

import json
import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from funnel.plainjson import plain_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("half \ud83d"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


def _expected(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list):
        return [_expected(one) for one in value]
    return {key: _expected(one) for key, one in value.items()} if isinstance(value, dict) else value


@given(VALUES)
def test_text_that_every_parser_reads_and_every_stream_takes(value: Any) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = plain_json(value)
    text.encode("utf-8")
    assert json.loads(text, parse_constant=refuse) == _expected(value)
