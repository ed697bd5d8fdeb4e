"""The command line, `ufovit COMMAND`: one file per command, `edge.cli.main` calls them."""

from typing import TYPE_CHECKING

from calib.package_face import lazy_exports

if TYPE_CHECKING:
    from edge.cli.main import INTERNAL_ERROR, INTERRUPTED, run

__all__ = ["INTERNAL_ERROR", "INTERRUPTED", "run"]
__getattr__ = lazy_exports(__name__, __file__)
