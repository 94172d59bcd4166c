from collections import Counter
from typing import Any

import pytest

from funnel.data.documents import LEAST_WORDS, LONGEST, SHORTEST, Document, pieces_of


def numbered(count: int, words: Any = LEAST_WORDS, title: str = "title") -> list[Document]:
    """Documents none of whose words comes twice."""
    return [
        Document(i, f"{title} {i}" if title else "", " ".join(f"w{i}.{j}" for j in range(words))) for i in range(count)
    ]


def source(piece: Any) -> tuple[int, list[int]]:
    """The document that a piece is of, and the places of its words in it; none for a title."""
    if piece.startswith("title"):
        return int(piece.split()[1]), []
    pairs = [tuple(map(int, word[1:].split("."))) for word in piece.split()]
    (number,) = {number for number, _ in pairs}
    return number, [place for _, place in pairs]


def test_pieces_are_titles_and_runs_of_words_of_one_document() -> None:
    pieces = pieces_of(numbered(100), 1_000)
    assert len(pieces) == 200
    assert set(Counter(source(piece)[0] for piece in pieces).values()) == {2}
    runs = [places for _, places in map(source, pieces) if places]
    assert len(runs) == 100  # each title once
    assert all(places == list(range(places[0], places[0] + len(places))) for places in runs)
    assert {len(places) for places in runs} == set(range(SHORTEST, LONGEST + 1))
    assert max(places[-1] for places in runs) == LEAST_WORDS - 1


def test_without_titles_all_are_runs() -> None:
    assert all(source(piece)[1] for piece in pieces_of(numbered(40, title=""), 1_000))


@pytest.mark.parametrize("count", [0, 7])
def test_no_more_than_were_asked_for(count: int) -> None:
    pieces = pieces_of(numbered(20), count)
    assert len(pieces) == count
    assert len({source(piece)[0] for piece in pieces}) == count


def test_short_documents_are_not_cut() -> None:
    short, long = numbered(50, words=LEAST_WORDS - 1), numbered(50)
    assert pieces_of(short, 100) == []
    assert pieces_of([*short, *long[:49]], 100) == []
    mixed = pieces_of([*short, *(Document(f"long {i}", "", long[i].text) for i in range(50))], 200)
    assert len(mixed) == 100
    assert pieces_of([], 10) == []


def test_the_seed_decides() -> None:
    documents = numbered(50)
    assert pieces_of(documents, 30, 1) == pieces_of(documents, 30, 1)
    assert pieces_of(documents, 30, 1) != pieces_of(documents, 30, 2)
