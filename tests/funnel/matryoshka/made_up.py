"""Logits of a made-up nested classifier, whose wider heads see the label more clearly."""

import torch

CLEARNESS = {4: 2.0, 8: 3.5, 16: 5.0}


def made_up_logits(
    rows: int, seed: int, clearness: dict[int, float] = CLEARNESS, classes: int = 5
) -> tuple[dict[int, torch.Tensor], torch.Tensor]:
    """Logits by width, and labels: noise that the widths share in part, plus a signal that grows with the width."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (rows,), generator=generator)
    signal = torch.nn.functional.one_hot(labels, classes).double()
    noise = torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    ease = 0.3 + 1.4 * torch.rand(rows, 1, generator=generator, dtype=torch.float64)
    logits = {
        width: clear * ease * signal + noise + 0.5 * torch.randn(rows, classes, generator=generator)
        for width, clear in clearness.items()
    }
    return logits, labels
