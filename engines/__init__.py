"""Build and describe engines: targets, backends, strongly typed graphs, receipts, manifests. Independent of the model.

Public names load on first use: `import engines` loads neither onnx nor TensorRT, and a device that only reads a manifest needs
only the standard library. Import `build` from its module, `engines.build`: a package attribute cannot be both the function and
the module.
"""

from typing import TYPE_CHECKING

from calib.package_face import lazy_exports

if TYPE_CHECKING:
    from calib.errors import BackendError
    from engines.backends import BACKENDS, BackendProbe, probe_backend, probe_backends
    from engines.build import BuiltEngine
    from engines.build_folder.folder import BuildFolder
    from engines.build_folder.manifest import CalibrationRecord, EngineManifest, EngineRecord, FileRecord, write_manifest
    from engines.build_spec import PRECISIONS, BatchRange, BuilderOptions, BuildSpec, parse_batch
    from engines.layer_records import TensorInfo
    from engines.precision_receipt import Fallback, Receipt
    from engines.select_target import Resolution, resolve_target
    from engines.targets import TARGETS, Target
    from engines.typed_graph import type_graph

__all__ = [
    "BACKENDS",
    "PRECISIONS",
    "TARGETS",
    "BackendError",
    "BackendProbe",
    "BatchRange",
    "BuildFolder",
    "BuildSpec",
    "BuilderOptions",
    "BuiltEngine",
    "CalibrationRecord",
    "EngineManifest",
    "EngineRecord",
    "Fallback",
    "FileRecord",
    "Receipt",
    "Resolution",
    "Target",
    "TensorInfo",
    "parse_batch",
    "probe_backend",
    "probe_backends",
    "resolve_target",
    "type_graph",
    "write_manifest",
]
__getattr__ = lazy_exports(__name__, __file__)
