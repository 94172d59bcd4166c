from typing import Any

import numpy as np
import pytest
import torch

from funnel.adaptors.mlp import Attention
from funnel.errors import InputError


def trained(dim: int, **settings: int) -> Attention:
    """With every weight drawn, as training would leave it."""
    adaptor = Attention.start(torch.zeros(1, dim), (1,), 0, **settings)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adaptor.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return adaptor


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    result: np.ndarray = powers / powers.sum(-1, keepdims=True)
    return result


def slow_change(adaptor: Attention, vector: np.ndarray) -> np.ndarray:
    """The map f of one vector, head by head and group by group, in float64."""
    weights = {name: value.astype(np.float64) for name, value in adaptor.tensors().items()}
    groups, size, width = weights["enter"].shape
    heads = adaptor.settings()["heads"]
    padded = np.zeros(groups * size)
    padded[: len(vector)] = vector
    cut = padded.reshape(groups, size)
    tokens = np.stack([cut[g] @ weights["enter"][g] + weights["place"][g] for g in range(groups)])
    normed = (tokens - tokens.mean(1, keepdims=True)) / np.sqrt(tokens.var(1, keepdims=True) + 1e-5)
    normed = normed * weights["norm.weight"] + weights["norm.bias"]
    projected = normed @ weights["query_key_value.weight"].T + weights["query_key_value.bias"]
    queries, keys, values = np.split(projected, 3, axis=1)
    attended = np.zeros_like(tokens)
    for head in range(heads):
        part = slice(head * width // heads, (head + 1) * width // heads)
        scores = queries[:, part] @ keys[:, part].T / np.sqrt(width // heads)
        attended[:, part] = softmax(scores) @ values[:, part]
    mixed = np.maximum(tokens + attended, 0)
    return np.concatenate([mixed[g] @ weights["leave"][g] for g in range(groups)])[: len(vector)]


@pytest.mark.parametrize(("dim", "group_size"), [(12, 4), (11, 4), (7, 1), (5, 5)])
def test_the_change_is_multi_head_attention_over_the_groups(dim: int, group_size: int) -> None:
    adaptor = trained(dim, group_size=group_size, width=6, heads=2)
    vectors = np.random.default_rng(0).normal(size=(2, 3, dim))
    with torch.inference_mode():
        found = adaptor.change(torch.from_numpy(vectors.astype(np.float32))).numpy()
    expected = np.stack([[slow_change(adaptor, vector) for vector in block] for block in vectors])
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_every_entry_reaches_every_other() -> None:
    adaptor = trained(11, group_size=4, width=6, heads=2)
    reached = torch.autograd.functional.jacobian(adaptor.change, torch.randn(11, generator=torch.Generator()))  # type: ignore[no-untyped-call]
    assert (reached != 0).all()


@pytest.mark.parametrize(("dim", "group_size", "groups"), [(384, 48, 8), (100, 13, 8), (10, 2, 5), (1, 1, 1)])
def test_there_are_usually_at_most_eight_groups_and_none_is_padding_alone(
    dim: int, group_size: int, groups: int
) -> None:
    adaptor = Attention(dim)
    assert adaptor.settings() == {"group_size": group_size, "width": 64, "heads": 4, "rotated": 0}
    assert adaptor.groups == groups
    assert (groups - 1) * group_size < dim <= groups * group_size


@pytest.mark.parametrize("settings", [{"group_size": 13}, {"width": 6, "heads": 4}])
def test_groups_and_heads_that_do_not_fit_are_refused(settings: Any) -> None:
    with pytest.raises(InputError, match="at dimension 12; expected groups no larger than"):
        Attention(12, **settings)
