from __future__ import annotations

import numpy as np

from benchmarks.choice import _table, _targets
from benchmarks.turns import Way


def way(kind: str, recall: float, us: float, held_mb: float) -> Way:
    return Way(kind, f"{us:g}", lambda asked: np.zeros((len(asked), 1), int), held_mb, {}, recall, [us], [us])


def test_the_chosen_one_is_judged_by_the_best_that_fits_the_memory() -> None:
    made = {kind: (None, 1.0) for kind in ("chosen", "whole", "small", "never")}
    ways = [
        way("chosen", 0.96, 24, 50),
        way("chosen", 0.94, 10, 50),
        way("whole", 0.97, 10, 500),
        way("small", 0.95, 20, 20),
        way("never", 0.9, 1, 20),
    ]
    table = _table(made, ways, "chosen", 100)
    assert [(row["kind"], row["times"]) for row in table[:3]] == [("whole", 0.5), ("small", 1.0), ("chosen", 1.2)]
    assert [row["said"] for row in table] == ["over the memory", "", "chosen", "does not reach it"]
    targets = _targets(table, ["chosen"] * 8 + ["small"] * 2)
    assert [(round(target.value, 3), target.met) for target in targets] == [(1.2, False), (0.8, False)]
    assert len(_targets(table, ["chosen"])) == 1
