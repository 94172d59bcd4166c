import builtins
import json
import re
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from funnel.adaptors import PCA, RECIPES, Adaptor, Identity
from funnel.encoding.encoders import Encoder
from funnel.errors import EncoderError, InputError
from funnel.reports.adaptors import (
    AdaptorReport,
    named,
    report_on_adaptor,
    report_on_training,
    shares_plot,
    write_report,
)
from tests.funnel.adaptors.clusters import clustered
from tests.funnel.adaptors.test_rotation import SHORT
from tests.funnel.reports.beir_sets import beir_set, write_set
from tests.funnel.reports.test_pages import Page


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("beir")
    return [beir_set(folder / "first"), beir_set(folder / "second", count=120)]


@pytest.fixture(scope="module")
def measured(folders: list[Path]) -> AdaptorReport:
    return report_on_adaptor(PCA.fit(clustered(200, 16)), folders, dims=[4, 8], progress=False)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, "rotation", replace(SHORT, phases=(replace(SHORT.phases[0], steps=20),)))


def test_each_set_is_measured_by_truncation_pca_and_the_adaptor(measured: AdaptorReport) -> None:
    first, second = measured.sets
    assert (first.name, first.documents, first.queries) == ("first", 200, 30)
    assert (second.name, second.documents, second.queries) == ("second", 120, 30)
    assert measured.widths == [4, 8, 16]
    # The adaptor is the PCA of the first set's documents: there it equals the PCA that the report fits, elsewhere not.
    for name, ways in first.figures.items():
        assert list(ways) == ["truncation", "pca", "adaptor"], name
        assert ways["adaptor"] == pytest.approx(ways["pca"], abs=1e-6)
    assert second.figures["ndcg@10"]["adaptor"][4] != second.figures["ndcg@10"]["pca"][4]
    expected = np.mean([found.figures["ndcg@10"]["pca"][8] / found.full["ndcg@10"] for found in measured.sets])
    assert measured.mean["pca"][8] == pytest.approx(expected)
    assert measured.mean["truncation"][16] == 1.0


def test_default_widths_are_those_of_the_adaptor(folders: list[Path]) -> None:
    rows = clustered(200, 16)
    assert report_on_adaptor(PCA.fit(rows, dims=[2, 6]), folders[:1], progress=False).widths == [2, 6, 16]
    assert report_on_adaptor(Identity(16), folders[:1], progress=False).widths == [8, 16]


def test_four_ways_to_show_it(measured: AdaptorReport, tmp_path: Path) -> None:
    said = write_report(measured, tmp_path / "a" / "b")
    folder = tmp_path / "a" / "b"
    assert {path.name for path in folder.iterdir()} == {"report.json", "report.png", "report.html"}
    kept = json.loads((folder / "report.json").read_text())
    assert kept["mean"]["pca"]["8"] == measured.mean["pca"][8]
    second = measured.sets[1]
    assert kept["sets"][1]["figures"]["recall@100"]["adaptor"]["4"] == second.figures["recall@100"]["adaptor"][4]
    assert struct.unpack(">II", (folder / "report.png").read_bytes()[16:24]) == (2200, 1040)
    text = (folder / "report.html").read_text()
    page = Page(text)
    share = f"{measured.mean['adaptor'][4]:.4f}"
    assert share in page.cells
    assert share in said
    assert f"{measured.sets[0].figures['shortlist recall']['truncation'][4]:.4f}" in page.cells
    assert [address[:22] for address in page.addresses] == ["data:image/png;base64,"]
    assert not re.search(r"https?:", text)
    assert "adaptor (pca)" in said
    assert "The last width is the full one." in said
    assert "mean of 2 sets" in said
    assert "left out" not in said + text
    assert "PCA: fitted on the documents of each set" in text
    write_report(measured, folder)  # over the files that are there


def test_documents_that_equal_a_query_are_mentioned(tmp_path: Path) -> None:
    rows = clustered(40, 8)
    near = np.argsort(-rows[:6] @ rows.T, axis=1)[:, 1]
    qrels = {f"q{i}": {f"d{row}": 1} for i, row in enumerate(near)}
    folder = write_set(tmp_path / "own", rows, rows[:6], {"test": qrels})
    said = write_report(report_on_adaptor(Identity(8), [folder], dims=[4], progress=False), tmp_path / "out")
    assert "left out: 6 documents that equal a query (cosine ≥ 0.9999) and are not judged for it" in said
    assert "left out: 6 documents" in (tmp_path / "out" / "report.html").read_text()


def test_names_are_escaped(tmp_path: Path) -> None:
    folder = beir_set(tmp_path / "<b>&amp;$x$", count=40)
    report = report_on_adaptor(Identity(16), [folder], dims=[4], progress=False)
    write_report(report, tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text()
    assert "<b>" not in text
    assert "&lt;b&gt;&amp;amp;$x$" in text
    Page(text)


def test_without_matplotlib(measured: AdaptorReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *arguments: Any) -> Any:
        if name.split(".")[0] == "matplotlib":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", refuse)
    said = write_report(measured, tmp_path)
    assert said.endswith("plots need matplotlib; install it with: pip install 'funnel-retrieval[demo]'")
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "report.html"}


@pytest.mark.usefixtures("quick")
def test_a_kind_is_trained_on_each_set(tmp_path: Path) -> None:
    folder = beir_set(tmp_path / "set", count=1_200)
    report = report_on_training("rotation", [folder], tmp_path / "out", dims=[4, 8], progress=False)
    assert (report.adaptor, report.sets[0].adaptor["trained on"]) == ("rotation", "documents")
    saved = Adaptor.load(tmp_path / "out" / "adaptors" / "set")
    again = report_on_adaptor(saved, [folder], progress=False)
    assert again.sets[0].figures == report.sets[0].figures
    assert json.loads((tmp_path / "out" / "adaptors" / "set" / "training.json").read_text())["logs"]["rotation"]
    said = write_report(report, tmp_path / "out")
    assert "set: 1,200 documents, 30 judged queries (test); rotation: asked for" in said


@pytest.mark.usefixtures("quick")
def test_judgements_are_trained_on_where_there_are_any(tmp_path: Path) -> None:
    judged, other = beir_set(tmp_path / "judged"), beir_set(tmp_path / "other")
    (other / "qrels" / "train.tsv").unlink()
    report = report_on_training(
        "rotation", [judged, other], tmp_path / "out", with_qrels=True, dims=[4], progress=False
    )  # fmt: skip
    facts = [found.adaptor["trained on"] for found in report.sets]
    assert facts == ["documents and qrels/train.tsv", "documents"]
    log = json.loads((tmp_path / "out" / "adaptors" / "judged" / "training.json").read_text())["logs"]["rotation"]
    assert 0 < log["judged"] < 30  # some of the 30 training queries are held out


def test_auto_may_keep_another_kind(tmp_path: Path) -> None:
    report = report_on_training("auto", [beir_set(tmp_path / "set")], tmp_path / "out", dims=[4], progress=False)
    assert report.adaptor == "pca"
    assert "too few" in report.sets[0].adaptor["why"]


def test_folders_of_one_name_are_numbered() -> None:
    folders = [Path("a/scifact"), Path("b/scifact"), Path("cacm"), Path("c/scifact")]
    assert list(named(folders)) == ["scifact", "scifact-2", "cacm", "scifact-3"]
    assert list(named(folders).values()) == folders


def test_what_cannot_be_used_is_refused(folders: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'pca' is not trained; choose one of auto, rotation, mlp"):
        report_on_training("pca", folders, tmp_path)
    with pytest.raises(InputError, match="no data sets"):
        report_on_adaptor(Identity(16), [])
    with pytest.raises(InputError, match="rising widths from 1 to 16"):
        report_on_adaptor(Identity(16), folders, dims=[4, 32], progress=False)
    with pytest.raises(EncoderError, match="takes vectors of 8 dims, and those of first have 16"):
        report_on_adaptor(Identity(8), folders, progress=False)
    wide = beir_set(tmp_path / "wide", dim=24)
    with pytest.raises(InputError, match=r"the widths differ: \[8, 16\] on first, \[12, 24\] on wide"):
        report_on_training("auto", [folders[0], wide], tmp_path / "out", progress=False)


def test_a_plot_calls_ways_as_asked(measured: AdaptorReport, tmp_path: Path) -> None:
    shares_plot("a $title$", measured.sets[:1], tmp_path / "one.png", {"adaptor": "rotation"})
    shares_plot("a $title$", measured.sets[:1], tmp_path / "two.png", {"adaptor": "rotation"})
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_texts_are_encoded_once(minilm: Encoder, tmp_path: Path) -> None:
    texts = {
        "corpus": {"a": "Wings at supersonic speed.", "b": "Bread and butter.", "c": "Tides of the sea."},
        "queries": {"x": "supersonic wing", "y": "what to eat"},
    }
    for name, of in texts.items():
        lines = [json.dumps({"_id": id_, "text": text}) for id_, text in of.items()]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    (tmp_path / "test.tsv").write_text("x\ta\t1\n")
    report = report_on_adaptor(Identity(384), [tmp_path], encoder=minilm, cache=tmp_path / "cache", progress=False)
    assert report.sets[0].full["ndcg@10"] == 1.0
    kept = sorted((tmp_path / "cache" / "embeddings").iterdir())
    assert len(kept) == 2
    before = [(path.name, path.stat().st_ino) for path in kept]
    report_on_adaptor(Identity(384), [tmp_path], encoder=minilm, cache=tmp_path / "cache", progress=False)
    assert [(path.name, path.stat().st_ino) for path in sorted((tmp_path / "cache" / "embeddings").iterdir())] == before
