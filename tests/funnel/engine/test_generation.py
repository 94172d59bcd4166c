"""Opening what is damaged, missing, of another version or no index at all."""

from __future__ import annotations

import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

from funnel import Budget, FunnelIndex, Plan
from funnel.errors import DamagedIndexError, FormatVersionError, InputError, MissingPackageError, NotAnIndexError
from funnel.storage import IndexFolder
from funnel.storage.generations import current_line
from indexes.symqg import load_rabitqlib, symqg_installed
from tests.funnel.clustered import clustered_rows
from tests.funnel.corpora import flip_byte, funnel_plan, segment_file

Copy = Callable[[Path], Path]


def relative(folder: Path, path: Path) -> str:
    return str(path.relative_to(folder))


def rewrite_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the live manifest, its hash in CURRENT too, as a writer of that state would have left it."""
    path = folder / "generations" / f"{IndexFolder(folder).manifest().generation:06d}.json"
    document = json.loads(path.read_bytes())
    change(document)
    data = json.dumps(document).encode()
    path.write_bytes(data)
    (folder / "CURRENT").write_bytes(current_line(document["generation"], data))


@pytest.fixture(scope="module")
def small_folder(queries: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 rows under a flat coarse index, certified on real queries."""
    path = tmp_path_factory.mktemp("small") / "index"
    FunnelIndex.build(clustered_rows(300), path, dims=[32], queries=queries[:200], progress=False)
    return path


def damage_coarse(folder: Path) -> None:
    flip_byte(segment_file(folder, "coarse.faiss"))


def cut_coarse(folder: Path) -> None:
    path = segment_file(folder, "coarse.faiss")
    os.truncate(path, path.stat().st_size // 2)


def remove_coarse(folder: Path) -> None:
    segment_file(folder, "coarse.faiss").unlink()


def other_library(folder: Path) -> None:
    rewrite_manifest(folder, lambda document: document["settings"].update(coarse_library="faiss 0.0.1"))


def first_format(folder: Path) -> None:
    """Indexes named the version of FAISS alone before there were other libraries."""

    def change(document: dict[str, Any]) -> None:
        del document["settings"]["coarse_library"]
        document["settings"]["faiss"] = "0.0.2"

    rewrite_manifest(folder, change)


@pytest.mark.parametrize(
    ("of", "damage", "why"),
    [
        ("graph_folder", damage_coarse, "is damaged"),
        ("small_folder", cut_coarse, "cut short"),
        ("small_folder", remove_coarse, "is missing"),
        ("small_folder", other_library, "written by faiss 0.0.1"),
        ("small_folder", first_format, "written by an unnamed library"),
    ],
)
def test_the_coarse_index_is_made_again(
    of: str,
    damage: Callable[[Path], None],
    why: str,
    unseen: np.ndarray,
    copied: Copy,
    request: pytest.FixtureRequest,
) -> None:
    folder = copied(request.getfixturevalue(of))
    damage(folder)
    with pytest.warns(UserWarning, match=f"making the coarse index again from the vectors: .*{why}"):
        index = FunnelIndex.open(folder)
    # Recall is certified anew on the recorded real queries, as a graph built again is another graph; what storage may
    # cost, as far as 200 queries can tell, is taken off.
    plan = funnel_plan(index)
    certificate = index.searcher.planner.certificate(plan, Budget(0.8), 10)
    assert certificate.certified
    assert certificate.lower_bound >= 0.8
    assert index.certification == FunnelIndex.open(request.getfixturevalue(of)).certification
    exact = index.search_vectors(unseen, 10, recall=1.0)[0]
    found = index.search_vectors(unseen, 10, plan=plan)[0]
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, exact, strict=True)]) > 0.85


def test_an_intact_index_opens_without_warning(graph_folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FunnelIndex.open(graph_folder, verify="lazy")


@pytest.mark.parametrize(
    "name",
    ["vectors.npy", "norms.npy", "order.npy", "ids.npy", "id_offsets.npy", "calibration.npz", "calibration.json",
     "adaptor.json", "adaptor.safetensors"],
)  # fmt: skip
@pytest.mark.parametrize("how", ["flip", "cut", "remove"])
@pytest.mark.parametrize("verify", ["full", "lazy"])
def test_damage_names_the_file(name: str, how: str, verify: str, graph_folder: Path, copied: Copy) -> None:
    folder = copied(graph_folder)
    path = next(folder.rglob(name))
    if how == "flip":
        flip_byte(path)
    elif how == "cut":
        os.truncate(path, path.stat().st_size - 1)
    else:
        path.unlink()
    with pytest.raises(DamagedIndexError) as caught:
        FunnelIndex.open(folder, verify=verify)
    assert relative(folder, path) in str(caught.value)


def test_damaged_documents(text_folder: Path, copied: Copy) -> None:
    folder = copied(text_folder)
    flip_byte(segment_file(folder, "documents.sqlite"))
    with pytest.raises(DamagedIndexError, match=r"documents/.*\.sqlite"):
        FunnelIndex.open(folder)


@pytest.fixture(scope="module")
def wide_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Vectors of more than one block of 16 MiB, and too few to be calibrated on: 200 rows of 49,152 float16 values."""
    path = tmp_path_factory.mktemp("wide") / "index"
    FunnelIndex.build(clustered_rows(200, 49_152), path, dims=[64], adaptor="identity", dtype="float16", progress=False)
    return path


def test_lazy_verification_catches_damage_on_first_touch(wide_folder: Path, copied: Copy) -> None:
    folder = copied(wide_folder)
    flip_byte(segment_file(folder, "vectors.npy"))
    with pytest.raises(DamagedIndexError):
        FunnelIndex.open(folder)
    index = FunnelIndex.open(folder, verify="lazy")
    order = np.load(segment_file(folder, "order.npy"))
    rows = clustered_rows(200, 49_152)[order]
    alone = Plan(0, 1)  # looks at one row only
    # The first row lies in the first block, which is sound; the last row in the damaged one.
    assert index.search(rows[0], 1, plan=alone)[0].id == order[0]
    with pytest.raises(DamagedIndexError, match=r"vectors\.npy.* is damaged in block 1"):
        index.search(rows[-1], 1, plan=alone)
    with pytest.raises(DamagedIndexError, match=r"vectors\.npy"):
        index.search(rows[0], 10, recall=1.0)


def test_damaged_vectors_are_not_compacted_into_sound_ones(wide_folder: Path, copied: Copy) -> None:
    folder = copied(wide_folder)
    index = FunnelIndex.open(folder, verify="lazy")
    index.delete([3])  # opened fully once more: damage that comes later is not looked for by this handle
    flip_byte(segment_file(folder, "vectors.npy"))
    index = FunnelIndex.open(folder, verify="lazy")
    with pytest.raises(DamagedIndexError, match=r"vectors\.npy.* is damaged in block 1"):
        index.compact()
    with pytest.raises(DamagedIndexError, match=r"vectors\.npy"):
        FunnelIndex.open(folder)


def test_codes_are_not_made_of_damaged_vectors(wide_folder: Path, copied: Copy) -> None:
    folder = copied(wide_folder)
    flip_byte(segment_file(folder, "vectors.npy"))
    with pytest.raises(DamagedIndexError, match=r"vectors\.npy"):
        FunnelIndex.open(folder, verify="lazy", device="cpu", placement="int8")


def test_a_coarse_index_is_not_made_from_damaged_vectors(wide_folder: Path, copied: Copy) -> None:
    folder = copied(wide_folder)
    flip_byte(segment_file(folder, "vectors.npy"))
    remove_coarse(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DamagedIndexError, match=r"vectors\.npy"):
            FunnelIndex.open(folder, verify="lazy")


def test_a_newer_format(graph_folder: Path, copied: Copy) -> None:
    folder = copied(graph_folder)
    rewrite_manifest(folder, lambda document: document.update(format_version=99))
    with pytest.raises(FormatVersionError, match="99"):
        FunnelIndex.open(folder)


def test_parts_that_disagree_with_the_manifest(graph_folder: Path, copied: Copy) -> None:
    folder = copied(graph_folder)
    rewrite_manifest(folder, lambda document: document["segments"][0].update(rows=2_999))
    with pytest.raises(DamagedIndexError):
        FunnelIndex.open(folder)


def test_a_damaged_manifest_or_current(graph_folder: Path, copied: Copy) -> None:
    folder = copied(graph_folder)
    flip_byte(folder / "generations" / "000001.json", 100)
    with pytest.raises(DamagedIndexError, match=r"generations/000001\.json"):
        FunnelIndex.open(folder)
    flip_byte(folder / "CURRENT", 3)
    with pytest.raises(DamagedIndexError, match="CURRENT"):
        FunnelIndex.open(folder)


def test_no_index(tmp_path: Path) -> None:
    with pytest.raises(NotAnIndexError, match="does not exist"):
        FunnelIndex.open(tmp_path / "nothing")
    (tmp_path / "file").write_text("text")
    with pytest.raises(NotAnIndexError, match="not a folder"):
        FunnelIndex.open(tmp_path / "file")
    with pytest.raises(NotAnIndexError, match="holds no index"):
        FunnelIndex.open(tmp_path)


def test_settings_of_open(graph_folder: Path) -> None:
    with pytest.raises(InputError, match="verify is 'no'"):
        FunnelIndex.open(graph_folder, verify="no")
    with pytest.raises(InputError, match="device is 'abacus'"):
        FunnelIndex.open(graph_folder, device="abacus")


def test_a_moved_index_opens(graph_folder: Path, unseen: np.ndarray, tmp_path: Path) -> None:
    """Nothing in it depends on where it lies."""
    index = FunnelIndex.open(graph_folder)
    plan = funnel_plan(index)
    moved = FunnelIndex.open(shutil.copytree(graph_folder, tmp_path / "elsewhere"))
    assert_allclose(
        moved.search_vectors(unseen, 10, plan=plan)[1], index.search_vectors(unseen, 10, plan=plan)[1], atol=1e-6
    )


@pytest.mark.skipif(not symqg_installed(), reason="needs rabitqlib")
def test_a_library_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).standard_normal((300, 16)).astype(np.float32)
    FunnelIndex.build(rows, tmp_path / "index", coarse="symqg", adaptor="identity", dims=[8], progress=False)
    monkeypatch.setitem(sys.modules, "rabitqlib", None)
    load_rabitqlib.cache_clear()
    with pytest.raises(MissingPackageError, match=r"cannot be opened here: .*needs rabitqlib.*pip install"):
        FunnelIndex.open(tmp_path / "index")
