"""A sample of the campaigns of kills and of damage: `python -m benchmarks crash` and `damage` run all of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]


def run(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    """Run a campaign in a process of its own, as this one had parallel regions and cannot be forked; its record."""
    threads = {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks", *arguments, "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **threads}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-2_000:]
    record: dict[str, Any] = json.loads((tmp_path / f"{arguments[0]}.json").read_text())
    return record


@pytest.mark.slow  # test_transactions stops at every operation of a file, in this process
@pytest.mark.parametrize("operations", [("build", "compact"), ("add", "upsert", "delete")])
def test_nothing_is_lost_when_an_operation_is_stopped(tmp_path: Path, operations: tuple[str, ...]) -> None:
    only = [argument for operation in operations for argument in ("--only", operation)]
    record = run(tmp_path, "crash", "--sample", "1", *only)
    assert record["faults"] == []
    for row in record["table"]:
        assert row["file operations"] > 50
        assert row["kills there"] == row["at random times"] == row["ENOSPC"] == row["EIO"] == 1
        assert row["short"] == 2


@pytest.mark.slow  # test_checks and the tests of opening name damage of every kind of file
def test_all_damage_is_found_and_named(tmp_path: Path) -> None:
    record = run(tmp_path, "damage", "--count", "6")
    assert set(record["table"]) > {"CURRENT", "generations", "vectors.npy", "coarse.faiss", "tombstones"}
    assert all(counted == {"flips": 6, "truncations": 6, "missed": 0} for counted in record["table"].values())
