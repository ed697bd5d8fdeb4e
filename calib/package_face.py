"""The public names of a package, loaded when first used: importing the package loads no heavy library."""

import ast
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any


def lazy_exports(package: str, init_file: str) -> Callable[[str], Any]:
    """The `__getattr__` of a package (PEP 562), for the imports that its `__init__.py` has under `if TYPE_CHECKING:`.

    A type checker and this function read the same statements, so that a name and its module are written once.

    Args:
        package: its dotted name.
        init_file: path of its `__init__.py`; read when the first name is used.

    The function that is returned raises AttributeError for any other name.
    """

    @cache
    def modules() -> dict[str, str]:
        tree = ast.parse(Path(init_file).read_bytes())
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
        return {alias.name: str(node.module) for node in imports for alias in node.names}

    def load(name: str) -> Any:
        if name not in modules():
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(modules()[name]), name)

    return load
