"""Paths of the layout: what is taken apart, and what is refused."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from funnel.storage.layout import KINDS, LAYOUT, is_cache, part_name, split_path

ID = "000001-0123abcd"


@pytest.mark.parametrize("folder", LAYOUT, ids=lambda folder: folder.kind)
def test_every_path_of_the_layout_is_taken_apart_into_its_parts(folder: Any) -> None:
    for file in folder.files:
        path = folder.path(ID, file.name)
        assert split_path(path) == (folder, ID, file.name)
        assert KINDS[folder.kind].file(file.name) == file
        assert is_cache(path) == file.cache


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        f"/segments/{ID}/vectors.npy",
        f"segments/{ID}/../../../etc/passwd",
        f"segments/../{ID}/vectors.npy",
        f"segments/{ID}/..",
        f"segments/{ID}/.hidden",
        f"segments/{ID}/a/b.npy",
        f"segments/{ID}/vectors.npy\n",
        f"segments/{ID}/vec\0tors.npy",
        f"segments\\{ID}\\vectors.npy",
        f"segments//{ID}/vectors.npy",
        f"segments/{ID}",
        f"segments/.tmp-{ID}/vectors.npy",
        "segments/one/vectors.npy",
        f"generations/{ID}/vectors.npy",
        f"tombstones/{ID}",
        f"tombstones/{ID}/tombstones.npy",
        f"tombstones/{ID}.npy.npy",
        f"segments/{ID}/{'x' * 200}",
    ],
)
def test_a_path_that_is_not_a_part_s_file_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="path"):
        split_path(path)


@given(st.text(alphabet="segmnto/.\\-0123abcd ~\n\0", max_size=60))
def test_no_accepted_path_leaves_the_folder(path: str) -> None:
    try:
        folder, identifier, name = split_path(path)
    except ValueError:
        return
    assert folder.path(identifier, name) == path
    assert ".." not in path.split("/")


def test_the_coarse_index_and_columns_are_caches() -> None:
    caches = [file.name for folder in LAYOUT for file in folder.files if file.cache]
    assert caches == ["coarse.faiss", "columns.sqlite"]
    assert is_cache(f"segments/{ID}/coarse.faiss")
    assert is_cache(f"columns/{ID}/columns.sqlite")
    assert not is_cache(f"segments/{ID}/vectors.npy")
    assert not is_cache(f"segments/{ID}/unknown.bin")


def test_part_names_are_those_that_funnel_gives() -> None:
    assert part_name("segments", ID) == ID
    assert part_name("tombstones", f"{ID}.npy") == ID
    assert part_name("tombstones", ID) is None
    assert part_name("segments", f"{ID}.npy") is None
    assert part_name("segments", "holiday") is None
    assert set(KINDS) == {"segments", "documents", "columns", "tombstones", "adaptor", "calibrations"}
