"""What all the kinds that are not isometric promise, and what the perceptrons add."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from funnel.adaptors import PCA, RECIPES, Adaptor, Phase, Recipe, adaptor_class, adaptor_kinds
from funnel.adaptors.losses import pairwise_similarity_loss
from funnel.adaptors.mlp import BLOCK_ROWS, MLP, Attention, DeepMLP, ResidualAdaptor
from funnel.adaptors.sampling import Batch
from funnel.adaptors.training import losses_of
from funnel.errors import DamagedIndexError, InputError

KINDS = (MLP, DeepMLP, Attention)
DIM = 10
DIMS = (2, 5)

every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
either_start = pytest.mark.parametrize("rotated", [0, 1])


def rows(n: int = 30, dim: int = DIM, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=(n, dim)) * np.linspace(2, 0.2, dim)
    result: np.ndarray = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
    return result


def started(kind: type[ResidualAdaptor], seed: int = 0, **settings: int) -> ResidualAdaptor:
    return kind.start(torch.from_numpy(rows()), DIMS, seed, **settings)


def moved(kind: type[ResidualAdaptor], seed: int = 0, **settings: int) -> ResidualAdaptor:
    """As if trained: every parameter away from where it started."""
    adaptor = started(kind, seed, **settings)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adaptor.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return adaptor


@every_kind
def test_the_kinds_are_registered_and_not_isometric(kind: Any) -> None:
    assert adaptor_class(kind.kind) is kind
    assert kind.kind in adaptor_kinds()
    assert not kind.isometric


@every_kind
def test_the_start_is_the_identity(kind: Any) -> None:
    np.testing.assert_array_equal(started(kind).transform(rows()), rows())
    np.testing.assert_array_equal(kind(DIM, DIMS).transform(rows()), rows())


@every_kind
def test_the_rotated_start_is_the_pca(kind: Any) -> None:
    expected = PCA.fit(rows()).transform(rows())
    np.testing.assert_array_equal(started(kind, rotated=1).transform(rows()), expected)


@every_kind
def test_the_same_seed_gives_the_same_start_and_another_another(kind: Any) -> None:
    assert started(kind, seed=4).checksum == started(kind, seed=4).checksum
    assert started(kind, seed=4).checksum != started(kind, seed=5).checksum


@every_kind
def test_the_start_leaves_torchs_own_generator_alone(kind: Any) -> None:
    before = torch.random.get_rng_state()
    started(kind, rotated=1)
    assert torch.equal(torch.random.get_rng_state(), before)


@every_kind
@either_start
def test_the_reconstruction_is_the_size_of_the_change(kind: Any, rotated: int) -> None:
    """Also where the vectors are rotated first: turned axes are no change that it should undo."""
    given = torch.from_numpy(rows())
    batch = Batch(given[:8], given, torch.zeros((8, 1), dtype=torch.int64), torch.zeros((8, 30), dtype=torch.bool))
    for adaptor in (started(kind, rotated=rotated), moved(kind, rotated=rotated)):
        start = PCA.fit(rows()).transform(rows()) if rotated else rows()
        found = losses_of(adaptor, batch, None, ["reconstruction"], DIMS, Recipe(phases=()))["reconstruction"]
        expected = np.abs(adaptor.transform(rows()) - start)[:8].mean()
        assert float(found.detach()) == pytest.approx(float(expected), abs=1e-6)


@every_kind
@either_start
def test_training_lowers_the_loss_and_reaches_every_parameter(kind: Any, rotated: int) -> None:
    vectors = torch.from_numpy(rows())
    adaptor = started(kind, rotated=rotated)
    before = {name: parameter.clone() for name, parameter in adaptor.named_parameters()}
    optimiser = torch.optim.Adam(adaptor.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = pairwise_similarity_loss(vectors, adaptor.map(vectors), DIMS)
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    assert losses[-1] < 0.98 * losses[0]  # at two dimensions of ten little can be won
    assert [name for name, parameter in adaptor.named_parameters() if torch.equal(parameter, before[name])] == []


@every_kind
def test_fit_trains_from_a_sample_by_the_recipe_of_the_kind(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    phase = Phase("unsupervised", {"distillation": 1.0}, steps=10, learning_rate=1e-2)
    monkeypatch.setitem(RECIPES, kind.kind, Recipe(phases=(phase,), batch=32, near=8, random=16, evaluate_every=5))
    first, again = (kind.fit([rows(150), rows(50, seed=1)], dims=DIMS, seed=3) for _ in range(2))
    assert type(first) is kind
    assert first.dims == DIMS
    assert first.checksum == again.checksum


@every_kind
def test_fit_refuses_a_sample_that_is_too_small(kind: Any) -> None:
    with pytest.raises(InputError, match="expected at least"):
        kind.fit(rows(10), dims=DIMS)


@every_kind
@either_start
def test_saved_and_loaded_it_maps_alike(kind: Any, rotated: int, tmp_path: Path) -> None:
    adaptor = moved(kind, rotated=rotated)
    adaptor.save(tmp_path)
    again = Adaptor.load(tmp_path)
    assert type(again) is kind
    assert (again.dim, again.dims, again.settings()) == (DIM, DIMS, adaptor.settings())
    assert again.checksum == adaptor.checksum
    assert not again.training
    np.testing.assert_array_equal(again.transform(rows()), adaptor.transform(rows()))


@every_kind
@given(seed=st.integers(0, 2**32 - 1), length=st.floats(1e-6, 1e6), rotated=st.integers(0, 1))
def test_length_is_kept_apart_from_direction(kind: Any, seed: int, length: Any, rotated: int) -> None:
    adaptor, vectors = moved(kind, rotated=rotated), rows(3, seed=seed)
    np.testing.assert_allclose(adaptor.transform(vectors * length) / length, adaptor.transform(vectors), atol=1e-4)


@every_kind
def test_zero_stays_zero_and_the_smallest_numbers_do_no_harm(kind: Any) -> None:
    adaptor = moved(kind, rotated=1)
    np.testing.assert_array_equal(adaptor.transform(np.zeros((2, DIM), np.float32)), np.zeros((2, DIM)))
    assert np.isfinite(adaptor.transform(rows() * np.float32(1e-30))).all()
    vectors = torch.zeros(2, DIM, requires_grad=True)
    adaptor.map(vectors).sum().backward()  # type: ignore[no-untyped-call]
    assert vectors.grad is not None
    assert torch.isfinite(vectors.grad).all()


@every_kind
def test_a_row_is_mapped_as_it_is_among_others(kind: Any) -> None:
    adaptor, vectors = moved(kind), rows()
    whole = adaptor.transform(vectors)
    np.testing.assert_allclose(np.concatenate([adaptor.transform(row[None]) for row in vectors]), whole, atol=1e-5)
    np.testing.assert_array_equal(adaptor.transform(vectors), whole)


def test_more_rows_than_a_block_are_mapped_in_order() -> None:
    adaptor, vectors = moved(MLP), rows(BLOCK_ROWS + 3)
    assert adaptor.transform(vectors[:0]).shape == (0, DIM)
    found = adaptor.transform(vectors)
    with torch.inference_mode():
        np.testing.assert_allclose(found, adaptor.map(torch.from_numpy(vectors)).numpy(), atol=1e-5)


@every_kind
@pytest.mark.parametrize("shape", [(DIM,), (BLOCK_ROWS + 1, DIM - 1)])
def test_rows_of_another_width_are_refused(kind: Any, shape: Any) -> None:
    with pytest.raises(InputError, match="dimension 10; give an array of shape"):
        started(kind).transform(np.zeros(shape, np.float32))


@every_kind
def test_project_maps_every_block_in_its_own_shape(kind: Any) -> None:
    adaptor = moved(kind)
    blocks = torch.from_numpy(rows(6)).reshape(2, 3, DIM), torch.from_numpy(rows(4, seed=1))
    mapped = adaptor.project(*blocks)
    assert [block.shape for block in mapped] == [(2, 3, DIM), (4, DIM)]
    torch.testing.assert_close(mapped[0].reshape(6, DIM), adaptor.map(blocks[0].reshape(6, DIM)))
    torch.testing.assert_close(mapped[1], adaptor.map(blocks[1]))


@every_kind
def test_a_snapshot_does_not_follow_the_training(kind: Any) -> None:
    adaptor = moved(kind)
    adaptor.map(torch.from_numpy(rows())).sum().backward()  # type: ignore[no-untyped-call]
    snapshot = adaptor.snapshot()
    before = adaptor.checksum
    assert snapshot.checksum == before
    assert not snapshot.training
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in snapshot.parameters())
    with torch.no_grad():
        next(iter(adaptor.parameters())).add_(1.0)
    assert snapshot.checksum == before != adaptor.checksum
    assert all(parameter.requires_grad and parameter.grad is not None for parameter in adaptor.parameters())


@every_kind
def test_what_was_built_does_not_share_memory_with_what_was_given(kind: Any) -> None:
    tensors = moved(kind).tensors()
    again = kind.build(DIM, DIMS, kind(DIM).settings(), tensors)
    checksum = again.checksum
    for tensor in tensors.values():
        tensor += 1
    assert again.checksum == checksum


@every_kind
def test_dimensions_down_to_one_work(kind: Any) -> None:
    for dim in (1, 2, 3, 7, 17):
        vectors = rows(5, dim)
        adaptor = kind.start(torch.from_numpy(vectors), (1,), 0)
        np.testing.assert_array_equal(adaptor.transform(vectors), vectors)


@every_kind
def test_every_tensor_must_be_there_and_fit(kind: Any) -> None:
    settings, tensors = kind(DIM).settings(), moved(kind).tensors()
    for name in tensors:
        lacking = {other: tensor for other, tensor in tensors.items() if other != name}
        with pytest.raises(InputError, match=f'the tensors do not fit the settings.* Missing key.*"{name}"'):
            kind.build(DIM, DIMS, settings, lacking)
        with pytest.raises(InputError, match=f"size mismatch for {name}"):
            kind.build(DIM, DIMS, settings, {**tensors, name: tensors[name][..., :-1]})
    with pytest.raises(InputError, match=r'Unexpected key.*"more"'):
        kind.build(DIM, DIMS, settings, {**tensors, "more": np.zeros(1, np.float32)})
    with pytest.raises(InputError, match="size mismatch"):
        kind.build(2 * DIM, DIMS, settings, tensors)


@every_kind
def test_every_setting_must_be_there_and_be_of_use(kind: Any) -> None:
    settings, tensors = kind(DIM).settings(), moved(kind).tensors()
    for name in settings:
        with pytest.raises(InputError, match="the settings are"):
            kind.build(DIM, DIMS, {other: value for other, value in settings.items() if other != name}, tensors)
        with pytest.raises(InputError, match=f"{name} is -1; expected"):
            kind.build(DIM, DIMS, {**settings, name: -1}, tensors)
    with pytest.raises(InputError, match="the settings are"):
        kind.build(DIM, DIMS, {**settings, "more": 1}, tensors)


@every_kind
def test_settings_that_were_tampered_with_take_no_memory(kind: Any) -> None:
    settings, tensors = kind(DIM).settings(), moved(kind).tensors()
    for name in set(settings) - {"rotated"}:
        with pytest.raises(InputError, match=r"ask for more than the \d+ numbers given"):
            kind.build(DIM, DIMS, {**settings, name: 10**30}, tensors)
    with pytest.raises(InputError, match=r"dim=10{30} and"):
        kind.build(10**30, DIMS, settings, tensors)


def test_wide_settings_of_few_numbers_are_refused_by_shape() -> None:
    # The tensors hold more numbers than dim or hidden, and dim × hidden would be a terabyte.
    wide = {**moved(MLP).tensors(), "blocks.0.up.bias": np.zeros(600_000, np.float32)}
    with pytest.raises(InputError, match=r"down.weight: .*\[5, 10\].*\[500000, 500000\]"):
        MLP.build(500_000, DIMS, {**MLP(DIM).settings(), "hidden": 500_000}, wide)


def test_a_folder_that_does_not_hold_together_is_damaged(tmp_path: Path) -> None:
    adaptor = moved(MLP)
    adaptor.save(tmp_path)
    header = tmp_path / "adaptor.json"
    header.write_text(header.read_text().replace('"hidden": 5', '"hidden": 6'))
    with pytest.raises(DamagedIndexError, match=r"down.weight: .*\[5, 10\].*\[6, 10\]"):
        Adaptor.load(tmp_path)


@every_kind
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hiden": 3}, "'hiden' is not known; choose among"),
        ({"rotated": 2}, "rotated is 2; expected a whole number from 0 to 1"),
        ({"rotated": 0.5}, "rotated is 0.5; expected a whole number from 0 to 1"),
    ],
)
def test_settings_of_no_use_are_refused_at_the_start(kind: Any, settings: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        started(kind, **settings)


@pytest.mark.parametrize("hidden", [0, 2.5, "4"])
def test_a_hidden_layer_that_is_no_width_is_refused(hidden: Any) -> None:
    with pytest.raises(InputError, match="expected a whole number from 1"):
        MLP(DIM, hidden=hidden)


def test_the_settings_give_the_shape_of_the_perceptrons() -> None:
    assert MLP(8).settings() == {"hidden": 4, "blocks": 1, "rotated": 0}
    assert DeepMLP(8).settings() == {"hidden": 4, "blocks": 2, "rotated": 0}
    adaptor = MLP(8, hidden=3, blocks=2)
    shapes = {name: tuple(parameter.shape) for name, parameter in adaptor.named_parameters()}
    assert shapes["blocks.1.down.weight"] == (3, 8)
    assert shapes["blocks.1.up.weight"] == (8, 3)


def test_the_perceptron_is_the_formula() -> None:
    """ĉ = c + up(LayerNorm(ReLU(down(c)))) for a vector of length √dim, by numpy in float64."""
    adaptor, vectors = moved(MLP), rows(4).astype(np.float64)
    weights = {name.removeprefix("blocks.0."): value.astype(np.float64) for name, value in adaptor.tensors().items()}
    scaled = vectors * np.sqrt(DIM)
    hidden = np.maximum(scaled @ weights["down.weight"].T + weights["down.bias"], 0)
    normed = (hidden - hidden.mean(1, keepdims=True)) / np.sqrt(hidden.var(1, keepdims=True) + 1e-5)
    normed = normed * weights["norm.weight"] + weights["norm.bias"]
    expected = scaled + normed @ weights["up.weight"].T + weights["up.bias"]
    np.testing.assert_allclose(adaptor.transform(vectors * np.sqrt(DIM)), expected, atol=1e-4)


def test_blocks_follow_each_other() -> None:
    deep = moved(DeepMLP)
    tensors = deep.tensors()
    found = rows()
    for number in (0, 1):
        one = {name.replace(f".{number}.", ".0."): tensors[name] for name in tensors if f".{number}." in name}
        single = MLP.build(DIM, DIMS, MLP(DIM).settings(), one)
        # The second perceptron sees what the first made at that length, where an adaptor of its own would scale it.
        scaled = torch.from_numpy(found * np.float32(np.sqrt(DIM)))
        found = ((scaled + single.change(scaled)) / np.sqrt(DIM)).detach().numpy()
    np.testing.assert_allclose(deep.transform(rows()), found, atol=1e-5)
