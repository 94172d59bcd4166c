"""Names of a package that are loaded with the first use of each (PEP 562)."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def loaded_on_first_use(
    package: dict[str, Any], homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package. package: its globals; homes: name -> the module that defines it."""

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package['__name__']!r} has no attribute {name!r}")
        value = package[name] = getattr(importlib.import_module(homes[name]), name)
        return value

    return load, lambda: sorted({*package, *package["__all__"]})
