"""What a condition says of one record, in plain Python: three-valued, as SQL is. None: unknown."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from typing import Any

from funnel.filtering.condition import ColumnTest, Condition, Joined, Not

__all__ = ["holds"]

OPERATORS = {
    "=": operator.eq, "<>": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


WRITTEN = {"2": 2, "-3": -3, "0.5": 0.5, "1.50": 1.5, "1e-05": 0.00001}  # those in the records of `strategies`


def holds(condition: Condition, record: Mapping[str, Any]) -> bool | None:
    if isinstance(condition, Not):
        return negated(holds(condition.of, record))
    if isinstance(condition, Joined):
        found = [holds(part, record) for part in condition.parts]
        decisive = condition.word == "OR"
        return decisive if decisive in found else None if None in found else not decisive
    value = record.get(condition.column)
    if condition.operator == "IS":
        return (value is None) != condition.negated
    if condition.operator == "LIKE":
        return like(condition, value) != condition.negated if isinstance(value, str) else None
    value = as_read(value, condition.values[0])
    if not alike(value, condition.values[0]):
        return None
    if condition.operator == "IN":
        return (value in condition.values) != condition.negated
    if condition.operator == "BETWEEN":
        return bool(condition.values[0] <= value <= condition.values[1]) != condition.negated
    return bool(OPERATORS[condition.operator](value, condition.values[0]))


def as_read(value: Any, literal: Any) -> Any:
    """A value as it is compared with a literal: a text that is a number as it is written, as that beside a number."""
    number = isinstance(literal, int | float) and not isinstance(literal, bool)
    return WRITTEN.get(value, value) if number and isinstance(value, str) else value


def negated(value: bool | None) -> bool | None:
    return None if value is None else not value


def alike(value: Any, literal: Any) -> bool:
    kinds = [
        "boolean" if isinstance(one, bool) else "number" if isinstance(one, int | float) else type(one).__name__
        for one in (value, literal)
    ]
    return kinds[0] == kinds[1]


def like(condition: ColumnTest, value: str) -> bool:
    given, *escape = map(str, condition.values)
    signs, pattern, escaped = iter(given), "", escape[0] if escape else None
    for sign in signs:
        if sign == escaped:
            following = next(signs, None)
            if following is None:  # nothing is escaped: no text is like it
                return False
            pattern += re.escape(following)
        else:
            pattern += {"%": ".*", "_": "."}.get(sign, re.escape(sign))
    return re.fullmatch(pattern, value, re.DOTALL | re.IGNORECASE | re.ASCII) is not None
