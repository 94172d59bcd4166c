"""The commands that train adaptors and report on them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from funnel.adaptors import PCA, RECIPES, Adaptor
from funnel.data import beir_download
from tests.funnel.adaptors.clusters import clustered
from tests.funnel.adaptors.test_rotation import SHORT
from tests.funnel.cli.test_main import refused, run
from tests.funnel.reports.beir_sets import beir_set


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(RECIPES, "rotation", replace(SHORT, phases=(replace(SHORT.phases[0], steps=20),)))
    monkeypatch.setenv("FUNNEL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    PCA.fit(clustered(200, 16), dims=[4, 8]).save(tmp_path / "adaptor")
    return tmp_path / "adaptor"


def test_every_help_has_an_example() -> None:
    for command in (["train"], ["adaptor"], ["adaptor", "report"]):
        assert f"Example: funnel {command[0]}" in run([*command, "--help"]).output


def test_train(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", clustered(1_200, 16))
    out = tmp_path / "adaptor"
    said = run(["train", tmp_path / "rows.npy", out, "--kind", "rotation", "--dims", "4,8", "--quiet"]).stdout
    assert said.startswith("rotation: asked for\n")
    assert f"written to {out}/: adaptor.json, adaptor.safetensors, training.json, training.png" in said
    assert Adaptor.load(out).dims == (4, 8)
    assert (out / "training.png").read_bytes().startswith(b"\x89PNG")
    assert "held-out shortlist recall" in said


def test_report_on_a_trained_adaptor(saved: Path, tmp_path: Path) -> None:
    data = beir_set(tmp_path / "set")
    folder = tmp_path / "report"
    done = run(["adaptor", "report", saved, "--data", data, "--data", data, "--report", folder])
    assert "mean of 2 sets" in done.stdout
    assert "adaptor (pca)" in done.stdout
    assert "set-2" in done.stdout
    assert {path.name for path in folder.iterdir()} == {"report.json", "report.png", "report.html"}
    quiet = run(
        ["adaptor", "report", saved, "--data", data, "--dims", "2", "--split", "train", "--report", folder, "--quiet"]
    )
    assert quiet.stderr == ""
    kept = json.loads((folder / "report.json").read_text())
    assert (kept["widths"], kept["split"]) == ([2, 16], "train")


def test_report_that_trains_first(tmp_path: Path) -> None:
    data, folder = beir_set(tmp_path / "set", count=1_200), tmp_path / "report"
    arguments = ["adaptor", "report", "--train", "rotation", "--data", data, "--dims", "4,8", "--report", folder]
    assert "Prefixes after rotation: set" in run([*arguments, "--quiet"]).stdout
    first = Adaptor.load(folder / "adaptors" / "set")
    run([*arguments, "--quiet", "--train-qrels", "--seed", 1])
    assert Adaptor.load(folder / "adaptors" / "set").checksum != first.checksum
    kept = json.loads((folder / "report.json").read_text())
    assert kept["sets"][0]["adaptor"]["trained on"] == "documents and qrels/train.tsv"


def test_a_beir_set_that_was_downloaded_before(saved: Path, tmp_path: Path) -> None:
    beir_set(tmp_path / "cache" / "beir" / "nfcorpus")
    done = run(["adaptor", "report", saved, "--beir", "nfcorpus", "--report", tmp_path / "report", "--quiet"])
    assert "nfcorpus: 200 documents" in done.stdout


def test_a_beir_set_that_cannot_be_downloaded(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(beir_download, "URL", "http://127.0.0.1:1/{name}.zip")  # nothing listens on port 1
    said = refused(["adaptor", "report", saved, "--beir", "nfcorpus", "--report", tmp_path / "report"])
    assert "'nfcorpus' could not be downloaded" in said
    assert "--data" in said
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "x"], "give either the folder OUT of an adaptor, or --train"),
        (["some", "--train", "rotation", "--data", "x"], "give either the folder OUT of an adaptor, or --train"),
        (["some"], "give at least one data set"),
        (["some", "--train-qrels", "--data", "x"], "--train-qrels goes with --train"),
        (["some", "--data", "x", "--dims", "4,x"], "not a list of widths"),
        (["nowhere", "--data", "x"], "nowhere"),
        (["--train", "pca", "--data", "x"], "'pca' is not trained"),
        (["--train", "rotation", "--data", "nowhere"], "nowhere"),
        (["--train", "rotation", "--beir", "nosuch"], "'nosuch' is no BEIR set"),
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], said: str, tmp_path: Path) -> None:
    assert said in refused(["adaptor", "report", *arguments, "--report", str(tmp_path / "report")])
    assert not (tmp_path / "report").exists()
