from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import pytest

from benchmarks.peers.command import _prepare
from benchmarks.peers.frontier import around, time_at
from benchmarks.peers.worker import Worker

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


def test_a_worker_builds_once_and_answers_for_every_k(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((600, 32)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    job = _prepare(tmp_path, rows, rows[:40], rows[40:60], (1, 10), 1)
    worker = Worker("benchmarks.peers.measure", {**job, "peer": "faiss-hnsw", "build": "degree 16"}, tmp_path)
    try:
        built = worker.ask("build", 5)
        assert (built["peer"], built["build"]) == ("faiss-hnsw", "degree 16")
        for k in (1, 10):
            points = worker.ask("sweep", 5, k=k)
            assert points[-1]["recall"] >= 0.9985  # where the sweep ends
            taken = worker.ask("time", 5, k=k, knob=points[-1]["knob"])
            assert 0 < taken["us_batch"] < 1e6
    finally:
        worker.close()


def test_what_ends_a_worker_is_said_and_so_is_a_time_that_is_over(tmp_path: Path) -> None:
    rows = np.eye(32, dtype=np.float32)
    job = _prepare(tmp_path, rows, rows, rows, (1,), 1)
    worker = Worker("benchmarks.peers.measure", {**job, "peer": "faiss-flat", "build": "none such"}, tmp_path)
    with pytest.raises(click.ClickException, match="none such"):
        worker.ask("build", 5)
    worker.close()
    worker = Worker("benchmarks.peers.measure", {**job, "peer": "faiss-flat", "build": "default"}, tmp_path)
    with pytest.raises(click.ClickException, match=r"build took over 0\.0 minutes"):
        worker.ask("build", 0)
    worker.close()
