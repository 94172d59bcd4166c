"""The funnel beside other libraries: curves, workers, and a whole comparison."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner

from funnel.cli.main import cli
from funnel.errors import FunnelError, InputError
from funnel.peers.comparison import Comparison, compare, peers_named
from funnel.peers.curve import around, time_at
from funnel.peers.worker import Worker
from tests.funnel.clustered import clustered_rows

POINTS = [
    {"recall": recall, "us_batch": us}
    for recall, us in [(0.8, 5.0), (0.9, 10.0), (0.91, 30.0), (0.95, 20.0), (0.99, 50.0)]
]


@pytest.mark.parametrize("recall", [0.5, 0.8, 0.93, 0.95, 0.98, 0.99])
def test_a_recall_is_read_off_the_points_around_it_alone(recall: float) -> None:
    some = around(POINTS, recall, "us_batch")
    assert len(some) <= 2
    assert time_at(some, recall, "us_batch") == time_at(POINTS, recall, "us_batch")


def test_no_point_is_around_a_recall_that_is_not_reached() -> None:
    assert around(POINTS, 0.995, "us_batch") == []


def job_of(folder: Path, rows: npt.NDArray[np.float32], queries: npt.NDArray[np.float32]) -> dict[str, Any]:
    best = -np.sort(-(queries @ rows.T), axis=1)
    for name, array in (("rows", rows), ("queries", queries), ("truth-1", best[:, 0]), ("truth-10", best[:, 9])):
        np.save(folder / f"{name}.npy", array)
    paths = {name: str(folder / f"{name}.npy") for name in ("rows", "queries")}
    return {**paths, "truth": str(folder / "truth-{k}.npy"), "ks": [1, 10], "threads": 1, "slowest_us": 1e9}


def test_a_worker_builds_once_and_answers_for_every_k(tmp_path: Path) -> None:
    rows = clustered_rows(600, 32)
    job = job_of(tmp_path, rows, rows[:40])
    worker = Worker("funnel.peers.measure", {**job, "peer": "faiss-hnsw", "build": "degree 16"}, tmp_path)
    try:
        built = worker.ask("build", 5)
        assert (built["peer"], built["build"]) == ("faiss-hnsw", "degree 16")
        for k in (1, 10):
            points = worker.ask("sweep", 5, k=k)
            assert points[-1]["recall"] >= 0.9985  # where the sweep ends
            taken = worker.ask("time", 5, k=k, knob=points[-1]["knob"])
            assert 0 < taken["us_batch"] < 1e6
        assert worker.ask("memory")["touched_bytes"] >= 0
    finally:
        worker.close()


def test_what_ends_a_worker_is_said_and_so_is_a_time_that_is_over(tmp_path: Path) -> None:
    rows = np.eye(32, dtype=np.float32)
    job = job_of(tmp_path, rows, rows)
    worker = Worker("funnel.peers.measure", {**job, "peer": "faiss-flat", "build": "none such"}, tmp_path)
    with pytest.raises(FunnelError, match="none such"):
        worker.ask("build", 5)
    worker.close()
    worker = Worker("funnel.peers.measure", {**job, "peer": "faiss-flat", "build": "default"}, tmp_path)
    with pytest.raises(FunnelError, match=r"build took over 0\.0 minutes"):
        worker.ask("build", 0)
    worker.close()


def test_libraries_are_named_in_whole_or_by_what_begins_their_name() -> None:
    assert peers_named(["hnswlib", "svs"]) == ["hnswlib", "svs-lvq", "svs-leanvec"]
    assert all(name.startswith("faiss-") for name in peers_named(["faiss", "faiss-flat"]))
    with pytest.raises(InputError, match="no library is called 'fais' here; choose among faiss-flat"):
        peers_named(["fais"])


@pytest.mark.slow
def test_a_comparison_is_a_table_a_record_and_a_picture_and_goes_on_where_it_ended(tmp_path: Path) -> None:
    rows, asked = clustered_rows(3_000, 32), clustered_rows(400, 32, seed=1)
    np.save(tmp_path / "rows.npy", rows)
    np.save(tmp_path / "queries.npy", asked)
    arguments = ["compare", str(tmp_path / "rows.npy"), "--queries", str(tmp_path / "queries.npy"), "--lean"]
    arguments += ["--with", "faiss-hnsw", "--passes", "1", "--threads", "1", "--out", str(tmp_path / "out")]
    first = CliRunner().invoke(cli, arguments)
    assert first.exit_code == 0, first.output
    (one,) = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [peer["peer"] for peer in one["peers"]] == ["faiss-flat", "faiss-hnsw"]
    assert [point["asked"] for point in one["funnel"][0]["points"]] == [0.9, 0.95, 0.99]
    assert one["unseen"] == 200
    assert all(point["recall"] >= point["asked"] - 0.03 for point in one["funnel"][0]["points"])
    said = (tmp_path / "out" / "comparison.md").read_text()
    assert said.rstrip() in first.output
    assert "| **funnel**" in said
    assert "0.9: at least " in said
    assert (tmp_path / "out" / "comparison-10.png").read_bytes()[:4] == b"\x89PNG"
    again = CliRunner().invoke(cli, arguments)
    assert "faiss-hnsw, degree 32: measured before, in " in again.output
    assert "\\* swept in an earlier run" in again.output
    np.save(tmp_path / "queries.npy", asked[:300])  # other data: nothing was measured of it
    other = CliRunner().invoke(cli, arguments)
    assert "measured before" not in other.output


def test_a_library_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hnswlib", None)
    np.save(tmp_path / "rows.npy", clustered_rows(600, 16))
    np.save(tmp_path / "queries.npy", clustered_rows(60, 16, seed=1))
    how = Comparison(["hnswlib"], passes=1, threads=1, progress=False)
    (one,) = compare(tmp_path / "rows.npy", tmp_path / "queries.npy", tmp_path / "out", how)
    assert list(one["left_out"]) == ["hnswlib"]
    assert one["left_out"]["hnswlib"].startswith("not installed")


@pytest.mark.parametrize(
    ("rows", "queries", "match"),
    [
        ((50, 8), (20, 4), "holds no vectors of 8 dims"),
        ((50, 8), (1, 8), "1 queries and 50 rows are too few"),
        ((8, 8), (20, 8), "20 queries and 8 rows are too few"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(
    rows: tuple[int, int], queries: tuple[int, int], match: str, tmp_path: Path
) -> None:
    np.save(tmp_path / "rows.npy", clustered_rows(*rows))
    np.save(tmp_path / "queries.npy", clustered_rows(*queries, seed=1))
    with pytest.raises(InputError, match=match):
        compare(tmp_path / "rows.npy", tmp_path / "queries.npy", tmp_path / "out", Comparison(progress=False))
