"""Which queries certify: each once, in an order and a choice that know nothing of how often each was asked."""

from __future__ import annotations

import numpy as np
import pytest

from funnel.building import queries as module
from funnel.building.queries import CertifyingQueries, encode_asked
from funnel.data.queries import open_queries
from funnel.encoding.encoders import load_encoder
from tests.funnel.corpora import DIM, hashed_words

POPULAR, TIMES, RARE = 20, 100, 380


def from_vectors(vectors: np.ndarray, seed: int) -> np.ndarray:
    asked = encode_asked(open_queries(vectors), {}, None, vectors.shape[1], seed)
    assert asked.certifying is not None
    return asked.certifying


def places_of_popular(asked: np.ndarray, popular: np.ndarray) -> np.ndarray:
    return np.flatnonzero((asked @ popular.T > 1 - 1e-6).any(axis=1))


def distinct_vectors(seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((POPULAR + RARE, 16)).astype(np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def test_popular_queries_do_not_come_first() -> None:
    """Were they of perfect recall, a bound that saw them first would have won before the others come."""
    distinct = distinct_vectors()
    calls = np.concatenate([np.repeat(distinct[:POPULAR], TIMES, axis=0), distinct[POPULAR:]])
    places = []
    for seed in range(30):
        asked = from_vectors(calls, seed)
        assert len(asked) == POPULAR + RARE
        places.append(places_of_popular(asked, distinct[:POPULAR]).mean())
    # The mean of 20 of 400 places has a standard error of 25; that of 30 such means one of 4.6.
    assert np.mean(places) == pytest.approx((POPULAR + RARE - 1) / 2, abs=5 * 4.6)


def test_popular_queries_are_not_chosen_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are more than are used."""
    monkeypatch.setattr(module, "MOST_QUERIES", 100)
    distinct = distinct_vectors()
    calls = np.concatenate([np.repeat(distinct[:POPULAR], TIMES, axis=0), distinct[POPULAR:]])
    chosen = [len(places_of_popular(from_vectors(calls, seed), distinct[:POPULAR])) for seed in range(30)]
    assert np.mean(chosen) == pytest.approx(100 * POPULAR / (POPULAR + RARE), abs=2)  # 5, and not all 20


def test_queries_beyond_the_first_train_where_an_adaptor_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_QUERIES", 300)
    distinct = distinct_vectors()
    asked = encode_asked(open_queries(distinct), {}, None, 16, 0, trains=True)
    assert asked.certifying is not None
    assert asked.training is not None
    assert (len(asked.certifying), len(asked.training)) == (300, 100)
    assert (asked.certifying @ asked.training.T).max() < 1 - 1e-6
    assert asked.left_out["that trained or chose the adaptor"] == 100
    few = encode_asked(open_queries(distinct[:300]), {}, None, 16, 0, trains=True)
    assert few.training is None
    assert from_vectors(distinct, 0).shape == (400, 16)  # no adaptor is trained


def test_training_queries_never_certify_and_leave_the_others_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_QUERIES", 100)
    distinct = distinct_vectors()
    teach, training = distinct[:150], open_queries(np.concatenate([distinct[:150], 3.0 * distinct[:10]]))
    asked = encode_asked(open_queries(distinct), {}, None, 16, 0, training=training, trains=True)
    assert asked.certifying is not None
    assert asked.training is not None
    assert len(asked.certifying) == 250
    assert (asked.certifying @ teach.T).max() < 1 - 1e-6
    assert len(asked.training) == 160  # a vector of another length is drawn twice; training looks at each once
    assert asked.left_out["that trained or chose the adaptor"] == 150
    alone = encode_asked(None, {}, None, 16, 0, training=training, trains=True)
    assert alone.certifying is None
    assert alone.training is not None


def test_white_space_is_folded_and_case_is_not() -> None:
    encoder = load_encoder(hashed_words)
    texts = ["read a table", " read  a\ttable\n", "Read a table", "read a table", "sort a list", "SORT A LIST"]
    asked = encode_asked(open_queries(texts), {}, encoder, DIM, 0)
    # Where the encoder makes nothing of case, the vectors say that they are one.
    assert asked.texts is not None
    assert sorted(text.lower() for text in asked.texts) == ["read a table", "sort a list"]
    assert asked.left_out == {"repeats": 4}


def test_vectors_that_are_equal_up_to_length_are_one_query() -> None:
    distinct = distinct_vectors()[:50]
    asked = encode_asked(open_queries(np.concatenate([distinct, 7.0 * distinct, 0.01 * distinct])), {}, None, 16, 0)
    assert asked.certifying is not None
    assert len(asked.certifying) == 50
    assert asked.left_out == {"repeats": 100}


def test_a_shuffle_keeps_texts_beside_their_vectors() -> None:
    rows = distinct_vectors()[:9]
    asked = CertifyingQueries(rows, [str(i) for i in range(9)]).shuffled(np.random.default_rng(0))
    assert asked.certifying is not None
    assert asked.texts is not None
    np.testing.assert_array_equal(asked.certifying, rows[[int(text) for text in asked.texts]])
    assert CertifyingQueries().shuffled(np.random.default_rng(0)).certifying is None
