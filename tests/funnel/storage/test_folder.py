"""The index folder as its users see it."""

from pathlib import Path

import numpy as np
import pytest

from funnel.errors import DamagedIndexError, NotAnIndexError, StorageError
from funnel.storage import IndexFolder
from tests.funnel.storage.helpers import commit_all, commit_second, settings


def test_a_folder_comes_into_being_with_its_first_commit(tmp_path: Path) -> None:
    folder = IndexFolder(tmp_path / "deep" / "index")
    assert not folder.exists()
    with pytest.raises(NotAnIndexError):
        folder.manifest()
    with folder.begin() as transaction:
        assert not folder.exists()
        written = commit_all(transaction)
    assert folder.exists()
    assert folder.manifest() == written
    assert written.generation == 1
    assert written.settings == settings(seed=3)
    assert {"numpy", "torch", "faiss"} <= written.versions.keys()


def test_parts_lie_where_the_manifest_says(tmp_path: Path) -> None:
    folder = IndexFolder(tmp_path)
    with folder.begin() as transaction:
        manifest = commit_all(transaction)
    paths = manifest.paths("segments", manifest.segments[0].id)
    assert np.load(folder.path / paths["ids.npy"]).tolist() == [100, 101, 102]
    tombstones = manifest.paths("tombstones", manifest.tombstones[0].id)["tombstones.npy"]
    assert tombstones == f"tombstones/{manifest.tombstones[0].id}.npy"
    assert np.load(folder.path / tombstones).tolist() == [1]


def test_a_reader_overtaken_while_verifying_is_told_to_open_again(tmp_path: Path) -> None:
    folder = IndexFolder(tmp_path)
    with folder.begin() as transaction:
        old = commit_all(transaction)
    with folder.begin() as transaction:
        commit_second(transaction)
    with pytest.raises(StorageError, match="replaced by generation 2") as caught:
        folder.verify(old)
    assert not isinstance(caught.value, DamagedIndexError)


def test_files_mapped_by_a_reader_outlive_the_next_commit(tmp_path: Path) -> None:
    folder = IndexFolder(tmp_path)
    with folder.begin() as transaction:
        old = commit_all(transaction)
    path = folder.path / old.paths("segments", old.segments[0].id)["vectors.npy"]
    verifier = folder.verify(old, "lazy").verifiers[path.relative_to(tmp_path).as_posix()]
    vectors = np.load(path, mmap_mode="r")
    with folder.begin() as transaction:
        commit_all(transaction)
    assert not path.exists()
    verifier.ensure(0, 1)
    assert vectors[1].tolist() == [0, 1, 0, 0]
