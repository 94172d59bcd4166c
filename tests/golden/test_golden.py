"""Folders of every format open, and answer as they did when they were written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from funnel import FunnelIndex
from funnel.cli.main import cli
from funnel.errors import DamagedIndexError, FormatVersionError, NotAnIndexError
from funnel.reports.check import deep_check
from funnel.storage import FORMAT_VERSION, IndexFolder, check
from tests.funnel.corpora import flip_byte, segment_file
from tests.funnel.storage.test_settings import crafted
from tests.golden.make import HERE, QUERIES, ROWS, K, answers, changed, encoder_of, texts

GOLDEN = [(path.parts[-2], path.parts[-1]) for path in sorted(HERE.glob("[0-9]*/*")) if path.is_dir()]
# Its bytes are of the FAISS that wrote it; what it finds is the same where it is made again.
pytestmark = pytest.mark.filterwarnings("ignore:.*making the coarse index again.*was written by")


ROUNDING = 1e-3  # of scores, kept to four decimals


@pytest.fixture(params=GOLDEN, ids="-".join)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Any, dict[str, Any]]:
    """A copy of the folder, its encoder, and what it answered."""
    number, name = request.param
    shutil.copytree(HERE / number / name, tmp_path / name)
    said = json.loads((HERE / number / "answers.json").read_text())
    return tmp_path / name, encoder_of(name), said[name]


def same(found: Any, said: Any) -> bool:
    """Whether both are equal, scores up to rounding."""
    if isinstance(said, dict):
        return bool(found.keys() == said.keys() and all(same(found[key], said[key]) for key in said))
    if isinstance(said, list):
        return len(found) == len(said) and all(map(same, found, said))
    return bool(abs(found - said) < ROUNDING if isinstance(said, float) else found == said)


def test_it_answers_as_it_did(golden: tuple[Path, Any, dict[str, Any]]) -> None:
    path, encoder, said = golden
    with FunnelIndex.open(path, encoder=encoder) as index:
        assert same(answers(index), said["now"])


def test_it_can_be_changed(golden: tuple[Path, Any, dict[str, Any]]) -> None:
    path, encoder, said = golden
    with FunnelIndex.open(path, encoder=encoder) as index:
        assert same(answers(changed(index)), said["later"])


def test_it_is_upgraded(golden: tuple[Path, Any, dict[str, Any]]) -> None:
    path, encoder, said = golden
    before = IndexFolder(path).manifest()
    index = FunnelIndex.open(path, encoder=encoder)
    assert FunnelIndex.upgrade(path) is True
    assert index.refresh()
    assert same(answers(index), said["now"])
    manifest = IndexFolder(path).manifest()
    assert (manifest.format_version, manifest.generation) == (FORMAT_VERSION, before.generation + 1)
    assert (len(manifest.segments), manifest.tombstones) == (1, ())
    written = [manifest.segments[0].documents, manifest.segments[0].columns]
    assert [part is not None for part in written] == [manifest.settings.documents] * 2
    index.close()
    assert FunnelIndex.upgrade(path) is False
    assert list(deep_check(path))
    with FunnelIndex.open(path, encoder=encoder) as index:
        assert same(answers(changed(index)), said["later"])


def test_rows_added_to_it_are_of_the_present_format_and_the_rest_is_upgraded(tmp_path: Path) -> None:
    shutil.copytree(HERE / "2" / "documents", tmp_path / "index")
    index = FunnelIndex.open(tmp_path / "index", encoder=encoder_of("documents"))
    index.add(texts(3, ROWS))
    first, added = index.manifest.segments
    assert (first.documents, first.columns) == (None, None)
    assert added.documents
    assert added.columns
    where = "year >= 1940 AND odd = TRUE"
    found = index.search_vectors(QUERIES, ROWS, where=where).ids.tolist()
    assert FunnelIndex.upgrade(tmp_path / "index")
    assert index.refresh()
    assert [bool(part.columns) for part in index.manifest.segments] == [True]
    assert index.search_vectors(QUERIES, ROWS, where=where).ids.tolist() == found


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (lambda root: shutil.rmtree(root), NotAnIndexError, "does not exist"),
        (lambda root: crafted(root, lambda said: said.update(format_version=99)), FormatVersionError, "version 99"),
        (lambda root: crafted(root, lambda said: said["settings"].pop("seed")), DamagedIndexError, "field `seed`"),
        (lambda root: flip_byte(segment_file(root, "documents.sqlite")), DamagedIndexError, "documents.sqlite"),
        (lambda root: next(root.glob("adaptor/*/adaptor.json")).unlink(), DamagedIndexError, "adaptor.json"),
    ],
)
def test_what_cannot_be_upgraded_is_refused_by_one_line(
    tmp_path: Path, spoil: Callable[[Path], object], error: type[Exception], words: str
) -> None:
    root = tmp_path / "index"
    shutil.copytree(HERE / "2" / "documents", root)
    spoil(root)
    before = sorted(root.rglob("*"))
    with pytest.raises(error, match=words) as caught:
        FunnelIndex.upgrade(root)
    assert "\n" not in str(caught.value)
    assert sorted(root.rglob("*")) == before


def test_it_is_upgraded_by_command(tmp_path: Path) -> None:
    shutil.copytree(HERE / "2" / "documents", tmp_path / "index")
    said = [CliRunner().invoke(cli, ["upgrade", str(tmp_path / "index"), "--quiet"]) for _ in range(2)]
    assert [one.exit_code for one in said] == [0, 0]
    assert f"format {FORMAT_VERSION}; generation 2" in said[0].output
    assert "nothing to do" in said[1].output
    assert {line.status for line in check(tmp_path / "index").lines} == {"ok"}


def test_columns_that_are_damaged_are_written_again(tmp_path: Path) -> None:
    root = tmp_path / "index"
    shutil.copytree(HERE / "2" / "documents", root)
    FunnelIndex.upgrade(root)
    flip_byte(segment_file(root, "columns.sqlite"))
    with pytest.warns(UserWarning, match="filters read all documents until funnel upgrade .*columns.* is damaged"):
        index = FunnelIndex.open(root, encoder=encoder_of("documents"))
    found = index.search_vectors(QUERIES, K, where="year >= 1930").ids.tolist()
    with pytest.warns(UserWarning, match="filters read all documents"):
        assert FunnelIndex.upgrade(root)
    index = FunnelIndex.open(root, encoder=encoder_of("documents"))
    assert index.search_vectors(QUERIES, K, where="year >= 1930").ids.tolist() == found
