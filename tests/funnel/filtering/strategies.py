"""Conditions and records for property tests."""

from __future__ import annotations

from hypothesis import strategies as st

from funnel.filtering.condition import ColumnTest, Condition, Joined, Literal, Not

__all__ = ["NAMES", "conditions", "records", "written"]

NAMES = ("year", "lang", "my column", "select", 'a"b', "or", "größe")
SIGNS = "abAB%_!'\";-é \n"

numbers = st.one_of(
    st.integers(-3, 3), st.integers(-(2**63) + 1, 2**63 - 1), st.floats(-3, 3), st.sampled_from([0.5, -0.0])
)
texts = st.text(SIGNS, max_size=4)
literals: st.SearchStrategy[Literal] = st.one_of(numbers, texts, st.booleans())
columns = st.sampled_from(NAMES)
flags = st.booleans()


def _of_one_kind(least: int) -> st.SearchStrategy[tuple[Literal, ...]]:
    kinds = [st.lists(kind, min_size=least, max_size=3).map(tuple) for kind in (numbers, texts, st.booleans())]
    return st.one_of(*kinds)


comparisons = st.builds(
    lambda column, operator, value: ColumnTest(column, operator, (value,)),
    columns,
    st.sampled_from(["=", "<>", "<", "<=", ">", ">="]),
    literals,
).filter(lambda one: one.kind != "boolean" or one.operator in ("=", "<>"))
lists = st.builds(ColumnTest, columns, st.just("IN"), _of_one_kind(1), flags)
betweens = st.one_of(
    *(st.builds(ColumnTest, columns, st.just("BETWEEN"), st.tuples(kind, kind), flags) for kind in (numbers, texts))
)
patterns = st.one_of(st.tuples(texts), st.tuples(texts, st.sampled_from("!a'")))
likes = st.builds(ColumnTest, columns, st.just("LIKE"), patterns, flags)
nulls = st.builds(ColumnTest, columns, st.just("IS"), st.just(()), flags)
tests = st.one_of(comparisons, betweens, likes, lists, nulls)


def _joined(inner: st.SearchStrategy[Condition]) -> st.SearchStrategy[Condition]:
    parts = st.lists(inner, min_size=2, max_size=3)
    return st.one_of(st.builds(Not, inner), st.builds(_flat, st.sampled_from(["AND", "OR"]), parts))


def _flat(word: str, parts: list[Condition]) -> Joined:
    flat = (one.parts if isinstance(one, Joined) and one.word == word else (one,) for one in parts)
    return Joined(word, tuple(inner for several in flat for inner in several))


def written(condition: Condition) -> str:
    """The condition as a text, with parentheses only where precedence asks for them."""
    if isinstance(condition, Not):
        return f"NOT {_within(condition.of, 'AND OR')}"
    if isinstance(condition, Joined):
        wrapped = "AND OR" if condition.word == "AND" else "OR"
        return f" {condition.word} ".join(_within(part, wrapped) for part in condition.parts)
    column = '"' + condition.column.replace('"', '""') + '"'
    negated = "NOT " if condition.negated else ""
    said = [_literal(value) for value in condition.values]
    if condition.operator == "IS":
        return f"{column} IS {negated}NULL"
    values = {"IN": f"({', '.join(said)})", "LIKE": " ESCAPE ".join(said)}.get(condition.operator, " AND ".join(said))
    return f"{column} {negated}{condition.operator} {values}"


def _within(part: Condition, wrapped: str) -> str:
    return f"({written(part)})" if isinstance(part, Joined) and part.word in wrapped else written(part)


def _literal(value: Literal) -> str:
    quoted = "'" + value.replace("'", "''") + "'" if isinstance(value, str) else repr(value)
    return quoted.upper() if isinstance(value, bool) else quoted


conditions: st.SearchStrategy[Condition] = st.recursive(tests, _joined, max_leaves=6)
numerals = st.sampled_from(["2", "-3", "0.5", "1.50", "1e-05", "02", "1e5", "+1", "nan", ""])
values = st.one_of(st.none(), literals, numerals, st.lists(st.integers(0, 1), max_size=1))
records = st.dictionaries(st.sampled_from(NAMES), values)
