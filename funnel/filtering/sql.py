"""From a condition to SQL over tables of columns. Every literal is bound; names come from a catalogue.

A column is a table of its own, with a row for each document that has the field and it is not null, and in it one cell
for each kind of value: `number`, `text` and `boolean` (0 or 1), and `present`, 1. A literal is compared with the cell
of its own kind alone, so that a value of another kind is as unknown as a missing one: neither a test nor its NOT holds.
A text that is a number as it is written, such as "2020", fills both cells.
"""

from __future__ import annotations

import math
import re
import sqlite3
import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import TypeAlias

from funnel.filtering.condition import LARGEST_INT, ColumnTest, Condition, Joined, Literal, Not, each_test

__all__ = ["KINDS", "NAME", "add_like", "cells", "compiled", "written_number"]

NAME = "like_with_zeros"


def add_like(connection: sqlite3.Connection) -> None:
    """Make `like_with_zeros(text, pattern, escape)` known to a connection; escape may be NULL."""
    connection.create_function(NAME, 3, _matches_like, deterministic=True)


def _matches_like(text: str | None, pattern: str, escape: str | None) -> bool | None:
    return None if text is None else _expression(pattern, escape).fullmatch(text) is not None


@lru_cache(maxsize=16)
def _expression(pattern: str, escape: str | None) -> re.Pattern[str]:
    """What a pattern matches; where a part was found it is not looked for again: few steps, whatever the text is."""
    parts = [""]
    for plain, sign in re.findall(rf"{'(?!)' if escape is None else re.escape(escape)}(.?)|(.)", pattern, re.DOTALL):
        if sign == "%":
            parts.append("")
        else:
            parts[-1] += "." if sign == "_" else re.escape(plain or sign)
    between = "".join(f"(?>.*?{part})" for part in parts[1:-1])
    whole = f"{parts[0]}{between}.*{parts[-1]}" if len(parts) > 1 else parts[0]
    return re.compile(whole, re.DOTALL | re.IGNORECASE | re.ASCII)  # SQLite ignores the case of A to Z alone


Cells: TypeAlias = tuple[int | float | None, str | None, int | None, int | None]
"""number, text, boolean (0 or 1), and 1 where there is a value at all."""

MISSING: Cells = (None, None, None, None)
MOST_CHARACTERS = 40  # of a number; what is longer is text
# As programs write numbers. What begins with zeros or + is more often a code, 1e5 a name.
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?(e[+-][0-9]{2,3})?")


def cells(value: object) -> Cells:
    """A value of JSON in the cell of its kind, a text that is a number as it is written in both; NaN is no value."""
    if value is None or value != value:
        return MISSING
    if isinstance(value, bool):
        return None, None, int(value), 1
    if isinstance(value, int | float):  # as a float where SQLite's integers do not hold it
        held = isinstance(value, float) or abs(value) <= LARGEST_INT
        infinite = math.inf if value > 0 else -math.inf
        number = value if held else float(value) if abs(value) <= sys.float_info.max else infinite
        return number, None, None, 1
    text = value if isinstance(value, str) else None
    return None if text is None else written_number(text), text, None, 1


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


KINDS = ("number", "text", "boolean")
MOST_JOINED = 64  # tables: SQLite's limit, which no setting raises; more columns are looked up row by row


def compiled(condition: Condition, tables: Mapping[str, str], every: str) -> tuple[str, list[Literal]]:
    """SQL that selects the positions for which a condition holds, and what is bound to its question marks.

    tables: column -> table; a column without one is null in every row. every: a table with all positions.
    """
    used = {tables[test.column] for test in each_test(condition) if test.column in tables}
    needed = {tables[name] for name in _needed(condition) if name in tables}
    cells = {name: f"{table}.{{}}" for name, table in tables.items()}
    if len(used) >= MOST_JOINED:
        cells = {
            name: f"(SELECT {{}} FROM {table} AS own WHERE own.position = {every}.position)"
            for name, table in tables.items()
        }
        used = needed = set()
    first, *inner = sorted(needed) or [every]
    joins = [f" JOIN {other} ON {other}.position = {first}.position" for other in inner]
    joins += [f" LEFT JOIN {other} ON {other}.position = {first}.position" for other in sorted(used - needed - {first})]
    parameters: list[Literal] = []
    where = _sql(condition, cells, parameters)
    return f"SELECT {first}.position FROM {first}{''.join(joins)} WHERE {where}", parameters


def _needed(condition: Condition) -> set[str]:
    """Columns that must have a value where the condition holds: SQLite can begin with the rows of these."""
    if isinstance(condition, Joined):
        parts = map(_needed, condition.parts)
        return set.union(*parts) if condition.word == "AND" else set.intersection(*parts)
    if isinstance(condition, ColumnTest):
        return set() if condition.operator == "IS" and not condition.negated else {condition.column}
    return _needed(condition.of) if isinstance(condition.of, ColumnTest) and condition.of.operator != "IS" else set()


def _sql(condition: Condition, tables: Mapping[str, str], parameters: list[Literal]) -> str:
    if isinstance(condition, ColumnTest):
        return _test(condition, tables.get(condition.column, ""), parameters)
    if isinstance(condition, Not):
        return f"NOT {_inside(condition.of, 'AND OR', tables, parameters)}"
    wrapped = "AND OR" if condition.word == "AND" else "OR"
    return f" {condition.word} ".join(_inside(part, wrapped, tables, parameters) for part in condition.parts)


def _inside(part: Condition, wrapped: str, tables: Mapping[str, str], parameters: list[Literal]) -> str:
    """A part in parentheses only where precedence asks for them: SQLite's parser takes few within each other."""
    sql = _sql(part, tables, parameters)
    return f"({sql})" if isinstance(part, Joined) and part.word in wrapped else sql


def _test(test: ColumnTest, table: str, parameters: list[Literal]) -> str:
    cell = table.format(test.kind or "present") or "NULL"
    if test.operator == "LIKE":
        return _like(test, cell, parameters)
    parameters.extend(test.values)
    negated = "NOT " if test.negated else ""
    marks = {"IN": f"({', '.join('?' * len(test.values))})", "BETWEEN": "? AND ?"}.get(test.operator, "?")
    return f"{cell} IS {negated}NULL" if test.operator == "IS" else f"{cell} {negated}{test.operator} {marks}"


def _like(test: ColumnTest, cell: str, parameters: list[Literal]) -> str:
    """SQLite's own LIKE, which stops at a zero character, where the text has none; patterns have none."""
    escaped = len(test.values) > 1
    parameters += [*test.values, *test.values]
    own, other = f"{NAME}({cell}, ?, {'?' if escaped else 'NULL'})", f"{cell} LIKE ?{' ESCAPE ?' if escaped else ''}"
    return f"{'NOT ' if test.negated else ''}CASE WHEN instr({cell}, char(0)) THEN {own} ELSE {other} END"
