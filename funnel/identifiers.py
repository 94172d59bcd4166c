"""Ids as users give them: one alone, many in whatever holds them, or the lines of a file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from funnel.errors import InputError

__all__ = ["few", "id_lines", "identifier", "identifiers", "listed", "named_twice", "unicode_text", "whole_number"]

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# What numpy, pandas, torch, polars and pyarrow turn a whole collection into Python's own values by.
LISTING = ("tolist", "to_pylist", "to_list")
BYTES = (bytes, bytearray, memoryview)
# Python writes numbers of up to 4,300 digits; nobody's id has a quarter of them.
MOST_BITS = 3_000
SHOWN_CHARACTERS = 80  # of a value in an error
NAMED_IDS = 5  # duplicate ids an error names before it only counts
_WHOLE = re.compile(r"[+-]?[0-9]{1,900}")


def identifier(value: object, what: str) -> str | int:
    """One id as a plain text or a plain whole number.

    Raises InputError, naming `what` and the value, for all else: a bool, bytes, a number with a fraction, a text that
    is not Unicode.
    """
    single = getattr(value, "as_py", None) or (getattr(value, "ndim", None) == 0 and getattr(value, "item", None))
    if callable(single):  # a scalar of numpy, torch or pyarrow
        value = single()
    if isinstance(value, str):
        return unicode_text(str.__str__(value), what)  # without the subclass: an enum's own text is its name
    if isinstance(value, int) and not isinstance(value, bool):
        number = int(value)
        if number.bit_length() > MOST_BITS:
            raise InputError(f"{what} is a whole number of {number.bit_length():,} bits; give it as text")
        return number
    raise InputError(f"{what} is {_shown(value)}, expected text or a whole number")


def unicode_text(text: str, what: str) -> str:
    """The text itself. InputError, naming `what`, where half of a surrogate pair stands alone in it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{what} has a lone surrogate at character {error.start}; it is not valid Unicode") from None
    return text


def identifiers(ids: Any, what: str) -> list[str | int]:
    """Several ids, as `listed` and `identifier` take them, and with their errors."""
    of = f"an id of {what}"
    return [one if type(one) is int and 0 <= one < 1 << 63 else identifier(one, of) for one in listed(ids, what)]


def listed(ids: Any, what: str) -> list[Any]:
    """What a list, a set, an array, a series or an iterator of ids holds, unchecked.

    Raises InputError, naming `what`, for a text or bytes, which hold characters and no ids, for a mapping, and for an
    array that is not one row of ids.
    """
    if isinstance(ids, (str, Mapping, *BYTES)) or not isinstance(ids, Iterable):
        raise InputError(f"{what} is {_shown(ids)}; expected a list, set or array of ids")
    if getattr(ids, "ndim", 1) != 1:
        raise InputError(f"{what} is an array of {getattr(ids, 'ndim', 0)} dimensions; expected one id a row")
    listing = next((getattr(ids, name) for name in LISTING if callable(getattr(ids, name, None))), None)
    return list(ids if listing is None else listing())


def few(values: Sequence[object], named: int) -> str:
    """The first values for a message, and how many more there are."""
    text = ", ".join(map(repr, values[:named]))
    return f"{text} and {len(values) - named} more" if len(values) > named else text


def named_twice(duplicates: Sequence[object], of: str) -> InputError:
    """The error for ids that come more than once. of: what needs an id of its own."""
    return InputError(f"{len(duplicates)} duplicate ids: {few(duplicates, NAMED_IDS)}; every {of} needs its own")


def whole_number(text: str) -> int | None:
    """The whole number that a text is in decimal digits; None where it is none."""
    return int(text) if _WHOLE.fullmatch(text.strip()) else None


def id_lines(raw: bytes, name: str) -> Iterator[str]:
    """The ids of a text file, one a line, each as it stands: blanks belong to an id.

    Lines end at a line feed, with a carriage return before it or none. Empty lines are passed over, and a byte order
    mark at the start. Raises InputError, with the line, for what is not UTF-8.
    """
    for number, line in enumerate(raw.removeprefix(BYTE_ORDER_MARK).split(b"\n"), start=1):
        line = line.removesuffix(b"\r")
        if line:
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{name}:{number}: byte {error.start} of the line is not UTF-8; save the file as UTF-8"
                ) from None


def _shown(value: object) -> str:
    said = repr(value)
    return f"{said[:SHOWN_CHARACTERS]}{' …' if len(said) > SHOWN_CHARACTERS else ''} ({type(value).__name__})"
