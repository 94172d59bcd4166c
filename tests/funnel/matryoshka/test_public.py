import ast
from pathlib import Path

import funnel.matryoshka

NAMES = [
    "AdaptiveClassifier",
    "AdaptivePrediction",
    "AdaptiveReport",
    "MultiGranularityClassifier",
    "MultiGranularityCrossEntropy",
    "MultiGranularityLoss",
    "TruncationComparison",
    "compare_truncations",
    "prefix",
]
STANDARD = {"__future__", "bisect", "collections.abc", "dataclasses", "itertools", "math", "reprlib", "typing"}


def test_public_names() -> None:
    assert funnel.matryoshka.__all__ == NAMES
    assert all(hasattr(funnel.matryoshka, name) for name in NAMES)


def test_torch_and_numpy_are_all_it_needs() -> None:
    imported = set()
    for path in Path(funnel.matryoshka.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(str(node.module))
    others = {name for name in imported - STANDARD if not name.startswith("funnel.matryoshka")}
    assert others == {"torch", "numpy", "numpy.typing", "funnel.checks", "funnel.errors"}
