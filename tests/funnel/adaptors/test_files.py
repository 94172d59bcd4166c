import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from funnel.adaptors import PCA, Adaptor, Identity
from funnel.errors import DamagedIndexError, FormatVersionError, InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    PCA.fit(np.random.default_rng(0).normal(size=(20, 4))).save(tmp_path)
    return tmp_path


def change(folder: Path, **fields: Any) -> None:
    path = folder / "adaptor.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def replace_tensors(folder: Path, payload: Any) -> None:
    (folder / "adaptor.safetensors").write_bytes(payload)
    change(folder, sha256=hashlib.sha256(payload).hexdigest())


def test_the_bytes_on_disk_are_those_of_format_1(tmp_path: Path) -> None:
    Identity(4, (2, 4)).save(tmp_path)
    assert (tmp_path / "adaptor.safetensors").read_bytes() == b"\x08\0\0\0\0\0\0\0{}      "
    assert json.loads((tmp_path / "adaptor.json").read_text()) == {
        "format_version": 1,
        "kind": "identity",
        "dim": 4,
        "dims": [2, 4],
        "isometric": True,
        "settings": {},
        "sha256": "9bbcbf73561f6bc5d0a17ea6a2081feed2d1304e87602d8c502d9a5c4bd85576",
    }


def test_a_missing_folder_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        Adaptor.load(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["adaptor.json", "adaptor.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(DamagedIndexError, match=f"{name} is missing; restore the file"):
        Adaptor.load(folder)


def test_a_newer_format_is_refused(folder: Path) -> None:
    change(folder, format_version=2)
    with pytest.raises(FormatVersionError, match="format 2; this version reads up to 1"):
        Adaptor.load(folder)


def test_an_unknown_kind_is_an_input_error(folder: Path) -> None:
    change(folder, kind="magic")
    with pytest.raises(InputError, match="'magic' is not known"):
        Adaptor.load(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dim": 5}, r"\(4, 4\)\} and the settings \{\}, expected \{'matrix': \(5, 5\)\}"),
        ({"dim": 0}, r"Expected `int` >= 1 - at `\$.dim`"),
        ({"dim": True}, r"Expected `int`, got `bool` - at `\$.dim`"),
        ({"dim": "4"}, r"Expected `int`, got `str` - at `\$.dim`"),
        ({"dims": 4}, r"Expected `array`, got `int` - at `\$.dims`"),
        ({"dims": [1.5]}, r"Expected `int`, got `float` - at `\$.dims\[0\]`"),
        ({"dims": [3, 2]}, "expected rising widths from 1 to 4"),
        ({"settings": {"hidden": "9"}}, r"Expected `int`, got `str` - at `\$.settings\[...\]`"),
        ({"seen_queries": [1]}, r"Expected `str`, got `int` - at `\$.seen_queries\[0\]`"),
        ({"settings": {"hidden": 9}}, "the settings {'hidden': 9}"),
        ({"isometric": False}, "isometric is False, expected True"),
        ({"kind": "identity"}, r"holds neither tensors nor settings, and \['matrix'\]"),
        ({"sha256": "0" * 64}, "sha256 .* says 000000000000…"),
    ],
)
def test_a_description_that_does_not_fit_is_damage(folder: Path, fields: Any, message: str) -> None:
    change(folder, **fields)
    with pytest.raises(DamagedIndexError, match=message):
        Adaptor.load(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "does not describe an adaptor"),
        (b"\xff\xfe{", "does not describe an adaptor"),
        (b'{"\xff": 1}', "does not describe an adaptor"),
        (b"[" * 100_000, "does not describe an adaptor"),
        (b"[]", "Expected `object`, got `array`"),
        (b"{}", "missing required field `format_version`"),
    ],
)
def test_an_unreadable_description_is_damage(folder: Path, text: Any, message: str) -> None:
    (folder / "adaptor.json").write_bytes(text)
    with pytest.raises(DamagedIndexError, match=message):
        Adaptor.load(folder)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "not a safetensors file"),
        (b"\xff" * 64, "not a safetensors file"),
        (save({"matrix": np.eye(4)}), "is float64; expected finite float32"),
        (save({"matrix": np.full((4, 4), np.nan, np.float32)}), "expected finite float32"),
        (save({"matrix": 2 * np.eye(4, dtype=np.float32)}), "not orthogonal"),
        (save({}), r"the tensors are \{\}"),
    ],
)
def test_tensors_of_no_use_are_damage_even_with_a_right_checksum(folder: Path, payload: Any, message: str) -> None:
    replace_tensors(folder, payload)
    with pytest.raises(DamagedIndexError, match=message):
        Adaptor.load(folder)


@settings(max_examples=60)
@given(data=st.data())
def test_a_changed_or_cut_tensor_file_is_found(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    folder = tmp_path_factory.mktemp("adaptor")
    PCA(np.eye(3, dtype=np.float32)).save(folder)
    path = folder / "adaptor.safetensors"
    payload = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(payload) - 1))
    if data.draw(st.booleans()):
        payload[position] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del payload[position:]
    path.write_bytes(payload)
    with pytest.raises(DamagedIndexError, match="sha256"):
        Adaptor.load(folder)
