"""CURRENT: golden bytes, and every damage to it found."""

from pathlib import Path
from typing import Any

import pytest

from funnel.errors import DamagedIndexError, FormatVersionError, NotAnIndexError
from funnel.storage import IndexFolder
from funnel.storage.files import FILES, Files
from funnel.storage.generations import current_line, read_current, read_manifest
from funnel.storage.manifest import encode
from tests.funnel.storage.helpers import commit_all, commit_second


@pytest.fixture
def index(tmp_path: Path) -> Path:
    with IndexFolder(tmp_path / "index").begin() as transaction:
        commit_all(transaction)
    return tmp_path / "index"


def test_golden_line() -> None:
    # echo -n '{}' | sha256sum
    sha256 = b"44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert current_line(7, b"{}") == b"000007 " + sha256 + b"\n"


def test_the_line_on_disk_names_the_manifest_on_disk(index: Path) -> None:
    data = (index / "generations" / "000001.json").read_bytes()
    assert (index / "CURRENT").read_bytes() == current_line(1, data)
    assert read_manifest(index, FILES).generation == 1


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"000001\n",
        b"1 " + b"a" * 64 + b"\n",
        b"000000 " + b"a" * 64 + b"\n",
        b"0000001 " + b"a" * 64 + b"\n",
        b"000001 " + b"A" * 64 + b"\n",
        b"000001 " + b"a" * 64,
        b"000001 " + b"a" * 64 + b"\n\n",
        b"000001  " + b"a" * 64 + b"\n",
        b"\xd9\xa1" * 6 + b" " + b"a" * 64 + b"\n",
        b"x" * 10_000,
    ],
)
def test_a_line_of_another_form_is_damage(index: Path, line: Any) -> None:
    (index / "CURRENT").write_bytes(line)
    with pytest.raises(DamagedIndexError, match="CURRENT"):
        read_current(index, FILES)


def test_a_manifest_that_changed_is_not_parsed(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = index / "generations" / "000001.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"d": 4', b'"d": 5'))

    def parse(_: Any) -> None:
        raise AssertionError("parsed before its hash was checked")

    monkeypatch.setattr("funnel.storage.generations.parse", parse)
    with pytest.raises(DamagedIndexError, match=r"generations/000001\.json .*CURRENT"):
        read_manifest(index, FILES)


def plant(index: Path, generation: Any, manifest: Any) -> None:
    (index / "generations" / f"{generation:06d}.json").write_bytes(manifest)
    (index / "CURRENT").write_bytes(current_line(generation, manifest))


def test_a_manifest_of_another_generation_is_damage(index: Path) -> None:
    plant(index, 2, (index / "generations" / "000001.json").read_bytes())
    with pytest.raises(DamagedIndexError, match="says that it is generation 1, and CURRENT names 2"):
        read_manifest(index, FILES)


def test_a_newer_format_is_told_from_damage(index: Path) -> None:
    plant(index, 2, encode({"format_version": 99}))
    with pytest.raises(FormatVersionError, match="99"):
        read_manifest(index, FILES)


def test_a_manifest_that_makes_no_sense_is_named(index: Path) -> None:
    plant(index, 2, encode({"format_version": 1}))
    with pytest.raises(DamagedIndexError, match=r"generations/000002\.json .* cannot be used"):
        read_manifest(index, FILES)


def test_folders_without_an_index_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(NotAnIndexError, match="does not exist"):
        read_current(tmp_path / "absent", FILES)
    (tmp_path / "file").touch()
    with pytest.raises(NotAnIndexError, match="is not a folder"):
        read_current(tmp_path / "file", FILES)
    with pytest.raises(NotAnIndexError, match="no file CURRENT"):
        read_current(tmp_path, FILES)


def test_a_lost_current_is_damage(index: Path) -> None:
    (index / "CURRENT").unlink()
    with pytest.raises(DamagedIndexError, match=r"CURRENT in .* is missing"):
        read_current(index, FILES)


@pytest.mark.parametrize("name", ["CURRENT", "generations"])
def test_links_are_not_followed(index: Path, tmp_path: Path, name: str) -> None:
    (index / name).rename(tmp_path / "elsewhere")
    (index / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DamagedIndexError, match="link"):
        read_manifest(index, FILES)


def test_a_reader_overtaken_by_a_writer_reads_the_new_generation(index: Path) -> None:
    class Overtaken(Files):
        """A writer commits between the reading of CURRENT and of the manifest it names."""

        committed = False

        def open(self, path: Path) -> Any:
            if path.suffix == ".json" and not self.committed:
                self.committed = True
                with IndexFolder(index).begin() as transaction:
                    commit_second(transaction)
            return super().open(path)

    assert read_manifest(index, Overtaken()).generation == 2
