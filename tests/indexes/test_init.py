from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import indexes


def test_the_public_names_are_sorted_and_exist() -> None:
    assert indexes.__all__ == sorted(indexes.__all__)
    assert all(hasattr(indexes, name) for name in indexes.__all__)


def test_importing_loads_neither_funnel_nor_faiss() -> None:
    code = "import sys, indexes; print({'faiss', 'funnel'} & set(sys.modules))"
    root = Path(indexes.__file__).parent.parent
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert result.stdout.strip() == "set()"
