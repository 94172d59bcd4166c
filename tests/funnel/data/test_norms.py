"""Norms that are not 1 are said once, as they were given."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from funnel import FunnelIndex
from funnel.data.corpus import Norms

ROWS = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
UNIT = ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True)
LONG = UNIT * np.linspace(0.31, 8.2, 40, dtype=np.float32)[:, None]
SAID = "the vectors have norms from 0.31 to 8.2: similarity is cosine, which does not see them\n"


@pytest.mark.parametrize("kind", ["array", "npy", "documents", "float64"])
def test_a_build_says_once_what_they_are(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "rows.npy", LONG)
    corpus: Any = {
        "array": LONG,
        "npy": tmp_path / "rows.npy",
        "documents": [{"text": "x", "vector": row.tolist()} for row in LONG],
        "float64": LONG.astype(np.float64),
    }[kind]
    FunnelIndex.build(corpus, tmp_path / "index", adaptor="identity")
    assert capsys.readouterr().err.count(SAID) == 1
    FunnelIndex.build(corpus, tmp_path / "index", adaptor="identity", progress=False, overwrite=True)
    assert "norms" not in capsys.readouterr().err


@pytest.mark.parametrize("corpus", [UNIT, UNIT.astype(np.float16), ["one text", "another one"]])
def test_nothing_is_said_of_norms_of_1_nor_of_what_an_encoder_gives(
    corpus: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def encode(texts: list[str]) -> np.ndarray:
        return 7.0 * np.eye(8)[: len(texts)]

    encoder = encode if isinstance(corpus, list) else None
    FunnelIndex.build(corpus, tmp_path, encoder=encoder, adaptor="identity")
    assert "norms" not in capsys.readouterr().err


def test_lengths_beyond_float32(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    FunnelIndex.build(UNIT.astype(np.float64) * 1e200, tmp_path, adaptor="identity")
    assert "norms from 1e+200 to 1e+200" in capsys.readouterr().err


def test_nothing_is_said_of_no_rows() -> None:
    assert str(Norms()) == ""
