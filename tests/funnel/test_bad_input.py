"""Every kind of bad input: its error in Python, and one line with exit code 2 on the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from funnel import Budget, CoarseIndexError, FunnelIndex, Plan
from funnel.adaptors import Adaptor, Rotation, default_widths, make_adaptor
from funnel.cli.main import cli
from funnel.errors import BudgetError, DamagedIndexError, FormatVersionError, FunnelError, InputError, NotAnIndexError
from funnel.matryoshka import (
    AdaptiveClassifier,
    MultiGranularityClassifier,
    MultiGranularityCrossEntropy,
    compare_truncations,
)
from tests.funnel.cli.test_main import refused
from tests.funnel.clustered import clustered_rows
from tests.funnel.corpora import flip_byte, hashed_words, segment_file
from tests.funnel.engine.test_generation import rewrite_manifest
from tests.funnel.odd_numbers import MILLISECONDS, NO_COUNTS, NO_NUMBERS, NO_SHARES, SHARES


def with_value(value: float, *numbers: int) -> np.ndarray:
    rows = clustered_rows(30)
    rows[list(numbers), -1] = value
    return rows


def with_zero(number: int) -> np.ndarray:
    rows = clustered_rows(30)
    rows[number] = 0
    return rows


BAD_ROWS = [
    (with_value(np.nan, 4, 17), r"2 rows .*row 4 \(NaN\), 17 \(NaN\)"),
    (with_value(np.inf, 5), r"row 5 \(infinite\)"),
    (with_value(-np.inf, 29), r"row 29 \(infinite\)"),
    (with_zero(11), r"row 11 \(all zero\)"),
    (np.empty((0, 64), np.float32), "empty"),
]


@pytest.mark.parametrize(("bad", "said"), BAD_ROWS)
def test_rows_that_cannot_be_indexed(bad: np.ndarray, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        FunnelIndex.build(bad, tmp_path / "index", progress=False)
    np.save(tmp_path / "rows.npy", bad)
    with pytest.raises(InputError, match=said):
        FunnelIndex.build(tmp_path / "rows.npy", tmp_path / "index", progress=False)
    assert re.search(said, refused(["build", tmp_path / "rows.npy", tmp_path / "index", "--quiet"]))
    with pytest.raises(NotAnIndexError):
        FunnelIndex.open(tmp_path / "index")


@pytest.mark.parametrize(("bad", "said"), BAD_ROWS[:4])
def test_queries_that_cannot_be_used(bad: np.ndarray, said: str, graph_folder: Path, tmp_path: Path) -> None:
    index = FunnelIndex.open(graph_folder)
    for ask in (index.search_vectors, index.search):
        with pytest.raises(InputError, match=said):
            ask(bad, 5)
    with pytest.raises(InputError, match=said):
        FunnelIndex.build(clustered_rows(30), tmp_path / "index", queries=bad, progress=False)
    np.save(tmp_path / "queries.npy", bad)
    assert re.search(said, refused(["search", graph_folder, "--vector", tmp_path / "queries.npy"]))


def test_wrong_dimensions(graph: FunnelIndex, graph_folder: Path, tmp_path: Path) -> None:
    narrow = clustered_rows(3, 32)
    for ask in (graph.search_vectors, graph.search):
        with pytest.raises(InputError, match=r"\[3, 32\]; expected \[n_queries, 64\]"):
            ask(narrow, 5)
    for odd in (narrow[0], narrow[:, :, None]):
        with pytest.raises(InputError, match="64"):
            graph.search_vectors(odd, 5)
    with pytest.raises(InputError, match="the queries have 32 dims, the corpus 64"):
        FunnelIndex.build(clustered_rows(30), tmp_path / "index", queries=narrow, progress=False)
    np.save(tmp_path / "queries.npy", narrow)
    assert "64" in refused(["search", graph_folder, "--vector", tmp_path / "queries.npy"])
    for shape in ((4,), (2, 3, 4), (3, 0)):
        with pytest.raises(InputError, match="rows"):
            FunnelIndex.build(np.ones(shape, np.float32), tmp_path / "index", progress=False)


def test_files_of_vectors_that_hold_no_array(graph_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.npy").touch()
    np.savez(tmp_path / "several.npz", one=np.ones(3), two=np.ones(3))
    assert "empty.npy is not a .npy file of numbers" in refused(
        ["search", graph_folder, "--vector", tmp_path / "empty.npy"]
    )
    assert "several.npz is not a .npy file of numbers" in refused(
        ["search", graph_folder, "--vector", tmp_path / "several.npz"]
    )


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (["a", "b", "a", "c", "b"], r"2 duplicate ids: 'a', 'b'"),
        ([1, 2, 3, 2, 5], "1 duplicate ids: 2"),
        (["a", "b", "", None, "e"], "2 ids are missing or empty: rows 2, 3"),
        (["a", "b"], "2 ids for 5 vectors"),
        (["a", 1, "b", "c", "d"], "all text or all whole numbers: row 1"),
    ],
)
def test_ids_of_vectors(ids: list[Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        FunnelIndex.build(clustered_rows(5), tmp_path / "index", ids=ids, progress=False)


def lines(*records: object) -> str:
    return "".join((record if isinstance(record, str) else json.dumps(record)) + "\n" for record in records)


GOOD = {"_id": "a", "vector": [1.0, 2.0]}
BAD_LINES = [
    (lines(GOOD, {"_id": "b", "vector": [1, 2]}, GOOD), r"\ba\b"),
    (lines(GOOD, {"vector": [1.0, 2.0]}), r"docs\.jsonl:2: _id is missing or empty"),
    (lines(GOOD, {"_id": "", "vector": [1.0, 2.0]}), r"docs\.jsonl:2: _id is missing or empty"),
    (lines(GOOD, "{not json"), r"docs\.jsonl:2: not JSON"),
    (lines(GOOD, "", "[1, 2]"), r"docs\.jsonl:3: expected a JSON object"),
    (lines(GOOD, {"_id": "b", "vector": [1.0, 2.0, 3.0]}), r"docs\.jsonl:2: vector of dimension 3, the first has 2"),
    (lines(GOOD, {"_id": "b", "text": "no vector"}), r"docs\.jsonl:2: has no vector"),
    (lines(GOOD, '{"_id": "b", "vector": [NaN, 1.0]}'), r"docs\.jsonl:2: vector has NaN"),
    (lines(GOOD, {"_id": "b", "vector": [0.0, 0.0]}), r"docs\.jsonl:2: vector has .*zero"),
    (lines(GOOD, {"_id": "b", "vector": "far"}), r"docs\.jsonl:2: vector is not a list of numbers"),
    ("", "empty"),
    ("\n\n", "empty"),
]


@pytest.mark.parametrize(("text", "said"), BAD_LINES)
def test_lines_that_cannot_be_used(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        FunnelIndex.build(path, tmp_path / "index", progress=False)
    assert re.search(said, refused(["build", path, tmp_path / "index", "--quiet"]))


def test_bytes_that_are_not_text(tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_bytes(lines(GOOD).encode() + b'{"_id": "\xff"}\n')
    with pytest.raises(InputError, match=r"docs\.jsonl:2: byte 9 of the line is not UTF-8"):
        FunnelIndex.build(path, tmp_path / "index", progress=False)


def test_csv_lines(tmp_path: Path) -> None:
    path = tmp_path / "docs.csv"
    path.write_text("_id,text\na,one\nb,two,three\n")
    with pytest.raises(InputError, match=r"docs\.csv:3: 3 columns, the header has 2"):
        FunnelIndex.build(path, tmp_path / "index", encoder=hashed_words, progress=False)


@pytest.mark.parametrize(
    "name", ["rows.npy", "docs.parquet", "docs.xml", "nothing.jsonl", "folder"]
)  # what is written there is no such file
def test_files_that_cannot_be_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
    elif "nothing" not in name:
        path.write_bytes(b"neither of these formats")
    with pytest.raises(InputError, match=re.escape(str(path))):
        FunnelIndex.build(path, tmp_path / "index", progress=False)
    assert name in refused(["build", path, tmp_path / "index", "--quiet"])


def kind(value: object) -> str:
    return type(value).__name__


@pytest.mark.parametrize("k", NO_COUNTS, ids=kind)
def test_k(k: object, graph: FunnelIndex, graph_folder: Path, unseen: np.ndarray, tmp_path: Path) -> None:
    for ask in (graph.search_vectors, graph.search):
        with pytest.raises(InputError, match=r"k is .*expected a whole number from 1 to 1000000, such as 10"):
            ask(unseen[:2], k)  # type: ignore[arg-type, call-overload]
    with pytest.raises(InputError, match="k is"):
        graph.explain(k)  # type: ignore[arg-type]
    if isinstance(k, int) and not isinstance(k, bool) and abs(k) < 2**64:
        np.save(tmp_path / "queries.npy", unseen[:2])
        for rest in (["search", graph_folder, "--vector", tmp_path / "queries.npy"], ["explain", graph_folder]):
            assert f"k is {k}; expected" in refused([*rest, "-k", k])
        assert f"k is {k}; expected" in refused(["bench", graph_folder, "-k", k, "--out", tmp_path / "out"])


def test_k_beyond_the_calibration(graph: FunnelIndex, unseen: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"calibrated for k up to 100.*recall=1\.0"):
        graph.search_vectors(unseen[:2], 101)
    assert graph.search_vectors(unseen[:2], 101, recall=1.0)[0].shape == (2, 101)


@pytest.mark.parametrize("value", NO_SHARES, ids=kind)
def test_no_recall_and_no_share(value: object, graph: FunnelIndex, unseen: np.ndarray) -> None:
    refused_as("recall", {"recall": value}, graph, unseen)
    refused_as("share", {"recall": 0.9, "share": value}, graph, unseen)


@pytest.mark.parametrize("value", NO_NUMBERS, ids=kind)
def test_no_milliseconds(value: object, graph: FunnelIndex, unseen: np.ndarray) -> None:
    refused_as("latency_ms", {"latency_ms": value}, graph, unseen)
    for ask in (graph.search_vectors, graph.search):
        with pytest.raises(InputError, match="deadline_ms is"):
            ask(unseen[:2], 5, deadline_ms=value)  # type: ignore[arg-type, call-overload]


def refused_as(name: str, budget: dict[str, Any], graph: FunnelIndex, unseen: np.ndarray) -> None:
    """Whatever was asked for and remembered before: True equals 1.0."""
    for known in ({"recall": 1.0}, {"recall": 0.9, "share": 1.0}):
        graph.search_vectors(unseen[:2], 5, **known)  # type: ignore[arg-type]
        graph.search(unseen[:2], 5, **known)  # type: ignore[call-overload]
    for ask in (graph.search_vectors, graph.search):
        with pytest.raises(InputError, match=f"{name} is"):
            ask(unseen[:2], 5, **budget)
    with pytest.raises(InputError, match=f"{name} is"):
        graph.explain(5, **budget)


@pytest.mark.parametrize("value", SHARES)
def test_odd_recalls_and_shares_that_are_right(value: Any, graph: FunnelIndex, unseen: np.ndarray) -> None:
    for budget in ({"recall": value}, {"recall": 0.9, "share": value}):
        assert graph.search_vectors(unseen[:2], 5, **budget)[0].shape == (2, 5)
        assert graph.explain(5, **budget).certificate.k == 5


@pytest.mark.parametrize("value", MILLISECONDS)
def test_odd_milliseconds_that_are_right(value: Any, graph: FunnelIndex, unseen: np.ndarray) -> None:
    assert len(graph.search(unseen[:2], 5, deadline_ms=value)) == 2
    assert graph.search_vectors(unseen[:2], 5, deadline_ms=value)[0].shape == (2, 5)
    if value > 1000 or value < 0.01:  # what is between is measured for seconds
        too_little = pytest.raises(BudgetError, match="Allow more time") if value < 0.01 else nullcontext()
        with too_little:
            graph.search_vectors(unseen[:2], 5, latency_ms=value)


@pytest.mark.parametrize("option", ["--recall", "--latency-ms", "--deadline-ms", "-k"])
@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "-inf", "ten", "True", "", "1e999"])
def test_odd_numbers_on_the_command_line(
    option: str, value: str, graph_folder: Path, unseen: np.ndarray, tmp_path: Path
) -> None:
    np.save(tmp_path / "queries.npy", unseen[:2])
    said = refused(
        [
            "search",
            graph_folder,
            "--vector",
            tmp_path / "queries.npy",
            f"{option}={value}" if option != "-k" else f"-k{value}",
        ]
    )
    assert option.strip("-").replace("-", "_") in said.replace("-", "_")


@pytest.mark.parametrize(
    "budget",
    [{"recall": 0}, {"recall": 1.01}, {"recall": -0.5}, {"recall": float("nan")}, {"recall": "high"},
     {"latency_ms": 0}, {"latency_ms": -5}, {"latency_ms": float("nan")}, {"latency_ms": float("inf")},
     {"share": 0, "recall": 0.9}, {"share": 1.5, "recall": 0.9}, {"share": 0.95}, {"share": 0.95, "latency_ms": 5}],
)  # fmt: skip
def test_budgets(
    budget: dict[str, Any], graph: FunnelIndex, graph_folder: Path, unseen: np.ndarray, tmp_path: Path
) -> None:
    (name, value), *_ = budget.items()
    for ask in (graph.search_vectors, graph.search):
        with pytest.raises(InputError, match=f"{name} is"):
            ask(unseen[:2], 5, **budget)
    with pytest.raises(InputError, match=f"{name} is"):
        graph.explain(5, **budget)
    with pytest.raises(InputError, match=f"{name} is"):
        Budget(**budget)
    if not isinstance(value, str):
        np.save(tmp_path / "queries.npy", unseen[:2])
        option = [part for key, given in budget.items() for part in ("--" + key.replace("_", "-"), given)]
        for command in (["search", graph_folder, "--vector", tmp_path / "queries.npy"], ["explain", graph_folder]):
            assert f"{name} is" in refused([*command, *option])


@pytest.mark.parametrize("query", [None, 5, {"text": "x"}, [None], ["a", 5], [[1.0], [1.0, 2.0]], object()])
def test_queries_of_other_kinds(query: object, graph: FunnelIndex) -> None:
    with pytest.raises(InputError, match="quer"):
        graph.search(query, 5)  # type: ignore[call-overload]


@pytest.mark.parametrize("query", ["a text", ["a", "b"], None, [[1.0], [1.0, 2.0]]])
def test_vectors_of_other_kinds(query: object, graph: FunnelIndex) -> None:
    with pytest.raises(InputError, match="queries"):
        graph.search_vectors(query, 5)  # type: ignore[arg-type]


# Every parameter, and values of other kinds.

ODD: list[Any] = [
    *(None, True, 5, -1, 1.5, float("nan"), float("inf"), 10**400, 2**63, 1j, b"ab", "", "a\0b", "no\nname", "abc"),
    *([], (), {}, [0], [64, 32], [999], ["64"], [None], [True], [[1], [2, 3]], {1, 2}, {"a": 1}, {"a": {"b": "c"}}),
    *(object(), int, np.array(3), np.array([{}, None], object), torch.ones(2, 3), Path("nowhere")),
]
RIGHT: dict[str, tuple[Any, ...]] = {  # what is no nonsense among them
    "memory_mb": (5, 1.5),
    "seed": (5,),
    "coarse_settings": ({},),
    "batch": (5,),
    "plan.effort": (5,),
    "plan.shortlist": (5,),
    "plan.stages": ((),),
}
FLAGS = ("progress", "exact_encoding", "overwrite", "allow_download", "run", "strict", "flat")
OPTIONAL = ("qrels", "dims", "memory_mb", "ids", "coarse", "coarse_settings", "text", "title", "id", "vector",
            "metadata", "truncate_dim", "query_prompt", "where", "budget")  # fmt: skip
WORDS = ("adaptor", "coarse", "device", "dtype", "path", "qrels")  # tested where they are read


def odd_values(name: str) -> list[Any]:
    def right(value: Any) -> bool:
        if value is None or isinstance(value, bool):
            return name in (OPTIONAL if value is None else FLAGS)
        if isinstance(value, str | Path):
            return name in WORDS and value not in ("", "a\0b")
        return any(type(value) is type(one) and value == one for one in RIGHT.get(name, ()))

    return [value for value in ODD if not right(value)]


BUILT = ["adaptor", "qrels", "dims", "memory_mb", "ids", "seed", "progress", "coarse", "coarse_settings", "dtype",
         "exact_encoding", "device", "text", "title", "id", "vector", "metadata", "overwrite", "truncate_dim",
         "query_prompt"]  # fmt: skip
PLANS: dict[str, Callable[[Any], Plan]] = {
    "plan.effort": lambda value: Plan(value, 20),
    "plan.shortlist": lambda value: Plan(0, value),
    "plan.stages": lambda value: Plan(0, 20, value),
}


def calls(index: FunnelIndex, name: str, folder: Path) -> list[Callable[[Any], object]]:
    """What takes a parameter of this name."""
    rows = clustered_rows(6)
    made: list[Callable[[Any], object]] = []
    if name in BUILT:
        made.append(lambda value: FunnelIndex.build(rows, folder / "new", **{"progress": False, name: value}))
    if name in ("device", "verify", "placement", "allow_download"):
        made.append(lambda value: FunnelIndex.open(index.path, **{name: value}))
    if name == "path":
        made += [FunnelIndex.open, index.export]
    if name in ("seed", "progress"):
        made.append(lambda value: index.tune(**{name: value}))
    if name in ("memory_mb", "progress"):
        made.append(lambda value: index.compact(**{name: value}))
    if name in ("text", "title", "id", "vector", "metadata", "progress"):
        made.append(lambda value: index.add(rows, **{name: value}))
    if name in ("batch", "run"):
        made.append(lambda value: index.explain(**{name: value}))
    if name in PLANS:
        made.append(lambda value: index.search_vectors(rows, 5, plan=PLANS[name](value)))
    if name in ("where", "budget"):
        made += [lambda value: index.search(rows, **{name: value}), lambda value: index.explain(**{name: value})]
    others: dict[str, Callable[[Any], object]] = {
        "texts": index.encode_queries,
        "strict": lambda value: index.delete([0], strict=value),
        "flat": lambda value: index.export(folder / "rows.npy", flat=value),
        "sample": lambda value: index.audit(0.5, seed=value),
    }
    return made + ([others[name]] if name in others else [])


@pytest.mark.parametrize(
    "name", [*BUILT, "verify", "placement", "allow_download", "path", "batch", "run", "where", "budget", "texts",
             "strict", "flat", *PLANS]
)  # fmt: skip
def test_values_of_other_kinds(name: str, graph: FunnelIndex, tmp_path: Path) -> None:
    """One line that names the parameter, and nothing is built or changed."""
    taken, generation = calls(graph, name, tmp_path), graph.manifest.generation
    assert taken
    for call in taken:
        for value in odd_values(name):
            with pytest.raises((FunnelError, CoarseIndexError)) as caught:
                call(value)
            assert "\n" not in str(caught.value), value
    assert graph.manifest.generation == generation
    assert not any(tmp_path.iterdir())


LOGITS = {4: torch.ones(9, 3), 8: torch.ones(9, 3)}
PARTS: dict[str, Callable[[Any], object]] = {
    "kind": lambda value: make_adaptor(value, clustered_rows(30)),
    "sample": lambda value: make_adaptor("pca", value),
    "dims": lambda value: make_adaptor("pca", clustered_rows(30), dims=value),
    "seed": lambda value: make_adaptor("pca", clustered_rows(30), seed=value),
    "progress": lambda value: make_adaptor("pca", clustered_rows(30), progress=value),
    "matrix": Rotation,
    "rows": Rotation(np.eye(4, dtype=np.float32)).transform,
    "folder": Adaptor.load,
    "dim": default_widths,
    "classes": lambda value: MultiGranularityClassifier(8, value, [4, 8]),
    "shared": lambda value: MultiGranularityClassifier(8, 3, [4, 8], shared=value),
    "weights": lambda value: MultiGranularityCrossEntropy([4, 8], value),
    "label_smoothing": lambda value: MultiGranularityCrossEntropy([4, 8], label_smoothing=value),
    "logits": lambda value: MultiGranularityCrossEntropy([4, 8])(value, torch.zeros(2)),
    "embeddings": MultiGranularityClassifier(8, 3, [4, 8]),
    "full": lambda value: compare_truncations(value, torch.ones(2, 4)),
    "labels": lambda value: AdaptiveClassifier.fit({4: torch.ones(9, 3), 8: torch.ones(9, 3)}, value),
    "accuracy": lambda value: AdaptiveClassifier.fit(
        {4: torch.ones(9, 3), 8: torch.ones(9, 3)}, torch.zeros(9), accuracy=value
    ),
}
PARTS_RIGHT: dict[str, list[Any]] = {"dims": [None], "seed": [5], "progress": [True], "shared": [True], "dim": [5],
                                     "classes": [5], "weights": [None, [64, 32]], "accuracy": [None]}  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
def test_values_of_other_kinds_to_adaptors_and_matryoshka(name: str) -> None:
    for value in ODD:
        if any(type(value) is type(one) and value == one for one in PARTS_RIGHT.get(name, ())):
            continue
        with pytest.raises(FunnelError) as caught:
            PARTS[name](value)
        assert "\n" not in str(caught.value), value


def test_a_message_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        FunnelIndex.build(tmp_path / "no\nsuch.jsonl", tmp_path / "index")
    assert str(caught.value).endswith("no such.jsonl; check the path")


def test_the_command_line_itself(graph_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert "Did you mean 'build'?" in refused(["biuld"])
    assert "No such option '--nope'; see" in refused(["--nope"])
    assert "'--recall'" in refused(["search", graph_folder, "x", "--recal", "1"])
    assert "Missing argument 'INDEX'; see" in refused(["search"])
    assert "the path is empty" in refused(["search", "", "x"])
    assert "the path is empty" in refused(["build", graph_folder, tmp_path / "new", "--queries", ""])
    for plot in (tmp_path / "plan.xyz", tmp_path):
        assert f"--plot is {plot}; expected" in refused(["explain", graph_folder, "--plot", plot])
    for command in (["bench", graph_folder, "--out", file], ["export", graph_folder, file / "rows.npy"]):
        assert f"{file}" in (said := refused(command))
        assert "; give another path" in said
        assert ".tmp" not in said
    assert "nowhere.npy: No such file" in refused(["search", graph_folder, "--vector", tmp_path / "nowhere.npy"])


def test_an_error_that_nobody_foresaw_is_one_line(graph_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise KeyError("a\nb")

    monkeypatch.setattr(FunnelIndex, "open", fails)
    done = CliRunner().invoke(cli, ["explain", str(graph_folder)])
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: KeyError: ")
    assert "--debug" in done.stderr
    assert done.stderr.count("\n") == 1


# The index on disk.


def test_no_index_on_the_command_line(tmp_path: Path) -> None:
    for command in (["search", tmp_path, "x"], ["explain", tmp_path], ["bench", tmp_path], ["check", tmp_path]):
        assert "holds no index" in refused(command)
    assert "does not exist" in refused(["explain", tmp_path / "nowhere"])


def test_a_folder_with_other_files_is_not_built_into(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OSError, match="holds other files"):
        FunnelIndex.build(clustered_rows(5), tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def newer(folder: Path) -> str:
    rewrite_manifest(folder, lambda document: document.update(format_version=99))
    return "99"


def damaged(folder: Path) -> str:
    flip_byte(segment_file(folder, "vectors.npy"))
    return "vectors.npy"


@pytest.mark.parametrize(("change", "kind"), [(newer, FormatVersionError), (damaged, DamagedIndexError)])
def test_an_index_that_cannot_be_opened(
    change: Callable[[Path], str], kind: type[Exception], graph_folder: Path, copied: Callable[[Path], Path]
) -> None:
    folder = copied(graph_folder)
    named = change(folder)
    with pytest.raises(kind, match=named):
        FunnelIndex.open(folder)
    for command in (["search", folder, "x"], ["explain", folder], ["bench", folder], ["check", folder]):
        assert named in refused(command)


def test_texts_without_an_encoder_on_the_command_line(graph_folder: Path, text_folder: Path) -> None:
    assert "built from vectors" in refused(["search", graph_folder, "a text"])
    assert "cannot be loaded by name" in refused(["search", text_folder, "a text"])


def test_an_encoder_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "docs.jsonl").write_text(lines({"_id": "a", "text": "one"}))
    (tmp_path / "model").mkdir()
    said = refused(["build", tmp_path / "docs.jsonl", tmp_path / "index", "--encoder", tmp_path / "model", "--quiet"])
    assert "cannot load the encoder" in said


def test_half_of_a_surrogate_pair_never_reaches_the_encoder(texts: FunnelIndex) -> None:
    for call in (lambda: texts.search(["a file", "\ud800 file"]), lambda: texts.encode_queries(["a file", "\ud800"])):
        with pytest.raises(InputError, match="query 1 has a lone surrogate at character 0; it is not valid Unicode"):
            call()
