"""The manifest: golden bytes, and every hostile or broken value refused."""

import copy
import json
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from funnel.errors import FormatVersionError, InputError
from funnel.storage.layout import BOUNDS, FORMAT_VERSION
from funnel.storage.manifest import BlockHashes, FileEntry, encode, parse
from tests.funnel.storage.helpers import settings

ID = "000001-0123abcd"
SHA = "0" * 63 + "a"
SEGMENT_FILES = ("vectors.npy", "norms.npy", "order.npy", "ids.npy")


def document() -> dict[str, Any]:
    files = {f"segments/{ID}/{name}": {"sha256": SHA, "bytes": 10} for name in SEGMENT_FILES}
    files[f"segments/{ID}/vectors.npy"]["blocks"] = {"bytes": 6, "sha256": [SHA, SHA]}
    return {
        "format_version": 1,
        "generation": 1,
        "created": "2026-01-02T03:04:05+00:00",
        "versions": {"numpy": "2.0"},
        "d": 4,
        "ladder": [2, 4],
        "counts": {"rows": 3},
        "segments": [{"id": ID, "rows": 3, "coarse": "hnsw"}],
        "tombstones": [],
        "adaptor": None,
        "calibration": None,
        "settings": msgspec.to_builtins(settings(coarse="hnsw")) | {"later": {"a": 1}},
        "files": files,
    }


GOLDEN = (
    '{\n  "adaptor": null,\n  "calibration": null,\n  "counts": {\n    "rows": 3\n  },\n'
    '  "created": "2026-01-02T03:04:05+00:00",\n  "d": 4,\n  "files": {\n'
    f'    "segments/{ID}/ids.npy": {{\n      "bytes": 10,\n      "sha256": "{SHA}"\n    }},\n'
    f'    "segments/{ID}/norms.npy": {{\n      "bytes": 10,\n      "sha256": "{SHA}"\n    }},\n'
    f'    "segments/{ID}/order.npy": {{\n      "bytes": 10,\n      "sha256": "{SHA}"\n    }},\n'
    f'    "segments/{ID}/vectors.npy": {{\n      "blocks": {{\n        "bytes": 6,\n        "sha256": [\n'
    f'          "{SHA}",\n          "{SHA}"\n        ]\n      }},\n      "bytes": 10,\n'
    f'      "sha256": "{SHA}"\n    }}\n  }},\n'
    '  "format_version": 1,\n  "generation": 1,\n  "ladder": [\n    2,\n    4\n  ],\n'
    f'  "segments": [\n    {{\n      "coarse": "hnsw",\n      "id": "{ID}",\n      "rows": 3\n    }}\n  ],\n'
    '  "settings": {\n    "adaptor": {\n      "isometric": false,\n      "kind": "pca",\n      "why": ""\n'
    '    },\n    "candidates": [],\n    "coarse": "hnsw",\n    "coarse_asked": null,\n    "coarse_library": null,\n'
    '    "coarse_settings": {},\n    "coarse_width": null,\n    "document_prompt": null,\n'
    '    "documents": false,\n    "dtype": "float16",\n    "encoder": null,\n'
    '    "encoder_reopenable": false,\n    "exact_encoding": false,\n    "float16_kept": null,\n'
    '    "kept": null,\n    "later": {\n      "a": 1\n    },\n    "memory_mb": null,\n    "own": false,\n'
    '    "query_prompt": null,\n    "seed": 0,\n    "truncate_dim": null\n  },\n'
    '  "tombstones": [],\n  "versions": {\n    "numpy": "2.0"\n  }\n}\n'
).encode()


def test_golden_bytes() -> None:
    assert encode(document()) == GOLDEN


def test_golden_bytes_are_read() -> None:
    manifest = parse(GOLDEN)
    assert (manifest.d, manifest.ladder, manifest.counts) == (4, (2, 4), {"rows": 3})
    assert manifest.segments[0].id == ID
    assert manifest.settings == settings(coarse="hnsw")
    assert manifest.paths("segments", ID)["ids.npy"] == f"segments/{ID}/ids.npy"
    assert manifest.paths("segments", "000001-99999999") == {}
    blocks = manifest.files[f"segments/{ID}/vectors.npy"].blocks
    assert blocks is not None
    assert (blocks.block_bytes, blocks.sha256) == (6, (SHA, SHA))


@given(st.integers(0, 2**50), st.one_of(st.none(), st.integers(1, 2**30)))
def test_file_entries_come_back_as_they_were_written(size: Any, block_bytes: Any) -> None:
    number = -(-size // block_bytes) if block_bytes else 0
    if number > 1000:
        return
    entry = FileEntry(SHA, size, BlockHashes(block_bytes, (SHA,) * number) if block_bytes else None)
    path = f"segments/{ID}/ids.npy"
    changed = document()
    changed["files"][path] = msgspec.to_builtins(entry)
    assert parse(encode(changed)).files[path] == entry


def change(path: Sequence[str | int], value: Any) -> Callable[[dict[str, Any]], None]:
    def apply(target: Any) -> None:
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = value

    return apply


def add_file(path: str) -> Callable[[dict[str, Any]], None]:
    return change(("files", path), {"sha256": SHA, "bytes": 1})


FILE = f"segments/{ID}/vectors.npy"


@pytest.mark.parametrize(
    ("alter", "words"),
    [
        (add_file("/etc/passwd"), "path"),
        (add_file("../outside"), "path"),
        (add_file(f"segments/{ID}/../../x"), "path"),
        (add_file(f"adaptor/{ID}/adaptor.json"), "does not name that part"),
        (change(("d",), 0), "d is 0"),
        (change(("d",), True), "d is True"),
        (change(("d",), 4.0), "d is 4.0"),
        (change(("d",), BOUNDS.dimensions + 1), "65,537|65537"),
        (change(("ladder",), []), "ladder"),
        (change(("ladder",), [4, 2]), "rising"),
        (change(("ladder",), [2, 2]), "rising"),
        (change(("ladder",), [2, 5]), "5"),
        (change(("ladder",), list(range(1, 100))), "99 values"),
        (change(("counts",), {"rows": -1}), "counts.rows"),
        (change(("counts",), [1]), "counts"),
        (change(("generation",), 0), "generation"),
        (change(("generation",), 10**400), "generation"),
        (change(("created",), "yesterday"), "created"),
        (change(("versions",), {"numpy": 2}), "versions.numpy"),
        (change(("segments",), {}), "segments"),
        (change(("segments",), [{"id": "..", "rows": 1}]), "id"),
        (change(("segments", 0, "rows"), 2**41), "rows"),
        (change(("segments",), [{"id": ID, "rows": 1}] * 2), "twice"),
        (change(("segments",), [{"id": "000001-0123abce", "rows": 1}]), "does not name that part"),
        (change(("tombstones",), [{"id": ID, "rows": 1}]), "has no tombstones.npy"),
        (change(("adaptor",), "../../home"), "adaptor"),
        (change(("calibration",), ID), "has no calibration.json"),
        (change(("settings",), None), "settings"),
        (change(("settings", "seed"), "0"), "settings.seed is '0': Expected `int`"),
        (change(("segments", 0, "exact"), 1), "exact is 1: Expected `bool`"),
        (change(("files",), []), "files"),
        (change(("files", FILE, "sha256"), SHA.upper()), "sha256"),
        (change(("files", FILE, "sha256"), 5), "sha256"),
        (change(("files", FILE, "bytes"), -1), "bytes"),
        (change(("files", FILE, "bytes"), 2**51), "bytes"),
        (change(("files", FILE, "blocks", "bytes"), 0), "blocks.bytes"),
        (change(("files", FILE, "blocks", "sha256"), [SHA]), "1 block hashes, expected 2"),
        (change(("files", FILE, "blocks", "sha256"), [SHA] * 3), "3 block hashes, expected 2"),
        (change(("files", FILE, "blocks", "sha256"), [SHA, "x"]), "blocks.sha256\\[1\\] is .x.: "),
        (change(("files", FILE), 7), "is 7: Expected `object`"),
        (lambda target: target["files"].pop(FILE), "has no vectors.npy"),
        (change(("format_version",), 0), "format_version"),
        (change(("format_version",), "1"), "format_version"),
        (change(("extra",), 1), "extra"),
        (lambda target: target.pop("d"), "missing required field `d`"),
    ],
)
def test_hostile_values_are_refused_by_name(alter: Any, words: str) -> None:
    changed = copy.deepcopy(document())
    alter(changed)
    with pytest.raises(InputError, match=words):
        parse(json.dumps(changed).encode())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"null",
        b"[1]",
        b"{",
        b"[" * 100_000,
        GOLDEN.replace(b'"seed": 0', b'"seed": NaN'),
        GOLDEN.replace(b'"seed": 0', b'"seed": 0, "seed": 1'),
        GOLDEN.replace(b'"d": 4', b'"d": ' + b"9" * 5000),
        GOLDEN.replace(b'"d": 4', rb'"d": "\ud800"'),
        GOLDEN.replace(b'"d": 4', rb'"d": 4, "\ud800": 4'),
    ],
    ids=lambda data: repr(data[:12]),
)
def test_broken_json_is_refused(data: Any) -> None:
    with pytest.raises(InputError):
        parse(data)


def test_a_newer_format_names_both_versions_and_the_remedy() -> None:
    changed = {"format_version": FORMAT_VERSION + 1, "whatever": "comes"}
    with pytest.raises(FormatVersionError, match=rf"version {FORMAT_VERSION + 1}.*up to {FORMAT_VERSION}.*upgrade"):
        parse(json.dumps(changed).encode())


def test_numpy_numbers_are_written_as_plain_ones() -> None:
    changed = document()
    changed["settings"] |= {"seed": np.int64(3), "kept": np.float32(0.5)}
    assert parse(encode(changed)).settings == settings(coarse="hnsw", seed=3, kept=0.5)


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, b"bytes", np.zeros(2)])
def test_values_without_a_place_in_json_are_refused(value: Any) -> None:
    changed = document()
    changed["settings"] = {"value": value}
    with pytest.raises(InputError, match="JSON"):
        encode(changed)


def test_a_long_hostile_value_does_not_make_a_long_message() -> None:
    changed = document()
    changed["created"] = "x" * 1_000_000
    with pytest.raises(InputError) as caught:
        parse(encode(changed))
    assert len(str(caught.value)) < 300
