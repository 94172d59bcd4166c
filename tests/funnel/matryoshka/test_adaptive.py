from typing import Any

import numpy as np
import pytest
import torch

from funnel.errors import InputError
from funnel.matryoshka import AdaptiveClassifier, MultiGranularityClassifier, MultiGranularityCrossEntropy
from tests.funnel.matryoshka.made_up import made_up_logits

LOGITS, LABELS = made_up_logits(400, seed=0)
UNSEEN, UNSEEN_LABELS = made_up_logits(2_000, seed=1)


def accuracy_at(logits: Any, labels: torch.Tensor, width: int) -> float:
    return float((logits[width].argmax(dim=1) == labels).double().mean())


def test_the_accuracy_of_the_full_width_is_asked_by_default() -> None:
    adaptive = AdaptiveClassifier.fit(LOGITS, LABELS)
    assert adaptive.dims == (4, 8, 16)
    assert len(adaptive.thresholds) == 2
    assert adaptive.target == accuracy_at(LOGITS, LABELS, 16) == adaptive.estimate.full_accuracy
    assert adaptive.estimate.accuracy >= adaptive.target
    assert adaptive.estimate.mean_width < 14
    assert adaptive.confidence is None


def test_less_accuracy_takes_less_width() -> None:
    full = accuracy_at(LOGITS, LABELS, 16)
    reports = [
        AdaptiveClassifier.fit(LOGITS, LABELS, accuracy=full - less).evaluate(UNSEEN, UNSEEN_LABELS)
        for less in (0.0, 0.03, 0.15, 0.9)
    ]
    widths = [report.mean_width for report in reports]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] - widths[2] > 2
    assert widths[3] == pytest.approx(4, abs=0.1)
    for report, less in zip(reports[:3], (0.0, 0.03, 0.15), strict=True):
        assert report.full_accuracy - report.accuracy < less + 0.01


def test_predictions_come_from_the_width_that_is_named() -> None:
    adaptive = AdaptiveClassifier.fit(LOGITS, LABELS, accuracy=0.8)
    found = adaptive.predict(UNSEEN)
    assert set(found.widths.tolist()) == {4, 8, 16}
    for width in adaptive.dims:
        rows = found.widths == width
        assert torch.equal(found.classes[rows], UNSEEN[width].argmax(dim=1)[rows])
    sure = torch.softmax(UNSEEN[4], dim=1).max(dim=1).values >= adaptive.thresholds[0]
    assert torch.equal(sure, found.widths == 4)


def test_the_report_counts_what_was_predicted() -> None:
    adaptive = AdaptiveClassifier.fit(LOGITS, LABELS, accuracy=0.8)
    found, report = adaptive.predict(UNSEEN), adaptive.evaluate(UNSEEN, UNSEEN_LABELS)
    assert report.rows == 2_000
    assert report.accuracy == float((found.classes == UNSEEN_LABELS).double().mean())
    assert report.full_accuracy == accuracy_at(UNSEEN, UNSEEN_LABELS, 16)
    assert report.mean_width == found.mean_width == sum(width * share for width, share in report.shares.items())
    assert report.full_width == 16
    counts = [int((found.widths == width).sum()) for width in (4, 8, 16)]
    assert report.mean_multiplied == pytest.approx((counts[0] * 4 + counts[1] * 12 + counts[2] * 28) / 2_000)


def test_numpy_and_lists_are_taken_as_tensors_are() -> None:
    arrays = {width: values.numpy() for width, values in LOGITS.items()}
    assert AdaptiveClassifier.fit(arrays, LABELS.tolist()) == AdaptiveClassifier.fit(LOGITS, LABELS)


def test_order_of_widths_and_seed_decide_nothing_else() -> None:
    backwards = dict(reversed(LOGITS.items()))
    assert AdaptiveClassifier.fit(backwards, LABELS, seed=4) == AdaptiveClassifier.fit(LOGITS, LABELS, seed=4)


def test_a_certified_accuracy_holds_on_unseen_rows() -> None:
    asked = accuracy_at(LOGITS, LABELS, 16) - 0.1
    adaptive = AdaptiveClassifier.fit(LOGITS, LABELS, accuracy=asked, confidence=0.95)
    report = adaptive.evaluate(UNSEEN, UNSEEN_LABELS)
    assert (adaptive.confidence, adaptive.target, adaptive.estimate.rows) == (0.95, asked, 200)
    assert report.accuracy >= asked
    assert report.mean_width < 14


@pytest.fixture(scope="module")
def trained() -> tuple[Any, torch.Tensor, torch.Tensor]:
    """A classifier of real digits, and the embeddings and labels of half of them."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    torch.manual_seed(0)
    rows, labels = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    order = torch.randperm(len(rows))
    rows, labels = rows[order], labels[order]
    encoder = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 32))
    classifier = MultiGranularityClassifier(32, 10, (2, 4, 8, 16, 32), shared=True)
    loss_of = MultiGranularityCrossEntropy(classifier.dims)
    optimiser = torch.optim.Adam([*encoder.parameters(), *classifier.parameters()], lr=5e-3)
    for _ in range(150):
        batch = torch.randint(900, (128,))
        optimiser.zero_grad()
        loss_of(classifier(encoder(rows[batch])), labels[batch]).backward()
        optimiser.step()
    with torch.no_grad():
        return classifier, encoder(rows[900:]), labels[900:]


def test_digits_keep_their_accuracy_at_half_of_the_width(trained: tuple[Any, torch.Tensor, torch.Tensor]) -> None:
    classifier, embeddings, labels = trained
    with torch.no_grad():
        logits = classifier(embeddings)
    adaptive = AdaptiveClassifier.fit({m: values[:450] for m, values in logits.items()}, labels[:450])
    report = adaptive.evaluate({m: values[450:] for m, values in logits.items()}, labels[450:])
    assert report.mean_width <= 16
    assert report.accuracy >= report.full_accuracy - 0.005
    assert report.full_accuracy > 0.9


def test_early_exit_from_embeddings_gives_what_all_logits_give(trained: tuple[Any, torch.Tensor, torch.Tensor]) -> None:
    classifier, embeddings, labels = trained
    with torch.no_grad():
        adaptive = AdaptiveClassifier.fit(classifier(embeddings), labels, accuracy=0.9)
        expected = adaptive.predict(classifier(embeddings))
    found = adaptive.classify(classifier, embeddings)
    assert torch.equal(found.classes, expected.classes)
    assert torch.equal(found.widths, expected.widths)
    assert len(set(found.widths.tolist())) > 2


def test_wider_heads_see_only_rows_that_are_left(
    trained: tuple[Any, torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier, embeddings, labels = trained
    with torch.no_grad():
        adaptive = AdaptiveClassifier.fit(classifier(embeddings), labels, accuracy=0.9)
    seen: dict[int, int] = {}
    widened = MultiGranularityClassifier.widened

    def counting(self: MultiGranularityClassifier, rows: torch.Tensor, width: int, before: Any = None) -> Any:
        seen[width] = len(rows)
        return widened(self, rows, width, before)

    monkeypatch.setattr(MultiGranularityClassifier, "widened", counting)
    found = adaptive.classify(classifier, embeddings)
    assert seen == {width: int((found.widths >= width).sum()) for width in classifier.dims}


def test_separate_heads_leave_early_too() -> None:
    torch.manual_seed(0)
    classifier = MultiGranularityClassifier(8, 3, (2, 8))
    embeddings = 4 * torch.randn(300, 8)
    with torch.no_grad():
        logits = classifier(embeddings)
    adaptive = AdaptiveClassifier.fit(logits, logits[8].argmax(dim=1), accuracy=0.7)
    assert torch.equal(adaptive.classify(classifier, embeddings).classes, adaptive.predict(logits).classes)
    assert adaptive.classify(classifier, embeddings[:0]).classes.shape == (0,)


def test_an_accuracy_out_of_reach_is_refused_with_what_can_be_had() -> None:
    with pytest.raises(InputError, match=r"0.999 cannot be reached: the widest width, 16, is right in 0\.\d{4}"):
        AdaptiveClassifier.fit(LOGITS, LABELS, accuracy=0.999)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"accuracy": 0.0}, "accuracy is 0.0; expected a number above 0"),
        ({"accuracy": 1.1}, "at most 1"),
        ({"accuracy": float("nan")}, "accuracy is nan"),
        ({"margin": -1.0}, "margin is -1.0"),
        ({"margin": float("inf")}, "margin is inf"),
        ({"accuracy": 0.5, "confidence": 1.0}, "confidence is 1.0; expected a number between 0 and 1"),
        ({"confidence": 0.95}, "confidence was given without accuracy"),
    ],
)
def test_bad_settings_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        AdaptiveClassifier.fit(LOGITS, LABELS, **settings)


def some(rows: int) -> dict[int, torch.Tensor]:
    return {width: values[:rows] for width, values in LOGITS.items()}


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (some(0), LABELS[:0], "no rows were given"),
        (some(3), LABELS[:3], "3 validation rows; expected at least 5"),
        ({16: LOGITS[16]}, LABELS, "early exit needs at least two"),
        ({}, LABELS, "expected rising whole numbers"),
        (LOGITS, LABELS + 1, "labels run from 1 to 5; expected whole numbers from 0 to 4"),
        (LOGITS, LABELS[:-1], r"labels of shape \(399,\) .* shape \(400,\), one for each row"),
        ({**LOGITS, 8: LOGITS[8] / 0}, LABELS, "logits of width 8 hold values that are not finite"),
        ({**LOGITS, 8: LOGITS[8][:-1]}, LABELS, "the same at every width"),
    ],
)
def test_bad_validation_data_are_refused(logits: Any, labels: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        AdaptiveClassifier.fit(logits, labels)


def test_bad_rows_are_refused_when_classifying(trained: tuple[Any, torch.Tensor, torch.Tensor]) -> None:
    classifier, embeddings, labels = trained
    with torch.no_grad():
        adaptive = AdaptiveClassifier.fit(classifier(embeddings), labels, accuracy=0.5)
    bad = embeddings.clone()
    bad[7, 31] = torch.nan
    with pytest.raises(InputError, match=r"not finite \(first: row 7\)"):
        adaptive.classify(classifier, bad)
    with pytest.raises(InputError, match=r"expected \(n, 32\)"):
        adaptive.classify(classifier, embeddings[:, :16])
    with pytest.raises(InputError, match=r"widths \[2, 4\]; expected \[2, 4, 8, 16, 32\]"):
        adaptive.classify(MultiGranularityClassifier(32, 10, (2, 4)), embeddings)
    with pytest.raises(InputError, match=r"no logits of width \[4, 8, 16, 32\]"):
        adaptive.predict({2: np.zeros((3, 10))})
