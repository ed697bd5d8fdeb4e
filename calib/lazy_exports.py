"""The public names of a package, loaded when first used: importing the package loads no heavy library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_exports(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package (PEP 562); it raises AttributeError for a name that is not in `modules`.

    Args:
        package: its dotted name.
        modules: public name -> dotted name of the module that defines it.
    """

    def load(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(modules[name]), name)

    return load


def by_name(names: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Public name -> dotted name of its module, from module -> its public names."""
    return {name: module for module, members in names.items() for name in members}
