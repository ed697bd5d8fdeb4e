"""List the layers of an engine with TensorRT's engine inspector, after authenticating and loading it on this machine's GPU."""

import json
from pathlib import Path
from typing import Any

from calib.errors import InputError
from edge.inspect.describe_json import describe_manifest
from edge.inspect.description import Description, Listing, cut_text

_LONGEST = 60


def describe_layers(path: Path, *, public_key: Path | None = None, unsafe_no_manifest: bool = False) -> Description:
    """Every layer of an engine: its kind, input and output types, and tactic.

    Raises ArtifactError for an engine that does not match its record, MissingError where this machine cannot load it.
    """
    from edge.runtime.engine_runner import engine_device
    from engines.build_folder.authenticate import read_authenticated
    from engines.trt.api import Runtime

    manifest, engine = read_authenticated(path, public_key=public_key, unsafe_no_manifest=unsafe_no_manifest)
    device = engine_device(manifest)
    runtime = Runtime(device.flavour)
    with device.memory.current():
        loaded = runtime.deserialize(engine, version_compatible=device.version_compatible)
        rows = layer_rows(runtime.inspect(loaded))
    listing = Listing(f"{len(rows)} layers", ("layer", "kind", "in", "out", "tactic"), rows)
    if manifest is None:
        return Description("Engine", {"manifest": "none"}, (listing,), ("this engine has no manifest",))
    described = describe_manifest(manifest)
    return Description("Engine", described.facts, (*described.listings, listing), described.warnings)


def layer_rows(text: str) -> tuple[tuple[str, ...], ...]:
    """One row per layer of the inspector's JSON. Raises InputError for any other text."""
    from engines.engine_inspector import inspected_layers, type_of_tensor

    def types(tensors: Any) -> str:
        if not isinstance(tensors, list):
            raise InputError("the engine inspector's answer is not understood", found=json.dumps(tensors)[:80])
        return " ".join(type_of_tensor(tensor) for tensor in tensors)

    return tuple(
        (
            cut_text(layer.get("Name", "?"), _LONGEST),
            str(layer.get("LayerType", "?")),
            types(layer.get("Inputs", [])),
            types(layer.get("Outputs", [])),
            cut_text(layer.get("TacticName", ""), _LONGEST),
        )
        for layer in inspected_layers(text)
    )
