from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from funnel import FLAT, Budget, Plan
from funnel.errors import InputError
from funnel.request import Request, explicit_plan, read_query, read_vectors, wanted_budget


def test_texts_and_vectors_one_or_several() -> None:
    assert read_query("a", 2) == (["a"], None, True)
    assert read_query(["a", "b"], 2) == (["a", "b"], None, False)
    for query, single in (([1.0, 0.0], True), ([[1.0, 0.0]], False), (np.ones(2), True), (np.ones((1, 2)), False)):
        texts, vectors, alone = read_query(query, 2)
        assert texts is None
        assert vectors is not None
        assert vectors.shape == (1, 2)
        assert alone is single


def test_no_queries_are_no_rows() -> None:
    texts, vectors, single = read_query([], 5)
    assert (texts, single) == (None, False)
    assert vectors is not None
    assert vectors.shape == (0, 5)


@pytest.mark.parametrize("query", [None, 3, ["a", 1.0], [[1.0], [1.0, 2.0]]])
def test_what_is_neither_is_refused(query: object) -> None:
    with pytest.raises(InputError, match=r"quer(y|ies)"):
        read_query(query, 2)


def test_vectors_as_lists() -> None:
    assert read_vectors([[1.0, 2.0]]).shape == (1, 2)


def test_a_budget_one_way_or_the_other() -> None:
    assert wanted_budget(0.9, None, None) == Budget(0.9)
    assert wanted_budget(None, None, Budget(latency_ms=2)) == Budget(latency_ms=2)
    with pytest.raises(InputError, match="not both"):
        wanted_budget(0.9, None, Budget(0.9))
    with pytest.raises(InputError, match="not both"):
        explicit_plan(FLAT, 0.9, None, None)
    assert wanted_budget(0.9, None, None, 0.95) == Budget(0.9, share=0.95)
    with pytest.raises(InputError, match="not both"):
        wanted_budget(None, None, Budget(0.9), 0.95)
    with pytest.raises(InputError, match="not both"):
        explicit_plan(FLAT, None, None, None, 0.95)
    with pytest.raises(InputError, match="expected a Plan"):
        explicit_plan(3, None, None, None)  # type: ignore[arg-type]


def test_what_an_audit_is_listed_under() -> None:
    plan = Plan(16, 16)
    assert Request(10, 0.9).name == ("recall 0.9", 0.9)
    assert Request(10).name == ("recall 0.95", 0.95)
    assert Request(10, latency_ms=5.0).name == ("latency 5 ms", None)
    assert Request(10, budget=Budget(0.8, 5.0)).name == ("recall 0.8 and latency 5 ms", 0.8)
    # Half of the queries at .9, the others at 0 or more.
    assert Request(10, 0.9, share=0.5).name == ("recall 0.9 for 50 % of queries", 0.45)
    assert Request(10, plan=plan).name == (f"plan {plan}", None)


def test_an_array_of_texts_is_texts() -> None:
    assert read_query(np.array(["a", "b"]), 2) == (["a", "b"], None, False)
    assert read_query(np.array(["a", "b"], dtype=object), 2) == (["a", "b"], None, False)
    assert read_query(np.array("a"), 2) == (["a"], None, True)


def test_a_list_keeps_the_digits_that_its_array_has() -> None:
    for values in ([1e39, 0.0], [3e-46, 1e-46]):
        for given, expected in ((values, [values]), ([values], [values])):
            vectors = read_query(given, 2)[1]
            assert vectors is not None
            assert vectors.tolist() == expected


@pytest.mark.parametrize("given", [b"ab", bytearray(b"ab"), memoryview(b"ab"), [bytearray(b"ab")]])
def test_bytes_are_no_numbers(given: Any) -> None:
    for read in (lambda: read_query(given, 2), lambda: read_vectors(given)):
        with pytest.raises(InputError, match=r"bytes are given for numbers; .* numpy\.frombuffer|numbers in rows"):
            read()
    assert read_vectors(np.ones((1, 2), np.float32).data).tolist() == [[1.0, 1.0]]
