from typing import Any

import numpy as np
import pytest
import torch

from funnel.adaptors import Judged, rows_to_train_on
from funnel.errors import InputError

VECTORS = np.eye(3, 4, dtype=np.float32) * 2


def read(qrels: Any, queries: Any = ("a", "b", "c"), documents: Any = ("x", "y", "z")) -> Judged:
    return Judged.read(qrels, list(queries), VECTORS[: len(queries)], list(documents))


def test_judgements_are_joined_by_id() -> None:
    judged = read({"b": {"z": 2, "x": 1, "y": 0}, "a": {"y": 1}, "c": {"x": 0}})
    assert len(judged) == 2
    assert torch.equal(judged.queries, torch.eye(3, 4)[[1, 0]])
    assert [documents.tolist() for documents in judged.documents] == [[2, 0], [1]]
    assert [grades.tolist() for grades in judged.grades] == [[2.0, 1.0], [1.0]]
    assert (judged.left_out, judged.note) == (0, "")


def test_a_few_missing_ids_are_counted_and_left_out() -> None:
    qrels = {"a": {f"d{i}": 1 for i in range(40)} | {"nowhere": 1}}
    judged = read(qrels, documents=[f"d{i}" for i in range(40)])
    assert judged.left_out == 1
    assert judged.note == "; judgements left out, as their ids are not in the corpus or the queries: 1 (nowhere)"
    assert len(judged.documents[0]) == 40


@pytest.mark.parametrize("qrels", [{"a": {"x": 1, "nowhere": 1}}, {"nobody": {"x": 1}, "a": {"y": 1}}])
def test_many_missing_ids_are_refused_and_named(qrels: Any) -> None:
    with pytest.raises(InputError, match=r"1 of 2 judgements name ids .*\((nowhere|nobody)\); at most 5%"):
        read(qrels)


def test_judgements_without_a_relevant_document_are_refused() -> None:
    with pytest.raises(InputError, match="no query has a document judged above 0"):
        read({"a": {"x": 0}})


def test_a_split_keeps_every_query_once() -> None:
    judged = Judged(torch.arange(20.0)[:, None], [torch.tensor([i]) for i in range(20)], [torch.ones(1)] * 20)
    first, second = judged.split(0.25, torch.Generator().manual_seed(0))
    assert len(second) == 5
    assert sorted([*first.queries.flatten().tolist(), *second.queries.flatten().tolist()]) == list(range(20))
    assert [int(documents) for documents in first.documents] == first.queries.flatten().int().tolist()
    with pytest.raises(InputError, match="1 judged query; at least 2"):
        judged.part(torch.tensor([0])).split(0.5, torch.Generator())


def test_too_many_rows_are_drawn_from_and_the_judged_are_kept() -> None:
    ids = [str(i) for i in range(200)]
    numbers = rows_to_train_on(ids, [{"q": {"7": 1, "nowhere": 1}}, {"r": {"199": 0}}], seed=0, most=50)
    assert len(set(numbers)) == 50
    assert {7, 199} <= set(numbers)
    assert (np.diff(numbers) > 0).all()
    assert rows_to_train_on(ids, [], seed=0, most=200).tolist() == list(range(200))
