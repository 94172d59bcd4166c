"""Loops that numba compiles: every kind of cell, every processor, and a second start that compiles nothing."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import indexes
from indexes import compiled

ALL_HALVES = np.arange(1 << 16, dtype=np.uint16)
FINITE = ALL_HALVES[np.isfinite(ALL_HALVES.view(np.float16))]
# Prints the largest error over every finite float16, and how often a loop was compiled anew.
SCRIPT = """
import numpy as np
from indexes import compiled
bits = np.arange(1 << 16, dtype=np.uint16)
bits = bits[np.isfinite(bits.view(np.float16))][:, None]
found = np.empty((1, len(bits)), np.float32)
compiled.dots(bits, np.ones((1, 1), np.float32), np.arange(len(bits))[None], 1, found)
print(np.abs(found[0] - bits.view(np.float16)[:, 0].astype(np.float64)).max())
print(sum(compiled.dots.stats.cache_misses.values()))
"""
WITHOUT = {
    "as it is": {},
    "AVX2": {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma,+f16c"},
}


def run(folder: Path, **environment: str) -> list[float]:
    """What the script prints, where the package lies in this folder."""
    variables = {name: value for name, value in os.environ.items() if name not in ("HOME", "NUMBA_CACHE_DIR")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT],
        cwd=folder,
        env={**variables, "PYTHONPATH": str(folder), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stderr
    return [float(word) for word in done.stdout.split()]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, copied without what was compiled before."""
    folder = tmp_path_factory.mktemp("installed")
    shutil.copytree(Path(indexes.__file__).parent, folder / "indexes", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", list(WITHOUT))
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names processors of one kind")
def test_every_float16_is_widened_exactly_and_a_second_start_compiles_nothing(installed: Path, name: str) -> None:
    assert run(installed, HOME=str(installed), **WITHOUT[name]) == [0.0, 1.0]
    assert run(installed, HOME=str(installed), **WITHOUT[name]) == [0.0, 0.0]


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names a processor of one kind")
def test_a_processor_that_does_not_widen_float16_takes_the_other_way() -> None:
    code = "from funnel.engine.rerank import loops; print(loops())"
    environment = {**os.environ, "NUMBA_CPU_NAME": "nehalem", "NUMBA_CPU_FEATURES": "+sse4.2,-f16c"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None"


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="permissions")
def test_where_nothing_can_be_kept_each_process_compiles_for_itself(installed: Path, tmp_path: Path) -> None:
    nowhere = tmp_path / "file"
    nowhere.write_bytes(b"")  # a folder cannot be made below it, whoever asks
    shutil.copytree(installed / "indexes", tmp_path / "indexes", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "indexes" / "__pycache__").write_bytes(b"")
    assert run(tmp_path, HOME=str(nowhere), XDG_CACHE_HOME=str(nowhere)) == [0.0, 1.0]


@given(
    kind=st.sampled_from(["float16", "float32", "int8"]),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 70)),
    count=st.integers(0, 12),
    seed=st.integers(0, 1_000),
    data=st.data(),
)
@settings(deadline=None)
def test_dots_and_the_best_of_them(
    kind: str, shape: tuple[int, int], count: int, seed: int, data: st.DataObject
) -> None:
    generator = np.random.default_rng(seed)
    matrix = (generator.standard_normal(shape) * (20 if kind == "int8" else 1)).astype(kind)
    queries = generator.standard_normal((3, shape[1])).astype(np.float32)
    rows, width = generator.integers(-1, shape[0], (3, count)), data.draw(st.integers(1, shape[1]))
    cells = matrix.view(np.uint16) if kind == "float16" else matrix
    expected = np.einsum(
        "qd,qsd->qs", queries[:, :width].astype(float), matrix[rows.clip(0)][..., :width].astype(float)
    )
    expected[rows < 0] = -np.inf
    found = np.empty(rows.shape, np.float32)
    compiled.dots(cells, queries, rows, width, found)
    np.testing.assert_allclose(found, expected, atol=1e-3 if kind == "int8" else 1e-4)
    keep = data.draw(st.integers(1, count)) if count else 0
    best, best_rows, places = (
        np.empty((3, keep), np.float32),
        np.empty((3, keep), np.int64),
        np.empty((3, keep), np.int64),
    )
    compiled.rerank(cells, queries, rows, width, np.empty(0, np.float32), best, best_rows, places)
    order = np.argsort(-found, axis=1, kind="stable")[:, :keep]
    np.testing.assert_array_equal(places, order)
    np.testing.assert_array_equal(best, np.take_along_axis(found, order, axis=1))
    np.testing.assert_array_equal(best_rows, np.take_along_axis(rows, order, axis=1))


@given(st.sampled_from(["float16", "float32", "int8"]), st.integers(1, 40), st.integers(1, 70), st.integers(0, 1_000))
@settings(deadline=None)
def test_products_with_every_row(kind: str, rows: int, width: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    matrix = (generator.standard_normal((rows, width)) * (20 if kind == "int8" else 1)).astype(kind)
    query, found = generator.standard_normal(width).astype(np.float32), np.empty(rows, np.float32)
    compiled.products(matrix.view(np.uint16) if kind == "float16" else matrix, query, found)
    np.testing.assert_allclose(found, matrix.astype(float) @ query.astype(float), atol=1e-3 if kind == "int8" else 1e-4)
