"""Conditions and records for property tests."""

from __future__ import annotations

from hypothesis import strategies as st

from funnel.filtering.condition import (
    And,
    Between,
    ColumnName,
    Comparison,
    Condition,
    In,
    IsNull,
    Like,
    Literal,
    Not,
    Or,
    kind_of,
)

__all__ = ["NAMES", "conditions", "records"]

NAMES = ("year", "lang", "my column", "select", 'a"b', "or", "größe")
SIGNS = "abAB%_!'\";-é \n"

numbers = st.one_of(
    st.integers(-3, 3), st.integers(-(2**63) + 1, 2**63 - 1), st.floats(-3, 3), st.sampled_from([0.5, -0.0])
)
texts = st.text(SIGNS, max_size=4)
literals: st.SearchStrategy[Literal] = st.one_of(numbers, texts, st.booleans())
columns = st.sampled_from(NAMES).map(ColumnName)
flags = st.booleans()


def _of_one_kind(least: int) -> st.SearchStrategy[tuple[Literal, ...]]:
    kinds = [st.lists(kind, min_size=least, max_size=3).map(tuple) for kind in (numbers, texts, st.booleans())]
    return st.one_of(*kinds)


comparisons = st.builds(Comparison, columns, st.sampled_from(["=", "<>", "<", "<=", ">", ">="]), literals).filter(
    lambda one: kind_of(one.value) != "boolean" or one.operator in ("=", "<>")
)
betweens = st.one_of(*(st.builds(Between, columns, kind, kind, flags) for kind in (numbers, texts)))
likes = st.builds(Like, columns, texts, st.one_of(st.none(), st.sampled_from("!a'")), flags)
tests = st.one_of(
    comparisons, betweens, likes, st.builds(In, columns, _of_one_kind(1), flags), st.builds(IsNull, columns, flags)
)


def _joined(inner: st.SearchStrategy[Condition]) -> st.SearchStrategy[Condition]:
    parts = st.lists(inner, min_size=2, max_size=3)
    return st.one_of(
        st.builds(Not, inner),
        parts.map(lambda found: And(_flat(found, And))),
        parts.map(lambda found: Or(_flat(found, Or))),
    )


def _flat(parts: list[Condition], joint: type[And] | type[Or]) -> tuple[Condition, ...]:
    return tuple(one for part in parts for one in (part.parts if isinstance(part, joint) else (part,)))


conditions: st.SearchStrategy[Condition] = st.recursive(tests, _joined, max_leaves=6)
written = st.sampled_from(["2", "-3", "0.5", "1.50", "1e-05", "02", "1e5", "+1", "nan", ""])
values = st.one_of(st.none(), literals, written, st.lists(st.integers(0, 1), max_size=1))
records = st.dictionaries(st.sampled_from(NAMES), values)
