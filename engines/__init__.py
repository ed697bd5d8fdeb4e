"""Build and describe engines: targets, backends, strongly typed graphs, receipts, manifests. Independent of the model.

Public names load on first use: `import engines` loads neither onnx nor TensorRT, and a device that only reads a manifest needs
only the standard library. Import `build` from its module, `engines.build`: a package attribute cannot be both the function and
the module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from calib.lazy_exports import lazy_exports

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

_PUBLIC = {
    "BACKENDS": "engines.backends",
    "PRECISIONS": "engines.build_spec",
    "TARGETS": "engines.targets",
    "BackendError": "calib.errors",
    "BackendProbe": "engines.backends",
    "BatchRange": "engines.build_spec",
    "BuildSpec": "engines.build_spec",
    "BuildFolder": "engines.build_folder.folder",
    "BuilderOptions": "engines.build_spec",
    "BuiltEngine": "engines.build",
    "CalibrationRecord": "engines.build_folder.manifest",
    "EngineManifest": "engines.build_folder.manifest",
    "EngineRecord": "engines.build_folder.manifest",
    "Fallback": "engines.precision_receipt",
    "FileRecord": "engines.build_folder.manifest",
    "Receipt": "engines.precision_receipt",
    "Resolution": "engines.select_target",
    "Target": "engines.targets",
    "TensorInfo": "engines.layer_records",
    "parse_batch": "engines.build_spec",
    "probe_backend": "engines.backends",
    "probe_backends": "engines.backends",
    "resolve_target": "engines.select_target",
    "type_graph": "engines.typed_graph",
    "write_manifest": "engines.build_folder.manifest",
}

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
__getattr__ = lazy_exports(__name__, _PUBLIC)
