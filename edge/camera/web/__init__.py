"""The page in the browser: `Dashboard` serves it."""

from typing import TYPE_CHECKING

from calib.package_face import lazy_exports

if TYPE_CHECKING:
    from edge.camera.web.bind_address import parse_address
    from edge.camera.web.dashboard import Dashboard

__all__ = ["Dashboard", "parse_address"]
__getattr__ = lazy_exports(__name__, __file__)
