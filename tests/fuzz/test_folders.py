"""A short run of altered folders; `make folders TRIALS=… SEED=…` makes more."""

from __future__ import annotations

from tests.fuzz.folders import run

TRIALS = 200


def test_altered_folders_give_documented_errors_alone() -> None:
    results, faults = run(TRIALS, seed=0, workers=2)
    assert not faults, "\n".join(faults)
    assert results["DamagedIndexError"] > TRIALS // 4  # the alterations do reach what is refused
    assert results["done"] > TRIALS  # and what is not
