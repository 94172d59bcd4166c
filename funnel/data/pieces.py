"""Texts that are like queries, cut from documents: what an adaptor is trained on where real queries are lacking."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from funnel.data.documents import Document

__all__ = ["pieces_of"]

# Words of a run: most queries of the judged sets at hand have so many.
SHORTEST, LONGEST = 6, 18
# Words of a document that is worth cutting: twice those of the longest run. A shorter one is like a query itself.
LEAST_WORDS = 2 * LONGEST


def pieces_of(documents: Sequence[Document], count: int, seed: int = 0) -> list[str]:
    """Titles, and runs of 6 to 18 words from the bodies, of documents drawn at random.

    At most two of each document, of which one may be its title. None at all where fewer than half of the documents
    have 36 words: queries and documents are of one kind there.

    Args:
        documents: those of a corpus, or a sample of them.
        count: how many at most.
        seed: of the draw.
    """
    bodies = {number: document.text.split() for number, document in enumerate(documents)}
    long = [number for number, words in bodies.items() if len(words) >= LEAST_WORDS]
    if 2 * len(long) < len(documents):
        return []
    rng = np.random.default_rng(seed)
    drawn = np.tile(rng.permutation(long), 2)[:count]
    pieces = []
    for place, number in enumerate(drawn.tolist()):
        # Of a document that comes twice the title is taken once.
        titled = documents[number].title.strip() and (place + place // len(long)) % 2 == 0
        pieces.append(documents[number].title.strip() if titled else _run(bodies[number], rng))
    return pieces


def _run(words: Sequence[str], rng: np.random.Generator) -> str:
    length = int(rng.integers(SHORTEST, LONGEST + 1))
    start = int(rng.integers(len(words) - length + 1))
    return " ".join(words[start : start + length])
