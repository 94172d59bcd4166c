"""What a fresh `funnel search` imports: every module here would be waited for before the first answer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from funnel import FunnelIndex
from funnel.encoding.encoders import Encoder
from funnel.encoding.models import local_folder
from funnel.encoding.stored import read_stored
from tests.funnel.corpora import documents

ROOT = Path(__file__).resolve().parents[2]
NEVER = (
    "sentence_transformers", "transformers", "pandas", "scipy", "sklearn", "datasets", "matplotlib", "pyarrow", "beir",
    "pytrec_eval", "requests", "wordllama", "rabitqlib",
)  # fmt: skip
FOR_TEXTS = ("tokenizers", "huggingface_hub")
SCRIPT = """
import json, sys
from funnel.cli.main import cli
cli(sys.argv[1:], standalone_mode=False)
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


@pytest.fixture(scope="module")
def folder(minilm: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = local_folder(minilm.name)
    if folder is None or read_stored(folder) is None:
        pytest.skip("all-MiniLM-L6-v2 here is not of the kind that is read without transformers")
    path = tmp_path_factory.mktemp("start") / "index"
    FunnelIndex.build(documents(40), path, encoder=minilm, adaptor="identity", progress=False)
    return path


def search(*arguments: object) -> tuple[dict[str, object], set[str]]:
    """What `funnel search --json` answers in a process of its own, and what it imported."""
    command = [sys.executable, "-c", SCRIPT, "search", "--json", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    answer, imported = done.stdout.splitlines()
    return json.loads(answer), set(json.loads(imported))


def test_a_search_from_text_imports_no_transformers(folder: Path, minilm: Encoder) -> None:
    answer, imported = search(folder, "a text to find", "-k", 3)
    assert not imported.intersection(NEVER)
    expected = FunnelIndex.open(folder, encoder=minilm).search("a text to find", 3)
    scores = [hit["score"] for hit in answer["hits"]]  # type: ignore[attr-defined]
    np.testing.assert_allclose(scores, [hit.score for hit in expected], atol=2e-3)


def test_a_search_with_a_vector_imports_no_tokeniser_either(folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "query.npy", np.ones(384, dtype=np.float32))
    answer, imported = search(folder, "--vector", tmp_path / "query.npy")
    assert not imported.intersection((*NEVER, *FOR_TEXTS))
    assert len(answer["hits"]) == 10  # type: ignore[arg-type]
