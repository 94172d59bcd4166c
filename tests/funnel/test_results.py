from __future__ import annotations

import numpy as np

from funnel import FLAT, Hit
from funnel.results import Answers, Hits, Served


def test_hits_are_a_list_that_says_how_it_was_found() -> None:
    hits = Hits([Hit("a", 0.9), Hit("b", 0.8)], Served(FLAT, 1.0))
    assert hits == [Hit("a", 0.9), Hit("b", 0.8)]
    assert isinstance(hits, list)
    assert hits.served.plan.is_flat


def test_answers_unpack_as_a_pair() -> None:
    ids, scores = answers = Answers(np.array([[1]]), np.array([[0.5]], dtype=np.float32), Served(FLAT, 1.0))
    assert ids is answers.ids
    assert scores is answers.scores
    assert answers.served.estimated_recall == 1.0
