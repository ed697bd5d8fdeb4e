"""HOW an engine is built and described: targets, backends, strongly typed graphs, receipts, manifests. Knows no model by name.

Public names are loaded when first used: `import engines` loads neither onnx nor TensorRT, and a device that only reads a
manifest needs the standard library alone. `build` is imported from its module, `engines.build`: a package attribute cannot be
both the function and the module.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engines.build import BACKENDS, BuiltEngine
    from engines.errors import BackendError
    from engines.layers import TensorInfo
    from engines.manifest import (
        CalibrationRecord,
        EngineManifest,
        EngineRecord,
        FileRecord,
        read_engine,
        read_manifest,
        verify,
        write_manifest,
    )
    from engines.probe import BackendProbe, probe_backend, probe_backends
    from engines.receipt import Fallback, Receipt
    from engines.spec import PRECISIONS, BatchRange, BuilderOptions, BuildSpec, parse_batch
    from engines.targets import TARGETS, Resolution, Target, resolve_target
    from engines.typed import TypingFacts, typed_graph, typing_facts

_PUBLIC = {
    "BACKENDS": "engines.build",
    "BackendError": "engines.errors",
    "BackendProbe": "engines.probe",
    "BatchRange": "engines.spec",
    "BuilderOptions": "engines.spec",
    "BuildSpec": "engines.spec",
    "BuiltEngine": "engines.build",
    "CalibrationRecord": "engines.manifest",
    "EngineManifest": "engines.manifest",
    "EngineRecord": "engines.manifest",
    "Fallback": "engines.receipt",
    "FileRecord": "engines.manifest",
    "PRECISIONS": "engines.spec",
    "Receipt": "engines.receipt",
    "Resolution": "engines.targets",
    "TARGETS": "engines.targets",
    "Target": "engines.targets",
    "TensorInfo": "engines.layers",
    "TypingFacts": "engines.typed",
    "parse_batch": "engines.spec",
    "probe_backend": "engines.probe",
    "probe_backends": "engines.probe",
    "read_engine": "engines.manifest",
    "read_manifest": "engines.manifest",
    "resolve_target": "engines.targets",
    "typed_graph": "engines.typed",
    "typing_facts": "engines.typed",
    "verify": "engines.manifest",
    "write_manifest": "engines.manifest",
}

__all__ = [
    "BACKENDS",
    "PRECISIONS",
    "TARGETS",
    "BackendError",
    "BackendProbe",
    "BatchRange",
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
    "TypingFacts",
    "parse_batch",
    "probe_backend",
    "probe_backends",
    "read_engine",
    "read_manifest",
    "resolve_target",
    "typed_graph",
    "typing_facts",
    "verify",
    "write_manifest",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'engines' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
