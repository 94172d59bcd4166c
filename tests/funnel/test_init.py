from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import get_overloads

import click.testing
import pytest

import funnel
from funnel.building.updates import Updates

ROOT = Path(funnel.__file__).parent.parent
HEAVY = ("torch", "faiss", "transformers", "sentence_transformers")
# Words of annotations that are Python's, numpy's or typing's own.
KNOWN_ELSEWHERE = {"Any", "Iterable", "Iterator", "Literal", "None", "Path", "PathLike", "Sequence", "Unpack"}


def _fresh(code: str) -> str:
    said = f"{code}\nimport sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True, cwd=ROOT)
    return result.stdout.splitlines()[-1]


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["build", "--help"], ["serch"], ["search", "--kk"]])
def test_what_needs_no_index_loads_nothing_heavy(arguments: list[str]) -> None:
    code = (
        f"from click.testing import CliRunner; from funnel.cli.main import cli; CliRunner().invoke(cli, {arguments!r})"
    )
    assert _fresh(code) == "[]"


def test_importing_and_completing_load_nothing_heavy() -> None:
    assert _fresh("import funnel; funnel.BudgetError") == "[]"
    completing = (
        "import os; os.environ.update(_FUNNEL_COMPLETE='bash_complete', COMP_WORDS='funnel se', COMP_CWORD='1')\n"
        "from funnel.cli.main import cli\n"
        "try: cli(prog_name='funnel')\n"
        "except SystemExit: pass"
    )
    assert _fresh(completing) == "[]"


def test_the_check_sees_what_is_loaded() -> None:
    assert "torch" in _fresh("import funnel; funnel.FunnelIndex")


def test_without_faiss_the_package_imports_and_the_first_need_is_one_line() -> None:
    code = (
        "import sys; sys.modules['faiss'] = None\n"
        "import funnel, indexes\n"
        "funnel.FunnelIndex\n"
        "try: indexes.load_faiss()\n"
        "except funnel.MissingBackendError as error: print(error)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "pip install 'funnel-retrieval[cpu]'" in result.stdout
    assert result.stdout.count("\n") == 1


def test_the_public_names_exist() -> None:
    assert set(funnel._HOMES) == set(funnel.__all__) - {"__version__"}
    assert all(hasattr(funnel, name) for name in funnel.__all__)
    assert set(funnel.__all__) <= set(dir(funnel))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = funnel.no_such_name


def test_every_type_of_a_public_method_is_public() -> None:
    seen = set()
    for holder in (funnel.FunnelIndex, Updates):
        for name, member in vars(holder).items():
            if name.startswith("_"):
                continue
            function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            for each in (function, *get_overloads(function)):  # type: ignore[arg-type]
                for annotation in inspect.get_annotations(each).values():  # type: ignore[arg-type]
                    seen |= set(re.findall(r"(?<![\w.])[A-Z]\w+", str(annotation)))
    assert {"Plan", "SearchOptions"} <= seen
    assert seen - KNOWN_ELSEWHERE <= set(funnel.__all__)


def test_the_overloads_of_search_take_what_search_takes() -> None:
    parameters = inspect.signature(funnel.FunnelIndex.search).parameters.values()
    by_name = {each.name: each.annotation for each in parameters if each.kind is each.KEYWORD_ONLY}
    taken = {name: each.__forward_arg__ for name, each in funnel.SearchOptions.__annotations__.items()}
    assert by_name == taken
    assert len(get_overloads(funnel.FunnelIndex.search)) == 3


def test_every_error_is_public() -> None:
    import funnel.errors

    errors = {name for name in funnel.errors.__all__ if isinstance(getattr(funnel.errors, name), type)}
    assert {"FunnelError", "InputError"} <= errors <= set(funnel.__all__)


def test_a_mistyped_command_is_refused_by_name() -> None:
    from funnel.cli.main import cli

    result = click.testing.CliRunner().invoke(cli, ["serch"])
    assert result.exit_code == 2
    assert "serch" in result.output
