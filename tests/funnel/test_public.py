"""What the package shows, and what importing it brings."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted([*(ROOT / "funnel").rglob("*.py"), *(ROOT / "indexes").rglob("*.py")])


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


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


def test_nothing_heavy_is_imported_for_the_command_line() -> None:
    """`funnel --help` must not wait seconds for torch's models."""
    code = (
        "import sys, funnel.cli.main; print(*[m for m in ('sentence_transformers', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == []
