"""Describe checkpoints, engines and bundles."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from calib.errors import ArtifactError
from calib.files import sha256_file
from edge.inspect.describe_dataclass import value_text
from edge.inspect.describe_json import RANDOM_STAMP, describe_manifest
from edge.inspect.description import Description, Listing, cut_text, size_text
from engines.build_folder.file_names import MANIFEST
from engines.build_folder.folder import BuildFolder

_LONGEST_PROPERTY = 100


def describe_checkpoint(path: Path) -> Description:
    """A safetensors checkpoint: its tensors and metadata. Needs no torch."""
    from edge.model.metadata import METADATA_KEY, open_safetensors, parse_info
    from edge.model.sizes import image_size_text

    with open_safetensors(path) as stream:
        metadata = stream.metadata() or {}
        tensors = {name: stream.get_slice(name) for name in stream.keys()}  # noqa: SIM118  # no mapping
        shapes = {name: (str(t.get_dtype()), tuple(t.get_shape())) for name, t in tensors.items()}
    numbers: Counter[str] = Counter()
    for dtype, shape in shapes.values():
        numbers[dtype] += math.prod(shape)
    facts = {
        "file": f"{size_text(path.stat().st_size)}, sha256 {sha256_file(path)}",
        "tensors": f"{len(shapes)}, {sum(numbers.values()):,} numbers, buffers included",
        "types": ", ".join(f"{dtype} {n:,}" for dtype, n in numbers.most_common()),
    }
    if METADATA_KEY not in metadata:
        facts |= {f"metadata {key}": cut_text(value, _LONGEST_PROPERTY) for key, value in sorted(metadata.items())}
        return Description("safetensors file, not a checkpoint of this toolkit", facts)
    info = parse_info(metadata[METADATA_KEY], path)
    facts |= {
        "model": f"{info.config.name}, {image_size_text(info.config.image_size)} px, {info.config.classes} classes",
        "labels": value_text("labels", info.labels),
        "preprocess": ", ".join(f"{name} {value}" for name, value in sorted(info.preprocess.as_json().items())),
        **{f"training {name}": cut_text(_plain(value), _LONGEST_PROPERTY) for name, value in sorted(info.training.items())},
    }
    return Description("Checkpoint", facts, warnings=(RANDOM_STAMP,) if info.random_weights else ())


def describe_engine(path: Path) -> Description:
    """An engine: its bytes and the manifest in its folder. It is never deserialized here: an engine is executable code."""
    digest = sha256_file(path)
    facts = {"file": f"{size_text(path.stat().st_size)}, sha256 {digest}"}
    build = BuildFolder(path.parent)
    if not build.has(MANIFEST):
        facts["manifest"] = "none in its folder: the origin of this engine is unknown"
        return Description(
            "Engine", facts, warnings=("do not run an engine without a manifest: engine files are executable code",)
        )
    manifest = build.manifest
    if (path.name, digest) != (manifest.engine.file, manifest.engine.sha256):
        raise ArtifactError(
            "engine does not match the manifest in its folder",
            where=path,
            found=f"sha256 {digest}",
            allowed=f"{manifest.engine.file}, sha256 {manifest.engine.sha256}",
            next_command="ufovit build",
        )
    described = describe_manifest(manifest)
    facts |= {name: text for name, text in described.facts.items() if name != "engine"}
    return Description("Engine", facts, described.listings, described.warnings)


def describe_bundle(path: Path) -> Description:
    """A bundle, with every member checked."""
    from engines.build_folder.bundle_format import verify_bundle

    bundle = verify_bundle(path)
    info = bundle.info
    facts = {
        "file": f"{size_text(path.stat().st_size)}, sha256 {bundle.sha256}",
        "builds": f"{info.model} {info.precision}, batch {', '.join(map(str, info.batch))}",
        "graph": f"{info.graph}, {len(info.facts.layers)} layers that multiply",
        "budget": f"{info.budget_points:g} points of top-1",
        "judged on": info.data,
        "reference": f"{info.reference.file}, sha256 {info.reference.sha256}, {info.reference_ran_on}",
    }
    rows = tuple((name, size_text(record.bytes), record.sha256) for name, record in info.members.items())
    members = Listing(f"{len(rows)} members, as recorded", ("member", "size", "sha256"), rows)
    return Description("Bundle", facts, (members,), (RANDOM_STAMP,) if info.random_weights else ())


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
