"""The package as a user gets it: built, checked, installed as the README says into an empty environment, used.

`make wheel` runs this. Each step prints how long it took; the first that fails ends it.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter

import funnel

ROOT = Path(__file__).parents[1]
MODULES = ("argparse", "csv", "datetime", "email.message", "heapq", "json", "pathlib", "random", "socket", "statistics")
DOCUMENTS, QUERIES = 300, 100


def main() -> None:
    """Everything, in a temporary folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel = built(folder / "dist")
        environment = installed(folder / "environment", wheel)
        elsewhere = folder / "elsewhere"
        elsewhere.mkdir()
        use(elsewhere, environment)
        check_types(elsewhere, environment)


def run(step: str, command: Sequence[str | Path], variables: Mapping[str, str] | None = None, cwd: Path = ROOT) -> str:
    """Run one step; gives what it printed. SystemExit with it, and its errors, where it fails."""
    started = perf_counter()
    done = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True)
    print(f"{step}: {perf_counter() - started:.1f} s", flush=True)
    if done.returncode:
        sys.exit(f"{step} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def built(dist: Path) -> Path:
    """The wheel, checked; [tool.check-wheel-contents] compares it with the source folders."""
    run("build wheel and sdist", [sys.executable, "-m", "build", "--outdir", dist, ROOT])
    run("twine", [sys.executable, "-m", "twine", "check", "--strict", *dist.iterdir()])
    (wheel,) = dist.glob("*.whl")
    run("check-wheel-contents", [Path(sys.executable).with_name("check-wheel-contents"), wheel])
    return wheel


def block(heading: str, language: str) -> str:
    """The first block of code below a heading of the README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").split(f"\n## {heading}\n", 1)[1]
    return re.split(r"^```.*\n", text.split(f"```{language}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def installed(place: Path, wheel: Path) -> dict[str, str]:
    """The variables of an environment with the wheel in it, by the README's commands with the wheel for the name."""
    run("environment", [sys.executable, "-m", "venv", place])
    variables = {**os.environ, "PATH": f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}", "VIRTUAL_ENV": str(place)}
    variables.pop("PYTHONPATH", None)
    commands = block("Install", "sh")
    assert "'funnel-retrieval[cpu]'" in commands, "the README installs it for a CPU first"
    (torch,) = re.findall(r"torch==[\d.]+\d", commands)
    assert torch in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines(), (
        f"{torch} is not what is tested"
    )
    for command in commands.replace("funnel-retrieval", str(wheel)).splitlines():
        run(command.split("#")[0].strip(), ["bash", "-euc", command], variables, place)
    run("consistency", ["python", "-m", "pip", "check"], variables, place)
    size = sum(file.stat().st_size for file in place.rglob("*") if not file.is_symlink() and file.is_file())
    print(f"{size / 1e6:,.0f} MB on disk", flush=True)
    code = "import funnel, torch; print(funnel.__file__, torch.version.cuda)"
    where = run("import", ["python", "-c", code], variables, place)
    assert str(place) in where, f"{where}: another package"
    assert where.split()[-1] == "None", f"{where}: no CPU build of torch"
    return variables


def use(folder: Path, variables: Mapping[str, str]) -> None:
    """The first quickstart, and the commands, over docstrings of Python's own modules; no network is needed."""
    offline = {**variables, "HF_HUB_OFFLINE": "1"}
    print(run("quickstart", ["python", "-W", "error", "-c", block("Quickstart", "python")], offline, folder))
    texts = docstrings()
    write(folder / "corpus.jsonl", [{"_id": title, "title": title, "text": text} for title, text in texts[:DOCUMENTS]])
    write(folder / "queries.jsonl", [{"_id": title, "text": text.split(".")[0]} for title, text in texts[-QUERIES:]])
    for command in (
        "funnel --help",
        "funnel build corpus.jsonl index --queries queries.jsonl",
        "funnel search index 'read rows of a table' -k 3",
        "funnel bench index --queries queries.jsonl --out report",
    ):
        assert run(command, ["bash", "-euc", command], offline, folder), f"{command} printed nothing"


def docstrings() -> list[tuple[str, str]]:
    """Names and docstrings of some modules' functions, classes and methods."""
    found: dict[str, str] = {}
    for name in MODULES:
        members = [(f"{name}.{title}", each) for title, each in vars(importlib.import_module(name)).items()]
        classes = [(title, each) for title, each in members if inspect.isclass(each)]
        members += [(f"{title}.{inner}", each) for title, kind in classes for inner, each in vars(kind).items()]
        routines = [(title, each) for title, each in members if inspect.isroutine(each) or inspect.isclass(each)]
        found |= {title: text for title, each in routines if (text := inspect.getdoc(each))}
    return list(found.items())


def write(path: Path, records: Sequence[Mapping[str, str]]) -> None:
    """One object a line."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def check_types(folder: Path, variables: Mapping[str, str]) -> None:
    """What pyright makes of the public names, as installed: no type is unknown, or left to each checker's inference."""
    pyright = Path(sys.executable).with_name("pyright")
    command = [str(pyright), "--verifytypes", "funnel", "--ignoreexternal", "--outputjson"]
    started = perf_counter()
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)  # 1: any flaw anywhere
    symbols = json.loads(done.stdout)["typeCompleteness"]["symbols"]
    homes = {name: (getattr(funnel, name), home) for name, home in funnel._HOMES.items() if home.startswith("funnel.")}
    public = [f"{each.__module__ if isinstance(each, type) else home}.{name}" for name, (each, home) in homes.items()]
    mine = [each for each in symbols if f"{each['name']}.".startswith(tuple(f"{name}." for name in public))]
    flaws = [
        f"{each['name']}: {' '.join(one['message'] for one in each['diagnostics'])}"
        for each in mine
        if not each["isTypeKnown"] or each["isTypeAmbiguous"]
    ]
    print(f"pyright: {len(mine)} public names, {len(flaws)} without a known type: {perf_counter() - started:.1f} s")
    unseen = set(public) - {each["name"] for each in mine}
    if flaws or unseen:
        sys.exit("\n".join(flaws) or f"pyright saw nothing of {unseen}")


if __name__ == "__main__":
    main()
