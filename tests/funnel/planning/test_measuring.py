from __future__ import annotations

import json
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from funnel.engine.cascade import Cascade, Float32
from funnel.engine.measuring import CORPUS_ROWS, Certifying, calibrate, held_out_rows
from funnel.engine.timing import measure_costs
from funnel.errors import DamagedIndexError, FormatVersionError
from funnel.planning.calibration import CACHED_KS, FORMAT_VERSION, REAL, UNCERTIFIED, Calibration, depth_of
from tests.funnel.cascades import cascade_over, stored_rows
from tests.funnel.clustered import clustered_rows
from tests.funnel.planning.conftest import DIM, QUERIES, Recorded

ROWS = 400  # fewer than elsewhere: every plan for three k is evaluated


def small(name: str, folder: Path, **settings: Any) -> tuple[Cascade, tuple[int, ...]]:
    return cascade_over(clustered_rows(ROWS, DIM), folder, (16, 32, DIM), name, **settings)


@pytest.fixture(scope="module")
def calibration(queries: Float32, tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    cascade, widths = small("ivf-sq8", tmp_path_factory.mktemp("small"), nlist=4)
    return calibrate(cascade, widths, Certifying(queries), cascade.run, seed=3, progress=False)


@pytest.fixture(scope="module")
def saved(calibration: Calibration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibration")
    calibration.save(folder)
    return folder


def test_held_out_rows_are_rows_of_the_index(recorded: Callable[[str], Recorded]) -> None:
    cascade, _, _ = recorded("flat")
    rows, own = held_out_rows(cascade, 0)
    assert len(set(own.tolist())) == len(own) == min(CORPUS_ROWS, cascade.store.n // 2)
    np.testing.assert_allclose(rows, stored_rows(cascade)[own], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-6)
    np.testing.assert_array_equal(held_out_rows(cascade, 0)[1], own)
    assert (held_out_rows(cascade, 1)[1] != own).any()


def test_a_calibration_holds_what_was_run(calibration: Calibration) -> None:
    corpus, queries = calibration.runs()
    assert queries is not None
    assert calibration.certifies
    assert calibration.kind == REAL
    assert calibration.left_out == {}
    assert not calibration.corpus_like
    assert (calibration.n_queries, calibration.n_corpus_rows) == (QUERIES, ROWS // 2)
    assert (corpus.own_rows >= 0).all()
    assert (queries.own_rows == -1).all()
    assert corpus.efforts == queries.efforts
    assert not calibration.by_effort  # lists: the shortlist is free
    assert set(calibration.frontiers) >= set(CACHED_KS)
    assert calibration.frontier(101) is None


def test_saved_and_loaded_it_is_the_same(calibration: Calibration, saved: Path) -> None:
    loaded = Calibration.load(saved)
    for name in (
        "costs",
        "by_effort",
        "dim",
        "date",
        "n_queries",
        "n_corpus_rows",
        "depth",
        "latencies",
        "corpus_like",
        "certificates",
    ):
        assert getattr(loaded, name) == getattr(calibration, name), name
    assert set(loaded.frontiers) == set(calibration.frontiers)
    for k, frontier in calibration.frontiers.items():
        assert loaded.frontiers[k].plans == frontier.plans
        np.testing.assert_array_equal(loaded.frontiers[k].corpus_hits, frontier.corpus_hits)
        np.testing.assert_array_equal(loaded.frontiers[k].hits, frontier.hits)


def test_a_k_that_was_not_cached_follows_from_the_record_on_disk(calibration: Calibration, saved: Path) -> None:
    loaded = Calibration.load(saved)
    assert loaded.corpus is None  # nothing read yet
    fresh, known = loaded.frontier(7), calibration.frontier(7)
    assert fresh is not None
    assert known is not None
    assert fresh.plans == known.plans
    np.testing.assert_array_equal(fresh.hits, known.hits)
    assert loaded.frontier(7) is fresh


def test_the_record_of_a_loaded_calibration_stays_in_its_file(saved: Path) -> None:
    for run in Calibration.load(saved).runs():
        assert run is not None
        for array in (run.queries, run.truth, run.candidates, run.candidate_scores, *run.places.values()):
            bottom: object = array
            while not isinstance(bottom, memoryview | mmap.mmap | None):
                bottom = getattr(bottom, "_bytes" if hasattr(bottom, "_bytes") else "base", None)
            assert isinstance(bottom, memoryview | mmap.mmap), "it was read into memory"


def test_without_queries_it_does_not_certify(tmp_path: Path) -> None:
    cascade, widths = small("flat", tmp_path)
    calibration = calibrate(cascade, widths, Certifying(), cascade.run, seed=0, progress=False)
    assert not calibration.certifies
    assert calibration.kind == UNCERTIFIED
    calibration.save(tmp_path)
    loaded = Calibration.load(tmp_path)
    assert not loaded.certifies
    assert loaded.runs()[1] is None
    frontier = loaded.frontier(10)
    assert frontier is not None
    assert frontier.query_hits is None
    assert frontier.hits.shape[1] == ROWS // 2
    assert loaded.dim == DIM


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("calibration.json", b"{"),
        ("calibration.json", b"[]"),
        ("calibration.json", b"{}"),
        ("calibration.npz", b""),
        ("calibration.npz", b"no archive"),
    ],
)
def test_a_damaged_file_is_named(saved: Path, tmp_path: Path, file: str, content: bytes) -> None:
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / file).write_bytes(content)
    with pytest.raises(DamagedIndexError, match=file.replace(".", r"\.")):
        Calibration.load(tmp_path)


def with_version(saved: Path, folder: Path, version: object) -> Path:
    for path in saved.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    record = json.loads((folder / "calibration.json").read_text(encoding="utf-8"))
    record["format_version"] = version
    if version is None:
        del record["format_version"]
    (folder / "calibration.json").write_text(json.dumps(record), encoding="utf-8")
    return folder


def test_the_format_stands_in_the_file(saved: Path) -> None:
    assert json.loads((saved / "calibration.json").read_text(encoding="utf-8"))["format_version"] == FORMAT_VERSION


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (FORMAT_VERSION + 1, rf"format {FORMAT_VERSION + 1}, .* reads {FORMAT_VERSION}: upgrade"),
        (1, "format 1, written by an older funnel, .*build the index again"),
    ],
)
def test_another_format_is_refused_by_its_number(saved: Path, tmp_path: Path, version: int, message: str) -> None:
    with pytest.raises(FormatVersionError, match=r"calibration\.json is of calibration " + message):
        Calibration.load(with_version(saved, tmp_path, version))


@pytest.mark.parametrize("version", ["2", 0, True, [2]])
def test_no_number_of_a_format(saved: Path, tmp_path: Path, version: object) -> None:
    with pytest.raises(DamagedIndexError, match=r"calibration\.json: not a calibration"):
        Calibration.load(with_version(saved, tmp_path, version))


def test_before_it_was_named_the_format_is_told_by_its_arrays(saved: Path, tmp_path: Path) -> None:
    folder = with_version(saved, tmp_path, None)
    assert Calibration.load(folder).runs()[1] is not None
    arrays = dict(np.load(folder / "calibration.npz"))
    np.savez(folder / "calibration.npz", **{name: a for name, a in arrays.items() if "candidates" not in name})
    with pytest.raises(FormatVersionError, match="format 1, written by an older funnel"):
        Calibration.load(folder)


def test_what_was_left_out_is_said_and_kept(tmp_path: Path) -> None:
    cascade, widths = small("flat", tmp_path)
    left = Certifying(None, {"repeats": 3, "equal to rows of the corpus": 1_200}, corpus_like=True)
    made = calibrate(cascade, widths, left, cascade.run, seed=0, progress=False)
    assert not made.certifies
    assert made.kind == f"{UNCERTIFIED} (left out: 3 repeats, 1,200 equal to rows of the corpus)"
    made.save(tmp_path)
    loaded = Calibration.load(tmp_path)
    assert (loaded.kind, loaded.left_out, loaded.corpus_like) == (made.kind, made.left_out, True)


def test_costs_are_timed_on_held_out_rows(queries: Float32, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cascade, widths = small("flat", tmp_path)
    timed: list[Float32] = []

    def noted(cascade: object, rows: Float32, *args: object, **options: object) -> object:
        timed.append(rows)
        return measure_costs(cascade, rows, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("funnel.engine.measuring.measure_costs", noted)
    calibrate(cascade, widths, Certifying(queries), cascade.run, seed=0, progress=False)
    np.testing.assert_array_equal(timed[0], held_out_rows(cascade, 0)[0])


def test_the_depth_of_few_rows() -> None:
    assert [depth_of(rows) for rows in (1, 2, 51, 101, 10_000)] == [1, 1, 50, 100, 100]
