"""A few indexes, built once for all tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from funnel import FunnelIndex
from tests.funnel.clustered import clustered_rows
from tests.funnel.corpora import DIM, ROWS, documents, hashed_words
from tests.funnel.living import Model

Float32 = npt.NDArray[np.float32]


@pytest.fixture(autouse=True)
def short_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latencies that are to be held are measured for tenths of a second instead of seconds."""
    monkeypatch.setattr("funnel.engine.timing.WINDOW_SECONDS", 0.005)
    monkeypatch.setattr("funnel.engine.timing.MOST_SECONDS", 0.2)


@pytest.fixture(scope="session")
def rows() -> Float32:
    return clustered_rows(ROWS, DIM, seed=1)


@pytest.fixture(scope="session")
def queries() -> Float32:
    """Real queries to build with."""
    return clustered_rows(600, DIM, seed=2)


@pytest.fixture(scope="session")
def unseen() -> Float32:
    """Queries that no index was built with."""
    return clustered_rows(300, DIM, seed=3)


@pytest.fixture(scope="session")
def graph_folder(rows: Float32, queries: Float32, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph over 32 of 64 dims with text ids, certified on real queries. Not to be written to."""
    path = tmp_path_factory.mktemp("graph") / "index"
    ids = [f"row {number}" for number in range(len(rows))]
    FunnelIndex.build(
        rows, path, ids=ids, queries=queries, dims=[32, 48], coarse="hnsw-sq8", dtype="float32", progress=False
    )
    return path


@pytest.fixture
def index(graph_folder: Path, tmp_path: Path) -> FunnelIndex:
    """A copy of the graph that may be written to, its ids "row 0", "row 1", …."""
    shutil.copytree(graph_folder, tmp_path / "index")
    return FunnelIndex.open(tmp_path / "index")


@pytest.fixture
def model(rows: Float32) -> Model:
    """What `index` holds."""
    return Model(rows, [f"row {number}" for number in range(len(rows))])


@pytest.fixture(scope="session")
def more() -> Float32:
    return clustered_rows(900, DIM, seed=11)


@pytest.fixture(scope="session")
def graph(graph_folder: Path) -> FunnelIndex:
    return FunnelIndex.open(graph_folder)


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 documents with texts, encoded by a callable; uncertified. Not to be written to."""
    path = tmp_path_factory.mktemp("texts") / "index"
    FunnelIndex.build(documents(300), path, encoder=hashed_words, progress=False)
    return path


@pytest.fixture(scope="session")
def texts(text_folder: Path) -> FunnelIndex:
    return FunnelIndex.open(text_folder, encoder=hashed_words)


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    """A copy of an index folder, to be damaged."""

    def copy(folder: Path) -> Path:
        return Path(shutil.copytree(folder, tmp_path / "copy"))

    return copy
