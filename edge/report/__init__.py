"""What a build has come to, for a person: `render` writes the HTML report, `describe_file` shows any artifact on a terminal.

Public names are loaded when first used, so that `import edge.report` needs neither matplotlib, jinja2 nor rich.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge.report.inspect import describe_file
    from edge.report.page import render

_PUBLIC = {"describe_file": "edge.report.inspect", "render": "edge.report.page"}

__all__ = ["describe_file", "render"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'edge.report' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
