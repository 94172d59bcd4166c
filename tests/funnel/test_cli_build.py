"""Each option of `funnel build` and `funnel train` reaches what it is for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from funnel import FunnelIndex
from funnel.adaptors import RECIPES, selection
from funnel.adaptors.recipes import JUDGED_MLP
from funnel.encoding.encoders import DEFAULT_ENCODER, load_encoder
from tests.funnel.adaptors.test_rotation import SHORT
from tests.funnel.cli.test_main import refused, run
from tests.funnel.clustered import clustered_rows
from tests.funnel.corpora import documents
from tests.funnel.reports.beir_sets import beir_set


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Adaptors train for twenty steps a phase."""
    monkeypatch.setitem(RECIPES, "rotation", replace(SHORT, phases=(replace(SHORT.phases[0], steps=20),)))
    short = tuple(replace(phase, steps=20) for phase in JUDGED_MLP.phases)
    monkeypatch.setattr(selection, "JUDGED_MLP", replace(JUDGED_MLP, phases=short))
    monkeypatch.setenv("FUNNEL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    np.save(tmp_path / "rows.npy", clustered_rows(300))
    return tmp_path / "rows.npy"


def test_memory_decides_the_coarse_index(rows: Path, tmp_path: Path) -> None:
    run(["build", rows, tmp_path / "index", "--adaptor", "pca", "--memory-mb", 0.05, "--quiet"])
    assert FunnelIndex.open(tmp_path / "index").held_bytes <= 50_000
    assert "memory_mb" in refused(["build", rows, tmp_path / "other", "--memory-mb", -1])


def test_queries_that_are_documents_certify_where_that_is_said(rows: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "queries.npy", np.load(rows)[:60])
    command = ["build", rows, tmp_path / "index", "--adaptor", "pca", "--queries", tmp_path / "queries.npy", "--quiet"]
    assert "uncertified" in run(command).stdout
    assert "certified on 60 real queries" in run([*command, "--corpus-like-queries", "--overwrite"]).stdout


def test_queries_with_judgements_train_and_the_others_certify(tmp_path: Path) -> None:
    folder = beir_set(tmp_path / "set", count=1_200)
    command = ["build", folder, tmp_path / "index", "--queries", folder / "queries.jsonl", "--quiet"]
    said = run([*command, "--qrels", folder / "qrels" / "train.tsv"]).stdout
    assert "certified on 30 real queries" in said
    assert "mlp" in said
    assert "certified on 60 real queries" in run([*command, "--adaptor", "pca", "--overwrite"]).stdout


@pytest.mark.usefixtures("minilm")
def test_exact_encoding_gives_the_models_own_vectors(tmp_path: Path) -> None:
    texts = [document["text"] for document in documents(20)]
    (tmp_path / "docs.jsonl").write_text(
        "\n".join(json.dumps({"_id": f"d{i}", "text": text}) for i, text in enumerate(texts))
    )
    own = load_encoder(DEFAULT_ENCODER, exact=True, device="cpu").encode(texts)
    off = {}
    for name, options in (("exact", ["--exact-encoding"]), ("quick", [])):
        run(["build", tmp_path / "docs.jsonl", tmp_path / name, "--adaptor", "identity", "--quiet", *options])
        run(["export", tmp_path / name, tmp_path / f"{name}.npy", "--quiet"])
        off[name] = np.abs(np.load(tmp_path / f"{name}.npy") - own).max()
    assert off["exact"] < 2**-11 < off["quick"]  # rows are float16; in half precision the encoder adds to that
    assert off["quick"] < 0.02


def test_dev_judgements_choose(tmp_path: Path) -> None:
    folder = beir_set(tmp_path / "set", count=1_200)
    command = ["train", folder, tmp_path / "out", "--kind", "rotation", "--dims", "4,8", "--quiet"]
    command += ["--queries", folder / "queries.jsonl", "--qrels", folder / "qrels" / "train.tsv"]
    run([*command, "--dev-qrels", folder / "qrels" / "test.tsv"])
    log = json.loads((tmp_path / "out" / "training.json").read_text())
    assert "ndcg" in json.dumps(log).lower()
    assert str(tmp_path / "nowhere") in refused([*command, "--dev-qrels", tmp_path / "nowhere"])


@pytest.mark.usefixtures("minilm")
def test_embeddings_are_kept_where_the_cache_is(tmp_path: Path) -> None:
    (tmp_path / "docs.jsonl").write_text("\n".join(json.dumps(document) for document in documents(300)))
    command = ["train", tmp_path / "docs.jsonl", tmp_path / "out", "--kind", "rotation", "--dims", "32,64", "--quiet"]
    run([*command, "--cache", tmp_path / "here"])
    assert sum(path.stat().st_size for path in (tmp_path / "here").rglob("*") if path.is_file()) > 300 * 384 * 2
    assert not (tmp_path / "cache").exists()
