"""From a where text to a condition: recursive descent over a small, closed subset of SQL.

condition := term (OR term)*          term := factor (AND factor)*          factor := NOT factor | test
test      := ( condition ) | column operator literal | literal operator column
           | column [NOT] IN ( literal, ... ) | column [NOT] BETWEEN literal AND literal
           | column [NOT] LIKE text [ESCAPE text] | column IS [NOT] NULL
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from funnel.errors import InputError

__all__ = [
    "MAX_DEPTH",
    "MAX_LENGTH",
    "MAX_TESTS",
    "MAX_VALUES",
    "And",
    "Between",
    "ColumnName",
    "Comparison",
    "Condition",
    "In",
    "IsNull",
    "Like",
    "Literal",
    "Not",
    "Or",
    "Test",
    "each_test",
    "fault",
    "kind_of",
    "parse",
]

Literal: TypeAlias = bool | int | float | str

MAX_LENGTH = 100_000  # characters of a where text; longer lists of ids are given as allowed_ids
AROUND = 40  # characters shown to either side of a fault
KEYWORDS = frozenset(("AND", "OR", "NOT", "IN", "BETWEEN", "LIKE", "ESCAPE", "IS", "NULL", "TRUE", "FALSE"))
# What SQL has and this subset has not: named in the error rather than taken for a column.
REFUSED = frozenset(
    (
        *("SELECT", "FROM", "WHERE", "INSERT", "UPDATE", "DELETE", "DROP", "UNION", "JOIN", "GROUP", "ORDER", "LIMIT"),
        *("CASE", "EXISTS", "GLOB", "REGEXP", "MATCH", "CAST", "COLLATE", "ATTACH", "PRAGMA"),
    )
)
LARGEST_INT = 2**63 - 1  # SQLite's; beyond it a number is a float, as SQLite reads it
INT_CHARACTERS = 40  # longer ones are beyond it, or begin with zeros

_PATTERN = re.compile(
    r"""(?P<space>\s+)
    | (?P<number>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)
    | (?P<text>'(?:[^']|'')*')
    | (?P<quoted>"(?:[^"]|"")+")
    | (?P<name>[^\W\d]\w*)
    | (?P<operator><=|>=|<>|!=|[=<>(),])""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Token:
    """One word. kind: "keyword", "name", "literal", "operator" or "end". value: as it is meant. start: its place."""

    kind: str
    value: Literal
    start: int
    said: str


def fault(where: str, start: int, what: str) -> InputError:
    """The error for a fault at a place of the text, with what stands around it."""
    before, after = where[max(0, start - AROUND) : start], where[start : start + AROUND]
    shown = f"{'…' if start > AROUND else ''}{before}→{after}{'…' if len(where) > start + AROUND else ''}"
    return InputError(f"where: {what}; character {start + 1}, at the arrow: {' '.join(shown.split())}")


def tokens(where: str) -> list[Token]:
    """The words of the text, an "end" last.

    Raises InputError, with the place, for what is no word of the subset, and for a text that is too long.
    """
    if not isinstance(where, str):
        raise InputError(f"where is a {type(where).__name__}; expected a text such as \"year >= 2020 AND lang = 'en'\"")
    if len(where) > MAX_LENGTH:
        raise InputError(
            f"where has {len(where):,} characters; at most {MAX_LENGTH:,} are read: give long lists as allowed_ids"
        )
    return [*_words(where), Token("end", "", len(where), "the end")]


def _words(where: str) -> Iterator[Token]:
    at = 0
    while at < len(where):
        match = _PATTERN.match(where, at)
        if match is None:
            raise fault(where, at, _no_word(where, at))
        kind, said = str(match.lastgroup), match.group()
        following = where[match.end() : match.end() + 1]
        if kind == "number" and (following.isalnum() or following in ("_", ".")):
            raise fault(where, at, f"{said + following!r} is neither a number nor a name")
        if kind != "space":
            yield _token(where, kind, said, at)
        at = match.end()


def _no_word(where: str, at: int) -> str:
    sign = where[at]
    if sign in "'\"":
        return f"a {'text' if sign == chr(39) else 'name'} that begins with {sign} has no end"
    if sign == ";" or where.startswith(("--", "/*"), at):
        return f"{where[at : at + 2].strip()!r} is not allowed: a where is one condition without comments"
    if sign in "?:@$":
        return f"{sign!r} is not allowed: write the value itself, it is bound as a parameter"
    if sign in "+-*/%|&~":
        return f"{sign!r} is not allowed: a column is compared with a literal, nothing is computed"
    return f"{sign!r} is not allowed"


def _token(where: str, kind: str, said: str, at: int) -> Token:
    if kind == "number":
        return Token("literal", _number(where, said, at), at, said)
    if kind == "text":
        return Token("literal", _text(where, said, at, "'"), at, said)
    if kind == "quoted":
        return Token("name", _text(where, said, at, '"'), at, said)
    if kind == "operator":
        return Token("operator", "<>" if said == "!=" else said, at, said)
    word = said.upper()
    if word in ("TRUE", "FALSE"):
        return Token("literal", word == "TRUE", at, said)
    if word in KEYWORDS:
        return Token("keyword", word, at, said)
    if word in REFUSED:
        raise fault(where, at, f'{word} is not part of the subset (a column of that name is written "{said}")')
    return Token("name", said, at, said)


def _text(where: str, said: str, at: int, quote: str) -> str:
    text = said[1:-1].replace(quote * 2, quote)
    if "\0" in text:
        raise fault(where, at, "a text must not hold the character 0")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise fault(where, at, "a text holds a lone surrogate, which is not valid Unicode") from None
    return text


def _number(where: str, said: str, at: int) -> int | float:
    if said.lstrip("+-").isdecimal() and len(said) <= INT_CHARACTERS and abs(whole := int(said)) <= LARGEST_INT:
        return whole
    if math.isinf(number := float(said)):
        raise fault(where, at, "a number is too large")
    return number


_PLAIN_NAME = re.compile(r"[^\W\d]\w*")


@dataclass(frozen=True, slots=True)
class ColumnName:
    """A column by its name; start: where it stands in the text."""

    name: str
    start: int = field(default=0, compare=False)

    def __str__(self) -> str:
        plain = _PLAIN_NAME.fullmatch(self.name) and self.name.upper() not in KEYWORDS | REFUSED
        return self.name if plain else '"' + self.name.replace('"', '""') + '"'


@dataclass(frozen=True, slots=True)
class Comparison:
    """column operator value; the operators are = <> < <= > >=."""

    column: ColumnName
    operator: str
    value: Literal

    def __str__(self) -> str:
        return f"{self.column} {self.operator} {_literal(self.value)}"


@dataclass(frozen=True, slots=True)
class In:
    """column [NOT] IN (values), all of one kind."""

    column: ColumnName
    values: tuple[Literal, ...]
    negated: bool = False

    def __str__(self) -> str:
        return f"{self.column} {_not(self.negated)}IN ({', '.join(map(_literal, self.values))})"


@dataclass(frozen=True, slots=True)
class Between:
    """column [NOT] BETWEEN low AND high, both included."""

    column: ColumnName
    low: Literal
    high: Literal
    negated: bool = False

    def __str__(self) -> str:
        return f"{self.column} {_not(self.negated)}BETWEEN {_literal(self.low)} AND {_literal(self.high)}"


@dataclass(frozen=True, slots=True)
class Like:
    """column [NOT] LIKE pattern [ESCAPE sign]: % is any text, _ any character; A to Z match a to z, as in SQLite."""

    column: ColumnName
    pattern: str
    escape: str | None = None
    negated: bool = False

    def __str__(self) -> str:
        escape = "" if self.escape is None else f" ESCAPE {_literal(self.escape)}"
        return f"{self.column} {_not(self.negated)}LIKE {_literal(self.pattern)}{escape}"


@dataclass(frozen=True, slots=True)
class IsNull:
    """column IS [NOT] NULL: the document lacks the field, or it is null."""

    column: ColumnName
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


# Parentheses and NOTs within each other: SQLite parses on a stack of 100, and "a OR b AND (" takes 5 of it a level.
MAX_DEPTH = 16
# SQLite takes an expression 1,000 deep, and a chain of ANDs is as deep as it is long.
MAX_TESTS = 500
MAX_VALUES = 10_000  # literals: SQLite binds 32,766 at most (version 3.32)
MAX_PATTERN = 1_000  # characters of a LIKE pattern: matching takes up to length of text x length of pattern
FLIPPED = {"=": "=", "<>": "<>", "<": ">", "<=": ">=", ">": "<", ">=": "<="}


def parse(where: str) -> Condition:
    """The condition. Raises InputError that says what was expected and shows where."""
    return _Parser(where).whole()


def kind_of(value: Literal) -> str:
    """One of "number", "text" and "boolean"."""
    return "boolean" if isinstance(value, bool) else "text" if isinstance(value, str) else "number"


class _Parser:
    def __init__(self, where: str) -> None:
        self._where = where
        self._tokens = tokens(where)
        self._at = 0
        self._depth = 0
        self._tests = 0
        self._values = 0

    def whole(self) -> Condition:
        if self._now.kind == "end":
            raise InputError("where is empty; give a condition such as \"year >= 2020 AND lang = 'en'\", or None")
        condition = self._chain("OR", self._term)
        if self._now.kind != "end":
            raise self._expected("AND, OR or the end")
        return condition

    @property
    def _now(self) -> Token:
        return self._tokens[self._at]

    def _next(self) -> Token:
        token = self._now
        self._at += 1
        return token

    def _expected(self, what: str) -> InputError:
        return self._fault(self._now, f"expected {what}, found {self._now.said[:40]}")

    def _fault(self, token: Token, what: str) -> InputError:
        return fault(self._where, token.start, what)

    def _is(self, kind: str, value: str) -> bool:
        return self._now.kind == kind and self._now.value == value

    def _took(self, kind: str, value: str) -> bool:
        if not self._is(kind, value):
            return False
        self._at += 1
        return True

    def _need(self, kind: str, value: str, what: str) -> None:
        if not self._took(kind, value):
            raise self._expected(what)

    def _term(self) -> Condition:
        return self._chain("AND", self._factor)

    def _chain(self, word: str, part: Callable[[], Condition]) -> Condition:
        parts = [part()]
        while self._took("keyword", word):
            parts.append(part())
        if len(parts) == 1:
            return parts[0]
        joined = And if word == "AND" else Or
        flat = [inner for one in parts for inner in (one.parts if isinstance(one, joined) else (one,))]
        return joined(tuple(flat))

    def _factor(self) -> Condition:
        opening = self._now
        negated = self._took("keyword", "NOT")
        if not negated and not self._took("operator", "("):
            return self._test()
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._fault(opening, f"parentheses and NOTs lie within each other more than {MAX_DEPTH} deep")
        if negated:
            inner: Condition = Not(self._factor())
        else:
            inner = self._chain("OR", self._term)
            self._need("operator", ")", "AND, OR or )")
        self._depth -= 1
        return inner

    def _test(self) -> Test:
        self._tests += 1
        if self._tests > MAX_TESTS:
            raise self._fault(self._now, f"more than {MAX_TESTS} comparisons; use IN, or allowed_ids")
        if self._now.kind == "literal":
            return self._flipped()
        column = self._column()
        if self._now.kind == "operator" and self._now.value in FLIPPED:
            operator = self._next()
            value = self._literal(f"a text, a number, TRUE or FALSE after {operator.said}")
            return self._comparison(column, operator, value)
        if self._took("keyword", "IS"):
            negated = self._took("keyword", "NOT")
            self._need("keyword", "NULL", "NULL")
            return IsNull(column, negated)
        negated = self._took("keyword", "NOT")
        if self._took("keyword", "IN"):
            return In(column, self._list(), negated)
        if self._took("keyword", "BETWEEN"):
            return self._between(column, negated)
        if self._took("keyword", "LIKE"):
            return self._like(column, negated)
        raise self._expected(
            "IN, BETWEEN or LIKE" if negated else f"a comparison (=, <, IN, BETWEEN, LIKE, IS NULL) after {column}"
        )

    def _column(self) -> ColumnName:
        if self._now.kind != "name":
            raise self._expected("a column, a literal, NOT or (")
        token = self._next()
        if self._is("operator", "("):
            raise self._fault(token, f"{token.said}(…) is a function, and there are none in the subset")
        return ColumnName(str(token.value), token.start)

    def _flipped(self) -> Comparison:
        value = self._literal("a literal")
        if self._now.kind != "operator" or self._now.value not in FLIPPED:
            raise self._expected("=, <>, <, <=, > or >= after a literal")
        operator = self._next()
        turned = Token("operator", FLIPPED[str(operator.value)], operator.start, operator.said)
        return self._comparison(self._column(), turned, value)

    def _comparison(self, column: ColumnName, operator: Token, value: Literal) -> Comparison:
        if isinstance(value, bool) and operator.value not in ("=", "<>"):
            raise self._fault(operator, f"TRUE and FALSE have no order: use = or <> instead of {operator.said}")
        return Comparison(column, str(operator.value), value)

    def _literal(self, what: str) -> Literal:
        if self._is("keyword", "NULL"):
            raise self._fault(self._now, "nothing equals NULL: write IS NULL or IS NOT NULL instead of a comparison")
        if self._now.kind == "name":
            raise self._expected(f"{what} (texts stand between ' and '; two columns cannot be compared)")
        if self._now.kind != "literal":
            raise self._expected(what)
        self._values += 1
        if self._values > MAX_VALUES:
            raise self._fault(self._now, f"more than {MAX_VALUES:,} values; give long lists as allowed_ids")
        return self._next().value

    def _list(self) -> tuple[Literal, ...]:
        self._need("operator", "(", "( after IN")
        values = [self._literal("a literal in the list of IN")]
        while self._took("operator", ","):
            token = self._now
            values.append(self._literal("a literal in the list of IN"))
            if kind_of(values[-1]) != kind_of(values[0]):
                raise self._fault(token, f"the list of IN mixes a {kind_of(values[0])} and a {kind_of(values[-1])}")
        self._need("operator", ")", ", or ) in the list of IN")
        return tuple(values)

    def _between(self, column: ColumnName, negated: bool) -> Between:
        first = self._now
        low = self._literal("a text or a number after BETWEEN")
        self._need("keyword", "AND", "AND in BETWEEN")
        high = self._literal("a text or a number after AND in BETWEEN")
        if kind_of(low) != kind_of(high) or isinstance(low, bool):
            raise self._fault(first, "BETWEEN takes two numbers or two texts")
        return Between(column, low, high, negated)

    def _like(self, column: ColumnName, negated: bool) -> Like:
        token = self._now
        pattern = self._literal("a text after LIKE")
        if not isinstance(pattern, str):
            raise self._fault(token, "LIKE takes a text")
        if len(pattern) > MAX_PATTERN:
            raise self._fault(token, f"a LIKE pattern has at most {MAX_PATTERN:,} characters")
        if not self._took("keyword", "ESCAPE"):
            return Like(column, pattern, None, negated)
        token = self._now
        escape = self._literal("one character after ESCAPE")
        if not isinstance(escape, str) or len(escape) != 1 or escape in "%_":
            raise self._fault(token, "ESCAPE takes a text of one character, neither % nor _")
        return Like(column, pattern, escape, negated)
