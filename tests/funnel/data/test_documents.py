"""The document store: order, ids, errors, threads, one file."""

import datetime
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from funnel.data.documents import POSITIONS_PER_QUERY, Document, DocumentStore
from funnel.errors import DamagedIndexError, InputError, NoSpaceError

UNICODE = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | UNICODE,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(UNICODE, inner, max_size=3),
    max_leaves=5,
)


def _filled(path: Path, documents: list[Document]) -> DocumentStore:
    with DocumentStore.create(path) as store:
        store.append(documents)
    return DocumentStore.open(path)


def test_content_joins_title_and_text() -> None:
    assert Document("1", "Title", "text").content == "Title text"
    assert Document("1", "", "text").content == "text"
    assert Document("1", "Title").content == "Title"


def test_documents_with_equal_fields_are_equal_whatever_their_vectors() -> None:
    first = Document("1", vector=np.ones(3, dtype=np.float32))
    second = Document("1", vector=np.zeros(3, dtype=np.float32))
    assert first == second
    assert hash(first) == hash(second)


@given(
    st.lists(
        st.builds(
            Document,
            st.integers(-(2**63), 2**63 - 1) | UNICODE,
            UNICODE,
            UNICODE,
            st.dictionaries(UNICODE, JSON_VALUES, max_size=3),
        ),
        max_size=8,
        unique_by=lambda document: document.id,
    )
)
def test_what_is_stored_comes_back(tmp_path_factory: pytest.TempPathFactory, documents: list[Document]) -> None:
    path = tmp_path_factory.mktemp("store") / "documents.sqlite"
    with _filled(path, documents) as store:
        assert store.count() == len(documents)
        assert store.get(range(len(documents))) == documents
        assert list(store.ids()) == [document.id for document in documents]


def test_positions_run_on_over_batches_and_come_in_the_order_asked(tmp_path: Path) -> None:
    path = tmp_path / "documents.sqlite"
    with DocumentStore.create(path) as store:
        store.append([Document("a"), Document("b")])
        store.append([Document("c")])
        assert store.count() == 3
    with DocumentStore.open(path) as store:
        assert [document.id for document in store.get([2, 0, 2, 1])] == ["c", "a", "c", "b"]
        assert [document.id for document in store.get(np.array([1]))] == ["b"]
        assert store.get([]) == []


def test_more_positions_than_one_query_takes(tmp_path: Path) -> None:
    count = 2 * POSITIONS_PER_QUERY + 1
    with _filled(tmp_path / "documents.sqlite", [Document(number) for number in range(count)]) as store:
        backwards = list(range(count))[::-1]
        assert [document.id for document in store.get(backwards)] == backwards


def test_find_tells_text_from_number(tmp_path: Path) -> None:
    with _filled(tmp_path / "documents.sqlite", [Document("7"), Document(7)]) as store:
        assert store.find_all(["7"]) == {"7": 0}
        assert store.find_all([7]) == {7: 1}
        assert store.find_all(["8"]) == {}


def test_duplicates_are_counted_and_named_and_nothing_is_added(tmp_path: Path) -> None:
    with DocumentStore.create(tmp_path / "documents.sqlite") as store:
        store.append([Document(f"old-{number}") for number in range(7)])
        again = [Document(f"old-{number}") for number in range(6)]
        with pytest.raises(InputError, match=r"7 duplicate ids: 'twice', 'old-0', .* and 2 more"):
            store.append([Document("twice"), *again, Document("twice")])
        assert store.count() == 7
        store.append([Document("new")])
        assert store.find_all(["new"]) == {"new": 7}
        assert store.find_all(["twice"]) == {}


def test_metadata_takes_dates_and_numpy_values(tmp_path: Path) -> None:
    metadata = {"day": datetime.date(2024, 2, 29), "count": np.int64(3), "values": np.array([1.5, 2.0])}
    with _filled(tmp_path / "documents.sqlite", [Document("a", metadata=metadata)]) as store:
        assert store.get([0])[0].metadata == {"day": "2024-02-29", "count": 3, "values": [1.5, 2.0]}


def test_metadata_that_is_no_json_is_named(tmp_path: Path) -> None:
    with (
        DocumentStore.create(tmp_path / "documents.sqlite") as store,
        pytest.raises(InputError, match=r"metadata of document 'a' is not JSON .*bytes"),
    ):
        store.append([Document("a", metadata={"blob": b"1"})])


@pytest.mark.parametrize("field", ["title", "text", "id"])
def test_a_lone_surrogate_is_refused(tmp_path: Path, field: str) -> None:
    document = Document(**{"id": "a", field: "ab\ud800"})  # type: ignore[arg-type]
    with (
        DocumentStore.create(tmp_path / "documents.sqlite") as store,
        pytest.raises(InputError, match=f"the {field} of document .* lone surrogate at character 2"),
    ):
        store.append([document])


def test_one_file_is_left_and_reading_adds_none(tmp_path: Path) -> None:
    with _filled(tmp_path / "documents.sqlite", [Document("a")]) as store:
        store.get([0])
    assert [path.name for path in tmp_path.iterdir()] == ["documents.sqlite"]


def test_create_does_not_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "documents.sqlite"
    _filled(path, [Document("a")]).close()
    with pytest.raises(InputError, match="exists already"):
        DocumentStore.create(path)


def test_a_store_opened_for_reading_takes_no_documents(tmp_path: Path) -> None:
    with (
        _filled(tmp_path / "documents.sqlite", [Document("a")]) as store,
        pytest.raises(InputError, match="opened for reading"),
    ):
        store.append([Document("b")])


@pytest.mark.parametrize("position", [-1, 1])
def test_a_position_outside_is_named(tmp_path: Path, position: int) -> None:
    with (
        _filled(tmp_path / "documents.sqlite", [Document("a")]) as store,
        pytest.raises(InputError, match=f"position {position} is outside the store of 1 documents"),
    ):
        store.get([0, position])


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = _filled(tmp_path / "documents.sqlite", [Document("a")])
    store.close()
    store.close()
    with pytest.raises(InputError, match="is closed"):
        store.get([0])


def test_threads_read_at_the_same_time(tmp_path: Path) -> None:
    documents = [Document(number, text=str(number)) for number in range(200)]
    with _filled(tmp_path / "documents.sqlite", documents) as store, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: store.get([number])[0], range(200)))
    assert found == documents


def test_a_path_with_signs_that_mean_something_in_a_uri(tmp_path: Path) -> None:
    folder = tmp_path / "50% of? #1"
    folder.mkdir()
    with _filled(folder / "documents.sqlite", [Document("a")]) as store:
        assert store.count() == 1


def test_a_missing_file_is_damage(tmp_path: Path) -> None:
    with pytest.raises(DamagedIndexError, match=r"documents\.sqlite is missing"):
        DocumentStore.open(tmp_path / "documents.sqlite")


@pytest.mark.parametrize("content", [b"", b"not a database at all" * 100])
def test_a_file_that_is_no_store_is_damage(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "documents.sqlite"
    path.write_bytes(content)
    with pytest.raises(DamagedIndexError, match=r"documents\.sqlite"):
        DocumentStore.open(path)


def test_damage_inside_is_named_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "documents.sqlite"
    _filled(path, [Document(number, text="word " * 100) for number in range(500)]).close()
    content = bytearray(path.read_bytes())
    content[8192 : len(content) // 2] = b"\xff" * (len(content) // 2 - 8192)
    path.write_bytes(content)
    with pytest.raises(DamagedIndexError, match=r"documents\.sqlite is damaged"):
        DocumentStore.open(path).get(range(500))


def test_text_that_is_no_text_is_damage(tmp_path: Path) -> None:
    """Python's module finds it, not SQLite: the error has no code."""
    path = tmp_path / "documents.sqlite"
    _filled(path, [Document(1, text="a word", metadata={"year": 1})]).close()
    path.write_bytes(path.read_bytes().replace(b'"year"', b'"y\xffar"'))
    with pytest.raises(DamagedIndexError, match=r"documents\.sqlite is damaged"):
        DocumentStore.open(path).get([0])


def test_a_full_disk_is_told_from_other_faults(tmp_path: Path) -> None:
    with DocumentStore.create(tmp_path / "documents.sqlite") as store:
        store.append([Document("a")])
        with store._unclosed.use() as connection:
            connection.execute("PRAGMA max_page_count = 8")
        with pytest.raises(NoSpaceError, match=r"no space left while writing .*documents\.sqlite"):
            store.append([Document("b", text="x" * 100_000)])
        assert store.count() == 1
        assert store.find_all(["b"]) == {}
