"""The command line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from funnel import FunnelIndex
from funnel.cli.main import cli
from tests.funnel.clustered import clustered_rows
from tests.funnel.corpora import documents, flip_byte, segment_file

ROOT = Path(__file__).resolve().parents[3]
COMMANDS = ("build", "search", "explain", "tune", "add", "delete", "compact", "upgrade", "bench", "check", "demo")


def run(arguments: Sequence[object], **options: object) -> Result:
    """Run a command that is to succeed."""
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments], **options)  # type: ignore[arg-type]
    assert done.exit_code == 0, done.output
    return done


def refused(arguments: Sequence[object], **options: object) -> str:
    """Run a command that is to fail: exit code 2, one line on standard error beside the bars; gives the line."""
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments], **options)  # type: ignore[arg-type]
    assert done.exit_code == 2, (done.output, done.exception)
    lines = [line for line in done.stderr.splitlines() if line and "%|" not in line]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("Error: ")
    assert "Traceback" not in done.output
    return lines[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_an_example(command: str) -> None:
    assert f"Example: funnel {command}" in run([command, "--help"]).output


def test_help_of_all() -> None:
    said = run(["--help"]).output
    assert "Example: funnel" in said
    for command in COMMANDS:
        assert f"\n  {command} " in said


def test_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "funnel", "--help"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert "Usage:" in done.stdout
    assert done.stderr == ""
    done = subprocess.run(
        [sys.executable, "-m", "funnel", "search", "nowhere", "x"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 2
    assert done.stderr == f"Error: {ROOT / 'nowhere'} does not exist: build an index there first\n"


def test_a_warning_is_one_line(graph_folder: Path, copied: Callable[[Path], Path]) -> None:
    folder = copied(graph_folder)
    flip_byte(segment_file(folder, "coarse.faiss"))
    command = [sys.executable, "-m", "funnel", "explain", str(folder), "--recall", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"Warning: {folder}: making the coarse index again from the vectors:")
    assert json.loads(done.stdout)[0]["recall_lower_bound"] == 1.0


def test_build_and_search_by_vector(tmp_path: Path) -> None:
    rows, asked = clustered_rows(300), clustered_rows(40, seed=2)
    np.save(tmp_path / "rows.npy", rows)
    np.save(tmp_path / "queries.npy", asked)
    index = tmp_path / "index"
    built = run(
        ["build", tmp_path / "rows.npy", index, "--queries", tmp_path / "queries.npy", "--dims", "16,32",
         "--coarse", "flat", "--seed", 3, "--quiet"]
    )  # fmt: skip
    assert "300 rows of 64 dims, flat over 16 dims" in built.stdout
    assert "certified on 40 real queries" in built.stdout
    opened = FunnelIndex.open(index)
    assert opened.manifest.ladder == (16, 32, 64)
    assert opened.manifest.settings.seed == 3
    found = run(["search", index, "--vector", tmp_path / "queries.npy", "-k", 3, "--recall", 1, "--json"])
    lines = [json.loads(line) for line in found.stdout.splitlines()]
    assert len(lines) == 40
    exact, scores = opened.search_vectors(asked, 3, recall=1.0)
    assert [[hit["id"] for hit in line["hits"]] for line in lines] == exact.tolist()
    assert np.allclose([[hit["score"] for hit in line["hits"]] for line in lines], scores, atol=1e-6)
    assert lines[1]["query"].endswith("queries.npy:1")
    shown = run(["search", index, "--vector", tmp_path / "queries.npy", "-k", 2])
    assert shown.stderr.count("\n") == 1  # the plan and what it promises
    assert shown.stdout.count("\n") == 40 * 4
    np.save(tmp_path / "one.npy", asked[1])
    one = run(["search", index, "--vector", tmp_path / "one.npy", "-k", 3, "--recall", 1, "--json"])
    hits = json.loads(one.stdout)["hits"]
    assert [hit["id"] for hit in hits] == exact[1].tolist()
    assert np.allclose([hit["score"] for hit in hits], scores[1], atol=1e-6)


@pytest.fixture(scope="module")
def model_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of 20 texts, built on the command line with the default encoder."""
    request.getfixturevalue("minilm")  # skips where the encoder is not at hand
    folder = tmp_path_factory.mktemp("cli")
    corpus = folder / "docs.jsonl"
    corpus.write_text("\n".join(json.dumps(document) for document in documents(20)))
    run(["build", corpus, folder / "index", "--quiet"])
    return folder / "index"


def test_search_for_text(model_folder: Path) -> None:
    done = run(["search", model_folder, "counting cursors", "-k", 2])
    assert "\ncounting cursors\n" in done.stdout
    assert "cursor" in done.stdout.splitlines()[2]
    as_json = run(["search", model_folder, "password", "-k", 1, "--json"])
    hit = json.loads(as_json.stdout)["hits"][0]
    assert set(hit) == {"id", "score", "title", "text", "metadata"}
    assert hit["metadata"]["year"] == 1900 + int(hit["id"][1:])
    assert as_json.stderr == ""


def test_search_for_lines_of_standard_input(model_folder: Path) -> None:
    done = run(["search", model_folder, "-k", 1, "--json"], input="password\n\n  clock \n")
    assert [json.loads(line)["query"] for line in done.stdout.splitlines()] == ["password", "clock"]


def test_explain(graph_folder: Path) -> None:
    table = run(["explain", graph_folder]).stdout
    assert "certified on 600 real queries" in table
    for budget in ("recall 0.8", "recall 0.9", "recall 0.95", "recall 0.99", "recall 1"):
        assert budget in table
    one = run(["explain", graph_folder, "--recall", 0.9, "-k", 5]).stdout
    assert one.startswith("recall 0.9 at k=5: ")
    (line,) = json.loads(run(["explain", graph_folder, "--recall", 0.9, "--batch", 32, "--json"]).stdout)
    assert line["batch"] == 32
    assert line["recall_lower_bound"] >= 0.9
    assert len(json.loads(run(["explain", graph_folder, "--json"]).stdout)) == 5


def test_tune(graph_folder: Path, copied: Callable[[Path], Path], unseen: np.ndarray, tmp_path: Path) -> None:
    path = copied(graph_folder)
    np.save(tmp_path / "queries.npy", unseen)
    said = run(["tune", path, "--queries", tmp_path / "queries.npy", "--quiet"]).output
    assert f"{path}: generation 2; certified on 300 real queries" in said
    assert "recall 0.9" in said
    assert FunnelIndex.open(path).manifest.generation == 2
    assert "no queries at nowhere.txt" in refused(["tune", path, "--queries", "nowhere.txt"])


def test_budgets_on_the_tail(graph_folder: Path, unseen: np.ndarray, tmp_path: Path) -> None:
    asked = ["--recall", 0.8, "--share", 0.6]
    one = run(["explain", graph_folder, *asked]).stdout
    assert one.startswith("recall 0.8 for 60 % of queries at k=10: ")
    (line,) = json.loads(run(["explain", graph_folder, *asked, "--json"]).stdout)
    assert 0.6 <= line["share_lower_bound"] <= line["share"] <= 1
    assert line["certificate"]["share"] == 0.6
    np.save(tmp_path / "queries.npy", unseen[:2])
    (both,) = json.loads(run(["explain", graph_folder, *asked, "--batch", 2, "--json"]).stdout)
    done = run(["search", graph_folder, "--vector", tmp_path / "queries.npy", *asked])
    flat = both["plan"]["shortlist"] == 0  # what is cheapest for two queries depends on the machine
    assert ("exact: flat search" if flat else "recall@10 ≥ 0.8 for at least 60 % of queries") in done.stderr


def test_bench(graph_folder: Path, unseen: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("funnel.reports.bench.SECONDS_PER_FIGURE", 0.02)
    np.save(tmp_path / "unseen.npy", unseen)
    done = run(["bench", graph_folder, "--queries", tmp_path / "unseen.npy", "--out", tmp_path / "deep" / "out"])
    assert "0.95" in done.stdout
    assert {path.name for path in (tmp_path / "deep" / "out").iterdir()} == {
        "results.json", "frontier.png", "report.html",
    }  # fmt: skip
    results = json.loads((tmp_path / "deep" / "out" / "results.json").read_text())
    assert results["n_queries"] == 300
    refused(["bench", graph_folder, "--batch", 0, "--out", tmp_path])


def test_check(graph_folder: Path, copied: Callable[[Path], Path]) -> None:
    folder = copied(graph_folder)
    assert run(["check", folder]).stdout.endswith(": ok\n")
    deep = run(["check", folder, "--deep"]).stdout
    assert "order.npy is a permutation" in deep
    assert "true scores" in deep
    (folder / "stray").write_text("")
    assert "stray" in run(["check", folder]).stdout
    flip_byte(segment_file(folder, "coarse.faiss"))
    assert "rebuildable" in run(["check", folder]).stdout
    flip_byte(segment_file(folder, "norms.npy"))
    assert "norms.npy" in refused(["check", folder])


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "funnel", "--debug", "check", str(tmp_path)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode != 0
    assert "Traceback (most recent call last)" in done.stderr
    assert "NotAnIndexError" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["search", "INDEX", "x", "-k", "many"], "'many' is not a valid integer"),
        (["build", "only-one"], "Missing argument 'INDEX'"),
        (["build", "a.npy", "b", "--dims", "32,x"], "not a list of widths"),
        (["explode"], "No such command"),
        (["search", "INDEX", "x", "--speed"], "No such option"),
        (["search", "INDEX", "x", "--vector", "y.npy"], "give --hybrid 0.5 too"),
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], said: str) -> None:
    assert said in refused(arguments)


def test_words_beside_vectors_and_words_alone(tmp_path: Path) -> None:
    rows = clustered_rows(30)
    corpus = tmp_path / "docs.jsonl"
    given = [{**one, "vector": row.tolist()} for one, row in zip(documents(30), rows, strict=True)]
    corpus.write_text("\n".join(json.dumps(one) for one in given))
    index = tmp_path / "index"
    run(["build", corpus, index, "--quiet"])
    np.save(tmp_path / "q.npy", rows[:2])
    np.save(tmp_path / "one.npy", rows[4])
    both = run(["search", index, "part 7", "--vector", tmp_path / "one.npy", "--hybrid", 0.5, "--json"])
    line = json.loads(both.stdout)
    assert line["query"] == "part 7"
    assert {hit["id"] for hit in line["hits"]} >= {"d4", "d7"}
    piped = run(["search", index, "--vector", tmp_path / "q.npy", "--hybrid", 0.5, "--json"], input="part 7\npart 9\n")
    assert [json.loads(line)["query"] for line in piped.stdout.splitlines()] == ["part 7", "part 9"]
    alone = run(["search", index, "part 7", "--hybrid", 1, "-k", 1])
    assert alone.stderr == "words alone, by BM25\n"
    assert "  d7" in alone.stdout
    assert "give one for each" in refused(["search", index, "x", "--vector", tmp_path / "q.npy", "--hybrid", 0.5])
    assert "standard input holds no query" in refused(["search", index, "--hybrid", 1], input="\n \n")
    assert "line 2 of standard input is not UTF-8" in refused(
        ["search", index, "--hybrid", 1, "--json"], input=b"part\n\xff\n"
    )


def test_words_without_quotes_are_one_text(model_folder: Path) -> None:
    def lines(*words: str) -> str:
        return run(["search", model_folder, *words, "-k", 1, "--json"]).stdout

    assert lines("counting", "cursors") == lines("counting cursors")
    assert "the text is empty" in refused(["search", model_folder, " "])


def test_ctrl_c_is_one_line(model_folder: Path) -> None:
    command = [sys.executable, "-m", "funnel", "search", str(model_folder), "--hybrid", "1", "--json"]
    with subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, text=True, cwd=ROOT) as asking:
        assert asking.stdin is not None
        assert asking.stdout is not None
        assert asking.stderr is not None
        asking.stdin.write("clock\n")
        asking.stdin.flush()
        assert json.loads(asking.stdout.readline())["query"] == "clock"
        asking.send_signal(signal.SIGINT)
        assert asking.wait(60) == 130
        assert asking.stderr.read() == "Interrupted\n"


def test_a_pipe_that_closes_is_silent(model_folder: Path) -> None:
    command = [sys.executable, "-m", "funnel", "search", str(model_folder), "--hybrid", "1", "--json"]
    with subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, text=True, cwd=ROOT) as asking:
        assert asking.stdin is not None
        assert asking.stdout is not None
        assert asking.stderr is not None
        asking.stdout.close()
        asking.stdin.write("clock\n" * 500)
        asking.stdin.close()
        assert asking.wait(60) == 141
        assert asking.stderr.read() == ""
