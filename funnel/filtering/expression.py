"""A condition over metadata columns, as a tree; `str` writes it so that `parse` reads the same tree again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from funnel.filtering.tokens import KEYWORDS, REFUSED, Literal

__all__ = [
    "And",
    "Between",
    "Column",
    "Comparison",
    "Condition",
    "In",
    "IsNull",
    "Like",
    "Not",
    "Or",
    "Test",
    "each_test",
]

_PLAIN_NAME = re.compile(r"[^\W\d]\w*")


@dataclass(frozen=True, slots=True)
class Column:
    """A column by its name; start: where it stands in the text."""

    name: str
    start: int = field(default=0, compare=False)

    def __str__(self) -> str:
        plain = _PLAIN_NAME.fullmatch(self.name) and self.name.upper() not in KEYWORDS | REFUSED
        return self.name if plain else '"' + self.name.replace('"', '""') + '"'


@dataclass(frozen=True, slots=True)
class Comparison:
    """column operator value; the operators are = <> < <= > >=."""

    column: Column
    operator: str
    value: Literal

    def __str__(self) -> str:
        return f"{self.column} {self.operator} {_literal(self.value)}"


@dataclass(frozen=True, slots=True)
class In:
    """column [NOT] IN (values), all of one kind."""

    column: Column
    values: tuple[Literal, ...]
    negated: bool = False

    def __str__(self) -> str:
        return f"{self.column} {_not(self.negated)}IN ({', '.join(map(_literal, self.values))})"


@dataclass(frozen=True, slots=True)
class Between:
    """column [NOT] BETWEEN low AND high, both included."""

    column: Column
    low: Literal
    high: Literal
    negated: bool = False

    def __str__(self) -> str:
        return f"{self.column} {_not(self.negated)}BETWEEN {_literal(self.low)} AND {_literal(self.high)}"


@dataclass(frozen=True, slots=True)
class Like:
    """column [NOT] LIKE pattern [ESCAPE sign]: % is any text, _ any character; A to Z match a to z, as in SQLite."""

    column: Column
    pattern: str
    escape: str | None = None
    negated: bool = False

    def __str__(self) -> str:
        escape = "" if self.escape is None else f" ESCAPE {_literal(self.escape)}"
        return f"{self.column} {_not(self.negated)}LIKE {_literal(self.pattern)}{escape}"


@dataclass(frozen=True, slots=True)
class IsNull:
    """column IS [NOT] NULL: the document lacks the field, or it is null."""

    column: Column
    negated: bool = False

    def __str__(self) -> str:
        return f"{self.column} IS {_not(self.negated)}NULL"


@dataclass(frozen=True, slots=True)
class Not:
    """NOT condition."""

    of: Condition

    def __str__(self) -> str:
        return f"NOT {_inside(self.of, And | Or)}"


@dataclass(frozen=True, slots=True)
class And:
    """Every one of several conditions."""

    parts: tuple[Condition, ...]

    def __str__(self) -> str:
        return " AND ".join(_inside(part, And | Or) for part in self.parts)


@dataclass(frozen=True, slots=True)
class Or:
    """At least one of several conditions."""

    parts: tuple[Condition, ...]

    def __str__(self) -> str:
        return " OR ".join(_inside(part, Or) for part in self.parts)


Test: TypeAlias = Comparison | In | Between | Like | IsNull
Condition: TypeAlias = Test | Not | And | Or


def each_test(condition: Condition) -> Iterator[Test]:
    """Every test of one column, from left to right."""
    if isinstance(condition, Not):
        yield from each_test(condition.of)
    elif isinstance(condition, And | Or):
        for part in condition.parts:
            yield from each_test(part)
    else:
        yield condition


def _inside(part: Condition, wrapped: Any) -> str:
    return f"({part})" if isinstance(part, wrapped) else str(part)


def _not(negated: bool) -> str:
    return "NOT " if negated else ""


def _literal(value: Literal) -> str:
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return repr(value)
