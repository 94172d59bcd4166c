"""The cells that a value of a document fills in a column: one for each kind of literal that it is compared with."""

from __future__ import annotations

import math
import re
from typing import TypeAlias

from funnel.filtering.tokens import LARGEST_INT

__all__ = ["MISSING", "Cells", "cells", "written_number"]

Cells: TypeAlias = tuple[int | float | None, str | None, int | None, int | None]
"""number, text, boolean (0 or 1), and 1 where there is a value at all."""

MISSING: Cells = (None, None, None, None)
MOST_CHARACTERS = 40  # of a number; what is longer is text
# As programs write numbers. What begins with zeros or + is more often a code, 1e5 a name.
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?(e[+-][0-9]{2,3})?")


def cells(value: object) -> Cells:
    """A value of JSON in the cell of its kind, a text that is a number as it is written in both; NaN is no value."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return MISSING
    if isinstance(value, bool):
        return None, None, int(value), 1
    if isinstance(value, int):
        return _number(value), None, None, 1
    if isinstance(value, float):
        return value, None, None, 1
    if isinstance(value, str):
        return written_number(value), value, None, 1
    return None, None, None, 1


def written_number(text: str) -> int | float | None:
    """The number that a text is as it is written, as every cell of a CSV file is a text; None where it is none.

    "2020", "-3", "1.50" and "1e-05" are; "", "007", "+1", "1e5", "1,000", "nan" and what 64 bits do not hold are not.
    """
    match = _NUMBER.fullmatch(text) if len(text) <= MOST_CHARACTERS else None
    if match is None:
        return None
    if match[1] or match[2]:
        return number if math.isfinite(number := float(text)) else None
    return whole if abs(whole := int(text)) <= LARGEST_INT else None


def _number(value: int) -> int | float:
    """A whole number; as a float where SQLite's integers do not hold it."""
    if -LARGEST_INT <= value <= LARGEST_INT:
        return value
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
