"""LIKE over texts with zero characters agrees with SQLite's own where there are none."""

import sqlite3
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from funnel.filtering.sql import NAME, add_like

SIGNS = st.text("aAbé%_!\n", max_size=8)


def _asked(sql: str, *values: Any) -> Any:
    connection = sqlite3.connect(":memory:")
    try:
        add_like(connection)
        return connection.execute(sql, values).fetchone()[0]
    finally:
        connection.close()


@given(SIGNS, SIGNS, st.sampled_from([None, "!"]))
def test_the_same_as_sqlite(text: str, pattern: str, escape: str | None) -> None:
    if escape and pattern.replace("!!", "").endswith("!"):  # a sign that escapes nothing: refused by the parser
        return
    own = f"? LIKE ?{' ESCAPE ?' if escape else ''}"
    values = [text, pattern, *([escape] if escape else [])]
    assert _asked(f"SELECT {NAME}(?, ?, {'?' if escape else 'NULL'})", *values) == _asked(f"SELECT {own}", *values)


@given(SIGNS, SIGNS)
def test_a_zero_is_a_character_like_others(text: str, pattern: str) -> None:
    asked = _asked(f"SELECT {NAME}(?, ?, NULL)", text.replace("b", "\0"), pattern.replace("b", "\0"))
    assert asked == _asked("SELECT ? LIKE ?", text, pattern)


def test_many_signs_take_few_steps() -> None:
    assert _asked(f"SELECT {NAME}(?, ?, NULL)", "\0" + "a" * 3_000, "%a" * 100 + "b") == 0
