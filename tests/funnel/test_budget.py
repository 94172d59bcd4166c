from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from funnel.budget import DEFAULT_RECALL, LARGEST_K, Budget, check_k
from funnel.errors import InputError


def test_without_a_budget_recall_is_the_default() -> None:
    assert Budget() == Budget(recall=DEFAULT_RECALL)
    assert Budget().latency_ms is None


def test_with_a_latency_alone_no_recall_is_asked_for() -> None:
    assert Budget(latency_ms=5).recall is None


@given(st.floats(0, 1, exclude_min=True), st.floats(1e-9, 1e9))
def test_every_value_in_range_is_kept(recall: float, latency: float) -> None:
    budget = Budget(recall, latency)
    assert (budget.recall, budget.latency_ms) == (recall, latency)


@pytest.mark.parametrize("recall", [0, -0.1, 1.0000001, 95, math.nan, math.inf, -math.inf, "0.9", True, [0.9]])
def test_recall_outside_its_range(recall: Any) -> None:
    with pytest.raises(InputError, match=rf"^recall is {re.escape(repr(recall))}; expected a share in \(0, 1\]"):
        Budget(recall=recall)


@pytest.mark.parametrize("latency", [0, -5, math.nan, math.inf, "5", False])
def test_latency_outside_its_range(latency: Any) -> None:
    with pytest.raises(InputError, match=rf"^latency_ms is {latency!r}; expected milliseconds above 0"):
        Budget(latency_ms=latency)


@pytest.mark.parametrize("confidence", [0, 1, -1, 1.5, math.nan, "0.95", True, None])
def test_confidence_outside_its_range(confidence: Any) -> None:
    with pytest.raises(InputError, match=rf"^confidence is {confidence!r}; expected a probability"):
        Budget(confidence=confidence)


@pytest.mark.parametrize("share", [0, -0.1, 1.0000001, 95, math.nan, math.inf, "0.9", True, [0.9]])
def test_share_outside_its_range(share: Any) -> None:
    with pytest.raises(
        InputError, match=rf"^share is {re.escape(repr(share))}; expected a share of queries in \(0, 1\]"
    ):
        Budget(0.9, share=share)


@pytest.mark.parametrize("latency", [None, 5])
def test_a_share_without_a_recall_is_refused(latency: float | None) -> None:
    with pytest.raises(InputError, match=r"^share is 0\.95 and no recall is given"):
        Budget(latency_ms=latency, share=0.95)


def test_what_is_tested_is_the_share_where_there_is_one() -> None:
    assert Budget(0.9).target == 0.9
    assert Budget(0.9, share=0.95).target == 0.95
    assert Budget(latency_ms=5).target is None
    assert [b.exact for b in (Budget(1.0), Budget(0.9, share=1.0), Budget(1.0, share=0.9), Budget())] == [
        True, True, False, False,
    ]  # fmt: skip
    assert Budget(0.9, share=0.95) != Budget(0.9)


def test_delta_is_what_confidence_leaves() -> None:
    assert Budget(confidence=0.9).delta == pytest.approx(0.1)


def test_text_names_what_was_asked() -> None:
    assert str(Budget()) == "recall 0.95"
    assert str(Budget(latency_ms=5)) == "latency 5 ms"
    assert str(Budget(0.9, share=0.95)) == "recall 0.9 for 95 % of queries"
    assert str(Budget(0.9, 2, share=0.999)) == "recall 0.9 for 99.9 % of queries and latency 2 ms"
    assert str(Budget(0.9, 2.5)) == "recall 0.9 and latency 2.5 ms"


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5)])
def test_numpy_numbers_are_numbers_and_come_back_plain(number: Any) -> None:
    budget = Budget(number, number, number)
    assert budget == Budget(0.5, 0.5, 0.5)
    assert {type(budget.recall), type(budget.latency_ms), type(budget.confidence)} == {float}
    assert type(Budget(latency_ms=np.int64(5)).latency_ms) is float  # type: ignore[arg-type]


@given(st.integers(1, 1000), st.integers(-10, 1100))
def test_k_above_the_rows_gives_all_of_them(rows: int, k: int) -> None:
    if k >= 1:
        assert check_k(k, rows) == min(k, rows)
    else:
        with pytest.raises(InputError, match=rf"^k is {k}; expected a whole number from 1 to {LARGEST_K}, such as 10$"):
            check_k(k, rows)


def test_k_is_bounded_by_the_rows_where_there_are_many() -> None:
    rows = 2 * LARGEST_K
    assert check_k(rows, rows) == rows
    with pytest.raises(InputError, match=f"from 1 to {rows}, such as 10"):
        check_k(rows + 1, rows)


def test_k_may_be_a_numpy_integer_and_comes_back_plain() -> None:
    assert type(check_k(np.int64(3), 10)) is int


@pytest.mark.parametrize("k", [True, 1.0, "3", None, math.nan, [1]])
def test_k_that_is_no_whole_number(k: Any) -> None:
    with pytest.raises(InputError, match="expected a whole number from 1 to 1000000, such as 10"):
        check_k(k, 10)
