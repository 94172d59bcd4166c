from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.pages import forget
from benchmarks.turns import Truth, Way, cheapest, finalists, measure
from indexes.system import touched_bytes


def test_recall_counts_rows_that_tie_with_the_last_of_the_best_and_no_row_twice() -> None:
    rows = np.eye(8, dtype=np.float32)[[0, 1, 1, 2, 3, 4, 5]]
    asked = np.array([[0.8, 0.6, 0, 0, 0, 0, 0, 0]], dtype=np.float32)
    truth = Truth(rows, asked, 2)
    assert truth.recall(np.array([[0, 1]])) == truth.recall(np.array([[2, 0]])) == 1.0
    assert truth.recall(np.array([[0, 3]])) == 0.5
    assert truth.recall(np.array([[0, -1]])) == 0.5


def test_the_cheapest_at_a_recall_reaches_it_itself() -> None:
    made = {"a": (0.94, 10.0, 90.0), "b": (0.951, 20.0, 60.0), "c": (0.99, 30.0, 50.0)}
    ways = [
        Way("kind", name, lambda asked: np.zeros((len(asked), 1), int), 0.0, {}, recall, [batch], [single])
        for name, (recall, batch, single) in made.items()
    ]
    found = [cheapest(ways, 0.95, clock) for clock in ("batch_us", "single_us")]
    assert [way.label for way in found if way] == ["b", "c"]
    assert cheapest(ways, 0.995, "batch_us") is None
    assert [way.label for way in finalists(ways)] == ["b", "c"]


def test_a_way_is_measured_on_every_query() -> None:
    rows = np.eye(300, dtype=np.float32)
    asked: list[int] = []

    def search(queries: np.ndarray) -> np.ndarray:
        asked.append(len(queries))
        found: np.ndarray = queries.argmax(axis=1)[:, None]
        return found

    way = measure(Way("exact", "", search, 0.0), rows, Truth(rows, rows, 1))
    assert way.recall == 1.0
    assert asked == [256, 256, 44, *[1] * 40]


def test_pages_that_were_read_are_counted_until_they_are_given_back(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.ones((64, 16_384), dtype=np.float32))
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    forget(tmp_path)
    assert touched_bytes(tmp_path) == 0
    assert mapped.sum() == mapped.size
    assert touched_bytes(tmp_path) >= mapped.nbytes
    assert touched_bytes(tmp_path / "elsewhere") == 0
