"""LIKE for texts that hold a zero character, where SQLite's own stops reading."""

from __future__ import annotations

import sqlite3

__all__ = ["NAME", "add_like"]

NAME = "like_with_zeros"
# SQLite ignores the case of A to Z alone.
_LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}


def add_like(connection: sqlite3.Connection) -> None:
    """Make `like_with_zeros(text, pattern, escape)` known to a connection; escape may be NULL."""
    connection.create_function(NAME, 3, _like, deterministic=True)


def _like(text: str | None, pattern: str, escape: str | None) -> bool | None:
    return None if text is None else _matches(text.translate(_LOWER), _signs(pattern, escape))


def _signs(pattern: str, escape: str | None) -> list[str]:
    """A pattern's signs: "%" and "_" as they are, a character to be found as two of it."""
    signs, plain = [], False
    for one in pattern:
        if one == escape and not plain:
            plain = True
        else:
            signs.append(one if one in "%_" and not plain else 2 * one.translate(_LOWER))
            plain = False
    return signs


def _matches(text: str, signs: list[str]) -> bool:
    """Whether all of the text fits, in steps of at most len(text) x len(signs)."""
    at = sign = 0
    star, begun = -1, 0
    while at < len(text):
        if sign < len(signs) and signs[sign] == "%":
            star, begun = sign, at
            sign += 1
        elif sign < len(signs) and signs[sign] in ("_", 2 * text[at]):
            at, sign = at + 1, sign + 1
        elif star >= 0:
            begun += 1
            at, sign = begun, star + 1
        else:
            return False
    return all(one == "%" for one in signs[sign:])
