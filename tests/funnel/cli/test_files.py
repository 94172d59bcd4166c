"""funnel info and funnel export; funnel search --hybrid."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from funnel.cli.main import cli
from tests.funnel.corpora import ROWS, documents


def run(*arguments: object) -> str:
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def refused(*arguments: object) -> str:
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert done.exit_code == 2, (done.output, done.exception)
    (line,) = [line for line in done.stderr.splitlines() if line]
    return line


@pytest.mark.parametrize("command", ["info", "export"])
def test_help_has_an_example(command: str) -> None:
    assert f"Example: funnel {command}" in run(command, "--help")


def test_info(graph_folder: Path, tmp_path: Path) -> None:
    assert "generation 1" in run("info", graph_folder)
    record = json.loads(run("info", graph_folder, "--json"))
    assert (record["rows"], record["ladder"], record["coarse"]["name"]) == (ROWS, [32, 48, 64], "hnsw-sq8")
    assert "does not exist" in refused("info", tmp_path / "nowhere")


def test_export(graph_folder: Path, tmp_path: Path) -> None:
    said = run("export", graph_folder, tmp_path / "out.npy", "--quiet")
    assert said.startswith(f"{tmp_path / 'out.npy'}, {tmp_path / 'out.ids.npy'}: 3,000 rows; vectors in your own space")
    assert np.load(tmp_path / "out.npy").shape == (ROWS, 64)
    assert "exists already" in refused("export", graph_folder, tmp_path / "out.npy", "--quiet")
    run("export", graph_folder, tmp_path / "out.npy", "--quiet", "--overwrite", "--adapted")
    assert "IndexFlatIP" in run("export", graph_folder, tmp_path / "plain.faiss", "--quiet", "--flat")
    assert "suffix .txt" in refused("export", graph_folder, tmp_path / "out.txt", "--quiet")


@pytest.mark.usefixtures("minilm")
def test_hybrid_search(graph_folder: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "docs.jsonl"
    corpus.write_text("\n".join(json.dumps(document) for document in documents(20)))
    index = tmp_path / "index"
    run("build", corpus, index, "--quiet", "--adaptor", "identity")
    record = json.loads(run("search", index, "clock 5", "-k", 3, "--hybrid", 0.5, "--json"))
    assert set(record["hits"][0]["ranks"]) == {"dense", "cosine", "lexical", "bm25"}
    assert record["served"]["lexical"] is True
    shown = CliRunner().invoke(cli, ["search", str(index), "clock 5", "-k", "3", "--hybrid", "0.5"])
    assert "dense list of 20" in shown.stderr
    assert "fused with BM25 of weight 0.5" in shown.stderr
    assert "hybrid is 1.5" in refused("search", index, "clock 5", "--hybrid", 1.5)
    assert "holds vectors alone" in refused("search", graph_folder, "clock 5", "--hybrid", 0.5)
