"""What metadata are stored as, for every way they come in: the table is in docs/metadata.md."""

from __future__ import annotations

import datetime
import enum
import math
import uuid
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import numpy as np

__all__ = ["plain"]

MOST_NESTED = 100  # lists and objects inside each other; Python's reader of JSON gives up at some 1,000
NANOSECONDS = ("ns", "ps", "fs", "as")  # units that Python's datetime does not hold
NO_LENGTH = ("Y", "M", "generic")  # a year and a month have no fixed number of seconds


def plain(value: Any, depth: int = 0) -> Any:
    """A value of metadata as JSON keeps it: see the table. Raises TypeError for what is refused, ValueError for nested
    too deep."""
    if value is None or isinstance(value, str):
        return None if value is None else str.__str__(value)
    if isinstance(value, enum.Enum):
        return plain(value.value, depth)
    if isinstance(value, bool | int):
        return value if isinstance(value, bool) else int(value)
    if isinstance(value, float):
        return None if math.isnan(value) else float(value)
    if depth > MOST_NESTED:
        raise ValueError(f"lists and objects more than {MOST_NESTED} deep")
    if isinstance(value, Mapping):
        return _object(value, depth)
    if isinstance(value, list | tuple):
        return [plain(one, depth + 1) for one in value]
    if isinstance(value, np.datetime64 | np.timedelta64):
        return _of_numpy(value)
    moment = _moment(value)
    return _other(value, depth) if moment is _UNKNOWN else moment


_UNKNOWN = object()


def _moment(value: Any) -> Any:
    """Times, Decimals and UUIDs; _UNKNOWN for all else."""
    if isinstance(value, datetime.timedelta):
        seconds = value.total_seconds()
        return None if math.isnan(seconds) else _whole(seconds)
    if hasattr(value, "isoformat"):
        text = str(value.isoformat())
        return None if text == "NaT" else text
    if isinstance(value, Decimal):
        return _decimal(value)
    return str(value) if isinstance(value, uuid.UUID) else _UNKNOWN


def _other(value: Any, depth: int) -> Any:
    """What gives Python's own values: arrays, series, scalars."""
    if type(value).__name__ == "NAType":
        return None
    if isinstance(value, np.ndarray) and value.dtype.kind in "mM":  # whose list may hold bare counts of nanoseconds
        return [plain(one, depth + 1) for one in value] if value.ndim else _of_numpy(value[()])
    if isinstance(value, np.floating):  # longdouble among them
        return plain(float(value), depth)
    if not isinstance(value, np.void | np.complexfloating | np.bytes_ | memoryview):
        for name in ("as_py", "tolist", "to_pylist", "to_list"):
            if callable(getattr(value, name, None)):
                return plain(getattr(value, name)(), depth + 1)
    raise TypeError(f"a value of type {type(value).__name__}")


def _object(value: Mapping[Any, Any], depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, one in value.items():
        name = plain(key)
        if isinstance(name, bool) or not isinstance(name, str | int):
            raise TypeError(f"a key of type {type(key).__name__}")
        if str(name) in found:
            raise ValueError(f"the key {str(name)!r} twice")
        found[str(name)] = plain(one, depth + 1)
    return found


def _of_numpy(value: Any) -> str | int | float | None:
    if np.isnat(value):
        return None
    unit = np.datetime_data(value.dtype)[0]
    if isinstance(value, np.timedelta64):
        if unit in NO_LENGTH:
            raise TypeError(f"a timedelta64 in the unit {unit}")
        return _whole(value / np.timedelta64(1, "s"))
    if unit in NANOSECONDS:
        short = value.astype("M8[us]")
        if short != value:
            return str(value.astype("M8[ns]"))
        value = short
    held = value.tolist()  # a number where Python's calendar, the years 1 to 9999, does not hold it
    return held.isoformat() if isinstance(held, datetime.date) else str(value)


def _whole(seconds: Any) -> int | float:
    number = float(seconds)
    return int(number) if number.is_integer() else number


def _decimal(value: Decimal) -> int | float | str | None:
    if value.is_nan():
        return None
    number = float(value)
    if value.is_infinite() or Decimal(repr(number)) == value:
        return number
    return f"{value:f}" if abs(value.adjusted()) < 40 else str(value).replace("E", "e")
