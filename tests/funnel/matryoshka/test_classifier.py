from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from funnel.errors import InputError
from funnel.matryoshka import MultiGranularityClassifier, MultiGranularityCrossEntropy

DIMS = (2, 5, 9)


def embeddings(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=30)
@given(
    dims=st.sets(st.integers(1, 16), min_size=1, max_size=5).map(sorted),
    bias=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_a_shared_head_is_one_weight_sliced(dims: Any, bias: Any, seed: int) -> None:
    torch.manual_seed(seed)
    classifier = MultiGranularityClassifier(16, 4, dims, shared=True, bias=bias)
    (head,) = classifier.heads
    rows = embeddings(6, 16, seed)
    logits = classifier(rows)
    assert list(logits) == list(dims)
    assert isinstance(head, torch.nn.Linear)
    for width in dims:
        expected = torch.nn.functional.linear(rows[:, :width], head.weight[:, :width], head.bias)
        torch.testing.assert_close(logits[width], expected, atol=1e-5, rtol=1e-5)


def test_separate_heads_read_their_own_prefix_alone() -> None:
    classifier = MultiGranularityClassifier(12, 4, DIMS)
    rows = embeddings(6, 12)
    logits = classifier(rows)
    for width, head in zip(DIMS, classifier.heads, strict=True):
        assert head.weight.shape == (4, width)
        torch.testing.assert_close(logits[width], head(rows[:, :width]))


@pytest.mark.parametrize("shared", [True, False])
def test_one_width_alone_gives_what_all_give(shared: bool) -> None:
    classifier = MultiGranularityClassifier(12, 4, DIMS, shared=shared)
    rows = embeddings(6, 12)
    for width, expected in classifier(rows).items():
        torch.testing.assert_close(classifier.logits(rows, width), expected, atol=1e-6, rtol=1e-5)


def test_a_shared_head_has_the_parameters_of_the_widest() -> None:
    count = [
        sum(p.numel() for p in MultiGranularityClassifier(12, 4, DIMS, shared=shared).parameters())
        for shared in (True, False)
    ]
    assert count == [4 * 9 + 4, 4 * (2 + 5 + 9) + 3 * 4]


@pytest.mark.parametrize("shared", [True, False])
def test_training_reaches_every_width(shared: bool) -> None:
    torch.manual_seed(0)
    labels = torch.arange(200) % 3
    rows = embeddings(200, 9) + 3 * torch.nn.functional.one_hot(labels, 9).float()
    classifier = MultiGranularityClassifier(9, 3, (2, 3, 9), shared=shared)
    loss_of = MultiGranularityCrossEntropy(classifier.dims)
    optimiser = torch.optim.Adam(classifier.parameters(), lr=0.05)
    before = loss_of.by_width(classifier(rows), labels)
    for _ in range(60):
        optimiser.zero_grad()
        loss_of(classifier(rows), labels).backward()
        optimiser.step()
    logits = classifier(rows)
    after = loss_of.by_width(logits, labels)
    for width in classifier.dims:
        assert after[width] < before[width] / 2
        assert (logits[width].argmax(dim=1) == labels).float().mean() > 0.8


def test_the_state_is_saved_and_loaded() -> None:
    classifier = MultiGranularityClassifier(12, 4, DIMS, shared=True)
    other = MultiGranularityClassifier(12, 4, DIMS, shared=True)
    other.load_state_dict(classifier.state_dict())
    rows = embeddings(6, 12)
    torch.testing.assert_close(other(rows), classifier(rows), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((8, 4, (2, 9)), r"dims is \[2, 9\]; expected rising widths from 1 to 8, the width of the vectors"),
        ((8, 4, (4, 2)), "expected rising widths from 1 to 8"),
        ((8, 4, ()), "rising whole numbers"),
        ((8, 1, (2, 8)), "classes is 1; expected a whole number from 2"),
    ],
)
def test_bad_settings_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        MultiGranularityClassifier(*arguments)


def test_bad_embeddings_are_refused() -> None:
    classifier = MultiGranularityClassifier(12, 4, DIMS)
    bad = embeddings(3, 12)
    bad[1, 0] = torch.inf
    for rows, message in [
        (bad, "not finite"),
        (embeddings(3, 9), r"shape \(3, 9\); expected \(n, 12\)"),
        (embeddings(3, 12)[0], r"expected \(n, 12\)"),
    ]:
        for call in (classifier, lambda given: classifier.logits(given, 5)):
            with pytest.raises(InputError, match=message):
                call(rows)
    with pytest.raises(InputError, match=r"width is 4; expected one of \[2, 5, 9\]"):
        classifier.logits(embeddings(3, 12), 4)
