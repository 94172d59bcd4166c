"""JSON that every parser reads."""

from __future__ import annotations

import json
import math
import re
from typing import Any

__all__ = ["exact_json", "plain_json"]

_HALVES = re.compile("[\ud800-\udfff]")
_TEXT_OR_INFINITY = re.compile(r'"(?:[^"\\]|\\.)*"|Infinity')
INFINITE = "1e999"  # in the grammar of JSON, and beyond every double


def plain_json(value: Any, *, indent: int | None = None) -> str:
    """The value as JSON text; what is no finite number becomes null, for JSON has neither NaN nor infinity.

    Characters beyond ASCII stay as they are, halves of surrogate pairs apart, which are escaped. Raises TypeError for
    types that JSON lacks.
    """
    text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, indent=indent)
    return _HALVES.sub(lambda half: rf"\u{ord(half[0]):04x}", text)


def exact_json(value: Any) -> str:
    """The value, which holds no NaN, as JSON text from which it comes back: infinity is written as 1e999."""
    text = json.dumps(value, ensure_ascii=False)
    return _TEXT_OR_INFINITY.sub(lambda found: INFINITE if found[0] == "Infinity" else found[0], text)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return value
