from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from funnel import FunnelIndex
from funnel.encoding.encoders import PROBE_TEXT
from funnel.encoding.query_encoder import QueryEncoder
from funnel.errors import BudgetError
from funnel.request import Reading
from funnel.search import Beside
from tests.funnel.storage.helpers import settings

DIM = 8


class Slow:
    """An encoder that takes 3 ms a call."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        self.calls.append(list(texts))
        time.sleep(0.003)
        return np.ones((len(texts), DIM), dtype=np.float32)


@pytest.fixture
def slow() -> Slow:
    return Slow()


def beside(encode: Slow) -> Beside:
    return Beside(QueryEncoder(encode, settings(), DIM, "cpu"), None, 100)


def test_encoding_is_measured_once_for_each_batch_size(slow: Slow) -> None:
    made = beside(slow)
    first = made.ms(1, 10, Reading(["one"], True), 10_000)
    assert first >= 3
    calls = len(slow.calls)
    assert made.ms(1, 10, Reading(["two"], True), 10_000) == first
    assert len(slow.calls) == calls
    made.ms(32, 10, Reading(["one", "two"], True), 10_000)
    assert slow.calls[-1] == ["one", "two"] * 16


def test_what_is_not_done_takes_nothing(slow: Slow) -> None:
    assert beside(slow).ms(1, 10, Reading((), False), 1) == 0.0
    assert slow.calls == []


def test_an_encoder_slower_than_the_latency_is_refused_at_once(slow: Slow) -> None:
    with pytest.raises(BudgetError, match=r"encoding 32 queries takes .* ms by itself, and 2 ms are left"):
        beside(slow).ms(32, 10, Reading(["one"], True), 2)
    assert len(slow.calls) < 70


def test_documents_count_where_they_are_read(texts: FunnelIndex) -> None:
    made = texts._state.beside
    assert made.ms(1, 5, None, 1000) == 0.0
    assert made.ms(1, 5, Reading((), False), 1000) > 0
    both = made.ms(1, 5, Reading((), True), 1000)
    assert both > made.ms(1, 5, Reading(), 1000)  # reading is remembered, encoding comes on top


def test_encoding_is_timed_on_texts_of_the_user_alone(texts: FunnelIndex, slow: Slow) -> None:
    assert beside(slow).ms(1, 10, Reading((), True), 10_000) == 0.0
    assert slow.calls == []  # there are none
    documents = texts._state.opened.documents
    assert documents is not None
    Beside(QueryEncoder(slow, settings(), DIM, "cpu"), documents, len(texts)).ms(2, 10, Reading(["one"], True), 10_000)
    contents = [" ".join(one.content.split()) for one in documents.get(range(len(texts)))]
    timed = {text for call in slow.calls for text in call} - {PROBE_TEXT}
    assert len(timed) > 2
    assert all(any(one.startswith(text) for one in contents) for text in timed)


def test_a_latency_over_vectors_times_the_query_itself(slow: Slow, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((300, DIM)).astype(np.float32)
    index = FunnelIndex.build(rows, tmp_path, encoder=slow, progress=False)
    slow.calls.clear()
    index.search("my own question", latency_ms=500)
    assert slow.calls
    assert all(call == ["my own question"] for call in slow.calls)


def test_a_build_encodes_what_it_was_given_and_nothing_else(slow: Slow, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((300, DIM)).astype(np.float32)
    FunnelIndex.build(rows, tmp_path, encoder=slow, progress=False).tune(progress=False)
    assert {text for call in slow.calls for text in call} <= {PROBE_TEXT}
