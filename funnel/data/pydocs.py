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
SKIPPED_FOLDERS = frozenset({"tests", "test", "idlelib", "site-packages", "dist-packages", "_vendor"})

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
    seen: set[str] = set()
    if roots is None:
        roots = list(dict.fromkeys(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib")))
    for root in map(Path, roots):
        for path in _source_files(root):
            for document in _file_documents(path, root):
                if str(document.id) in seen:
                    continue
                if limit is not None and len(seen) >= limit:
                    return
                seen.add(str(document.id))
                yield document


def _source_files(folder: Path) -> Iterator[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return
    for entry in entries:
        if entry.is_dir():
            if _is_public_package(entry.name):
                yield from _source_files(entry)
        elif entry.suffix == ".py" and _is_public_module(entry.stem):
            yield entry


def _is_public_package(name: str) -> bool:
    return name.isidentifier() and not name.startswith("_") and name not in SKIPPED_FOLDERS


def _is_public_module(name: str) -> bool:
    return name == "__init__" or (name.isidentifier() and not name.startswith(("_", "test_")))


def _file_documents(path: Path, root: Path) -> Iterator[Document]:
    tree = _parse(path)
    if tree is None:
        return
    parts = path.relative_to(root).with_suffix("").parts
    module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    if not module:
        return
    yield from _document(tree, module, f"module {module}", module, "module")
    yield from _definitions(tree.body, module, module, inside_class=False)


def _parse(path: Path) -> ast.Module | None:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in other people's strings
            return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None  # the last two: what the parser raises for code nested too deep


def _definitions(body: Sequence[ast.stmt], prefix: str, module: str, *, inside_class: bool) -> Iterator[Document]:
    for node in body:
        if not isinstance(node, Definition) or node.name.startswith("_"):
            continue
        name = f"{prefix}.{node.name}"
        if isinstance(node, ast.ClassDef):
            yield from _document(node, name, _class_title(node), module, "class")
            yield from _definitions(node.body, name, module, inside_class=True)
        else:
            kind = "method" if inside_class else "function"
            yield from _document(node, name, _function_title(node), module, kind)


def _document(node: ast.Module | Definition, name: str, title: str, module: str, kind: str) -> Iterator[Document]:
    docstring = ast.get_docstring(node, clean=False)
    if docstring is None:
        return
    # Lone surrogates can stand in a string literal, and are no text.
    text = inspect.cleandoc(docstring).encode("utf-8", "replace").decode("utf-8")
    if len(text) < MIN_CHARACTERS:
        return
    metadata = {"package": module.split(".", 1)[0], "module": module, "kind": kind}
    yield Document(id=name, title=title, text=text, metadata=metadata)


def _class_title(node: ast.ClassDef) -> str:
    bases = ", ".join(ast.unparse(base) for base in (*node.bases, *node.keywords))
    return f"class {node.name}({bases})" if bases else f"class {node.name}"


def _function_title(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    start = "async " if isinstance(node, ast.AsyncFunctionDef) else ""
    result = f" -> {ast.unparse(node.returns)}" if node.returns is not None else ""
    return f"{start}{node.name}({ast.unparse(node.args)}){result}"
