"""Results as files, and the queries they are measured on."""

from __future__ import annotations

import builtins
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

from funnel import FunnelIndex
from funnel.errors import InputError
from funnel.reports.pages import bench_queries, write_results
from funnel.reports.tables import COMPARISON_NOTE
from tests.funnel.corpora import hashed_words
from tests.funnel.reports.samples import sample_results


def test_three_files_and_a_table(tmp_path: Path) -> None:
    said = write_results(sample_results(), tmp_path / "a" / "b")
    assert json.loads((tmp_path / "a" / "b" / "results.json").read_text()) == sample_results()
    assert (tmp_path / "a" / "b" / "frontier.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "a" / "b" / "report.html").read_text()
    assert "data:image/png;base64," in page
    assert 'src="http' not in page
    assert 'href="http' not in page  # self-contained
    assert "200,000 x 384, k=10, 2,000 queries; certified on 3,000 real queries" in said
    assert COMPARISON_NOTE in said
    assert "0.9571" in said
    write_results(sample_results(), tmp_path / "a" / "b")  # over the files that are there


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *arguments: object) -> object:
        if name.split(".")[0] == "matplotlib":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", refuse)
    said = write_results(sample_results(), tmp_path)
    assert "matplotlib" in said
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "report.html"}


def test_queries_from_files(texts: FunnelIndex, tmp_path: Path) -> None:
    asked = ["it reads the clock", "password 9"]
    path = tmp_path / "queries.jsonl"
    path.write_text("\n".join(json.dumps({"_id": f"q{i}", "text": text}) for i, text in enumerate(asked)))
    queries = bench_queries(texts, path)
    assert queries.ids == ["q0", "q1"]
    expected = hashed_words(asked)
    assert_allclose(queries.vectors, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)
    assert queries.own_positions is None
    assert bench_queries(texts, None).own_positions is not None
    with pytest.raises(InputError, match="no queries at"):
        bench_queries(texts, tmp_path / "nothing.jsonl")
