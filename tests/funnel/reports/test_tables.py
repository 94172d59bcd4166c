from typing import Any

import pytest

from funnel.reports.tables import (
    COMPARISON_COLUMNS,
    PREDICTION_COLUMNS,
    Column,
    budget_rows,
    comparison_rows,
    microseconds,
    recall_text,
    size,
    text_table,
    times,
)
from tests.funnel.reports.samples import point, sample_results

COLUMNS = [
    Column("name", "name", left=True),
    Column("n", "count", ",d"),
    Column("x", "x", ".1f", optional=True),
]


def test_text_is_aligned() -> None:
    rows = [{"name": "a", "n": 1}, {"name": "longer", "n": 12345}]
    assert text_table(rows, COLUMNS).splitlines() == [
        "name     count",
        "──────  ──────",
        "a            1",
        "longer  12,345",
    ]


def test_a_missing_value_is_a_dash_and_an_optional_column_shows_if_any_row_has_it() -> None:
    rows = [{"name": "a", "n": 1, "x": 0.25}, {"name": "b"}]
    assert text_table(rows, COLUMNS).splitlines()[2:] == ["a         1  0.2", "b         –    –"]  # type: ignore[arg-type]


def test_no_rows_leave_the_heading() -> None:
    assert text_table([], COLUMNS[:2]) == "name  count\n────  ─────"


def test_a_cell_stays_on_its_line() -> None:
    assert text_table([{"name": "a\nb\tc", "n": 1}], COLUMNS).splitlines()[2] == "a b c      1"


@pytest.mark.parametrize(
    ("form", "value", "text"),
    [
        (microseconds, 5.44, "5.4"),
        (microseconds, 1637.2, "1,637"),
        (times, 0.84, "0.8×"),
        (times, 9.96, "10×"),
        (times, 21.3, "21×"),
        (times, 1234, "1,234×"),
        (recall_text, 0.9, "0.90"),
        (recall_text, 0.995, "0.995"),
        (recall_text, 1.0, "1.00"),
        (size, 512, "512 B"),
        (size, 38_400, "38.4 kB"),
        (size, 307_200_000, "307 MB"),
        (size, 2_500_000_000, "2.5 GB"),
        (size, 9_999_000_000_000, "9,999.0 GB"),
        (size, 999.7, "1.0 kB"),
        (size, 99_980, "100 kB"),
        (size, 0, "0 B"),
    ],
)
def test_numbers_read_well(form: Any, value: float, text: str) -> None:
    assert form(value) == text


def test_results_make_one_row_for_flat_and_one_for_each_budget() -> None:
    lines = text_table(comparison_rows(sample_results()), COMPARISON_COLUMNS).splitlines()
    assert "nDCG" not in lines[0]
    assert [line.split("  ")[0] for line in lines[2:]] == [
        "flat",
        "recall 0.80",
        "recall 0.90",
        "recall 0.95",
        "recall 0.99",
    ]
    assert "1.0000" in lines[2]
    assert "307 MB" in lines[2]
    assert "0.9571" in lines[5]
    assert "15×" in lines[5]
    assert "9.4×" in lines[5]


def test_ranking_shows_where_it_was_measured() -> None:
    results = sample_results()
    results["flat"]["ndcg@10"] = 0.6451
    heading, _, flat, first, *_ = text_table(comparison_rows(results), COMPARISON_COLUMNS).splitlines()
    assert "nDCG@10" in heading
    assert "recall@100" not in heading
    assert "0.6451" in flat
    assert "–" in first


def test_what_is_not_certified_says_so() -> None:
    results = sample_results()
    results["funnel"][3]["certified"] = False
    heading, _, *lines = text_table(comparison_rows(results), COMPARISON_COLUMNS).splitlines()
    at = heading.index("certified")
    assert [line[at : at + 9].strip() for line in lines] == ["–", "yes", "yes", "yes", "no"]


def test_predictions_stand_beside_what_was_measured() -> None:
    lines = text_table(budget_rows(sample_results()), PREDICTION_COLUMNS).splitlines()
    assert lines[4].split() == ["recall", "0.95", "0.9561", "0.9571", "0.0020", "72", "72", "426", "438"]


def test_where_nothing_is_certified_no_bound_is_shown() -> None:
    results = sample_results()
    results["funnel"] = [point(0.95, 0.9571, 14.0, 9.4, certified=False, recall_low=None)]
    cells = text_table(comparison_rows(results), COMPARISON_COLUMNS).splitlines()[3].split()
    assert cells[:7] == ["recall", "0.95", "0.9571", "0.0020", "0.9561", "–", "no"]


def test_exact_search_is_called_exact_and_not_certified() -> None:
    results = sample_results()
    results["funnel"][3] = point(0.99, 1.0, 1.0, 1.0, exact=True)
    results["funnel"][0] = point(0.80, 0.82, 30.0, 20.0, certified=False)
    assert [row["certified"] for row in budget_rows(results)] == ["no", "yes", "yes", "exact"]
