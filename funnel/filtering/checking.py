"""Whether a condition fits the columns there are: none is misspelt, or compared with what it never holds."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches

from funnel.filtering.columns import Values
from funnel.filtering.compiling import KINDS
from funnel.filtering.expression import Between, Comparison, Condition, In, IsNull, Test, each_test
from funnel.filtering.parser import kind_of
from funnel.filtering.tokens import Literal, fault

__all__ = ["check_columns"]

NAMED = 20  # columns that an error lists before it only counts


def check_columns(where: str, condition: Condition, columns: Mapping[str, Values]) -> None:
    """InputError, with the place in the text, for an unknown column and for a literal of a kind it never holds."""
    for test in each_test(condition):
        name, start = test.column.name, test.column.start
        if name not in columns:
            raise fault(where, start, f"there is no column {name!r}; {_known(name, columns)}")
        values, kind = columns[name], _kind(test)
        if kind is not None and any(values.counts) and not values.comparable(kind):
            raise fault(where, start, f"column {name!r} holds {_misfit(values, kind)}")


def _kind(test: Test) -> str | None:
    """The kind of value that a test is about; None: of any."""
    if isinstance(test, IsNull):
        return None
    literal: Literal = ""
    if isinstance(test, Comparison):
        literal = test.value
    elif isinstance(test, In):
        literal = test.values[0]
    elif isinstance(test, Between):
        literal = test.low
    return kind_of(literal)


def _misfit(values: Values, kind: str) -> str:
    """What a column holds where it cannot be compared with a literal of this kind, and what to do."""
    held = [f"{held}s" for held in KINDS if getattr(values, held)]
    if values.other:
        held.append("lists or objects")
    if kind == "number" and values.numerals:
        return (
            f"{' and '.join(held)}, of which some, such as {values.odd}, are not written as numbers are, and is "
            "compared with a number; compare it with a text between ' and ', or upsert those documents with a number "
            "there, or nothing, and compact the index"
        )
    return f"{' and '.join(held)}, such as {values.example}, and is compared with a {kind}, which none of them is"


def _known(name: str, columns: Mapping[str, Values]) -> str:
    near = get_close_matches(name, columns, 1)
    listed = ", ".join(sorted(columns)[:NAMED])
    more = f" and {len(columns) - NAMED} more" if len(columns) > NAMED else ""
    return f"{f'did you mean {near[0]!r}? ' if near else ''}the columns are {listed}{more}"
