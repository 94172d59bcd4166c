"""Files of coarse indexes that somebody made up: sizes and types are checked before a library parses them."""

from __future__ import annotations

import json
import resource
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indexes import CoarseIndex, CoarseIndexError, family
from indexes._faiss import HEAD, load_faiss
from indexes.symqg import FOOTER_MAGIC, symqg_installed

FAISS = ("flat", "hnsw-sq8", "hnsw-f16", "ivf-sq8", "ivf-pq")


def saved(name: str, path: Path) -> tuple[CoarseIndex, bytes]:
    rows = np.random.default_rng(0).standard_normal((400, 32), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    index = family(name)(32)
    index.train(rows)
    index.add(rows)
    index.save(path)
    return index, path.read_bytes()


def load_again(index: CoarseIndex, path: Path) -> CoarseIndex:
    return family(index.name).load(path, index.dim, index.settings)


def test_limits_hold_for_reading_alone_and_sound_files_are_within_them(tmp_path: Path) -> None:
    faiss = load_faiss()
    before = faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()
    for name in FAISS:
        index, _ = saved(name, tmp_path / "coarse.faiss")
        assert load_again(index, tmp_path / "coarse.faiss").ntotal == 400
    assert (faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()) == before


@pytest.mark.parametrize("name", FAISS)
def test_another_type_is_refused_before_faiss_sees_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, good = saved(name, tmp_path / "coarse.faiss")
    monkeypatch.setattr("indexes._faiss._read", None)
    for head in (b"IxPT", b"IxMp", b"Ilod", b"\x00\x00\x00\x00"):
        (tmp_path / "coarse.faiss").write_bytes(head + good[4:])
        with pytest.raises(CoarseIndexError, match=f"cannot be read as {name}: it begins with"):
            load_again(index, tmp_path / "coarse.faiss")


@pytest.mark.parametrize("name", FAISS)
def test_more_rows_than_bytes_are_refused_before_faiss_sees_them(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, good = saved(name, tmp_path / "coarse.faiss")
    kind, d, _, *rest = HEAD.unpack(good[: HEAD.size])
    monkeypatch.setattr("indexes._faiss._read", None)
    for rows in (-1, 2**40):
        (tmp_path / "coarse.faiss").write_bytes(HEAD.pack(kind, d, rows, *rest) + good[HEAD.size :])
        with pytest.raises(CoarseIndexError, match="says that it holds"):
            load_again(index, tmp_path / "coarse.faiss")


@pytest.mark.parametrize("name", FAISS)
def test_no_size_in_a_file_costs_more_memory_than_a_few_files(name: str, tmp_path: Path) -> None:
    """Every aligned and unaligned eight bytes near the head as a size of 2**36: refused, or no size."""
    index, good = saved(name, tmp_path / "coarse.faiss")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    for at in range(HEAD.size, HEAD.size + 120):
        (tmp_path / "coarse.faiss").write_bytes(good[:at] + struct.pack("<Q", 2**36) + good[at + 8 :])
        try:
            load_again(index, tmp_path / "coarse.faiss")
        except CoarseIndexError:
            refused += 1
    assert refused > 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 100_000  # kilobytes


def test_lists_in_another_file_are_refused(tmp_path: Path) -> None:
    faiss = load_faiss()
    index, _ = saved("ivf-sq8", tmp_path / "coarse.faiss")
    other = faiss.read_index(str(tmp_path / "coarse.faiss"))
    outside = tmp_path / "outside"
    outside.mkdir()
    lists = faiss.OnDiskInvertedLists(other.nlist, other.code_size, str(outside / "lists"))
    lists.merge_from_1(faiss.downcast_InvertedLists(other.invlists))
    other.replace_invlists(lists, False)
    faiss.write_index(other, str(tmp_path / "coarse.faiss"))
    with pytest.raises(CoarseIndexError, match="cannot be read as ivf-sq8"):  # not looked for outside the folder
        load_again(index, tmp_path / "coarse.faiss")


def links_of(index: Any) -> tuple[np.ndarray, ...]:
    """Links, where each row's begin, their ends level by level, and the levels, all to be written to."""
    vectors = (index.hnsw.neighbors, index.hnsw.offsets, index.hnsw.cum_nneighbor_per_level, index.hnsw.levels)
    return tuple(load_faiss().rev_swig_ptr(vector.data(), vector.size()) for vector in vectors)


def beyond(index: Any) -> None:
    links, *_ = links_of(index)
    links[links >= 0] = index.ntotal


def below(index: Any) -> None:
    links, *_ = links_of(index)
    links[:] = -2


def too_high(index: Any) -> None:
    """The last row stands on the lowest level alone; behind its links there are none."""
    links, starts, ends, levels = links_of(index)
    top = int(levels.argmax())
    assert levels[-1] == 1 < levels[top]
    links[int(starts[top]) + ends[1] : int(starts[top + 1])] = index.ntotal - 1


def enters_too_high(index: Any) -> None:
    index.hnsw.entry_point, index.hnsw.max_level = index.ntotal - 1, 5


def enters_nowhere(index: Any) -> None:
    index.hnsw.entry_point = -1


def shuffled(index: Any) -> None:
    _, starts, *_ = links_of(index)
    starts[1:-1] = starts[1]


def other_ends(index: Any) -> None:
    *_, ends, _ = links_of(index)
    ends[2] += 1


@pytest.mark.parametrize(
    "change",
    [beyond, below, too_high, enters_too_high, enters_nowhere, shuffled, other_ends],
    ids=lambda one: one.__name__,
)
def test_a_graph_that_leads_out_of_itself_is_refused(change: Callable[[Any], None], tmp_path: Path) -> None:
    """FAISS searches such a graph in memory that is not its own: the process would end."""
    path = tmp_path / "coarse.faiss"
    index, _ = saved("hnsw-sq8", path)
    graph = load_faiss().read_index(str(path))
    change(graph)
    load_faiss().write_index(graph, str(path))
    with pytest.raises(CoarseIndexError, match="cannot be read as hnsw-sq8"):
        load_again(index, path)


@pytest.mark.parametrize("name", ["ivf-sq8", "ivf-pq"])
@pytest.mark.parametrize("number", [400, -1, 2**40, 7])  # 7 is in another place too
def test_cells_hold_each_row_once(name: str, number: int, tmp_path: Path) -> None:
    path, faiss = tmp_path / "coarse.faiss", load_faiss()
    index, _ = saved(name, path)
    other = faiss.read_index(str(path))
    lists = other.invlists
    cell = next(one for one in range(other.nlist) if lists.list_size(one))
    numbers = faiss.rev_swig_ptr(lists.get_ids(cell), lists.list_size(cell))
    numbers[0] = number if number != 7 or numbers[0] != 7 else 8
    faiss.write_index(other, str(path))
    with pytest.raises(CoarseIndexError, match="do not hold each of 400 rows once"):
        load_again(index, path)


@pytest.mark.skipif(not symqg_installed(), reason="needs rabitqlib")
@pytest.mark.parametrize("bits", [0, 4, 8])
def test_links_of_a_symqg_file_lead_to_its_rows(bits: int, tmp_path: Path) -> None:
    path, dim = tmp_path / "coarse.faiss", 70  # coded as 96, which is no multiple of 64
    rows = np.random.default_rng(0).standard_normal((400, dim), dtype=np.float32)
    index = family("symqg")(dim, bits=bits)
    index.add(rows)
    index.save(path)
    assert np.array_equal(load_again(index, path).search(rows, 5, 64)[1], index.search(rows, 5, 64)[1])
    good = path.read_bytes()
    end = good.rindex(b'{"dim"') - 96 // 2  # of the last row, behind which there is the rotation
    for at in (end - 4, end - 4 * 32, end - index.nbytes // 400 - 4):
        assert int.from_bytes(good[at : at + 4], "little") < 400
        path.write_bytes(good[:at] + struct.pack("<I", 400) + good[at + 4 :])
        with pytest.raises(CoarseIndexError, match="links to row 400, and holds 400"):
            load_again(index, path)


def footer(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def changed(good: bytes) -> bytes:
        end = len(good) - len(FOOTER_MAGIC) - 4
        length = int.from_bytes(good[end : end + 4], "little")
        record = json.loads(good[end - length : end])
        record = change(record) or record
        text = json.dumps(record).encode()
        return good[: end - length] + text + len(text).to_bytes(4, "little") + FOOTER_MAGIC

    return changed


@pytest.mark.skipif(not symqg_installed(), reason="needs rabitqlib")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (footer(lambda record: record.update(rows=10**12)), "bytes before its footer"),
        (footer(lambda record: record.update(rows=-1)), "-1 rows"),
        (footer(lambda record: record.update(rows="many")), "has the footer"),
        (footer(lambda record: record.pop("rows") and None), "has the footer"),
        (footer(lambda record: record.update(graph=False)), "bytes before its footer"),
        (footer(lambda _record: [1]), "has the footer"),
        (lambda good: struct.pack("<Q", 2**40) + good[8:], "begins with sizes"),
        (lambda good: good[:32] + struct.pack("<I", 400) + good[36:], "begins with sizes"),
        (lambda good: good[:-20] + b"{" * 10 + good[-10:], "is not JSON"),
        (lambda good: good[1_000:], "bytes before its footer"),
    ],
)
def test_sizes_of_a_symqg_file_are_checked_before_rabitqlib_sees_them(
    change: Callable[[bytes], bytes], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, good = saved("symqg", tmp_path / "coarse.faiss")
    assert load_again(index, tmp_path / "coarse.faiss").ntotal == 400
    monkeypatch.setattr("indexes.symqg._read_graph", None)
    (tmp_path / "coarse.faiss").write_bytes(change(good))
    with pytest.raises(CoarseIndexError, match=said):
        load_again(index, tmp_path / "coarse.faiss")
