"""From a where text to a condition: recursive descent over a small, closed subset of SQL.

condition := term (OR term)*          term := factor (AND factor)*          factor := NOT factor | test
test      := ( condition ) | column operator literal | literal operator column
           | column [NOT] IN ( literal, ... ) | column [NOT] BETWEEN literal AND literal
           | column [NOT] LIKE text [ESCAPE text] | column IS [NOT] NULL
"""

from __future__ import annotations

from collections.abc import Callable

from funnel.errors import InputError
from funnel.filtering.expression import And, Between, Column, Comparison, Condition, In, IsNull, Like, Not, Or, Test
from funnel.filtering.tokens import Literal, Token, fault, tokens

__all__ = ["MAX_DEPTH", "MAX_TESTS", "MAX_VALUES", "kind_of", "parse"]

# Parentheses and NOTs within each other: SQLite parses on a stack of 100, and "a OR b AND (" takes 5 of it a level.
MAX_DEPTH = 16
# SQLite takes an expression 1,000 deep, and a chain of ANDs is as deep as it is long.
MAX_TESTS = 500
MAX_VALUES = 10_000  # literals: SQLite binds 32,766 at most (version 3.32)
MAX_PATTERN = 1_000  # characters of a LIKE pattern: matching takes up to length of text x length of pattern
FLIPPED = {"=": "=", "<>": "<>", "<": ">", "<=": ">=", ">": "<", ">=": "<="}


def parse(where: str) -> Condition:
    """The condition. Raises InputError that says what was expected and shows where."""
    return _Parser(where).whole()


def kind_of(value: Literal) -> str:
    """ "number", "text" or "boolean"."""
    return "boolean" if isinstance(value, bool) else "text" if isinstance(value, str) else "number"


class _Parser:
    def __init__(self, where: str) -> None:
        self._where = where
        self._tokens = tokens(where)
        self._at = 0
        self._depth = 0
        self._tests = 0
        self._values = 0

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
        token = self._now
        self._at += 1
        return token

    def _expected(self, what: str) -> InputError:
        return self._fault(self._now, f"expected {what}, found {self._now.said[:40]}")

    def _fault(self, token: Token, what: str) -> InputError:
        return fault(self._where, token.start, what)

    def _is(self, kind: str, value: str) -> bool:
        return self._now.kind == kind and self._now.value == value

    def _took(self, kind: str, value: str) -> bool:
        if not self._is(kind, value):
            return False
        self._at += 1
        return True

    def _need(self, kind: str, value: str, what: str) -> None:
        if not self._took(kind, value):
            raise self._expected(what)

    def _term(self) -> Condition:
        return self._chain("AND", self._factor)

    def _chain(self, word: str, part: Callable[[], Condition]) -> Condition:
        parts = [part()]
        while self._took("keyword", word):
            parts.append(part())
        if len(parts) == 1:
            return parts[0]
        joined = And if word == "AND" else Or
        flat = [inner for one in parts for inner in (one.parts if isinstance(one, joined) else (one,))]
        return joined(tuple(flat))

    def _factor(self) -> Condition:
        opening = self._now
        negated = self._took("keyword", "NOT")
        if not negated and not self._took("operator", "("):
            return self._test()
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._fault(opening, f"parentheses and NOTs lie within each other more than {MAX_DEPTH} deep")
        if negated:
            inner: Condition = Not(self._factor())
        else:
            inner = self._chain("OR", self._term)
            self._need("operator", ")", "AND, OR or )")
        self._depth -= 1
        return inner

    def _test(self) -> Test:
        self._tests += 1
        if self._tests > MAX_TESTS:
            raise self._fault(self._now, f"more than {MAX_TESTS} comparisons; use IN, or allowed_ids")
        if self._now.kind == "literal":
            return self._flipped()
        column = self._column()
        if self._now.kind == "operator" and self._now.value in FLIPPED:
            operator = self._next()
            value = self._literal(f"a text, a number, TRUE or FALSE after {operator.said}")
            return self._comparison(column, operator, value)
        if self._took("keyword", "IS"):
            negated = self._took("keyword", "NOT")
            self._need("keyword", "NULL", "NULL")
            return IsNull(column, negated)
        negated = self._took("keyword", "NOT")
        if self._took("keyword", "IN"):
            return In(column, self._list(), negated)
        if self._took("keyword", "BETWEEN"):
            return self._between(column, negated)
        if self._took("keyword", "LIKE"):
            return self._like(column, negated)
        raise self._expected(
            "IN, BETWEEN or LIKE" if negated else f"a comparison (=, <, IN, BETWEEN, LIKE, IS NULL) after {column}"
        )

    def _column(self) -> Column:
        if self._now.kind != "name":
            raise self._expected("a column, a literal, NOT or (")
        token = self._next()
        if self._is("operator", "("):
            raise self._fault(token, f"{token.said}(…) is a function, and there are none in the subset")
        return Column(str(token.value), token.start)

    def _flipped(self) -> Comparison:
        value = self._literal("a literal")
        if self._now.kind != "operator" or self._now.value not in FLIPPED:
            raise self._expected("=, <>, <, <=, > or >= after a literal")
        operator = self._next()
        turned = Token("operator", FLIPPED[str(operator.value)], operator.start, operator.said)
        return self._comparison(self._column(), turned, value)

    def _comparison(self, column: Column, operator: Token, value: Literal) -> Comparison:
        if isinstance(value, bool) and operator.value not in ("=", "<>"):
            raise self._fault(operator, f"TRUE and FALSE have no order: use = or <> instead of {operator.said}")
        return Comparison(column, str(operator.value), value)

    def _literal(self, what: str) -> Literal:
        if self._is("keyword", "NULL"):
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
        self._need("operator", "(", "( after IN")
        values = [self._literal("a literal in the list of IN")]
        while self._took("operator", ","):
            token = self._now
            values.append(self._literal("a literal in the list of IN"))
            if kind_of(values[-1]) != kind_of(values[0]):
                raise self._fault(token, f"the list of IN mixes a {kind_of(values[0])} and a {kind_of(values[-1])}")
        self._need("operator", ")", ", or ) in the list of IN")
        return tuple(values)

    def _between(self, column: Column, negated: bool) -> Between:
        first = self._now
        low = self._literal("a text or a number after BETWEEN")
        self._need("keyword", "AND", "AND in BETWEEN")
        high = self._literal("a text or a number after AND in BETWEEN")
        if kind_of(low) != kind_of(high) or isinstance(low, bool):
            raise self._fault(first, "BETWEEN takes two numbers or two texts")
        return Between(column, low, high, negated)

    def _like(self, column: Column, negated: bool) -> Like:
        token = self._now
        pattern = self._literal("a text after LIKE")
        if not isinstance(pattern, str):
            raise self._fault(token, "LIKE takes a text")
        if len(pattern) > MAX_PATTERN:
            raise self._fault(token, f"a LIKE pattern has at most {MAX_PATTERN:,} characters")
        if not self._took("keyword", "ESCAPE"):
            return Like(column, pattern, None, negated)
        token = self._now
        escape = self._literal("one character after ESCAPE")
        if not isinstance(escape, str) or len(escape) != 1 or escape in "%_":
            raise self._fault(token, "ESCAPE takes a text of one character, neither % nor _")
        return Like(column, pattern, escape, negated)
