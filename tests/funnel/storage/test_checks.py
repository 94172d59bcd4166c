"""Verification: every flipped or lost byte is found and its file named; blocks on first touch."""

import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from funnel.errors import DamagedIndexError, InputError, NotAnIndexError
from funnel.storage import BlockVerifier, IndexFolder, check
from funnel.storage.checks import hash_file
from tests.funnel.storage.helpers import commit_all

BLOCK = 64


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checks") / "index"
    with IndexFolder(root).begin() as transaction:
        commit_all(transaction)
    return root


@pytest.fixture
def index(original: Path, tmp_path: Path) -> IndexFolder:
    return IndexFolder(shutil.copytree(original, tmp_path / "index"))


def read_everything(folder: IndexFolder) -> Mapping[str, str]:
    """What a reader does first; the damaged caches it was told of."""
    return folder.verify(folder.manifest()).damaged_caches


def files_of(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file() and path.name != ".funnel-lock")


def assert_named(folder: IndexFolder, path: Path) -> None:
    """The damage is found by a reader and by the check, and both name the file."""
    relative = path.relative_to(folder.path).as_posix()
    if path.name == "coarse.faiss":
        assert list(read_everything(folder)) == [relative]
    else:
        with pytest.raises(DamagedIndexError) as caught:
            read_everything(folder)
        assert relative in str(caught.value)
    bad = [line for line in check(folder.path).lines if line.status in ("damaged", "rebuildable")]
    # A CURRENT that has the right form and names the wrong manifest is one half of a pair that disagrees.
    assert any(relative in line.file + line.detail for line in bad)


def test_an_untouched_index_is_whole(index: IndexFolder) -> None:
    assert read_everything(index) == {}
    report = check(index.path)
    assert report.ok
    assert {line.status for line in report.lines} == {"ok"}
    on_disk = {path.relative_to(index.path).as_posix() for path in files_of(index.path)}
    assert {line.file for line in report.lines} == on_disk


def test_every_flipped_byte_of_current_is_found(index: IndexFolder) -> None:
    path = index.path / "CURRENT"
    data = path.read_bytes()
    for place in range(len(data)):
        for flip in (0x01, 0x20, 0x80):
            path.write_bytes(data[:place] + bytes([data[place] ^ flip]) + data[place + 1 :])
            with pytest.raises(DamagedIndexError, match="CURRENT"):
                index.manifest()


@settings(max_examples=60)
@given(st.data())
def test_any_flipped_byte_in_any_file_is_found_and_named(original: Path, data: Any) -> None:
    path = data.draw(st.sampled_from(files_of(original)))
    good = path.read_bytes()
    place, flip = data.draw(st.integers(0, len(good) - 1)), data.draw(st.integers(1, 255))
    try:
        path.write_bytes(good[:place] + bytes([good[place] ^ flip]) + good[place + 1 :])
        assert_named(IndexFolder(original), path)
    finally:
        path.write_bytes(good)


@settings(max_examples=60)
@given(st.data())
def test_any_truncation_or_growth_of_any_file_is_found_and_named(original: Path, data: Any) -> None:
    path = data.draw(st.sampled_from(files_of(original)))
    good = path.read_bytes()
    length = data.draw(st.integers(0, len(good) - 1) | st.just(len(good) + 1))
    try:
        path.write_bytes((good + b"x")[:length])
        assert_named(IndexFolder(original), path)
    finally:
        path.write_bytes(good)


def test_any_missing_file_is_found_and_named(index: IndexFolder) -> None:
    for path in files_of(index.path):
        good = path.read_bytes()
        path.unlink()
        assert_named(index, path)
        path.write_bytes(good)
    assert read_everything(index) == {}


def test_a_file_swapped_for_a_link_to_itself_is_refused(index: IndexFolder, tmp_path: Path) -> None:
    path = next(index.path.rglob("ids.npy"))
    path.rename(tmp_path / "ids.npy")
    path.symlink_to(tmp_path / "ids.npy")
    with pytest.raises(DamagedIndexError, match=r"ids\.npy.*link"):
        read_everything(index)


def test_a_damaged_cache_leaves_the_check_well_and_says_so(index: IndexFolder) -> None:
    next(index.path.rglob("coarse.faiss")).write_bytes(b"")
    report = check(index.path)
    assert report.ok
    assert [line.status for line in report.lines if line.file.endswith("coarse.faiss")] == ["rebuildable"]


def test_stray_files_are_named_and_do_no_harm(index: IndexFolder) -> None:
    (index.path / "notes.txt").touch()
    (index.path / "segments" / ".tmp-000002-00000000").mkdir()
    (index.path / "segments" / ".tmp-000002-00000000" / "vectors.npy").touch()
    report = check(index.path)
    strays = {line.file: line.detail for line in report.lines if line.status == "stray"}
    assert report.ok
    assert strays == {
        "notes.txt": "belongs to nothing",
        "segments/.tmp-000002-00000000/vectors.npy": "left by an unfinished write, or being written",
    }


def test_check_of_a_folder_without_an_index_raises(tmp_path: Path) -> None:
    with pytest.raises(NotAnIndexError):
        check(tmp_path)


def test_lazy_checks_small_files_now_and_big_ones_on_touch(index: IndexFolder) -> None:
    manifest = index.manifest()
    verification = index.verify(manifest, "lazy")
    assert sorted(path.rsplit("/")[-1] for path in verification.verifiers) == ["norms.npy", "vectors.npy"]
    next(index.path.rglob("order.npy")).write_bytes(b"x" * 152)
    with pytest.raises(DamagedIndexError, match=r"order\.npy"):
        index.verify(manifest, "lazy")


def test_lazy_checks_the_header_s_block_at_once(index: IndexFolder) -> None:
    path = next(index.path.rglob("vectors.npy"))
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedIndexError, match=r"vectors\.npy.*block 0"):
        index.verify(index.manifest(), "lazy")


def test_an_unknown_mode_is_refused(index: IndexFolder) -> None:
    with pytest.raises(InputError, match="'fast', expected 'full' or 'lazy'"):
        index.verify(index.manifest(), "fast")  # type: ignore[arg-type]


@pytest.mark.usefixtures("bars_at_once")
def test_progress_shows_bytes(index: IndexFolder, capsys: pytest.CaptureFixture[str]) -> None:
    index.verify(index.manifest(), progress=True)
    assert "B/s" in capsys.readouterr().err


@given(st.binary(max_size=300), st.integers(1, 100), st.booleans())
def test_one_pass_gives_the_hash_of_the_whole_and_of_each_block(
    tmp_path_factory: pytest.TempPathFactory,
    data: bytes,
    block_bytes: int,
    blocks: bool,
) -> None:
    path = tmp_path_factory.getbasetemp() / "hashed"
    path.write_bytes(data)
    entry = hash_file(path, blocks, block_bytes=block_bytes)
    assert (entry.sha256, entry.size) == (hashlib.sha256(data).hexdigest(), len(data))
    pieces = [data[start : start + block_bytes] for start in range(0, len(data), block_bytes)]
    expected = tuple(hashlib.sha256(piece).hexdigest() for piece in pieces)
    assert (entry.blocks.sha256 if entry.blocks else None) == (expected if blocks else None)


@pytest.fixture
def blocks(tmp_path: Path) -> tuple[Path, Callable[[], BlockVerifier]]:
    """A file of 10 blocks of 64 bytes (the last one 20), and a function that gives a fresh verifier."""
    (tmp_path / "file").write_bytes(bytes(range(256)) * 2 + b"z" * 84)
    entry = hash_file(tmp_path / "file", blocks=True, block_bytes=BLOCK)
    return tmp_path / "file", lambda: BlockVerifier(tmp_path, "file", entry)


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_only_the_blocks_that_are_touched_are_checked(blocks: tuple[Path, Callable[[], BlockVerifier]]) -> None:
    path, verifier = blocks
    flip(path, 3 * BLOCK + 5)
    touched = verifier()
    touched.ensure(0, 3 * BLOCK)
    touched.ensure(4 * BLOCK, 2 * BLOCK)
    with pytest.raises(DamagedIndexError, match=r"file in .* is damaged in block 3 \(bytes 192 to 256\)"):
        touched.ensure(3 * BLOCK - 1, 2)
    with pytest.raises(DamagedIndexError):  # and again: a damaged block is never taken as checked
        touched.ensure(3 * BLOCK, 1)
    assert not touched.complete


def test_a_block_is_read_on_first_touch_only(blocks: tuple[Path, Callable[[], BlockVerifier]]) -> None:
    path, verifier = blocks
    touched = verifier()
    touched.ensure(0, BLOCK)
    flip(path, 0)
    touched.ensure(0, BLOCK)
    with pytest.raises(DamagedIndexError):
        verifier().ensure(0, BLOCK)


def test_everything_touched_is_complete(blocks: tuple[Path, Callable[[], BlockVerifier]]) -> None:
    _, verifier = blocks
    touched = verifier()
    touched.ensure(0, 9 * BLOCK + 20)
    assert touched.complete


@given(
    header=st.integers(0, 100),
    row_bytes=st.integers(1, 200),
    chosen=st.lists(st.integers(0, 50), min_size=1, max_size=5),
    place=st.integers(0, 595),
)
def test_rows_are_checked_exactly_where_they_lie(
    tmp_path_factory: pytest.TempPathFactory, header: Any, row_bytes: Any, chosen: Any, place: int
) -> None:
    root = tmp_path_factory.getbasetemp()
    (root / "rows").write_bytes(b"r" * 596)
    entry = hash_file(root / "rows", blocks=True, block_bytes=BLOCK)
    rows = np.array([row for row in chosen if header + (row + 1) * row_bytes <= 596], dtype=np.int64)
    flip(root / "rows", place)
    verifier = BlockVerifier(root, "rows", entry)
    touched = {
        byte // BLOCK
        for row in rows.tolist()
        for byte in range(header + row * row_bytes, header + (row + 1) * row_bytes)
    }
    if place // BLOCK in touched:
        with pytest.raises(DamagedIndexError, match=f"block {place // BLOCK} "):
            verifier.ensure_rows(rows, row_bytes, header)
    else:
        verifier.ensure_rows(rows, row_bytes, header)
        assert set(np.flatnonzero(verifier._verified).tolist()) == touched


def test_bytes_and_rows_outside_the_file_are_refused(blocks: tuple[Path, Callable[[], BlockVerifier]]) -> None:
    _, verifier = blocks
    touched = verifier()
    for offset, length in ((-1, 2), (0, 597), (596, 1)):
        with pytest.raises(InputError, match="outside"):
            touched.ensure(offset, length)
    for rows in ([-1], [0, 149]):
        with pytest.raises(InputError, match=r"rows .* outside"):
            touched.ensure_rows(np.array(rows), 4, 0)
    touched.ensure_rows(np.array([148]), 4, 0)
    touched.ensure_rows(np.array([], dtype=np.int64), 4, 0)


def test_blocks_can_be_checked_after_the_name_is_gone(blocks: tuple[Path, Callable[[], BlockVerifier]]) -> None:
    path, verifier = blocks
    touched = verifier()
    path.unlink()
    touched.ensure(0, 9 * BLOCK + 20)
    assert touched.complete


def test_a_file_of_another_size_gets_no_verifier(blocks: tuple[Path, Callable[[], BlockVerifier]]) -> None:
    path, verifier = blocks
    os.truncate(path, 500)
    with pytest.raises(DamagedIndexError, match=r"cut short: it has 500 bytes, expected 596"):
        verifier()


def test_a_file_without_block_hashes_gets_no_verifier(
    blocks: tuple[Path, Callable[[], BlockVerifier]], tmp_path: Path
) -> None:
    path, _ = blocks
    with pytest.raises(InputError, match="no block hashes"):
        BlockVerifier(tmp_path, "file", hash_file(path, blocks=False))


def test_each_block_is_hashed_once_by_many_threads(
    blocks: tuple[Path, Callable[[], BlockVerifier]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, verifier = blocks
    touched, hashed = verifier(), []
    real = hashlib.sha256

    def counting(*arguments: Any) -> Any:
        hashed.append(1)
        return real(*arguments)

    monkeypatch.setattr("funnel.storage.checks.hashlib.sha256", counting)
    threads = [threading.Thread(target=touched.ensure, args=(0, 9 * BLOCK + 20)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert touched.complete
    assert len(hashed) == 10
