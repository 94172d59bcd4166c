from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from funnel.adaptors import Judged, Recipe
from funnel.adaptors.sampling import TrainingQueries, TrainingSet, checked_rows, distinct_numbers
from funnel.errors import InputError
from tests.funnel.adaptors.clusters import clustered

RECIPE = Recipe(phases=(), batch=16, near=5, random=20, anchors=64, judged_batch=6, hard=2, judged_random=10)


def among(vectors: Any, rows: torch.Tensor) -> torch.Tensor:
    """The number of the row that each vector is."""
    scores = vectors @ rows.T
    assert (scores.max(dim=1).values > 1 - 1e-6).all()
    result: torch.Tensor = scores.argmax(dim=1)
    return result


def test_held_out_rows_are_never_trained_on() -> None:
    rows = clustered(400, 12)
    data = TrainingSet(rows, RECIPE, 4)
    whole = torch.from_numpy(rows)
    parts = [set(among(part, whole).tolist()) for part in (data.rows, data.held_out.queries, data.compared.queries)]
    assert [len(part) for part in parts] == [360, 20, 20]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]


def test_the_rows_are_copied_once() -> None:
    rows = 3 * clustered(400, 12)
    given = rows.copy()
    data = TrainingSet(rows, RECIPE, 4)
    assert data.compared.rows.data_ptr() == data.held_out.rows.data_ptr() == data.rows.data_ptr()
    np.testing.assert_array_equal(rows, given)
    np.testing.assert_allclose(data.rows.norm(dim=1), 1, atol=1e-6)


def test_real_queries_are_held_out_in_place_of_rows() -> None:
    rows, queries = clustered(400, 12), clustered(50, 12, seed=1)
    data = TrainingSet(rows, RECIPE, 4, TrainingQueries(real=queries))
    assert len(data.rows) == 400
    found = torch.cat([data.held_out.queries, data.compared.queries])
    assert sorted(among(found, torch.from_numpy(queries)).tolist()) == list(range(50))


def test_a_batch_holds_anchors_and_their_true_neighbours() -> None:
    data = TrainingSet(clustered(300, 12), RECIPE, 4)
    seen = []
    for _ in range(data.steps_in_an_epoch):
        batch = data.draw()
        numbers = among(batch.anchors, data.rows)
        seen += numbers.tolist()
        products = batch.anchors @ data.rows.T
        products[torch.arange(len(numbers)), numbers] = -1
        candidates = among(batch.candidates, data.rows)
        assert len(set(candidates.tolist())) == len(candidates) > 5
        assert torch.equal(candidates[batch.near], products.topk(5).indices)
        assert torch.equal(batch.own, numbers[:, None] == candidates[None, :])
    assert len(set(seen)) == len(seen) == 64


def test_duplicates_are_drawn_once() -> None:
    rows = np.concatenate([clustered(100, 8)] * 3)
    assert distinct_numbers(checked_rows(rows)).tolist() == list(range(100))
    assert len(TrainingSet(rows, RECIPE, 4).rows) == 90


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.ones((500, 8)), "1 different vectors among 500 to train on; expected at least 40"),
        (clustered(30, 8), "30 different vectors among 30"),
        (clustered(60, 8)[:, None], r"shape \(60, 1, 8\); expected \(n, d\)"),
        (np.where(np.arange(60)[:, None] == 7, np.nan, clustered(60, 8)), r"not finite \(row 7\)"),
        (np.where(np.arange(60)[:, None] == 3, 0, clustered(60, 8)), r"zero or not finite \(row 3\)"),
    ],
)
def test_rows_that_cannot_be_trained_on(rows: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainingSet(rows, RECIPE, 4)


def test_fewer_rows_than_the_narrowest_width_are_refused() -> None:
    with pytest.raises(InputError, match=r"expected at least 90 \(the narrowest width is 90\)"):
        TrainingSet(clustered(80, 128), RECIPE, 90)


def test_dev_queries_are_held_out_and_every_judged_one_trains() -> None:
    rows = clustered(200, 12)
    judged, dev = (
        Judged(torch.from_numpy(clustered(count, 12, seed=count)), [torch.tensor([3])] * count, [torch.ones(1)] * count)
        for count in (30, 9)
    )
    data = TrainingSet(rows, RECIPE, 4, TrainingQueries(judged, dev))
    assert data.judged is not None
    assert torch.equal(data.judged.queries, judged.queries)
    held = torch.cat([data.held_out.queries, data.compared.queries])
    assert torch.equal(held.sort(dim=0).values, dev.queries.sort(dim=0).values)
    alone = TrainingSet(rows, RECIPE, 4, TrainingQueries(dev=dev))
    assert alone.judged is None
    assert alone.held_out.figure == "nDCG@10"
    assert len(alone.rows) == 200


def test_pieces_are_half_of_the_anchors_and_held_out_in_place_of_rows() -> None:
    rows, pieces = clustered(300, 8), clustered(1_200, 8, seed=1)
    pieces[:400] = pieces[400:800]  # twice the same: counted once
    data = TrainingSet(rows, replace(RECIPE, pieces=0.5, batch=20, anchors=720), 4, TrainingQueries(pieces=pieces))
    assert len(data.rows) == 300
    held = torch.cat([data.held_out.queries, data.compared.queries])
    assert len(held) == 80
    seen = []
    for _ in range(72):  # 720 pieces are left to train on
        batch = data.draw()
        numbers = among(batch.anchors[:10], data.rows)
        assert torch.equal(batch.own[:10], numbers[:, None] == among(batch.candidates, data.rows)[None, :])
        assert len(batch.anchors) == len(batch.own) == 20
        assert not batch.own[10:].any()
        true = (batch.anchors[10:] @ data.rows.T).topk(RECIPE.near).values
        found = (batch.candidates[batch.near[10:]] * batch.anchors[10:, None]).sum(2)
        torch.testing.assert_close(found, true, atol=1e-5, rtol=0)
        seen.append(batch.anchors[10:])
    drawn = torch.cat(seen)
    assert len(drawn.unique(dim=0)) == 720  # type: ignore[no-untyped-call]
    assert not (drawn[:, None] == held[None]).all(2).any()


@pytest.mark.parametrize(("count", "held"), [(60, 0), (2_000, 400)])
def test_queries_are_half_of_the_anchors_and_of_many_a_fifth_is_held_out(count: int, held: int) -> None:
    rows, queries = clustered(300, 8), clustered(count, 8, seed=1)
    recipe = replace(RECIPE, queries=0.5, pieces=0.5, batch=16, anchors=2_000)
    data = TrainingSet(rows, recipe, 4, TrainingQueries(real=queries, pieces=clustered(1_000, 8, seed=2)))
    kept = torch.cat([data.held_out.queries, data.compared.queries])
    theirs = (kept @ torch.from_numpy(queries).T > 1 - 1e-6).any(1)
    assert int(theirs.sum()) == held
    seen = torch.cat([data.draw().anchors[-8:] for _ in range((count - held) // 8)])
    trained = set(among(seen, torch.from_numpy(queries)).tolist())
    assert len(trained) == (count - held) // 8 * 8  # each once before any comes again
    assert not trained & set((kept[theirs] @ torch.from_numpy(queries).T).argmax(1).tolist())


def test_a_piece_that_is_a_row_is_not_its_own_neighbour() -> None:
    rows = clustered(1_100, 8)
    batch = TrainingSet(rows, replace(RECIPE, pieces=1.0), 4, TrainingQueries(pieces=rows)).draw()
    assert (batch.own.sum(1) == 1).all()
    assert torch.equal(batch.candidates[batch.own.int().argmax(1)], batch.anchors)


@pytest.mark.parametrize(("share", "count"), [(0.0, 1_200), (0.5, 999)])
def test_pieces_that_are_too_few_or_not_wanted_change_nothing(share: float, count: int) -> None:
    rows = clustered(300, 8)
    data = TrainingSet(rows, replace(RECIPE, pieces=share), 4, TrainingQueries(pieces=clustered(count, 8, seed=1)))
    plain = TrainingSet(rows, RECIPE, 4)
    for with_pieces, without in ((data.draw(), plain.draw()), (data.draw(), plain.draw())):
        assert torch.equal(with_pieces.anchors, without.anchors)
    assert torch.equal(data.held_out.queries, plain.held_out.queries)


def test_a_judged_batch_holds_answers_grades_and_negatives() -> None:
    rows = clustered(200, 12)
    rng = np.random.default_rng(0)
    documents = [torch.from_numpy(rng.choice(200, 3, replace=False)) for _ in range(30)]
    queries = torch.from_numpy(np.concatenate([rows[:1], clustered(29, 12, seed=1)]))
    judged = Judged(queries, documents, [torch.tensor([1.0, 2.0, 3.0])] * 30)
    data = TrainingSet(rows, RECIPE, 4, TrainingQueries(judged))
    assert data.judged is not None
    assert len(data.judged) + len(data.held_out) + len(data.compared) == 30
    assert len(data.rows) == 200
    graded = dict(zip(map(tuple, judged.queries.numpy()), judged.documents, strict=True))
    for _ in range(10):
        batch = data.draw_judged()
        numbers = among(batch.documents, data.rows)
        assert ((batch.grades > 0).sum(1) >= 1).all()
        for query, grades, left_out in zip(batch.queries, batch.grades, batch.left_out, strict=True):
            answers = graded[tuple(query.numpy())]
            assert torch.equal(numbers[grades > 0].sort().values, answers[torch.isin(answers, numbers)].sort().values)
            assert torch.equal(left_out, ((batch.documents @ query) > 1 - 1e-6) & (grades == 0))
