import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from funnel.adaptors.losses import (
    distillation_loss,
    listwise_loss,
    pairwise_similarity_loss,
    prefix_cosines,
    ranking_loss,
    reconstruction_loss,
    topk_similarity_loss,
)
from funnel.errors import InputError

WIDTH = 7
DIMS = (1, 3, 6)
WEIGHTS = (0.5, 2.0, 0.0)

seeds = st.integers(0, 2**32 - 1)
ladders = st.sets(st.integers(1, WIDTH), min_size=1).map(lambda widths: tuple(sorted(widths)))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng([seed, *shape]).normal(size=shape))


def cosine(a: Tensor, b: Tensor, width: int) -> float:
    left, right = a[:width].tolist(), b[:width].tolist()
    dot = sum(x * y for x, y in zip(left, right, strict=True))
    result: float = dot / math.sqrt(sum(x * x for x in left) * sum(y * y for y in right))
    return result


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def summed(loss: Callable[[int], float], dims: Sequence[int], weights: Sequence[float] | None) -> float:
    return sum(weight * loss(m) for m, weight in zip(dims, weights or [1.0] * len(dims), strict=True))


def slow_pairwise(original: Any, adapted: Any, m: int) -> float:
    pairs = [(i, j) for i in range(len(original)) for j in range(len(original)) if i != j]
    whole = original.shape[1]
    return mean(
        [abs(cosine(original[i], original[j], whole) - cosine(adapted[i], adapted[j], m)) for i, j in pairs],
    )


def slow_topk(original: Any, neighbours: Any, adapted: Any, adapted_neighbours: Any, m: int) -> float:
    pairs = itertools.product(range(len(original)), range(neighbours.shape[1]))
    return mean(
        [
            abs(cosine(original[i], neighbours[i, j], WIDTH) - cosine(adapted[i], adapted_neighbours[i, j], m))
            for i, j in pairs
        ],
    )


def slow_ranking(query: Any, documents: Any, relevance: Any, m: int, temperature: float, mask: Any) -> float:
    terms = []
    for i in range(len(query)):
        for j, k in itertools.product(range(relevance.shape[1]), repeat=2):
            gap = float(relevance[i, j] - relevance[i, k])
            if gap > 0 and not mask[i, j] and not mask[i, k]:
                lower, upper = cosine(query[i], documents[i, k], m), cosine(query[i], documents[i, j], m)
                terms.append(gap * math.log(1 + math.exp((lower - upper) / temperature)))
    return mean(terms)


def slow_softmax(scores: Sequence[float], temperature: float) -> list[float]:
    powers = [math.exp(score / temperature) for score in scores]
    return [power / sum(powers) for power in powers]


def slow_distillation(teacher: Any, query: Any, candidates: Any, m: int, temperature: float, mask: Any) -> float:
    rows = []
    for i in range(len(query)):
        kept = [j for j in range(candidates.shape[1]) if not mask[i, j]]
        target = slow_softmax([float(teacher[i, j]) for j in kept], temperature)
        student = slow_softmax([cosine(query[i], candidates[i, j], m) for j in kept], temperature)
        rows.append(-sum(p * math.log(q) for p, q in zip(target, student, strict=True)))
    return mean(rows)


def a_mask(rows: int, columns: int, seed: int) -> Tensor:
    """About a third is left out; the first column is kept."""
    mask = torch.from_numpy(np.random.default_rng(seed).random((rows, columns)) < 0.3)
    mask[:, 0] = False
    return mask


@given(seed=seeds, dims=ladders, rows=st.integers(2, 5))
def test_pairwise_similarity_is_the_mean_over_all_ordered_pairs(seed: int, dims: Any, rows: int) -> None:
    original, adapted = drawn(rows, WIDTH, seed=seed), drawn(rows, WIDTH, seed=seed + 1)
    weights = [0.5 + number for number in range(len(dims))]
    for given_weights in (None, weights):
        found = pairwise_similarity_loss(original, adapted, dims, given_weights)
        expected = summed(lambda m: slow_pairwise(original, adapted, m), dims, given_weights)
        assert found.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(seed=seeds, dims=ladders, rows=st.integers(1, 4), k=st.integers(1, 4))
def test_topk_similarity_is_the_mean_over_every_neighbour_of_every_row(seed: int, dims: Any, rows: int, k: Any) -> None:
    tensors = (
        drawn(rows, WIDTH, seed=seed),
        drawn(rows, k, WIDTH, seed=seed),
        drawn(rows, WIDTH, seed=seed + 1),
        drawn(rows, k, WIDTH, seed=seed + 1),
    )
    weights = [0.5 + number for number in range(len(dims))]
    for given_weights in (None, weights):
        found = topk_similarity_loss(*tensors, dims, given_weights)
        expected = summed(lambda m: slow_topk(*tensors, m), dims, given_weights)
        assert found.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(seed=seeds, dims=ladders, temperature=st.floats(0.05, 3), grades=st.integers(1, 3), masked=st.booleans())
def test_ranking_is_the_mean_over_active_pairs(
    seed: int, dims: Any, temperature: float, grades: Any, masked: Any
) -> None:
    query, documents = drawn(3, WIDTH, seed=seed), drawn(3, 4, WIDTH, seed=seed)
    relevance = torch.from_numpy(np.random.default_rng(seed).integers(0, grades + 1, size=(3, 4)))
    mask = a_mask(3, 4, seed) if masked else None
    shown = torch.zeros(3, 4, dtype=torch.bool) if mask is None else mask
    found = ranking_loss(query, documents, relevance, dims, mask=mask, temperature=temperature)
    expected = summed(lambda m: slow_ranking(query, documents, relevance, m, temperature, shown), dims, None)
    # torch takes log(1 + exp(x)) to be x above 20, which is 2e-9 off.
    assert found.item() == pytest.approx(expected, rel=1e-8, abs=1e-8)


@given(seed=seeds, dims=ladders, temperature=st.floats(0.05, 2), masked=st.booleans())
def test_distillation_is_the_cross_entropy_over_the_candidates(
    seed: int, dims: Any, temperature: float, masked: Any
) -> None:
    query, shared = drawn(3, WIDTH, seed=seed), drawn(7, WIDTH, seed=seed + 1)
    teacher = torch.tanh(drawn(3, 7, seed=seed))
    mask = a_mask(3, 7, seed) if masked else None
    shown = torch.zeros(3, 7, dtype=torch.bool) if mask is None else mask
    whole = shared.expand(3, -1, -1)
    expected = summed(lambda m: slow_distillation(teacher, query, whole, m, temperature, shown), dims, None)
    found = distillation_loss(teacher, query, shared, dims, temperature=temperature, mask=mask)
    assert found.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    found = distillation_loss(teacher, query, whole, dims, temperature=temperature, mask=mask)
    assert found.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(seed=seeds, dims=ladders, shared=st.booleans())
def test_prefix_cosines_are_those_of_each_prefix(seed: int, dims: Any, shared: Any) -> None:
    queries, own = drawn(3, WIDTH, seed=seed), drawn(3, 5, WIDTH, seed=seed)
    candidates = own[0] if shared else own
    for width, found in zip(dims, prefix_cosines(queries, candidates, dims), strict=True):
        each = own[:1].expand(3, -1, -1) if shared else own
        expected = torch.nn.functional.cosine_similarity(queries[:, None, :width], each[..., :width], dim=-1)
        torch.testing.assert_close(found, expected)


LOSSES = {
    "pairwise": lambda a, b, dims, weights: pairwise_similarity_loss(
        drawn(8, WIDTH), torch.cat([a, b[:, 1]]), dims, weights
    ),
    "topk": lambda a, b, dims, weights: topk_similarity_loss(drawn(4, WIDTH), drawn(4, 3, WIDTH), a, b, dims, weights),
    "ranking": lambda a, b, dims, weights: ranking_loss(
        a, b, torch.tensor([[0, 1, 2], [1, 0, 0], [2, 2, 0], [0, 1, 0]]), dims, weights, temperature=0.3
    ),
    "distillation": lambda a, b, dims, weights: distillation_loss(
        torch.tanh(drawn(4, 3)), a, b, dims, weights, temperature=0.3
    ),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def gradients(loss: Any, dims: Any, weights: Any = None) -> tuple[Tensor, Tensor]:
    rows = drawn(4, WIDTH, seed=5).requires_grad_()
    others = drawn(4, 3, WIDTH, seed=6).requires_grad_()
    loss(rows, others, dims, weights).backward()
    assert rows.grad is not None
    assert others.grad is not None
    return rows.grad, others.grad


@every_loss
def test_gradients_are_those_of_finite_differences(loss: Any) -> None:
    rows, others = drawn(4, WIDTH, seed=5).requires_grad_(), drawn(4, 3, WIDTH, seed=6).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: loss(a, b, DIMS, WEIGHTS), (rows, others))


def test_the_gradient_of_reconstruction_is_that_of_finite_differences() -> None:
    rows = drawn(4, WIDTH, seed=5).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: reconstruction_loss(drawn(4, WIDTH), a), (rows,))


@every_loss
def test_every_width_trains_and_not_only_the_last(loss: Any) -> None:
    both, first, last = (gradients(loss, dims)[0] for dims in ((2, 5), (2,), (5,)))
    assert first.norm() > 1e-3
    torch.testing.assert_close(both, first + last)
    torch.testing.assert_close(gradients(loss, (2, 5), [3.0, 0.0])[0], 3 * first)


@every_loss
def test_columns_beyond_the_widest_width_get_no_gradient(loss: Any) -> None:
    rows, _ = gradients(loss, (2, 5))
    assert (rows[:, :5].abs().sum(dim=0) > 0).all()
    assert (rows[:, 5:] == 0).all()


@every_loss
def test_lengths_do_not_matter(loss: Any) -> None:
    rows, others = drawn(4, WIDTH, seed=5), drawn(4, 3, WIDTH, seed=6)
    stretched = loss(rows * torch.tensor([[1.0], [2.0], [0.1], [9.0]]), others * 7.0, DIMS, None)
    torch.testing.assert_close(stretched, loss(rows, others, DIMS, None))


def test_every_neighbour_of_every_row_gets_a_gradient() -> None:
    _, neighbours = gradients(LOSSES["topk"], (3,))
    assert (neighbours.abs().sum(dim=2) > 0).all()


@pytest.mark.parametrize("moved", range(4))
def test_pairwise_similarity_counts_each_row_alike_and_in_its_own_place(moved: Any) -> None:
    # Orthogonal rows of which one is moved onto the next: two of the twelve ordered pairs are wrong, by 1.
    original = torch.eye(4, dtype=torch.float64)
    adapted = original.clone()
    adapted[moved] = original[(moved + 1) % 4]
    assert pairwise_similarity_loss(original, adapted, (4,)).item() == pytest.approx(2 / 12)


@pytest.mark.parametrize("row", range(2))
@pytest.mark.parametrize("place", range(3))
def test_topk_similarity_compares_each_row_with_its_own_neighbours(row: Any, place: Any) -> None:
    original, neighbours = drawn(2, WIDTH), drawn(2, 3, WIDTH)
    adapted = neighbours.clone()
    adapted[row, place] *= -1
    expected = 2 * abs(cosine(original[row], neighbours[row, place], WIDTH)) / 6
    assert topk_similarity_loss(original, neighbours, original, adapted, (WIDTH,)).item() == pytest.approx(expected)


def test_what_is_unchanged_costs_nothing_at_full_width() -> None:
    rows, neighbours = drawn(4, WIDTH), drawn(4, 3, WIDTH)
    assert pairwise_similarity_loss(rows, rows, (WIDTH,)).item() == 0
    assert topk_similarity_loss(rows, neighbours, rows, neighbours, (WIDTH,)).item() == 0
    assert reconstruction_loss(rows, rows).item() == 0


def test_reconstruction_is_the_mean_absolute_difference() -> None:
    assert reconstruction_loss(torch.zeros(2, 2), torch.tensor([[1.0, -2.0], [0.0, 3.0]])).item() == 1.5


def test_distillation_is_least_where_the_student_is_the_teacher() -> None:
    query, documents = drawn(3, WIDTH), drawn(3, 5, WIDTH)
    teacher = next(prefix_cosines(query, documents, (WIDTH,)))
    pupil = query.clone().requires_grad_()
    loss = distillation_loss(teacher, pupil, documents, (WIDTH,))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(torch.distributions.Categorical(logits=teacher / 0.05).entropy().mean().item())  # type: ignore[no-untyped-call]
    assert pupil.grad is not None
    assert pupil.grad.abs().max() < 1e-12


@every_loss
def test_a_prefix_of_zeros_gives_no_gradient_and_nothing_that_is_not_finite(loss: Any) -> None:
    rows, others = drawn(4, WIDTH, seed=5), drawn(4, 3, WIDTH, seed=6)
    rows[1, :2] = 0
    others[2, 1] = 0
    rows.requires_grad_(), others.requires_grad_()
    value = loss(rows, others, (2, 5), None)
    value.backward()
    assert math.isfinite(value.item())
    assert rows.grad is not None
    assert others.grad is not None
    assert torch.isfinite(rows.grad).all()
    assert torch.isfinite(others.grad).all()
    assert (others.grad[2, 1] == 0).all()


def test_no_active_pair_costs_nothing_and_still_has_a_gradient() -> None:
    query = drawn(2, WIDTH).requires_grad_()
    loss = ranking_loss(query, drawn(2, 3, WIDTH), torch.ones(2, 3), DIMS)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert query.grad is not None
    assert not query.grad.any()


def test_ranking_takes_shared_documents_and_judgements_that_are_true_or_false() -> None:
    query, documents = drawn(3, WIDTH), drawn(4, WIDTH)
    relevant = torch.eye(3, 4, dtype=torch.bool)
    shared = ranking_loss(query, documents, relevant, DIMS)
    torch.testing.assert_close(shared, ranking_loss(query, documents.expand(3, -1, -1), relevant.int(), DIMS))


def test_the_teacher_is_not_trained() -> None:
    teacher = torch.tanh(drawn(3, 4)).requires_grad_()
    query = drawn(3, WIDTH).requires_grad_()
    distillation_loss(teacher, query, drawn(4, WIDTH), DIMS).backward()  # type: ignore[no-untyped-call]
    assert teacher.grad is None
    assert query.grad is not None


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], r"weights is \[1.0\]; expected 2 finite"),
        ([-1.0, 1.0], "none below 0"),
        ([math.nan, 1.0], "finite numbers"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pairwise_similarity_loss(drawn(4, WIDTH), drawn(4, WIDTH), (2, 3), weights)


@pytest.mark.parametrize("shared", [True, False])
def test_listwise_is_the_cross_entropy_of_grades(shared: bool) -> None:
    rng = np.random.default_rng(3)
    query = torch.from_numpy(rng.standard_normal((4, 6)))
    documents = torch.from_numpy(rng.standard_normal((5, 6) if shared else (4, 5, 6)))
    grades = torch.tensor([[1.0, 0, 0, 2, 0], [0, 0, 3, 0, 0], [1, 1, 1, 1, 1], [0, 5, 0, 0, 1]])
    mask = torch.tensor([[False] * 5, [True, False, False, False, False], [False] * 5, [False] * 5])
    expected = 0.0
    for m, weight in ((2, 1.0), (6, 0.5)):
        for i in range(4):
            own = documents if shared else documents[i]
            kept = [j for j in range(5) if not mask[i, j]]
            scores = [float(torch.nn.functional.cosine_similarity(query[i, :m], own[j, :m], dim=0)) / 0.1 for j in kept]
            total = sum(float(grades[i, j]) for j in kept)
            normaliser = math.log(sum(math.exp(score) for score in scores))
            for j, score in zip(kept, scores, strict=True):
                expected -= weight / 4 * float(grades[i, j]) / total * (score - normaliser)
    found = listwise_loss(grades, query, documents, (2, 6), (1.0, 0.5), temperature=0.1, mask=mask)
    assert float(found) == pytest.approx(expected, rel=1e-9)


def test_listwise_needs_a_relevant_document() -> None:
    query, documents = torch.randn(2, 4), torch.randn(3, 4)
    for grades in ([[0.0, 0, 0], [1, 0, 0]], [[-1.0, 2, 0], [1, 0, 0]]):
        with pytest.raises(InputError, match="needs a document graded above 0"):
            listwise_loss(torch.tensor(grades), query, documents, (2,))
