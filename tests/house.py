"""The plan of the house, measured: `make house` prints each figure beside what is asked, and fails where a gate does.

Rooms are the folders of funnel/, whose order stands in .importlinter. A move is a call that crosses from one file of
ours to another.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import numpy as np
from typing_extensions import TypeIs

from funnel import FunnelIndex

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for folder in ("funnel", "indexes") for path in (ROOT / folder).rglob("*.py"))
LOOSE, STATEMENTS, PARAMETERS, LINES, METHODS = 12, 12_500, 10, 60, 25
FILES, MOVES, CALLS = 9, 25, 40
# A user holds these, or writes them out in full: their parameters are what can be asked for.
WIDE = ("build", "search", "search_vectors", "build_index")
KERNELS = ("_kernels.py", "kernels.py", "torchbins.py")  # of Triton, whose parameters are pointers and strides


class Figure(NamedTuple):
    """One line: what it is, what was found, what is asked, whether it must hold, and whether it does."""

    name: str
    found: str
    asked: str
    gate: bool
    holds: bool


def main() -> None:
    """Print every figure; end with 1 where a gate does not hold."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}
    figures = [*shape(trees), contracts(), *roads()]
    for figure in figures:
        mark = "ok" if figure.holds else "FAILED" if figure.gate else "missed"
        gate = "gate" if figure.gate else ""
        print(f"{figure.name:<62} {figure.found:>14}   asked {figure.asked:<14} {gate:<4} {mark}")
    if any(figure.gate and not figure.holds for figure in figures):
        sys.exit("make house: a gate does not hold")


def shape(trees: Mapping[Path, ast.Module]) -> Iterator[Figure]:
    """What the sources say."""
    loose = [path.stem for path in (ROOT / "funnel").glob("*.py") if path.stem not in ("__init__", "__main__")]
    yield at_most("modules loose in funnel/", len(loose), LOOSE, gate=True)
    yield at_most("statements, without docstrings", sum(map(statements, trees.values())), STATEMENTS)
    circles = circles_of({module_of(path): imports(tree, path) for path, tree in trees.items()})
    yield at_most(f"circles of imports among files{said(circles)}", len(circles), 0, gate=True)
    names = Counter(
        node.name
        for path, tree in trees.items()
        if "integrations" not in path.parts
        for node in tree.body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    twice = [name for name, count in names.items() if count > 1]
    yield at_most(f"public class names used twice{said(twice)}", len(twice), 0, gate=True)
    functions = [(path, node) for path, tree in trees.items() for node in ast.walk(tree) if is_function(node)]
    widest = max(
        (
            (parameters(node), node.name)
            for path, node in functions
            if node.name not in WIDE and path.name not in KERNELS
        )
    )
    yield at_most(f"most parameters ({widest[1]})", widest[0], PARAMETERS, gate=True)
    long = [f"{path.stem}.{node.name}" for path, node in functions if length(node) > LINES]
    yield at_most(f"functions above {LINES} lines{said(long)}", len(long), 0, gate=True)
    classes = [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    most = max((sum(map(is_function, node.body)), node.name) for node in classes if node.name != "FunnelIndex")
    yield at_most(f"most methods of a class ({most[1]}), FunnelIndex apart", most[0], METHODS, gate=True)


def contracts() -> Figure:
    """The contracts of .importlinter: rooms in order and all named, none in a circle, what is forbidden."""
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run([sys.executable, "-c", command, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    kept = done.returncode == 0
    if not kept:
        print(done.stdout, done.stderr)
    return Figure("contracts of .importlinter", "kept" if kept else "broken", "kept", True, kept)


def roads() -> Iterator[Figure]:
    """What warm searches over a tiny index run through."""
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((600, 32)).astype(np.float32)

    def document(number: int) -> dict[str, object]:
        said = {"_id": str(number), "text": f"row {number}", "year": 2000 + number % 20}
        return {**said, "vector": rows[number % len(rows)]}

    queries = generator.standard_normal((256, 32)).astype(np.float32)
    with tempfile.TemporaryDirectory() as name:
        index = FunnelIndex.build(
            [document(i) for i in range(600)],
            Path(name) / "index",
            coarse="hnsw-sq8",
            queries=queries[:200],
            progress=False,
        )
        one, batch = queries[200], queries[200:232]
        ways: dict[str, Callable[[], object]] = {
            "one vector": lambda: index.search(one, recall=0.8),
            "a batch of 32": lambda: index.search(batch, recall=0.8),
            "a filter": lambda: index.search(one, recall=0.8, where="year >= 2010"),
            "a deadline": lambda: index.search(one, recall=0.8, deadline_ms=1_000),
        }
        for said_, call in ways.items():
            yield road(said_, call, one_vector=said_ == "one vector")
        index.add([document(600)])
        yield road("two segments", ways["one vector"], one_vector=False)


def road(name: str, call: Callable[[], object], one_vector: bool) -> Figure:
    """The files, moves between files and calls of one call, the third time that it is made."""
    call(), call()
    files: set[str] = set()
    counts = Counter[str]()
    inside = (str(ROOT / "funnel"), str(ROOT / "indexes"))

    def traced(frame: FrameType, event: str, _: object) -> None:
        file = frame.f_code.co_filename
        if event != "call" or not file.startswith(inside):
            return
        files.add(file)
        counts["calls"] += 1
        caller = frame.f_back
        while caller is not None and not caller.f_code.co_filename.startswith(inside):
            caller = caller.f_back
        counts["moves"] += caller is None or caller.f_code.co_filename != file

    sys.setprofile(traced)
    try:
        call()
    finally:
        sys.setprofile(None)
    found = (len(files), counts["moves"], counts["calls"])
    asked = (FILES, MOVES, CALLS)
    holds = all(one <= other for one, other in zip(found, asked, strict=True)) or not one_vector
    said_ = " / ".join(map(str, found))
    return Figure(
        f"files / moves / calls of a search: {name}", said_, "9 / 25 / 40" if one_vector else "-", False, holds
    )


def at_most(name: str, found: int, asked: int, gate: bool = False) -> Figure:
    """A figure with a limit."""
    return Figure(name, f"{found:,}", f"<= {asked:,}", gate, found <= asked)


def said(names: list[str]) -> str:
    """The first few names, in brackets."""
    return f" ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})" if names else ""


def statements(tree: ast.Module) -> int:
    """Statements that are no docstring."""
    return sum(isinstance(node, ast.stmt) and not is_text(node) for node in ast.walk(tree))


def is_text(node: ast.AST) -> bool:
    """Whether a statement is a docstring, or a text that stands alone."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def is_function(node: ast.AST) -> TypeIs[ast.FunctionDef]:
    """Whether it defines a function or method, overloads apart."""
    return isinstance(node, ast.FunctionDef) and not any("overload" in ast.unparse(one) for one in node.decorator_list)


def parameters(node: ast.FunctionDef) -> int:
    """How many it takes, besides self and cls."""
    taken = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return sum(one.arg not in ("self", "cls") for one in taken)


def length(node: ast.FunctionDef) -> int:
    """Lines of a function's body, without its docstring."""
    body = node.body[1:] if is_text(node.body[0]) else node.body
    return 0 if not body else (body[-1].end_lineno or 0) - body[0].lineno + 1


def module_of(path: Path) -> str:
    """The dotted name of a file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.Module, path: Path) -> set[str]:
    """The modules of ours that a file imports when it is loaded, those for type checks and inside functions too."""
    known = {module_of(one) for one in SOURCES}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    own = module_of(path)
    return {name for name in found & known if name != own and not own.startswith(name + ".")}


def circles_of(edges: Mapping[str, set[str]]) -> list[str]:
    """Modules that reach themselves, folders' own modules (`__init__`) apart."""
    reached: dict[str, set[str]] = {}
    for start in edges:
        seen: set[str] = set()
        waiting = list(edges[start])
        while waiting:
            one = waiting.pop()
            if one not in seen and one in edges:
                seen.add(one)
                waiting += edges[one]
        reached[start] = seen
    return [name for name, seen in reached.items() if name in seen]


if __name__ == "__main__":
    main()
