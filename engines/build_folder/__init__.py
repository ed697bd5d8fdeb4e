"""Read, verify and sign a build folder; read and write a bundle."""

from typing import TYPE_CHECKING

from calib.package_face import lazy_exports

if TYPE_CHECKING:
    from engines.build_folder.authenticate import check_runs_here, read_authenticated
    from engines.build_folder.bundle_format import Bundle, open_bundle, verify_bundle, write_bundle
    from engines.build_folder.folder import BuildFolder
    from engines.build_folder.manifest import EngineManifest, write_manifest
    from engines.build_folder.signature import Signature
    from engines.build_folder.signing import check_signature, sign
    from engines.build_folder.verify import examine_folder, verify_folder

__all__ = [
    "BuildFolder",
    "Bundle",
    "EngineManifest",
    "Signature",
    "check_runs_here",
    "check_signature",
    "examine_folder",
    "open_bundle",
    "read_authenticated",
    "sign",
    "verify_bundle",
    "verify_folder",
    "write_bundle",
    "write_manifest",
]
__getattr__ = lazy_exports(__name__, __file__)
