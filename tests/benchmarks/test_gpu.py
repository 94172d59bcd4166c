from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from benchmarks.devices.spectrum import make_rows, spectrum
from benchmarks.gpu import gpu, judge

STAGES = ("products", "bins", "last top-k", "coarse search as served", "rerank at full width")
ROOT = Path(__file__).resolve().parents[2]


def test_without_a_gpu_the_same_code_runs_small_and_says_so(tmp_path: Path) -> None:
    result = CliRunner().invoke(gpu, ["--device", "cpu", "--out", str(tmp_path), "--only", "3000x48"])
    assert result.exit_code == 0, result.output
    assert "no figure of these is one of a GPU" in result.output
    assert "MISSED" not in result.output
    facts = json.loads((tmp_path / "gpu.json").read_text())
    assert facts["targets"] == []
    assert facts["left_out"].keys() == {"faiss-cagra", "faiss-gpu-ivf", "faiss-gpu-flat"}
    one = facts["sets"][0]
    served = [row for row in one["searches"] if row["search"].startswith("funnel")]
    assert [row["batch"] for row in served] == [1, 4, 64]
    assert all(row["recall"] >= 0.9 and row["largest_error"] < 1e-6 and row["agreement"] >= 0.99 for row in served)
    flat = [row["recall"] for row in one["searches"] if row["search"].startswith("torch flat")]
    assert min(flat) >= 0.999
    assert [row["stage"] for row in one["stages"]] == list(STAGES)
    assert one["rerank"]["largest_error"] < 1e-6


def test_the_targets_are_those_of_the_largest_sets_and_batch() -> None:
    def row(search: str, batch: int, us: float) -> dict[str, object]:
        return {"search": search, "batch": batch, "microseconds": us, "recall": 0.951}

    small = {"rows": 1, "dim": 8, "searches": [row("torch flat", 1_024, 1.0)], "rerank": {"share": 0.9}}
    large = {
        "rows": 2,
        "dim": 8,
        "rerank": {"share": 0.4},
        "searches": [
            row("torch flat, a", 1_024, 9.0),
            row("torch flat, b", 1_024, 8.0),
            row("faiss gpu flat", 1_024, 3.0),
            row("funnel, torch-bins", 1_024, 2.0),
            row("funnel, torch-bins", 1, 0.1),
        ],
    }
    targets = judge([small, large])
    assert [(round(target.value, 3), target.met) for target in targets] == [(0.4, False), (4.0, True), (1.5, True)]
    large["searches"][3]["recall"] = 0.949  # type: ignore[index]
    assert [target.met for target in judge([large])] == [False, False, False]


def test_an_unknown_set_is_refused() -> None:
    result = CliRunner().invoke(gpu, ["--device", "cpu", "--only", "5x5"])
    assert result.exit_code == 1
    assert "no set is called '5x5'; choose among: 3000x48, 6000x96" in result.output


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_full_run_is_refused() -> None:
    result = CliRunner().invoke(gpu, [])
    assert result.exit_code == 1
    assert "torch finds no CUDA device here; --device cpu" in result.output


@pytest.mark.parametrize("dim", [384, 1_024])
def test_the_spectrum_falls_and_fills_the_rest_of_the_energy(dim: int) -> None:
    variance = spectrum(dim).double() ** 2
    assert (variance.diff() <= 0).all()
    assert float(variance.sum()) == pytest.approx(1 - 0.123, abs=1e-5)


def test_made_rows_are_of_unit_length_and_have_neighbours() -> None:
    made = make_rows(4_000, 64, 50, torch.device("cpu"))
    rows = made.rows.float().numpy()
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-3)
    best = np.sort(made.queries @ rows.T, axis=1)
    assert best[:, -1].mean() > 0.5 > 0.3 > best.mean()


def test_it_runs_where_faiss_is_not_installed(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['faiss'] = None; sys.modules['rabitqlib'] = None\n"
        "from benchmarks.gpu import gpu, usable; print(usable())\n"
        f"gpu(['--device', 'cpu', '--only', '3000x48', '--out', {str(tmp_path)!r}])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("['torch-bins']")
    left_out = json.loads((tmp_path / "gpu.json").read_text())["left_out"]
    assert all("FAISS, which is not installed" in why for why in left_out.values())
    assert len(left_out) == 3
