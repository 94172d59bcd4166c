"""Ctrl-C at any moment of an operation: the index is as it was or was to be, and nothing stays locked or hangs."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

from funnel.progress import Progress

HERE = Path(__file__).parent
LONGEST_S = 600.0


@pytest.mark.parametrize("times", [12, pytest.param(60, marks=pytest.mark.slow)])
def test_an_operation_is_interrupted(times: int, tmp_path: Path) -> None:
    command = [sys.executable, str(HERE / "interrupting.py"), str(tmp_path), str(times), str(times)]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=LONGEST_S
    )  # a thread that hangs at exit would keep it
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{times} interrupted, 0 wrong"], done.stdout


def test_no_bar_runs_python_when_it_is_let_go() -> None:
    assert not inspect.isroutine(Progress.__del__)
