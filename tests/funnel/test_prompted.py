"""An index keeps the prompts and the width it was built with, and encodes by them ever after."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from funnel import FunnelIndex
from funnel.encoding.encoders import DEFAULT_ENCODER
from funnel.encoding.models import load_model
from funnel.errors import DamagedIndexError, InputError
from funnel.reports.pages import bench_queries
from tests.funnel.cli.test_main import refused, run
from tests.funnel.corpora import documents
from tests.funnel.storage.test_settings import crafted

WIDTH = 128
QUESTIONS = ["how do I open a file", "sort a list"]
PROMPTS: dict[str, Any] = {"query_prompt": "query: ", "document_prompt": "passage: ", "truncate_dim": WIDTH}


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [str(document["text"]) for document in documents(40)]


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    request.getfixturevalue("minilm")  # skips where the encoder is not at hand
    path = tmp_path_factory.mktemp("prompted") / "index"
    FunnelIndex.build(
        texts[:30], path, encoder=DEFAULT_ENCODER, adaptor="identity", dtype="float32", progress=False, **PROMPTS
    )
    return path


def cosines(rows: np.ndarray, texts: list[str], prompt: str, dim: int | None = WIDTH) -> float:
    model = load_model(DEFAULT_ENCODER, "cpu")
    expected = model.encode(texts, prompt=prompt, truncate_dim=dim, normalize_embeddings=True)
    return float(np.einsum("ij,ij->i", rows, np.asarray(expected)).min())


def test_they_are_used_again_by_every_call_that_encodes(folder: Path, texts: list[str], tmp_path: Path) -> None:
    index = FunnelIndex.open(folder)  # the default model, by the name in the manifest
    assert index.dim == WIDTH
    assert cosines(index.encode_queries(QUESTIONS), QUESTIONS, "query: ") >= 0.998
    (tmp_path / "asked.txt").write_text("\n".join(QUESTIONS))
    assert cosines(bench_queries(index, tmp_path / "asked.txt").vectors, QUESTIONS, "query: ") >= 0.998
    index.add([{"_id": f"n{number}", "text": text} for number, text in enumerate(texts[30:])])
    index.export(tmp_path / "rows.npy")
    assert cosines(np.load(tmp_path / "rows.npy"), texts, "passage: ") >= 0.998
    index.compact(progress=False)
    again = FunnelIndex.open(folder, encoder=load_model(DEFAULT_ENCODER, "cpu"))
    assert cosines(again.encode_queries(QUESTIONS), QUESTIONS, "query: ") >= 0.998
    said = str(again.info())
    assert "'query: ' before queries, 'passage: ' before documents" in said


@pytest.mark.usefixtures("minilm")
def test_an_index_that_is_built_again_has_the_prompts_of_then(tmp_path: Path) -> None:
    options: dict[str, Any] = {"encoder": DEFAULT_ENCODER, "adaptor": "identity", "progress": False}
    FunnelIndex.build(QUESTIONS, tmp_path, query_prompt="query: ", **options)
    index = FunnelIndex.open(tmp_path)
    index.warm_up()
    FunnelIndex.build(QUESTIONS, tmp_path, query_prompt="question: ", overwrite=True, **options)
    index.refresh()
    assert cosines(index.encode_queries(QUESTIONS), QUESTIONS, "question: ", None) >= 0.998


@pytest.mark.usefixtures("minilm")
def test_an_index_of_before_prompts_were_kept_opens(tmp_path: Path) -> None:
    FunnelIndex.build(QUESTIONS, tmp_path, encoder=DEFAULT_ENCODER, adaptor="identity", progress=False)

    def older(manifest: dict[str, Any]) -> None:
        for name in PROMPTS:
            del manifest["settings"][name]

    crafted(tmp_path, older)
    index = FunnelIndex.open(tmp_path)
    assert cosines(index.encode_queries(QUESTIONS), QUESTIONS, "", None) >= 0.998
    assert index.search(QUESTIONS[0], k=1)[0].text == QUESTIONS[0]


@pytest.mark.parametrize(
    ("key", "value"),
    [("query_prompt", 5), ("document_prompt", "x" * 5_000), ("truncate_dim", 0), ("truncate_dim", True)],
)
def test_a_crafted_one_is_refused(key: str, value: object, tmp_path: Path) -> None:
    FunnelIndex.build(np.eye(4, dtype=np.float32), tmp_path, progress=False)
    crafted(tmp_path, lambda manifest: manifest["settings"].update({key: value}))
    with pytest.raises(DamagedIndexError, match=f"settings.{key} is"):
        FunnelIndex.open(tmp_path)


def test_without_an_encoder_there_is_nothing_that_they_could_be_for(tmp_path: Path) -> None:
    given: tuple[dict[str, Any], ...] = ({"query_prompt": "query: "}, {"document_prompt": ""}, {"truncate_dim": 2})
    for options in given:
        with pytest.raises(InputError, match=r"has vectors, and query_prompt, .* give the encoder that made the"):
            FunnelIndex.build(np.eye(4, dtype=np.float32), tmp_path / "index", progress=False, **options)
    assert not (tmp_path / "index").exists()


@pytest.mark.usefixtures("minilm")
def test_the_command_line_takes_them(texts: list[str], tmp_path: Path) -> None:
    corpus, path = tmp_path / "docs.jsonl", tmp_path / "index"
    corpus.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    options = ["--query-prompt", "query: ", "--document-prompt", "passage: ", "--truncate-dim", WIDTH]
    run(["build", corpus, path, "--adaptor", "identity", "--quiet", *options])
    settings = FunnelIndex.open(path).manifest.settings
    assert {name: getattr(settings, name) for name in PROMPTS} == PROMPTS
    assert "query: " in run(["info", path]).stdout
    said = refused(["build", corpus, tmp_path / "other", "--quiet", "--query-prompt", "search_query"])
    assert "'search_query', which is no prompt of the encoder" in said
    assert "gives 384 dims" in refused(["build", corpus, tmp_path / "other", "--quiet", "--truncate-dim", 500])
