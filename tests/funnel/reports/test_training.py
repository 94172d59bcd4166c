import builtins
import struct
from pathlib import Path
from typing import Any

import pytest

from funnel.adaptors import PCA, AdaptorChoice, Phase, Recipe, Rotation, TrainingLog, fit_adaptor
from funnel.reports.adaptors import show_training
from tests.funnel.adaptors.clusters import clustered

QUICK = Recipe(
    phases=(Phase("coarse", {"distillation": 1.0}, 6, 1e-3), Phase("fine", {"distillation": 0.5}, 4, 1e-4)),
    batch=16, near=4, random=8, evaluate_every=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def asked_for() -> AdaptorChoice:
    trained = fit_adaptor("rotation", clustered(400, 16), dims=[4, 8], recipe=QUICK)
    return AdaptorChoice(trained.adaptor, "rotation: asked for", trained.log.figure, {}, {"rotation": trained.log})


def log(kind: str, best: Any, *means: Any) -> TrainingLog:
    """A log with an evaluation every 10 steps."""
    steps = [{"step": i, "phase": "unsupervised", "topk": 1 / i} for i in range(1, 10 * len(means))]
    evaluations = [
        {"step": 10 * i, "phase": "unsupervised", "seconds": i, "figures": {4: m, 8: m + 0.1}, "mean": m + 0.05}
        for i, m in enumerate(means)
    ]
    stopped = [f"unsupervised: no rise in 2 figures, at step {steps[-1]['step']}"]
    return TrainingLog(kind, [4, 8], 0, 400, 25, "nDCG@10", steps, evaluations, best, stopped, 12.34)


def chosen() -> AdaptorChoice:
    figures = {"identity": {4: 0.3, 8: 0.4}, "pca": {4: 0.5, 8: 0.6}, "mlp": {4: 0.7, 8: 0.8}}
    logs = {"rotation": log("rotation", 10, 0.5, 0.6, 0.55), "mlp": log("mlp", 20, 0.3, 0.5, 0.7)}
    return AdaptorChoice(PCA.fit(clustered(50, 16)), "pca: mean $over$ 2 widths <b>", "nDCG@10", figures, logs)


def size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", data[16:24])


def test_a_kind_that_was_asked_for_is_shown_before_and_after(asked_for: AdaptorChoice, tmp_path: Path) -> None:
    asked_for.save(tmp_path)
    said = show_training(asked_for, tmp_path)
    lines = said.splitlines()
    assert lines[0] == "rotation: asked for"
    assert lines[2].split() == ["held-out", "shortlist", "recall", "4", "8", "mean"]
    assert lines[6].startswith("by dims: the share of the true top 10 among the best 50")
    log = asked_for.logs["rotation"]
    before, after = log.evaluations[0], next(e for e in log.evaluations if e["step"] == log.best_step)
    assert lines[4].split()[-3:] == [f"{value:.4f}" for value in (*before["figures"].values(), before["mean"])]
    assert lines[5].split()[1:] == [*(f"{v:.4f}" for v in (*after["figures"].values(), after["mean"])), "kept"]
    assert f"rotation: {len(log.steps)} steps on {log.rows} rows in {log.seconds:.1f} s, state of step" in said
    assert [f"  {why}" in lines for why in log.stopped] == [True, True]
    assert lines[-1] == f"written to {tmp_path}/: adaptor.json, adaptor.safetensors, training.json, training.png"
    assert size(tmp_path / "training.png") == (2400, 920)


def test_every_kind_compared_is_shown_and_the_kept_one_named(tmp_path: Path) -> None:
    said = show_training(chosen(), tmp_path / "new" / "folder")
    lines = said.splitlines()
    assert lines[0] == "pca: mean $over$ 2 widths <b>"
    assert lines[4].split() == ["identity", "0.3000", "0.4000", "0.3500"]
    assert lines[5].split() == ["pca", "0.5000", "0.6000", "0.5500", "kept"]
    assert lines[6].split() == ["mlp", "0.7000", "0.8000", "0.7500"]
    assert "mlp: 29 steps on 400 rows and 25 judged queries in 12.3 s, state of step 20 kept" in lines
    assert size(tmp_path / "new" / "folder" / "training.png") == (2400, 1600)  # a row of panels for each kind


def test_nothing_trained(tmp_path: Path) -> None:
    choice = AdaptorChoice(PCA.fit(clustered(50, 16)), "pca: 50 different vectors are too few to train")
    choice.save(tmp_path)
    said = show_training(choice, tmp_path)
    assert said.startswith("pca: 50 different vectors are too few to train\n\nwritten to ")
    assert "nothing was trained" in said
    assert not (tmp_path / "training.png").exists()


def test_an_interrupt_before_the_first_figure(tmp_path: Path) -> None:
    stopped = TrainingLog("rotation", [4], 0, 400, 0, "shortlist recall", stopped=["interrupted after step 0"])
    choice = AdaptorChoice(Rotation(PCA.fit(clustered(50, 16)).matrix.numpy()), "asked for", logs={"rotation": stopped})
    said = show_training(choice, tmp_path)
    assert "  interrupted after step 0" in said.splitlines()
    assert "nothing was trained" in said


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *arguments: Any) -> Any:
        if name.split(".")[0] == "matplotlib":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", refuse)
    said = show_training(chosen(), tmp_path)
    assert "plots need matplotlib" in said
    assert "0.5500" in said
    assert list(tmp_path.iterdir()) == []
