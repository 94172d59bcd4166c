"""The encoder of an opened index."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from funnel import FunnelIndex
from funnel.encoding import query_encoder
from funnel.encoding.encoders import DEFAULT_ENCODER, load_encoder
from funnel.encoding.models import local_folder
from funnel.encoding.query_encoder import QueryEncoder
from funnel.errors import EncoderError
from tests.funnel.storage.helpers import settings


def test_it_is_loaded_once_however_many_threads_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[Any] = []

    def slowly(source: Any, **_options: Any) -> Any:
        loads.append(source)
        time.sleep(0.05)
        return load_encoder(lambda texts: np.ones((len(texts), 2)))

    monkeypatch.setattr(query_encoder, "load_encoder", slowly)
    encoder = QueryEncoder("name", settings(), 2, "cpu")
    with ThreadPoolExecutor(8) as pool:
        loaded = list(pool.map(lambda _: encoder.load(), range(8)))
    assert loads == ["name"]
    assert all(one is loaded[0] for one in loaded)


@pytest.mark.usefixtures("minilm")
def test_warm_up_loads_the_model_once_and_no_text_waits_for_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []

    def counted(name: str, **options: Any) -> Any:
        loads.append(name)
        return load_encoder(name, **options)

    FunnelIndex.build(["one text", "another"], tmp_path, encoder=DEFAULT_ENCODER, adaptor="identity", progress=False)
    monkeypatch.setattr(query_encoder, "load_encoder", counted)
    index = FunnelIndex.open(tmp_path, device="cpu")
    assert loads == []
    with ThreadPoolExecutor(8) as pool:
        waited: list[Future[Any]] = [pool.submit(index.warm_up) for _ in range(4)]
        waited += [pool.submit(lambda: index.search("one text", 1)) for _ in range(4)]
        for one in waited:
            one.result()
    index.search("another", 1)
    assert loads == [DEFAULT_ENCODER]
    with pytest.raises(EncoderError, match="built from vectors"):
        FunnelIndex.build(np.eye(4, dtype="f4"), tmp_path / "vectors", progress=False).warm_up()


def test_an_object_with_ways_of_its_own_for_queries_and_documents() -> None:
    class Own:
        def encode_query(self, texts: list[str]) -> Any:
            return np.tile([1.0, 0.0], (len(texts), 1))

        def encode_document(self, texts: list[str]) -> Any:
            return np.tile([0.0, 1.0], (len(texts), 1))

    encoder = load_encoder(Own())
    assert encoder.encode(["a"]).tolist() == [[0.0, 1.0]]
    assert encoder.encode_query(["a"]).tolist() == [[1.0, 0.0]]


def _named(name: str, path: Path, given: str | None = None) -> QueryEncoder:
    return QueryEncoder(given, settings(encoder=name, encoder_reopenable=True), 384, "cpu", path)


@pytest.fixture
def model() -> Path:
    found = local_folder(DEFAULT_ENCODER)
    if found is None:
        pytest.skip("all-MiniLM-L6-v2 is not on this machine")
    return found


def test_an_index_names_no_folder(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "someone").mkdir()
    for name in ("someone/model", "model"):  # names on the hub that are folders here
        (tmp_path / name).symlink_to(model)
        with pytest.raises(EncoderError, match=r"not on this machine.*allow_download=True"):
            _named(name, tmp_path / "index").load()
    refused = (
        "./index/model",
        "./model",
        "../model",
        "..",
        "a/b/c",
        str(model),
        "~/model",
        "a--b/c",
        "",
        "x" * 97,
        "a\n",
    )
    for name in refused:
        with pytest.raises(EncoderError, match=r"no name on the hub.*encoder="):
            _named(name, tmp_path / "index").load()


def test_the_callers_folder_is_read_unless_it_is_inside_the_index(model: Path, tmp_path: Path) -> None:
    assert _named(str(model), tmp_path, str(model)).load().dim == 384
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "model").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "index" / "model")
    with pytest.raises(EncoderError, match="lies inside of the index"):
        _named("someone/model", tmp_path / "index", str(tmp_path / "link")).load()


@pytest.mark.usefixtures("model")
def test_the_default_model_is_loaded_by_its_name(tmp_path: Path) -> None:
    assert _named(DEFAULT_ENCODER, tmp_path).load().name == DEFAULT_ENCODER
    assert _named("all-MiniLM-L6-v2", tmp_path).load().dim == 384
