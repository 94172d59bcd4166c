"""From texts to conditions, and the errors that say where a text is wrong."""

from __future__ import annotations

import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from funnel.errors import InputError
from funnel.filtering.condition import (
    MAX_DEPTH,
    MAX_LENGTH,
    MAX_TESTS,
    MAX_VALUES,
    ColumnTest,
    Condition,
    Joined,
    Not,
    each_test,
    parse,
)
from funnel.filtering.sql import compiled
from tests.funnel.filtering.strategies import NAMES, conditions, written

A = ColumnTest("lang", "=", ("a",))


@pytest.mark.parametrize(
    ("where", "condition"),
    [
        (
            "year >= 2020 AND lang = 'en'",
            Joined("AND", (ColumnTest("year", ">=", (2020,)), ColumnTest("lang", "=", ("en",)))),
        ),
        ("2020 <= year", ColumnTest("year", ">=", (2020,))),
        ("not year != .5", Not(ColumnTest("year", "<>", (0.5,)))),
        ("lang in ('it''s', '')", ColumnTest("lang", "IN", ("it's", ""))),
        ("lang NOT LIKE '50!%' ESCAPE '!'", ColumnTest("lang", "LIKE", ("50!%", "!"), True)),
        (
            "year = 1 OR year = 2 AND lang = 'a'",
            Joined("OR", (ColumnTest("year", "=", (1,)), Joined("AND", (ColumnTest("year", "=", (2,)), A)))),
        ),
        ("Year IS NOT NULL", ColumnTest("Year", "IS", (), True)),
        ('"Not a ""plain"" name" = TRUE', ColumnTest('Not a "plain" name', "=", (True,))),
        ("year = -12345678901234567890", ColumnTest("year", "=", (-1.2345678901234567e19,))),
    ],
)
def test_a_text_is_read(where: str, condition: Condition) -> None:
    assert parse(where) == condition


@given(conditions)
def test_what_is_written_is_read_again(condition: Condition) -> None:
    assert parse(written(condition)) == condition


@given(conditions)
def test_no_literal_and_no_name_stands_in_the_sql(condition: Condition) -> None:
    tables = {name: f"c{number}" for number, name in enumerate(NAMES)}
    sql, parameters = compiled(condition, tables, "every")
    assert not set(sql) & set("'\"%;-é\n")
    assert sql.count("?") == len(parameters)
    said = [str(value) for value in parameters if isinstance(value, str) and len(value) > 1]
    assert not any(text in sql for text in said if text.strip("abAB "))


@given(st.text(max_size=30))
def test_any_text_is_read_or_refused_in_one_way(where: str) -> None:
    try:
        condition = parse(where)
    except InputError:
        return
    sql, parameters = compiled(condition, {test.column: "c0" for test in each_test(condition)}, "c0")
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE c0 (position, number, text, boolean, present)")
    assert connection.execute(sql, parameters).fetchall() == []
    connection.close()


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("", "where is empty"),
        ("  ", "where is empty"),
        ("year >=", r"expected a text, a number, TRUE or FALSE after >=, found the end; character 8, .*: year >=→$"),
        ("year >= AND lang = 'en'", r"found AND; character 9, at the arrow: year >= →AND lang = 'en'"),
        ("year == 5", r"after =, found =; character 7"),
        ("year", r"expected a comparison .* after year, found the end"),
        ("year = 1; DROP TABLE documents", r"';' is not allowed: a where is one condition.*character 9"),
        ("year = 1 -- lang", "'--' is not allowed"),
        ("year = 1) OR (1 = 1", r"expected AND, OR or the end, found \); character 9"),
        ("1 = 1", r"expected a column"),
        ("(year = 1", r"expected AND, OR or \), found the end"),
        ("lang = 'en", "a text that begins with ' has no end; character 8"),
        ('"lang = 1', 'a name that begins with " has no end'),
        ("lang = en", "texts stand between ' and '; two columns cannot be compared"),
        ("lang = NULL", "write IS NULL or IS NOT NULL"),
        ("lang IN (NULL)", "write IS NULL"),
        ("lang IS 5", "expected NULL, found 5"),
        ("lang IN ()", r"expected a literal in the list of IN, found \)"),
        ("lang IN (1, 'a')", "the list of IN mixes a number and a text; character 13"),
        ("lang IN 5", r"expected \( after IN"),
        ("year BETWEEN 1 AND 'a'", "BETWEEN takes two numbers or two texts"),
        ("year BETWEEN 1 OR 2", "expected AND in BETWEEN, found OR"),
        ("lang LIKE 5", "LIKE takes a text"),
        ("lang LIKE 'a' ESCAPE 'ab'", "ESCAPE takes a text of one character"),
        ("lang LIKE 'a' ESCAPE '%'", "neither % nor _"),
        (f"lang LIKE '{'a' * 1001}'", "a LIKE pattern has at most 1,000 characters"),
        ("done > TRUE", "TRUE and FALSE have no order"),
        ("lower(lang) = 'en'", r"lower\(…\) is a function"),
        ("year + 1 = 2", "nothing is computed"),
        ("year = ?", "bound as a parameter"),
        ("year = :x", "':' is not allowed"),
        ("SELECT 1", "SELECT is not part of the subset"),
        ("year = 1 UNION SELECT 1", "UNION is not part of the subset"),
        ("year = 1e999", "a number is too large"),
        ("year = 12a", "'12a' is neither a number nor a name"),
        ("year = 1.2.3", "neither a number nor a name"),
        ("lang = 'a\0'", "must not hold the character 0"),
        ("lang = '\ud800'", "lone surrogate"),
        ("year NOT 5", "expected IN, BETWEEN or LIKE"),
        ("(" * (MAX_DEPTH + 1) + "year = 1" + ")" * (MAX_DEPTH + 1), f"more than {MAX_DEPTH} deep"),
        ("NOT " * 5_000 + "year = 1", f"more than {MAX_DEPTH} deep"),
        (" OR ".join(["year = 1"] * (MAX_TESTS + 1)), f"more than {MAX_TESTS} comparisons"),
        (f"year IN ({', '.join(['1'] * (MAX_VALUES + 1))})", f"more than {MAX_VALUES:,} values"),
        ("y" * (MAX_LENGTH + 1), "at most 100,000 are read"),
    ],
)
def test_a_wrong_text_is_shown_where(where: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse(where)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(InputError, match="where is a int; expected a text such as"):
        parse(5)  # type: ignore[arg-type]


def test_the_longest_conditions_run_in_sqlite() -> None:
    wheres = [
        "(" * (MAX_DEPTH - 1) + " OR ".join(["NOT year = 1"] * MAX_TESTS) + ")" * (MAX_DEPTH - 1),
        "NOT " * MAX_DEPTH + f"year IN ({', '.join(['1'] * MAX_VALUES)})",
        "year = 1 OR year = 2 AND (" * MAX_DEPTH + "year NOT IN (1, 2)" + ")" * MAX_DEPTH,
        "year = 1 OR year = 2 AND NOT (" * (MAX_DEPTH // 2) + "year NOT IN (1, 2)" + ")" * (MAX_DEPTH // 2),
    ]
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE c0 (position, number, text, boolean, present)")
    for where in wheres:
        sql, parameters = compiled(parse(where), {"year": "c0"}, "c0")
        assert connection.execute(sql, parameters).fetchall() == []
    connection.close()
