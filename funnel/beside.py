"""What a call takes beside the search: encoding its texts, BM25 in a hybrid one, and reading its documents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock

import numpy as np

from funnel.encoding.query_encoder import QueryEncoder
from funnel.engine.hybrid import Lexical
from funnel.engine.segments import Documents
from funnel.errors import BudgetError
from funnel.planning.costs import times_ms
from funnel.planning.remembered import Remembered
from funnel.planning.windows import Held, held_ms
from indexes.forks import free_in_children

__all__ = ["Beside"]

SAMPLE_WORDS = 12  # about a question's: vaswani's queries have 11 on average
SETS = 64  # of documents read in turn, so that they are not the same ones every time


class Beside:
    """Measures, once for each batch size, what a latency budget must leave for encoder and documents.

    documents: None where the index holds bare vectors. rows: how many it holds, deleted ones among them. lexical: BM25
    over the documents.
    """

    def __init__(
        self, encoder: QueryEncoder, documents: Documents | None, rows: int, lexical: Lexical | None = None
    ) -> None:
        self._lexical = lexical
        self._encoder = encoder
        self._documents = documents
        self._rows = rows
        self._held: Remembered[tuple[str, int, int], Held] = Remembered()
        self._lock = free_in_children(Lock())

    def ms(
        self,
        batch: int,
        k: int,
        from_text: bool,
        hits: bool,
        latency_ms: float,
        fused: int | None = None,
        texts: Sequence[str] = (),
    ) -> float:
        """Milliseconds at the 95th percentile, as it is held by one caller and by two; 0 where there is neither.

        batch: queries in a call. from_text: whether they are encoded. hits: whether documents are read. fused: the
        number of them in a hybrid search, whose lists are k long. Encoding and BM25 are timed on beginnings of
        documents; where there are none, encoding on the texts of the call.
        Raises BudgetError where this takes all of latency_ms by itself.
        """
        total = 0.0
        if from_text and (texts or self._documents is not None):
            total += self._ms("encoding", batch, 0, self._encode(batch, texts), latency_ms)
        if fused is not None and self._lexical is not None:
            total += self._ms("BM25 for", batch, k, self._rank(batch, k), latency_ms - total)
        if hits and self._documents is not None:
            read = k if fused is None else fused
            total += self._ms("reading the documents of", batch, read, self._read(batch, read), latency_ms - total)
        return total

    def _ms(self, what: str, batch: int, k: int, call: Callable[[int], object], allowed: float) -> float:
        calls = "one query" if batch == 1 else f"{batch} queries"
        with self._lock:
            held = self._held.get((what, batch, k))
            if held is None:
                quick = float(np.median(times_ms(call)))
                if quick >= allowed:
                    said = f"{quick:.3g} ms"
                    raise self._too_much(f"{what} {calls} takes {said}", allowed)
                held = self._held[what, batch, k] = held_ms(call)
        if held.ms >= allowed:
            raise self._too_much(f"{what} {calls} takes {held.ms:.3g} ms at the 95th percentile ({held})", allowed)
        return held.ms

    @staticmethod
    def _too_much(taken: str, allowed: float) -> BudgetError:
        return BudgetError(
            f"no plan answers within the latency asked for: {taken} by itself, and {allowed:.3g} ms are left for it. "
            "Allow more time, or call search_vectors with vectors"
        )

    def _encode(self, batch: int, texts: Sequence[str]) -> Callable[[int], object]:
        """Encoding of the first words of documents, other ones each time; of the texts given where there are none."""
        if self._documents is None:
            sets = [[texts[i % len(texts)] for i in range(batch)]]
        else:
            sets = self._beginnings(self._documents, batch)
        return lambda number: self._encoder.encode(sets[number % len(sets)])

    def _beginnings(self, documents: Documents, batch: int) -> list[list[str]]:
        sets = np.random.default_rng(0).integers(0, self._rows, (SETS, batch))
        return [[" ".join(document.content.split()[:SAMPLE_WORDS]) for document in documents.get(row)] for row in sets]

    def _rank(self, batch: int, depth: int) -> Callable[[int], object]:
        """BM25 for a batch of the first words of documents, other ones each time."""
        documents, lexical = self._documents, self._lexical
        assert documents is not None and lexical is not None
        texts = self._beginnings(documents, batch)
        lexical.open()
        return lambda number: lexical.rank_all(texts[number % SETS], depth)

    def _read(self, batch: int, k: int) -> Callable[[int], object]:
        documents = self._documents
        assert documents is not None
        sets = np.random.default_rng(0).integers(0, self._rows, (SETS, batch, k))

        def read(number: int) -> None:
            for row in sets[number % SETS]:
                documents.get(row)

        return read
