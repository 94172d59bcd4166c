"""What a new user tries first: a few rows and the default k, a second build, a folder with an odd name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from funnel import FunnelIndex
from funnel.errors import InputError
from tests.funnel.cli.test_main import refused


@pytest.fixture
def three(tmp_path: Path) -> FunnelIndex:
    return FunnelIndex.build(np.eye(3, 8, dtype=np.float32), tmp_path / "three", progress=False)


@pytest.mark.parametrize("options", [{}, {"deadline_ms": 1000}, {"allowed_ids": [0, 1, 2]}, {"recall": 1.0}])
def test_k_above_the_rows_gives_all_rows(three: FunnelIndex, options: dict[str, object]) -> None:
    query = np.eye(3, 8, dtype=np.float32)[1:2]
    assert len(three.search(query[0], **options)) == 3  # type: ignore[call-overload]  # the default k is 10
    ids, scores = three.search_vectors(query, 5, **options)  # type: ignore[arg-type]
    assert ids.shape == scores.shape == (1, 5)
    assert ids[0, 0] == 1
    assert sorted(ids[0, :3]) == [0, 1, 2]
    assert ids[0, 3:].tolist() == [-1, -1]
    assert scores[0, 0] == pytest.approx(1, abs=1e-3)
    assert np.isneginf(scores[0, 3:]).all()
    assert scores.dtype == np.float32
    assert three.search_vectors(query[:0], 5).ids.shape == (0, 5)
    assert "exact" in str(three.explain())


@pytest.mark.usefixtures("three")
def test_a_folder_that_holds_an_index_is_overwritten_only_when_asked(tmp_path: Path) -> None:
    rows = np.eye(4, 8, dtype=np.float32)
    (tmp_path / "three" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"three holds an index already; .*overwrite=True \(--overwrite\)"):
        FunnelIndex.build(rows, tmp_path / "three", progress=False)
    assert len(FunnelIndex.open(tmp_path / "three")) == 3
    np.save(tmp_path / "rows.npy", rows)
    assert "--overwrite" in refused(["build", tmp_path / "rows.npy", tmp_path / "three", "--quiet"])
    assert len(FunnelIndex.build(rows, tmp_path / "three", overwrite=True, progress=False)) == 4
    assert (tmp_path / "three" / "notes.txt").read_text() == "mine"


def test_a_build_below_a_second_shows_no_bars(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    FunnelIndex.build(np.eye(3, 8, dtype=np.float32), tmp_path / "index")
    assert capsys.readouterr().err == ""
