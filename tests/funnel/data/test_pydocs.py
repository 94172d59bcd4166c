"""Docstrings as documents: names, signatures, and what is left out."""

import itertools
from collections import Counter
from pathlib import Path

import pytest

from funnel.data.documents import Document
from funnel.data.pydocs import MIN_CHARACTERS, python_documents

MODULE = '''"""A module with a docstring that is long enough."""

class Shape(Base, metaclass=Meta):
    """A shape with a docstring that is long enough.

        Indented by four.
    """

    def area(self, unit: str = "m", *, exact=False) -> float:
        """The area of the shape in square units."""

    def _hidden(self):
        """A private method with a long docstring."""

    def __init__(self):
        """A special method with a long docstring."""

    def short(self):
        """Too short."""

async def load(path, /, *parts, **options):
    """Load a shape from a file somewhere."""

def load(path):
    """The same name once more, and later."""

def plain():
    return 1
'''


@pytest.fixture
def root(tmp_path: Path) -> Path:
    package = tmp_path / "shapes"
    for folder in ("shapes", "shapes/tests", "shapes/_private", "shapes/not-a-name"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text('"""The docstring of a package, long enough."""\n')
    (package / "plane.py").write_text(MODULE)
    (package / "broken.py").write_text("def (:\n")
    (package / "binary.py").write_bytes(b"\x00\xff\xfe")
    (package / "_secret.py").write_text(MODULE)
    (package / "test_plane.py").write_text(MODULE)
    (package / "escapes.py").write_text('"""An old escape \\\\d and a surrogate \\ud800 in it."""\nx = "\\d"\n')
    return tmp_path


def test_names_titles_and_texts(root: Path) -> None:
    documents = {str(document.id): document for document in python_documents(roots=[root])}
    assert list(documents) == [
        "shapes",
        "shapes.escapes",
        "shapes.plane",
        "shapes.plane.Shape",
        "shapes.plane.Shape.area",
        "shapes.plane.load",
    ]
    assert documents["shapes"].title == "module shapes"
    assert documents["shapes.plane.Shape"] == Document(
        "shapes.plane.Shape",
        "class Shape(Base, metaclass=Meta)",
        "A shape with a docstring that is long enough.\n\nIndented by four.",
        {"package": "shapes", "module": "shapes.plane", "kind": "class"},
    )
    area = documents["shapes.plane.Shape.area"]
    assert area.title == "area(self, unit: str='m', *, exact=False) -> float"
    assert area.metadata["kind"] == "method"
    load = documents["shapes.plane.load"]
    assert load.title == "async load(path, /, *parts, **options)"
    assert load.metadata["kind"] == "function"
    assert load.text == "Load a shape from a file somewhere."


def test_limit_and_order_over_roots(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "first.py").write_text('"""The docstring of another module."""\n')
    assert [document.id for document in python_documents(roots=[other, root], limit=2)] == ["first", "shapes"]
    assert list(python_documents(roots=[other], limit=0)) == []
    assert list(python_documents(roots=[other / "missing"])) == []


def test_nothing_is_run(root: Path) -> None:
    (root / "dangerous.py").write_text('"""A module that must not be run at all."""\nraise SystemExit(1)\n')
    assert next(iter(python_documents(roots=[root]))).id == "dangerous"


def test_the_standard_library_comes_first_and_is_documented() -> None:
    documents = list(itertools.islice(python_documents(), 300))
    counts = Counter(document.id for document in documents)
    assert max(counts.values()) == 1
    assert "abc" in counts
    assert "argparse.ArgumentParser" in counts
    assert all(len(document.text) >= MIN_CHARACTERS for document in documents)
