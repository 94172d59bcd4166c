"""The demo, small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from funnel import FunnelIndex
from funnel.cli.demo import QUERIES
from tests.funnel.cli.test_main import refused, run


@pytest.mark.slow  # a build, searches and a benchmark, each of which has tests of its own
@pytest.mark.usefixtures("minilm")
def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("funnel.reports.bench.SECONDS_PER_FIGURE", 0.02)
    done = run(["demo", "--index", tmp_path / "index", "--out", tmp_path / "report", "--documents", 300])
    for query in QUERIES:
        assert query in done.stdout
    for budget in ("recall 0.9 ", "recall 0.95", "recall 0.99"):
        assert budget in done.stdout
    assert "uncertified" in done.stdout
    assert "300 documents" in done.stdout
    assert "plan 8:300 16:150 32:75 64:37 128:18" in done.stdout  # beside the planner's, step by step
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"results.json", "frontier.png", "report.html"}
    results = json.loads((tmp_path / "report" / "results.json").read_text())
    assert (results["index"]["rows"], results["index"]["dim"]) == (300, 384)
    assert not any(point["certified"] and point["plan"] != "flat" for point in results["funnel"])
    index = FunnelIndex.open(tmp_path / "index")
    document = index.search(index.encode_queries(["x"])[0], 1)[0]
    assert set(document.metadata) == {"package", "module", "kind"}


def test_no_documents(tmp_path: Path) -> None:
    said = refused(["demo", "--index", tmp_path / "index", "--out", tmp_path / "report", "--documents", 0])
    assert "documents is 0; expected a whole number from 11, such as 16000" in said
