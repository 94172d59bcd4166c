from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from funnel.errors import InputError
from funnel.matryoshka import MultiGranularityCrossEntropy, MultiGranularityLoss, prefix

DIMS = (2, 3, 6)
WEIGHTS = (0.5, 2.0, 1.5)


def random_rows(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def contrastive(queries: torch.Tensor, documents: torch.Tensor, temperature: float = 0.1) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(queries @ documents.T / temperature, torch.arange(len(queries)))


def squared(embeddings: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (embeddings.sum(dim=1) - targets).square().mean()


@settings(max_examples=30)
@given(
    dims=st.sets(st.integers(1, 12), min_size=1, max_size=5).map(sorted),
    seed=st.integers(0, 2**20),
    renormalise=st.booleans(),
    data=st.data(),
)
def test_the_loss_is_the_weighted_sum_over_prefixes(dims: Any, seed: int, renormalise: Any, data: Any) -> None:
    weights = data.draw(st.lists(st.floats(0.1, 4), min_size=len(dims), max_size=len(dims)))
    rows, targets = random_rows(5, 12, seed), random_rows(5, 1, seed + 1)[:, 0]
    expected = 0.0
    for width, weight in zip(dims, weights, strict=True):
        cut = rows[:, :width]
        expected += weight * squared(cut / cut.norm(dim=1, keepdim=True) if renormalise else cut, targets)
    loss = MultiGranularityLoss(squared, dims, weights, renormalise=renormalise)(rows, targets)
    torch.testing.assert_close(loss, expected)


def test_every_width_sends_its_gradient() -> None:
    rows, targets = random_rows(4, 6).requires_grad_(), random_rows(4, 1, 1)[:, 0]
    loss = MultiGranularityLoss(squared, DIMS, WEIGHTS)
    (whole,) = torch.autograd.grad(loss(rows, targets), rows)
    parts = []
    for width, weight in zip(DIMS, WEIGHTS, strict=True):
        alone = weight * MultiGranularityLoss(squared, (width,))(rows, targets)
        parts.append(torch.autograd.grad(alone, rows)[0])
        assert parts[-1][:, :width].abs().min() > 0
        assert not parts[-1][:, width:].any()
    torch.testing.assert_close(whole, sum(parts))


def test_weights_are_one_by_default() -> None:
    rows, targets = random_rows(4, 6), random_rows(4, 1, 1)[:, 0]
    loss = MultiGranularityLoss(squared, DIMS)
    torch.testing.assert_close(loss(rows, targets), sum(loss.by_width(rows, targets).values()))
    assert list(loss.by_width(rows, targets)) == list(DIMS)


def test_several_embeddings_are_cut_alike_and_options_are_handed_on() -> None:
    queries, documents = random_rows(4, 6), random_rows(4, 6, 1)
    loss = MultiGranularityLoss(contrastive, DIMS, renormalise=False)
    expected = sum(contrastive(queries[:, :m], documents[:, :m], temperature=0.5) for m in DIMS)
    torch.testing.assert_close(loss((queries, documents), temperature=0.5), expected)


def test_renormalised_losses_do_not_see_lengths() -> None:
    queries, documents = random_rows(4, 6), random_rows(4, 6, 1)
    scaled = queries * torch.tensor([[1.0], [2.0], [0.1], [7.0]])
    renormalised, raw = (MultiGranularityLoss(contrastive, DIMS, renormalise=on) for on in (True, False))
    torch.testing.assert_close(renormalised((queries, documents)), renormalised((scaled, documents)))
    assert not torch.isclose(raw((queries, documents)), raw((scaled, documents)))


def test_losses_for_each_row_stay_for_each_row() -> None:
    rows = random_rows(4, 6)
    loss = MultiGranularityLoss(lambda x: x.square().sum(dim=1), DIMS, WEIGHTS)
    torch.testing.assert_close(loss(rows), torch.full((4,), sum(WEIGHTS), dtype=torch.float64))


def test_a_base_with_parameters_is_trained() -> None:
    base = torch.nn.PReLU()
    loss = MultiGranularityLoss(base, DIMS)
    assert list(loss.parameters()) == list(base.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_zero_prefix_stays_zero_with_a_gradient_of_plain_size(dtype: Any) -> None:
    rows = torch.tensor([[0.0, 0.0, 1.0], [3.0, 4.0, 0.0]], dtype=dtype, requires_grad=True)
    cut = prefix(rows, 2)
    torch.testing.assert_close(cut.float(), torch.tensor([[0.0, 0.0], [0.6, 0.8]]), atol=2e-3, rtol=0)
    cut.sum().backward()  # type: ignore[no-untyped-call]
    assert rows.grad is not None
    assert rows.grad[0].tolist() == [1.0, 1.0, 0.0]
    assert rows.grad.isfinite().all()


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ((), "expected rising whole numbers"),
        (8, "expected rising whole numbers"),
        ((4, 2), r"\[4, 2\]; expected rising widths from 1$"),
        ((4, 4), "expected rising widths"),
        ((0, 4), "from 1"),
        ((2.5, 4), "rising whole numbers"),
        ((True, 4), "rising whole numbers"),
    ],
)
def test_dims_that_do_not_rise_are_refused(dims: Any, message: str) -> None:
    for make in (lambda: MultiGranularityLoss(squared, dims), lambda: MultiGranularityCrossEntropy(dims)):
        with pytest.raises(InputError, match=message):
            make()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((1.0, 1.0), r"weights is \[1.0, 1.0\]; .* one for each of the widths \[2, 3, 6\]"),
        ((1.0, -1.0, 1.0), "from 0"),
        ((1.0, float("nan"), 1.0), "finite"),
        ((0.0, 0.0, 0.0), "at least one above"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights: Any, message: str) -> None:
    for make in (
        lambda: MultiGranularityLoss(squared, DIMS, weights),
        lambda: MultiGranularityCrossEntropy(DIMS, weights),
    ):
        with pytest.raises(InputError, match=message):
            make()


def test_embeddings_that_cannot_be_used_are_refused() -> None:
    loss = MultiGranularityLoss(squared, DIMS)
    bad = random_rows(5, 6)
    bad[3, 5] = torch.nan
    cases = [
        (bad, r"1 of 5 embeddings hold values that are not finite \(first: row 3\)"),
        (random_rows(5, 4), r"shape \(5, 4\) .* d at least 6: give wider embeddings or narrower dims"),
        (torch.ones(5, 6, dtype=torch.int64), "float type"),
        (torch.ones(6), r"shape \(6,\)"),
        ((), r"embeddings is \(\)"),
        ((random_rows(5, 6), bad), "first: row 3"),
    ]
    for embeddings, message in cases:
        with pytest.raises(InputError, match=message):
            loss(embeddings, torch.zeros(5))
    with pytest.raises(InputError, match="can be called"):
        MultiGranularityLoss("cosine", DIMS)  # type: ignore[arg-type]


def test_cross_entropy_is_the_weighted_sum_over_widths() -> None:
    labels = torch.tensor([0, 2, 1, 1])
    logits = {width: random_rows(4, 3, seed=width) for width in (*DIMS, 99)}
    expected = sum(
        weight * torch.nn.functional.cross_entropy(logits[width], labels, label_smoothing=0.1)
        for width, weight in zip(DIMS, WEIGHTS, strict=True)
    )
    loss = MultiGranularityCrossEntropy(DIMS, WEIGHTS, label_smoothing=0.1)
    torch.testing.assert_close(loss(logits, labels), expected)
    torch.testing.assert_close(loss(logits, labels.to(torch.int32)), expected)
    assert list(loss.by_width(logits, labels)) == list(DIMS)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 1, 3, 1]), "labels run from 0 to 3; expected whole numbers from 0 to 2"),
        (torch.tensor([0, -100, 2, 1]), "labels run from -100 to 2"),
        (torch.tensor([0, 1]), r"labels of shape \(2,\) .* shape \(4,\), one for each row"),
        (torch.tensor([0.0, 1.0, 2.0, 1.0]), "expected whole numbers"),
        (torch.eye(4, dtype=torch.int64), "expected whole numbers of shape"),
        (torch.tensor([True, False, True, True]), "expected whole numbers"),
    ],
)
def test_labels_out_of_range_are_refused(labels: Any, message: str) -> None:
    logits = {width: random_rows(4, 3, seed=width) for width in DIMS}
    with pytest.raises(InputError, match=message):
        MultiGranularityCrossEntropy(DIMS)(logits, labels)


def test_logits_of_a_width_that_is_missing_are_asked_for() -> None:
    with pytest.raises(InputError, match=r"no logits of width \[3, 6\]"):
        MultiGranularityCrossEntropy(DIMS)({2: random_rows(4, 3)}, torch.zeros(4, dtype=torch.int64))
    with pytest.raises(InputError, match=r"label_smoothing is 1\.5"):
        MultiGranularityCrossEntropy(DIMS, label_smoothing=1.5)
