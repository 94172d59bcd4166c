"""The words of a where text: names, literals, operators, each with the place where it stands."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from funnel.errors import InputError

__all__ = ["KEYWORDS", "MAX_LENGTH", "Literal", "Token", "fault", "tokens"]

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
