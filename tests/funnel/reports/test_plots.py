import struct
import sys
from pathlib import Path

import pytest

from funnel.errors import InputError, MissingPackageError
from funnel.reports import plots
from funnel.reports.plots import frontier_plot
from funnel.reports.tables import Results
from tests.funnel.reports.samples import point, sample_results


def test_the_picture_is_a_png_of_the_size_promised(tmp_path: Path) -> None:
    frontier_plot(sample_results(), tmp_path / "plot.png")
    data = (tmp_path / "plot.png").read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", data[16:24]) == (1800, 1120)


def test_the_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        frontier_plot(sample_results(), tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def labels(results: Results) -> list[list[str]]:
    return [[dot.label for dot in plots.budget_dots(results, key)] for key in ("speedup_batch", "speedup_single")]


def test_every_budget_is_labelled() -> None:
    assert labels(sample_results()) == [
        ["0.80: 34×", "0.90: 25×", "0.95: 15×", "0.99: 4.9×"],
        ["0.80: 19×", "0.90: 14×", "0.95: 9.4×", "0.99: 3.6×"],
    ]


def test_budgets_served_by_one_plan_share_a_point() -> None:
    results = sample_results()
    results["funnel"] = [
        point(0.9, 0.96, 15.0, 8.0),
        point(0.95, 0.96, 15.0, 8.0),
        point(0.995, 1.0, 1.0, 1.0),
    ]
    assert labels(results) == [["0.90, 0.95: 15×", "0.995: 1.0×"], ["0.90, 0.95: 8.0×", "0.995: 1.0×"]]


def test_a_better_recall_is_further_right_up_to_1() -> None:
    recalls = [0.0, 0.5, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0]
    places = [plots.stretch(recall) for recall in recalls]
    assert places == sorted(set(places))
    assert plots.stretch(1.0000001) == plots.stretch(1.0)


@pytest.mark.parametrize("recall", [0.0, 1.0])
def test_extremes_are_drawn(tmp_path: Path, recall: float) -> None:
    results = sample_results()
    results["title"] = "A title with $signs$ and a length that goes over every edge " * 3
    results["funnel"] = [point(0.95, recall, 1.0, 0.2, recall_low=0.0)]
    frontier_plot(results, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_no_budgets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="hold no budgets"):
        frontier_plot({**sample_results(), "funnel": []}, tmp_path / "plot.png")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'funnel-retrieval\[demo\]'"):
        frontier_plot(sample_results(), tmp_path / "plot.png")
