"""The code of docs/encoders.md runs as it stands; the default model takes the place of those that are not here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from funnel.encoding.encoders import DEFAULT_ENCODER
from funnel.encoding.models import local_folder
from funnel.encoding.prompts import DOCUMENT_NAMES, QUERY_NAMES

PAGE = (Path(__file__).parents[2] / "docs" / "encoders.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
MODELS = re.compile(r'"(?:intfloat|BAAI|nomic-ai)/[\w.-]+"')


@pytest.mark.usefixtures("minilm")
def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    assert len(BLOCKS) == 6
    for block in BLOCKS:
        exec(compile(MODELS.sub(repr(str(local_folder(DEFAULT_ENCODER))), block), "docs/encoders.md", "exec"), names)
    said = {path.parts[-3]: path.read_text() for path in tmp_path.glob("*-index/generations/*.json")}
    assert set(said) == set(re.findall(r'"([a-z0-9]+-index)"', PAGE))
    for name, prompt in (
        ("e5", "query: "),
        ("bge", "passages: "),
        ("nomic", "search_query: "),
        ("own", "search_query: "),
    ):
        assert f'{prompt}"' in said[f"{name}-index"]


def test_the_names_of_prompts_are_those_that_are_known() -> None:
    for names in (QUERY_NAMES, DOCUMENT_NAMES):
        assert ", ".join(f"`{name}`" for name in names) in " ".join(PAGE.split())
