"""From a corpus to a committed generation, and what a failure on the way leaves behind."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from funnel import FunnelIndex, Plan
from funnel.building import queries as module
from funnel.errors import EncoderError, FunnelError, InputError
from funnel.storage import IndexFolder, check
from indexes.errors import CoarseIndexError
from tests.funnel.clustered import clustered_rows
from tests.funnel.corpora import documents, hashed_words

ROOT = Path(__file__).resolve().parents[3]


def test_what_a_generation_holds(graph: FunnelIndex, graph_folder: Path) -> None:
    manifest = graph.manifest
    assert (manifest.d, manifest.counts["rows"], manifest.segments[0].rows) == (64, 3_000, 3_000)
    assert manifest.settings.encoder is None
    assert manifest.settings.dtype == "float32"
    assert not manifest.settings.documents
    assert manifest.calibration is not None
    report = check(graph_folder)
    assert report.ok
    assert {line.status for line in report.lines} == {"ok"}  # no spool, no leftovers
    names = {path.rsplit("/", 1)[-1] for path in manifest.files}
    assert names == {
        "vectors.npy", "adapted.npy", "norms.npy", "order.npy", "ids.npy", "id_offsets.npy", "coarse.faiss",
        "adaptor.json", "adaptor.safetensors", "training.json", "calibration.json", "calibration.npz",
    }  # fmt: skip


def test_documents_leave_no_spool(text_folder: Path) -> None:
    assert {line.status for line in check(text_folder).lines} == {"ok"}
    assert not list(text_folder.rglob("spool*"))


def test_no_more_queries_are_used_than_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_QUERIES", 20)
    asked = clustered_rows(50, seed=2)
    index = FunnelIndex.build(clustered_rows(300), tmp_path / "index", queries=asked, adaptor="pca", progress=False)
    assert index.certification == "certified on 20 real queries"


def test_queries_beyond_those_that_certify_train_the_adaptor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_QUERIES", 20)
    rows, asked = clustered_rows(1_500), clustered_rows(80, seed=2)
    index = FunnelIndex.build(rows, tmp_path / "index", queries=asked, progress=False)
    trained = "left out: 60 that trained or chose the adaptor"
    assert index.certification == f"certified on 20 real queries ({trained})"
    # None of them certifies later either: the adaptor's folder knows them.
    index.tune(asked, progress=False)
    assert index.certification == f"certified on 20 real queries ({trained})"
    other = FunnelIndex.build(rows, tmp_path / "other", queries=asked, training_queries=asked[:50], progress=False)
    assert "certified on 30 real queries (left out: 50 that trained" in other.certification


def test_training_queries_are_for_an_adaptor_that_is_trained(tmp_path: Path) -> None:
    asked = clustered_rows(50, seed=2)
    with pytest.raises(InputError, match=r"training_queries train adaptor='auto', and adaptor is 'pca'"):
        FunnelIndex.build(clustered_rows(300), tmp_path, adaptor="pca", training_queries=asked, progress=False)


def test_every_step_shows_a_bar_with_its_rate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("funnel.progress.SHOWN_AFTER_S", 0)
    texts = [f"query {number}" for number in range(40)]
    FunnelIndex.build(documents(300), tmp_path / "index", encoder=hashed_words, queries=texts, adaptor="pca")
    said = capsys.readouterr().err
    for step, unit in (
        ("encode queries", "queries"), ("encode", "docs"), ("fitting pca", "rows"), ("order", "rows"),
        ("store", "rows"), ("compare widths", "rows"), ("norms", "rows"), ("index flat", "rows"),
        ("calibrate on rows", "queries"), ("calibrate on queries", "queries"), ("time the stages", "batch size"),
        ("hashing", "B"),
    ):  # fmt: skip
        assert re.search(rf"{step}: .*{unit}/s|{step}: .*s/{unit}", said), step


def contents(path: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file() and file.name != ".funnel-lock"}


def broken_midway(texts: list[str]) -> np.ndarray:
    if any("part 70" in text for text in texts):
        raise RuntimeError("the encoder has had enough")
    return hashed_words(texts)


def test_a_failed_build_keeps_the_generation_before(tmp_path: Path) -> None:
    path = tmp_path / "index"
    FunnelIndex.build(clustered_rows(50), path, progress=False)
    before = contents(path)
    with pytest.raises((EncoderError, RuntimeError), match="had enough"):
        FunnelIndex.build(documents(100), path, encoder=broken_midway, overwrite=True, progress=False)
    for bad in ({"memory_mb": 1e-6}, {"dims": [65]}, {"coarse": "hnsw-sq8", "coarse_settings": {"degree": -1}}):
        with pytest.raises((FunnelError, CoarseIndexError)):  # what it says, test_bad_input shows
            FunnelIndex.build(clustered_rows(60), path, progress=False, **bad)
    assert contents(path) == before
    assert len(FunnelIndex.open(path)) == 50


def test_a_failed_first_build_leaves_no_index(tmp_path: Path) -> None:
    with pytest.raises((EncoderError, RuntimeError)):
        FunnelIndex.build(documents(100), tmp_path / "index", encoder=broken_midway, progress=False)
    assert not IndexFolder(tmp_path / "index").exists()
    assert not contents(tmp_path / "index")
    assert len(FunnelIndex.build(clustered_rows(9), tmp_path / "index", progress=False)) == 9


BUILD_WITH_LITTLE_SPACE = """
import resource, signal, sys
import numpy as np
from funnel import FunnelIndex, Plan
from funnel.errors import StorageError
from tests.funnel.clustered import clustered_rows
from tests.funnel.corpora import documents, hashed_words
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for kind, most in (("vectors", 6_000), ("vectors", 25_000), ("documents", 20_000), ("documents", 60_000)):
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
    corpus = clustered_rows(240) if kind == "vectors" else documents(240)
    try:
        FunnelIndex.build(corpus, sys.argv[1], encoder=hashed_words, overwrite=True, progress=False)
        print(kind, most, "built")
    except Exception as error:
        print(kind, most, isinstance(error, OSError), error)
"""


def test_no_room_for_a_file(tmp_path: Path) -> None:
    """Files may grow to a few kilobytes only, and every write beyond fails: the old generation stays."""
    path = tmp_path / "index"
    FunnelIndex.build(clustered_rows(50), path, progress=False)
    done = subprocess.run(
        [sys.executable, "-c", BUILD_WITH_LITTLE_SPACE, str(path)], capture_output=True, text=True, cwd=ROOT, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 4, done.stderr
    for line in lines:
        assert line.split()[2] == "True", line
    assert len(FunnelIndex.open(path)) == 50
    assert {line.status for line in check(path).lines} == {"ok"}


def test_a_full_disk(tmp_path: Path) -> None:
    """A file system of 600 kilobytes, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
    script = f"""mount -t tmpfs -o size=600k tmpfs {disk} && exec {sys.executable} - {disk}/index"""
    done = subprocess.run(
        [*mount, script], input=BUILD_ON_A_FULL_DISK, capture_output=True, text=True, cwd=ROOT, check=False
    )
    if done.returncode and ("unshare" in done.stderr or "mount" in done.stderr):
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    assert done.stdout.splitlines() == ["50", "NoSpaceError", "NoSpaceError", "50"], done.stderr


BUILD_ON_A_FULL_DISK = """
import sys
from funnel import FunnelIndex, Plan
from tests.funnel.clustered import clustered_rows
from tests.funnel.corpora import documents, hashed_words
path = sys.argv[1]
print(len(FunnelIndex.build(clustered_rows(50), path, progress=False)))
for corpus in (clustered_rows(9_000), documents(4_000)):
    try:
        print(len(FunnelIndex.build(corpus, path, encoder=hashed_words, overwrite=True, progress=False)))
    except Exception as error:
        print(type(error).__name__)
print(len(FunnelIndex.open(path)))
"""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dtype": "float64"}, "dtype is 'float64'"),
        ({"memory_mb": 0}, "memory_mb is 0"),
        ({"memory_mb": float("nan")}, "memory_mb is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 1.5}, r"seed is 1\.5"),
        ({"adaptor": "magic"}, "adaptor is 'magic'; expected one of"),
        ({"dims": [32, 16]}, "dims is"),
        ({"device": "abacus"}, "device is 'abacus'"),
    ],
)
def test_options_that_cannot_be_used(options: dict[str, object], said: str, tmp_path: Path) -> None:
    def never(texts: list[str]) -> np.ndarray:
        assert len(texts) == 1, "the corpus was encoded before the options were looked at"
        return hashed_words(texts)

    with pytest.raises(InputError, match=said):
        FunnelIndex.build(documents(50), tmp_path / "index", encoder=never, progress=False, **options)  # type: ignore[arg-type]


def test_queries_that_are_rows_of_the_corpus_do_not_certify(tmp_path: Path) -> None:
    rows = clustered_rows(460)
    asked = np.concatenate([rows[:50], rows[400:], rows[400:410]])
    index = FunnelIndex.build(rows[:400], tmp_path / "index", queries=asked, adaptor="pca", progress=False)
    assert index.certification == (
        "certified on 60 real queries (left out: 10 repeats, 50 equal to rows of the corpus)"
    )
    index.tune(asked, progress=False)
    assert index.certification.startswith("certified on 60 real queries (left out: 10 repeats, 50 equal")
    only = FunnelIndex.build(rows[:400], tmp_path / "only", queries=rows[:50], adaptor="pca", progress=False)
    assert only.certification == "uncertified: calibrated on corpus rows (left out: 50 equal to rows of the corpus)"


def test_texts_of_documents_do_not_certify_however_they_were_encoded(tmp_path: Path) -> None:
    corpus = documents(400)
    asked = [f" {one['text']}\n" for one in corpus[:30]] + [f"question {number}" for number in range(40)] * 2
    index = FunnelIndex.build(
        corpus, tmp_path / "index", encoder=hashed_words, queries=asked, adaptor="pca", progress=False
    )
    assert "40 repeats" in index.certification
    assert "30 equal to rows of the corpus" in index.certification


def test_where_queries_are_documents_that_is_said(tmp_path: Path) -> None:
    rows = clustered_rows(400)
    build = partial(FunnelIndex.build, rows, tmp_path / "index", queries=rows[:50], adaptor="pca", progress=False)
    assert build(corpus_like_queries=True).certification == "certified on 50 real queries"
    for said in (-0.1, 0.5, "half", None):
        with pytest.raises(InputError, match=f"corpus_like_queries is {said!r}; expected True"):
            build(corpus_like_queries=said)  # type: ignore[arg-type]


def outlying(count: int, seed: int) -> np.ndarray:
    """Rows in near-equal groups around few large dims, whose float16 rounding hides what tells them apart."""
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((40, 64)).astype(np.float32)
    centres[:, :2] *= 100
    rows = np.repeat(centres, -(-count // 40), axis=0)[:count]
    return rows + 0.1 * generator.standard_normal(rows.shape).astype(np.float32)


def true_top(rows: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    unit = [part / np.linalg.norm(part.astype(np.float64), axis=1, keepdims=True) for part in (rows, queries)]
    return np.argsort(-unit[1] @ unit[0].T, axis=1)[:, :k]


def shared(found: np.ndarray, true: np.ndarray) -> float:
    return float(np.mean([len(set(a) & set(b)) / true.shape[1] for a, b in zip(found, true, strict=True)]))


def test_truth_is_that_of_the_rows_as_given(tmp_path: Path) -> None:
    rows, queries = outlying(2_000, 0), outlying(600, 1)
    build = partial(FunnelIndex.build, rows, queries=queries, adaptor="pca", progress=False)
    wide = build(tmp_path / "auto")
    assert wide.manifest.settings.dtype == "float32"
    said = f"as float32 (float16 would keep {wide.info().float16_kept:.4f} of the true top 10 of held-out rows)"
    assert said in str(wide.info())
    true = true_top(rows, queries, 10)
    assert shared(wide.search_vectors(queries, 10, recall=1.0).ids, true) > 0.99
    narrow = build(tmp_path / "narrow", dtype="float16")
    kept = narrow.info().kept
    served = narrow.search_vectors(queries, 10, recall=1.0)
    assert kept is not None
    assert kept < 0.95
    assert (wide.info().float16_kept or 1.0) < 0.95
    assert shared(served.ids, true) == pytest.approx(kept, abs=0.03)
    told = narrow.explain(10, recall=1.0).certificate
    assert not told.certified
    assert "of the rows as given; built with dtype='float32' it is exact" in str(told)
    for recall in (0.5, 0.8, 0.9):
        told = narrow.explain(10, recall=recall).certificate
        if told.certified:
            assert shared(narrow.search_vectors(queries, 10, recall=recall).ids, true) >= recall - 0.01
    narrow.tune(progress=False)  # the rows as given are gone: what storage costs is taken off
    told = narrow.explain(10, recall=0.99).certificate
    assert not told.certified


def test_float16_is_kept_where_it_costs_nothing(tmp_path: Path) -> None:
    index = FunnelIndex.build(clustered_rows(400), tmp_path / "index", adaptor="pca", progress=False)
    assert index.manifest.settings.dtype == "float16"
    assert (index.info().kept or 0.0) >= 0.9995
    assert "as float16 (exact search over it keeps" in str(index.info())


def test_rows_that_tie_for_each_other_and_not_for_queries_are_kept_wide(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((40, 64))

    def around(count: int, spread: float) -> np.ndarray:
        rows = centres[generator.integers(40, size=count)] + spread * generator.standard_normal((count, 64))
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)

    rows, queries = around(2_000, 1e-4), around(300, 0.3)
    index = FunnelIndex.build(rows, tmp_path / "index", queries=queries, adaptor="pca", progress=False)
    assert index.manifest.settings.dtype == "float32"
    true, found = queries @ rows.T, index.search_vectors(queries, 10, recall=1.0).ids
    last = np.sort(true, axis=1)[:, -10]
    assert (np.take_along_axis(true, np.asarray(found), axis=1) >= last[:, None] - 1e-6).mean() > 0.999


def test_what_was_promised_lies_in_the_index(graph: FunnelIndex, graph_folder: Path) -> None:
    (path,) = graph_folder.glob("calibrations/*/calibration.json")
    kept = json.loads(path.read_text())["certificates"]
    assert [record["certificate"]["recall"] for record in kept] == [0.80, 0.90, 0.95, 0.99]
    for record in kept:
        assert record["batch"] == 1
        explained = graph.explain(recall=record["certificate"]["recall"])
        assert Plan.from_json(record["plan"]) == explained.plan
        assert record["certificate"] == explained.certificate.to_json()
        assert {"estimate", "lower_bound", "delta", "n_queries", "query_kind", "k", "date", "machine", "bound"} <= set(
            record["certificate"]
        )
