"""Folders of every format open, and answer as they did when they were written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from funnel import FunnelIndex
from tests.golden.make import HERE, answers, changed, encoder_of

GOLDEN = [(path.parts[-2], path.parts[-1]) for path in sorted(HERE.glob("[0-9]*/*")) if path.is_dir()]
# Its bytes are of the FAISS that wrote it; what it finds is the same where it is made again.
pytestmark = pytest.mark.filterwarnings("ignore:.*making the coarse index again.*was written by")


ROUNDING = 1e-3  # of scores, kept to four decimals


@pytest.fixture(params=GOLDEN, ids="-".join)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Any, dict[str, Any]]:
    """A copy of the folder, its encoder, and what it answered."""
    number, name = request.param
    shutil.copytree(HERE / number / name, tmp_path / name)
    said = json.loads((HERE / number / "answers.json").read_text())
    return tmp_path / name, encoder_of(name), said[name]


def same(found: Any, said: Any) -> bool:
    """Whether both are equal, scores up to rounding."""
    if isinstance(said, dict):
        return bool(found.keys() == said.keys() and all(same(found[key], said[key]) for key in said))
    if isinstance(said, list):
        return len(found) == len(said) and all(map(same, found, said))
    return bool(abs(found - said) < ROUNDING if isinstance(said, float) else found == said)


def test_it_answers_as_it_did(golden: tuple[Path, Any, dict[str, Any]]) -> None:
    path, encoder, said = golden
    with FunnelIndex.open(path, encoder=encoder) as index:
        assert same(answers(index), said["now"])


def test_it_can_be_changed(golden: tuple[Path, Any, dict[str, Any]]) -> None:
    path, encoder, said = golden
    with FunnelIndex.open(path, encoder=encoder) as index:
        assert same(answers(changed(index)), said["later"])
