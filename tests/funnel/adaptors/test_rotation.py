from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from funnel.adaptors import PCA, Adaptor, Phase, Recipe, Rotation, fit_adaptor
from funnel.adaptors.rotation import RotationStudent, SecondMoment, blended
from funnel.errors import InputError
from tests.funnel.adaptors.clusters import clustered

SHORT = Recipe(
    phases=(Phase("unsupervised", {"distillation": 1.0}, steps=60, learning_rate=3e-3),),
    batch=64, near=16, random=64, anchors=1_024, evaluate_every=20, patience=2,
)  # fmt: skip


def test_it_starts_as_pca() -> None:
    rows = clustered(500)
    start = RotationStudent(torch.from_numpy(rows), (4, 8)).snapshot()
    np.testing.assert_allclose(start.transform(rows)[:, :8], PCA.fit(rows).transform(rows)[:, :8], atol=1e-5)
    beyond = np.abs(start.transform(rows)[:, 8:].T @ PCA.fit(rows).transform(rows)[:, 8:])
    assert (np.linalg.norm(beyond, axis=1) > 0).all()


def test_training_raises_the_held_out_figure_and_keeps_every_cosine() -> None:
    rows = clustered(3_000)
    trained = fit_adaptor("rotation", rows, dims=(4, 8, 16), recipe=SHORT)
    figures = [evaluation["mean"] for evaluation in trained.log.evaluations]
    assert max(figures) > figures[0] + 0.005
    adaptor = trained.adaptor
    assert isinstance(adaptor, Rotation)
    assert adaptor.isometric
    assert adaptor.dims == (4, 8, 16)
    adapted = adaptor.transform(rows)
    assert np.abs(adapted @ adapted[:100].T - rows @ rows[:100].T).max() < 1e-5
    np.testing.assert_allclose(adaptor.inverse(adapted), rows, atol=1e-5)


def test_columns_beyond_the_widest_width_hold_the_rest_in_order_of_energy() -> None:
    rows = clustered(2_000)
    adapted = fit_adaptor("rotation", rows, dims=(4, 8), recipe=SHORT).adaptor.transform(rows)
    energies = (adapted[:, 8:] ** 2).sum(0)
    assert (np.diff(energies) <= 1e-3 * energies[:-1]).all()


def test_the_same_seed_trains_the_same_and_another_does_not() -> None:
    rows = clustered(800, 16)
    first, again, other = (fit_adaptor("rotation", rows, dims=(4,), recipe=SHORT, seed=s).adaptor for s in (1, 1, 2))
    assert first.checksum == again.checksum != other.checksum


def test_it_comes_back_from_disk(tmp_path: Path) -> None:
    rows = clustered(800, 16)
    adaptor = Rotation.fit(iter([rows[:300], rows[300:]]), dims=(4, 8), seed=3)
    adaptor.save(tmp_path)
    again = Adaptor.load(tmp_path)
    assert isinstance(again, Rotation)
    assert again.dims == (4, 8)
    np.testing.assert_array_equal(again.transform(rows), adaptor.transform(rows))


@pytest.mark.parametrize("dims", [(32,), (8, 32)])
def test_the_full_width_needs_no_training(dims: Any) -> None:
    assert fit_adaptor("rotation", clustered(500), dims=dims, recipe=SHORT).adaptor.dims in ((16,), (8,))


def test_a_reconstruction_loss_is_refused() -> None:
    phase = Phase("unsupervised", {"distillation": 1.0, "reconstruction": 0.1}, steps=2, learning_rate=1e-3)
    with pytest.raises(InputError, match="a rotation loses nothing of a vector; leave the reconstruction loss out"):
        fit_adaptor("rotation", clustered(300), dims=(4,), recipe=replace(SHORT, phases=(phase,)))


@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_a_blend_is_a_rotation_that_leads_from_one_to_the_other(seed: int, share: Any) -> None:
    rng = np.random.default_rng(seed)
    first, second = (Rotation(random_rotation(rng), (2, 5)) for _ in range(2))
    moment = SecondMoment(8)
    moment.update(rng.standard_normal((50, 8)))
    between = blended(first, second, share, moment)
    assert between.dims == (2, 5)  # and it is orthogonal, or its class would have refused it

    def apart(one: Any, other: Any, width: int) -> float:
        return float(np.linalg.norm(projector(one, width) - projector(other, width)))

    for width in (2, 5):
        assert apart(blended(first, second, 0.0, moment), first, width) < 1e-5
        assert apart(blended(first, second, 1.0, moment), second, width) < 1e-5
    # The narrowest is free of what lies below it: no subspace is nearer to both, the two themselves among them.
    cost = {
        x: (1 - share) * apart(x, first, 2) ** 2 + share * apart(x, second, 2) ** 2 for x in (between, first, second)
    }
    assert cost[between] <= min(cost.values()) + 1e-5


def random_rotation(rng: Any) -> npt.NDArray[np.float32]:
    return np.linalg.qr(rng.standard_normal((8, 8)))[0].astype(np.float32)


def projector(adaptor: Any, width: int) -> npt.NDArray[np.float32]:
    result: npt.NDArray[np.float32] = (adaptor.matrix[:, :width] @ adaptor.matrix[:, :width].T).numpy()
    return result
