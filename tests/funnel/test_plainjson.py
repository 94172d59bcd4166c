"""JSON that every parser reads."""

from __future__ import annotations

import json
import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from funnel.plainjson import exact_json, plain_json

VALUES = st.recursive(
    (st.none() | st.booleans() | st.integers() | st.floats() | st.text())
    | st.sampled_from(["half \ud83d", 'an "Infinity\\', float("inf"), float("-inf")]),
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


@given(VALUES)
def test_text_from_which_the_value_comes_back(value: Any) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    known = _without_nan(value)
    assert json.loads(exact_json(known), parse_constant=refuse) == known


def _without_nan(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_nan(one) for one in value]
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
