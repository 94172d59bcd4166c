"""The documentation of installed Python code as documents: docstrings read with `ast`, nothing imported."""

import ast
import inspect
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from funnel.data.documents import Document

__all__ = ["python_documents"]

MIN_CHARACTERS = 20  # shorter docstrings ("See base class.") say nothing that could be searched for
MAX_FILE_BYTES = 2_000_000  # larger ones are generated tables
SKIPPED = frozenset({"tests", "test", "idlelib", "site-packages", "dist-packages", "_vendor"})

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def python_documents(limit: int | None = None, roots: Sequence[str | Path] | None = None) -> Iterator[Document]:
    """The docstrings of modules, classes, functions and methods, in a fixed order.

    Id is the qualified name, title the signature, text the docstring; metadata has package, module and kind
    ("module", "class", "function" or "method"). Private names, tests and files that do not parse are left
    out, and so are short docstrings and names that came before.

    Args:
        limit: At most so many documents.
        roots: Folders with modules and packages; the standard library and the installed packages by default.
    """
    if roots is None:
        roots = list(dict.fromkeys(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib")))
    seen: set[str] = set()
    for root in map(Path, roots):
        for document in (one for path in _source_files(root) for one in _file_documents(path, root)):
            if limit is not None and len(seen) >= limit:
                return
            if str(document.id) not in seen:
                seen.add(str(document.id))
                yield document


def _source_files(folder: Path) -> Iterator[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return
    for entry in entries:
        name = entry.name.removesuffix(".py")
        public = name.isidentifier() and not name.startswith(("_", "test_")) and name not in SKIPPED
        if public and entry.is_dir():
            yield from _source_files(entry)
        elif (public or name == "__init__") and entry.suffix == ".py":
            yield entry


def _file_documents(path: Path, root: Path) -> Iterator[Document]:
    parts = path.relative_to(root).with_suffix("").parts
    module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    try:
        if not module or path.stat().st_size > MAX_FILE_BYTES:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in other people's strings
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return  # the last two: what the parser raises for code nested too deep
    yield from _documents(tree, module, f"module {module}", module, "module")


def _documents(node: ast.Module | Definition, name: str, title: str, module: str, kind: str) -> Iterator[Document]:
    """That of a module, class or function, and those of what is public in it."""
    # Lone surrogates can stand in a string literal, and are no text.
    text = inspect.cleandoc(ast.get_docstring(node, clean=False) or "").encode("utf-8", "replace").decode("utf-8")
    if len(text) >= MIN_CHARACTERS:
        metadata = {"package": module.split(".", 1)[0], "module": module, "kind": kind}
        yield Document(id=name, title=title, text=text, metadata=metadata)
    for one in node.body if isinstance(node, ast.Module | ast.ClassDef) else ():
        if isinstance(one, Definition) and not one.name.startswith("_"):
            inner = "method" if isinstance(node, ast.ClassDef) else "function"
            kind = "class" if isinstance(one, ast.ClassDef) else inner
            yield from _documents(one, f"{name}.{one.name}", _title(one), module, kind)


def _title(node: Definition) -> str:
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in (*node.bases, *node.keywords))
        return f"class {node.name}({bases})" if bases else f"class {node.name}"
    start = "async " if isinstance(node, ast.AsyncFunctionDef) else ""
    result = f" -> {ast.unparse(node.returns)}" if node.returns is not None else ""
    return f"{start}{node.name}({ast.unparse(node.args)}){result}"
