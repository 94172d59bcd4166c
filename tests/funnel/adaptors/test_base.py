from pathlib import Path
from typing import Any

import numpy as np
import pytest

from funnel.adaptors import PCA, Adaptor, Identity, adaptor_class, adaptor_kinds, make_adaptor, register
from funnel.errors import InputError


def rows(n: int = 40, dim: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)


def test_the_kinds_lead_to_their_classes() -> None:
    assert {"identity", "pca"} <= set(adaptor_kinds())
    assert adaptor_class("identity") is Identity
    assert adaptor_class("pca") is PCA


def test_every_kind_fits_transforms_and_comes_back_from_disk(tmp_path: Path) -> None:
    sample = rows()
    for kind in ("identity", "pca"):
        adaptor = make_adaptor(kind, sample, seed=3)
        adaptor.save(tmp_path / kind)
        again = Adaptor.load(tmp_path / kind)
        assert type(again) is type(adaptor)
        assert again.dim == adaptor.dim == 6
        assert again.checksum == adaptor.checksum
        np.testing.assert_array_equal(again.transform(sample), adaptor.transform(sample))
        assert adaptor.transform(sample).dtype == np.float32
        assert adaptor.transform(sample).shape == sample.shape


def test_a_sample_may_come_in_chunks() -> None:
    sample = rows()
    whole = make_adaptor("pca", sample)
    chunked = make_adaptor("pca", iter([sample[:7], sample[7:7], sample[7:]]))
    np.testing.assert_allclose(chunked.transform(sample), whole.transform(sample), atol=1e-5)


def test_float16_is_converted() -> None:
    half = rows().astype(np.float16)
    adaptor = make_adaptor("pca", half)
    assert adaptor.transform(half).dtype == np.float32


def test_checksums_tell_adaptors_apart() -> None:
    checksums = {
        make_adaptor("pca", rows(seed=1)).checksum,
        make_adaptor("pca", rows(seed=2)).checksum,
        Identity(6).checksum,
        Identity(7).checksum,
    }
    assert len(checksums) == 4


def test_an_unknown_kind_is_answered_with_those_known() -> None:
    with pytest.raises(InputError, match="'magic' is not known; choose one of attention, deep-mlp, identity"):
        make_adaptor("magic", rows())


@pytest.mark.parametrize("shape", [(6,), (3, 5), (2, 3, 6)])
def test_a_wrong_shape_is_refused(shape: Any) -> None:
    with pytest.raises(InputError, match=r"adaptor of dimension 6; give an array of shape \(n, 6\)"):
        Identity(6).transform(np.zeros(shape, np.float32))


@pytest.mark.parametrize("kind", ["identity", "pca"])
def test_no_rows_are_refused(kind: str) -> None:
    with pytest.raises(InputError, match="0 rows"):
        make_adaptor(kind, [])


def test_chunks_of_differing_widths_are_refused() -> None:
    with pytest.raises(InputError, match=r"shape \(40, 5\); give arrays of shape \(rows, 6\)"):
        make_adaptor("pca", [rows(dim=6), rows(dim=5)])


def test_a_vector_is_no_sample() -> None:
    with pytest.raises(InputError, match=r"shape \(6,\)"):
        make_adaptor("pca", [rows()[0]])


def test_a_kind_is_registered_once() -> None:
    with pytest.raises(ValueError, match="'identity' is registered twice"):
        register(type("Other", (Identity,), {}))


def test_a_dimension_below_one_is_refused() -> None:
    with pytest.raises(InputError, match="dim is 0; expected"):
        Identity(0)
