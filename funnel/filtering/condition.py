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
from typing import NamedTuple, TypeAlias

from funnel.errors import InputError

__all__ = [
    "MAX_DEPTH",
    "MAX_LENGTH",
    "MAX_TESTS",
    "MAX_VALUES",
    "ColumnTest",
    "Condition",
    "Joined",
    "Literal",
    "Not",
    "each_test",
    "fault",
    "kind_of",
    "parse",
]

Literal: TypeAlias = bool | int | float | str

MAX_LENGTH = 100_000  # characters of a where text; longer lists of ids are given as allowed_ids
# Parentheses and NOTs within each other: SQLite parses on a stack of 100, and "a OR b AND (" takes 5 of it a level.
MAX_DEPTH = 16
# SQLite takes an expression 1,000 deep, and a chain of ANDs is as deep as it is long.
MAX_TESTS = 500
MAX_VALUES = 10_000  # literals: SQLite binds 32,766 at most (version 3.32)
MAX_PATTERN = 1_000  # characters of a LIKE pattern: matching takes up to length of text x length of pattern
AROUND = 40  # characters shown to either side of a fault
KEYWORDS = frozenset(("AND", "OR", "NOT", "IN", "BETWEEN", "LIKE", "ESCAPE", "IS", "NULL"))
# What SQL has and this subset has not: named in the error rather than taken for a column.
REFUSED = frozenset(
    (
        *("SELECT", "FROM", "WHERE", "INSERT", "UPDATE", "DELETE", "DROP", "UNION", "JOIN", "GROUP", "ORDER", "LIMIT"),
        *("CASE", "EXISTS", "GLOB", "REGEXP", "MATCH", "CAST", "COLLATE", "ATTACH", "PRAGMA"),
    )
)
NO_COMMENT = "{!r} is not allowed: a where is one condition without comments"
ODD_SIGNS = {
    "'": "a text that begins with ' has no end",
    '"': 'a name that begins with " has no end',
    **dict.fromkeys((";", "--", "/*"), NO_COMMENT),
    **dict.fromkeys("?:@$", "{!r} is not allowed: write the value itself, it is bound as a parameter"),
    **dict.fromkeys("+-*/%|&~", "{!r} is not allowed: a column is compared with a literal, nothing is computed"),
}
FLIPPED = {"=": "=", "<>": "<>", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
LARGEST_INT = 2**63 - 1  # SQLite's; beyond it a number is a float, as SQLite reads it
INT_CHARACTERS = 40  # longer ones are beyond it, or begin with zeros

_NUMBER = r"(?>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
_PATTERN = re.compile(
    rf"""(?P<space>\s+)
    | (?P<mixed>{_NUMBER}[\w.])
    | (?P<number>{_NUMBER})
    | (?P<text>'(?:[^']|'')*')
    | (?P<quoted>"(?:[^"]|"")+")
    | (?P<name>[^\W\d]\w*)
    | (?P<sign><=|>=|<>|!=|[=<>(),])
    | (?P<odd>--|/\*|.)""",
    re.VERBOSE | re.DOTALL,
)


class Token(NamedTuple):
    """One word. kind: "sign" (a keyword too), "name", "literal" or "end". value: as it is meant. start: its place."""

    kind: str
    value: Literal
    start: int
    said: str


@dataclass(frozen=True, slots=True)
class ColumnTest:
    """A test of one column.

    operator: = <> < <= > >= with a value, which is never negated; IN with values of one kind; BETWEEN with the lowest
    and the highest; LIKE with a pattern (% is any text, _ any character; A to Z match a to z, as in SQLite) and maybe
    the sign of ESCAPE; IS, which stands for IS NULL, without any. start: where the column stands in the text.
    """

    column: str
    operator: str
    values: tuple[Literal, ...] = ()
    negated: bool = False
    start: int = field(default=0, compare=False)

    @property
    def kind(self) -> str | None:
        """The kind of value that it is about: see `kind_of`; None: of any."""
        return kind_of(self.values[0]) if self.values else None


@dataclass(frozen=True, slots=True)
class Not:
    """NOT condition."""

    of: Condition


@dataclass(frozen=True, slots=True)
class Joined:
    """Several conditions, of which every one (word: AND) or at least one (OR) is to hold."""

    word: str
    parts: tuple[Condition, ...]


Condition: TypeAlias = ColumnTest | Not | Joined


def each_test(condition: Condition) -> Iterator[ColumnTest]:
    """Every test of one column, from left to right."""
    if isinstance(condition, ColumnTest):
        yield condition
    else:
        for part in (condition.of,) if isinstance(condition, Not) else condition.parts:
            yield from each_test(part)


def kind_of(value: Literal) -> str:
    """One of "number", "text" and "boolean"."""
    return "boolean" if isinstance(value, bool) else "text" if isinstance(value, str) else "number"


def parse(where: str) -> Condition:
    """The condition. Raises InputError that says what was expected and shows where."""
    return _Parser(where).whole()


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
    words = (_token(where, match) for match in _PATTERN.finditer(where) if match.lastgroup != "space")
    return [*words, Token("end", "", len(where), "the end")]


def _token(where: str, found: re.Match[str]) -> Token:
    said, at = found.group(), found.start()
    match found.lastgroup:
        case "odd":
            raise fault(where, at, ODD_SIGNS.get(said, "{!r} is not allowed").format(said))
        case "mixed":
            raise fault(where, at, f"{said!r} is neither a number nor a name")
        case "number":
            return Token("literal", _number(where, said, at), at, said)
        case "text":
            return Token("literal", _text(where, said, at), at, said)
        case "quoted":
            return Token("name", _text(where, said, at), at, said)
    word = said.upper()
    if word in REFUSED:
        raise fault(where, at, f'{word} is not part of the subset (a column of that name is written "{said}")')
    if word in ("TRUE", "FALSE"):
        return Token("literal", word == "TRUE", at, said)
    sign = found.lastgroup == "sign" or word in KEYWORDS
    return Token("sign", "<>" if word == "!=" else word, at, said) if sign else Token("name", said, at, said)


def _text(where: str, said: str, at: int) -> str:
    text = said[1:-1].replace(said[0] * 2, said[0])
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


class _Parser:
    def __init__(self, where: str) -> None:
        self._where, self._tokens = where, tokens(where)
        self._at = self._depth = self._tests = self._values = 0

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
        self._at += 1
        return self._tokens[self._at - 1]

    def _expected(self, what: str) -> InputError:
        return self._fault(self._now, f"expected {what}, found {self._now.said[:40]}")

    def _fault(self, token: Token, what: str) -> InputError:
        return fault(self._where, token.start, what)

    def _is(self, *values: str) -> bool:
        return self._now.kind == "sign" and self._now.value in values

    def _took(self, value: str) -> bool:
        found = self._is(value)
        self._at += found
        return found

    def _need(self, value: str, what: str) -> None:
        if not self._took(value):
            raise self._expected(what)

    def _term(self) -> Condition:
        return self._chain("AND", self._factor)

    def _chain(self, word: str, part: Callable[[], Condition]) -> Condition:
        parts: list[Condition] = []
        while not parts or self._took(word):
            one = part()
            parts += one.parts if isinstance(one, Joined) and one.word == word else (one,)
        return parts[0] if len(parts) == 1 else Joined(word, tuple(parts))

    def _factor(self) -> Condition:
        opening = self._now
        if not self._is("NOT", "("):
            return self._test()
        self._at += 1
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._fault(opening, f"parentheses and NOTs lie within each other more than {MAX_DEPTH} deep")
        if opening.value == "NOT":
            inner: Condition = Not(self._factor())
        else:
            inner = self._chain("OR", self._term)
            self._need(")", "AND, OR or )")
        self._depth -= 1
        return inner

    def _test(self) -> ColumnTest:
        self._tests += 1
        if self._tests > MAX_TESTS:
            raise self._fault(self._now, f"more than {MAX_TESTS} comparisons; use IN, or allowed_ids")
        if self._now.kind == "literal":
            value = self._literal("a literal")
            if not self._is(*FLIPPED):
                raise self._expected("=, <>, <, <=, > or >= after a literal")
            operator = self._next()
            return self._comparison(self._column(), FLIPPED[str(operator.value)], operator, value)
        column = self._column()
        if self._is(*FLIPPED):
            operator = self._next()
            value = self._literal(f"a text, a number, TRUE or FALSE after {operator.said}")
            return self._comparison(column, str(operator.value), operator, value)
        name = str(column.value)
        if self._took("IS"):
            negated = self._took("NOT")
            self._need("NULL", "NULL")
            return ColumnTest(name, "IS", (), negated, column.start)
        negated = self._took("NOT")
        for word, read in (("IN", self._list), ("BETWEEN", self._between), ("LIKE", self._like)):
            if self._took(word):
                return ColumnTest(name, word, read(), negated, column.start)
        raise self._expected(
            "IN, BETWEEN or LIKE" if negated else f"a comparison (=, <, IN, BETWEEN, LIKE, IS NULL) after {column.said}"
        )

    def _column(self) -> Token:
        if self._now.kind != "name":
            raise self._expected("a column, a literal, NOT or (")
        token = self._next()
        if self._is("("):
            raise self._fault(token, f"{token.said}(…) is a function, and there are none in the subset")
        return token

    def _comparison(self, column: Token, operator: str, said: Token, value: Literal) -> ColumnTest:
        if isinstance(value, bool) and operator not in ("=", "<>"):
            raise self._fault(said, f"TRUE and FALSE have no order: use = or <> instead of {said.said}")
        return ColumnTest(str(column.value), operator, (value,), False, column.start)

    def _literal(self, what: str) -> Literal:
        if self._is("NULL"):
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
        self._need("(", "( after IN")
        values: list[Literal] = []
        while not values or self._took(","):
            token = self._now
            values.append(self._literal("a literal in the list of IN"))
            if kind_of(values[-1]) != kind_of(values[0]):
                raise self._fault(token, f"the list of IN mixes a {kind_of(values[0])} and a {kind_of(values[-1])}")
        self._need(")", ", or ) in the list of IN")
        return tuple(values)

    def _between(self) -> tuple[Literal, ...]:
        first = self._now
        low = self._literal("a text or a number after BETWEEN")
        self._need("AND", "AND in BETWEEN")
        high = self._literal("a text or a number after AND in BETWEEN")
        if kind_of(low) != kind_of(high) or isinstance(low, bool):
            raise self._fault(first, "BETWEEN takes two numbers or two texts")
        return low, high

    def _like(self) -> tuple[Literal, ...]:
        token = self._now
        pattern = self._literal("a text after LIKE")
        if not isinstance(pattern, str):
            raise self._fault(token, "LIKE takes a text")
        if len(pattern) > MAX_PATTERN:
            raise self._fault(token, f"a LIKE pattern has at most {MAX_PATTERN:,} characters")
        if not self._took("ESCAPE"):
            return (pattern,)
        token = self._now
        escape = self._literal("one character after ESCAPE")
        if not isinstance(escape, str) or len(escape) != 1 or escape in "%_":
            raise self._fault(token, "ESCAPE takes a text of one character, neither % nor _")
        return pattern, escape
