"""What an index says of itself without being opened."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from funnel import FunnelIndex
from funnel.building.info import read_info, said_bytes
from funnel.errors import DamagedIndexError, NotAnIndexError
from tests.funnel.clustered import clustered_rows
from tests.funnel.corpora import DIM, ROWS, segment_file

ROOT = Path(__file__).resolve().parents[3]


def test_of_a_graph(graph_folder: Path, graph: FunnelIndex) -> None:
    info = read_info(graph_folder)
    assert (info.generation, info.rows, info.deleted, info.segments) == (1, ROWS, 0, 1)
    assert (info.dims, info.ladder, info.dtype, info.documents, info.encoder) == (
        DIM,
        (32, 48, 64),
        "float32",
        False,
        None,
    )
    assert info.coarse["name"] == "hnsw-sq8"
    assert info.coarse["dims"] == 32
    assert info.calibration is not None
    assert graph.searcher.calibration is not None
    assert info.calibration["kind"] == "real queries"
    assert info.calibration["queries"] == 600
    assert info.calibration["date"] == graph.searcher.calibration.date
    assert info.calibration["machine"] == graph.searcher.calibration.costs.machine
    files = [path for path in graph_folder.rglob("*") if path.is_file()]
    for name in ("vectors.npy", "coarse.faiss", "norms.npy"):
        assert info.sizes[name] == segment_file(graph_folder, name).stat().st_size
    assert sum(info.sizes.values()) + info.other_bytes == sum(path.stat().st_size for path in files)
    assert list(info.sizes.values()) == sorted(info.sizes.values(), reverse=True)


def test_memory_as_measured_and_as_the_settings_give_it(graph_folder: Path, graph: FunnelIndex) -> None:
    opened, told = graph.info(), read_info(graph_folder)
    assert opened.held_measured
    assert opened.held_bytes == graph.held_bytes
    assert opened.touched_bytes is None or opened.touched_bytes > 0
    assert told.touched_bytes is None
    assert not told.held_measured
    assert told.held_bytes is not None
    assert told.held_bytes == pytest.approx(FunnelIndex.open(graph_folder).held_bytes, rel=0.05)


def test_of_texts(text_folder: Path) -> None:
    info = read_info(text_folder)
    assert info.documents
    assert info.calibration is not None
    assert info.calibration["kind"] == "uncertified: calibrated on corpus rows"
    assert "documents.sqlite" in info.sizes
    assert json.loads(json.dumps(info.to_json()))["rows"] == 300


def test_of_few_rows(tmp_path: Path) -> None:
    FunnelIndex.build(clustered_rows(50), tmp_path / "index", adaptor="identity", progress=False)
    info = read_info(tmp_path / "index")
    assert info.calibration is None
    assert not info.documents
    assert "small enough for flat search" in str(info)


def test_said_in_words(graph_folder: Path) -> None:
    said = str(read_info(graph_folder))
    for words in (
        "generation 1",
        f"{ROWS:,} of 64 dims",
        "hnsw-sq8 over 32 dims",
        "600 queries",
        "vectors.npy",
        "32, 48, 64",
    ):
        assert words in said


def test_no_model_and_no_large_file_is_read(graph_folder: Path, copied: Callable[[Path], Path]) -> None:
    folder = copied(graph_folder)
    for name in ("vectors.npy", "coarse.faiss", "norms.npy"):
        segment_file(folder, name).unlink()
    code = (
        f"import sys; from funnel.building.info import read_info; read_info({str(folder)!r}); "
        "print('sentence_transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "False\n"


def test_what_cannot_be_told(graph_folder: Path, copied: Callable[[Path], Path], tmp_path: Path) -> None:
    with pytest.raises(NotAnIndexError, match="does not exist"):
        read_info(tmp_path / "nowhere")
    folder = copied(graph_folder)
    (record,) = folder.glob("calibrations/*/calibration.json")
    record.write_text("{")
    with pytest.raises(DamagedIndexError, match=r"calibration\.json"):
        read_info(folder)


def test_sizes_are_said_in_units_that_show_them() -> None:
    assert [said_bytes(n) for n in (0, 999, 1_234, 99_960, 2_345_678)] == [
        "0 bytes", "999 bytes", "1.2 KB", "100.0 KB", "2.3 MB",
    ]  # fmt: skip
