"""What the package shows, and who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted([*(ROOT / "funnel").rglob("*.py"), *(ROOT / "indexes").rglob("*.py")])

# From the top down: each may import what stands under it.
LAYERS = (
    ("funnel.cli.main", "funnel.cli.demo", "funnel.__main__"),
    ("funnel.reports", "funnel.reports.check"),
    ("funnel.index",),
    ("funnel.building.build", "funnel.building.tune", "funnel.building.export"),
    ("funnel.engine.generation",),
    ("funnel.engine.searcher",),
    ("funnel.monitoring",),
    ("funnel.planning",),
    ("funnel.engine.cascade",),
    ("funnel.engine.rerank", "funnel.engine.workers"),
    ("indexes",),
)
SYSTEM = ("indexes.forks", "indexes.system")  # what a process, and its forked children, must mind everywhere
GROUND = ("funnel.data", "funnel.storage", "funnel.adaptors", "indexes")
# The plots' and tables' own modules hold no engine.
ENGINE = (
    "funnel.index", "funnel.planning", "funnel.engine", "funnel.building",
    "funnel.monitoring",
)  # fmt: skip


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Every module that a file names in an import, those inside functions and type checks among them."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def layer(module: str) -> int | None:
    return next((i for i, names in enumerate(LAYERS) if any(inside(module, name) for name in names)), None)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_exported_names_exist(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    exported = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__"
    ]
    if exported:
        module = __import__(module_name(path), fromlist=["__all__"])
        missing = [name for name in exported[0] if not hasattr(module, name)]
        assert not missing
        assert len(set(exported[0])) == len(exported[0])


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down_only(path: Path) -> None:
    own = module_name(path)
    mine = layer(own)
    if mine is None:
        return
    upward = [name for name in imports(path) if (other := layer(name)) is not None and other < mine]
    assert not upward


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_ground_floor_is_flat(path: Path) -> None:
    """`data`, `storage`, `adaptors` and `indexes` know neither each other nor the engine."""
    own = module_name(path)
    home = next((name for name in GROUND if inside(own, name)), None)
    if home is None:
        return
    strangers = [name for name in (*GROUND, *ENGINE) if name != home]
    known = [name for name in imports(path) if not name.startswith(SYSTEM)]
    assert not [name for name in known if any(inside(name, stranger) for stranger in strangers)]
    if home == "indexes":
        assert not [name for name in imports(path) if inside(name, "funnel")]


def test_nothing_heavy_is_imported_for_the_command_line() -> None:
    """`funnel --help` must not wait seconds for torch's models."""
    code = (
        "import sys, funnel.cli.main; print(*[m for m in ('sentence_transformers', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == []
