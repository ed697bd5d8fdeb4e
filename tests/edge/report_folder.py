"""A finished build folder made from the artifacts' own dataclasses: no network, no training, realistic numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from calib.artifact import write_artifact
from calib.files import sha256_bytes, sha256_file, write_json
from calib.table import CalibrationTable, TensorScale, save_table
from edge.drift.compare import DriftReport, Source, compare, judge
from edge.export_record import ExportRecord, Parity, Simplification
from engines.manifest import CalibrationRecord, EngineManifest, EngineRecord, FileRecord, TensorInfo, write_manifest
from engines.receipt import Fallback, Receipt

LABELS = ("T-shirt/top", "<b>bold</b> & co", "$x_1$ costs $2", "長靴")
TENSORS = (
    "image",
    "stem.2/Gelu_output",
    "stem.5/Gelu_output",
    "blocks.0.norm1/LayerNormalization_output",
    "blocks.0.ffn.1/Gelu_output",
    "blocks.10.norm1/LayerNormalization_output",
    "blocks.2.norm1/LayerNormalization_output",
    "blocks.2.attn.xnorm_q/Div_output",
)
"""In network order, which is deliberately neither alphabetical nor numerical."""
FALLBACK = Fallback("blocks.0.attn/<i>MatMul</i>", "int8", "fp16", "one-sided Q/DQ; kernel h884", 0.0625)


@dataclass(frozen=True)
class Recipe:
    """What the folder is to hold: images, answers that turn wrong, rows of NaN, and the build's kind."""

    flips: int = 0
    images: int = 2000
    nan_rows: int = 0
    precision: str = "int8"
    random_weights: bool = False
    fallbacks: tuple[Fallback, ...] = ()
    labels: tuple[str, ...] = LABELS


def make_folder(folder: Path, recipe: Recipe) -> Path:
    """Write every artifact that a report reads, each consistent with the others."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(b"the FP32 graph is never parsed by the report")
    (folder / "engine.engine").write_bytes(b"engine" * 50_000)
    int8 = recipe.precision == "int8"
    if int8:
        onnx.save(quantized_graph(), folder / "model.int8.onnx")
        save_table(folder / "calibration.json", table(folder))
    write_artifact(folder / "export.json", export_record(folder))
    write_drift(folder, recipe)
    write_manifest(folder, manifest(folder, recipe))
    files = ("export.json", "model.onnx")
    written = {"position": 0, "reads": "0" * 64, "writes": {f: sha256_file(folder / f) for f in files}}
    write_json(folder / "steps.json", {"export": written})
    return folder


def quantized_graph() -> onnx.ModelProto:
    """A Q/DQ pair on each of TENSORS, in that order, and one quantized product."""
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3])]
    weight = numpy_helper.from_array(np.ones((3, 3), np.int8), "weight")
    constants = [weight, numpy_helper.from_array(np.float32(0.5), "scale"), numpy_helper.from_array(np.int8(0), "zero")]
    nodes, last = [], "image"
    for i, tensor in enumerate(TENSORS):
        if i:
            nodes.append(helper.make_node("Identity", [last], [tensor], name=f"identity{i}"))
        last = f"{tensor}_dq"
        nodes.append(helper.make_node("QuantizeLinear", [tensor, "scale", "zero"], [f"{tensor}_q"], name=f"q{i}"))
        nodes.append(helper.make_node("DequantizeLinear", [f"{tensor}_q", "scale", "zero"], [last], name=f"dq{i}"))
    nodes.append(helper.make_node("DequantizeLinear", ["weight", "scale", "zero"], ["weight_dq"], name="weight/dq"))
    nodes.append(helper.make_node("MatMul", [last, "weight_dq"], ["logits"], name="product"))
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])]
    graph = helper.make_graph(nodes, "ufovit", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    model.metadata_props.add(key="calib.method", value="entropy")
    return model


def table(folder: Path) -> CalibrationTable:
    scales = {name: TensorScale.from_amax(0.03 * 2.5**i, name, "entropy") for i, name in enumerate(TENSORS)}
    return CalibrationTable(sha256_file(folder / "model.onnx"), "1" * 64, 512, "entropy", scales)


def export_record(folder: Path) -> ExportRecord:
    return ExportRecord(
        onnx_sha256=sha256_file(folder / "model.onnx"),
        opset=20,
        foldings=("xnorm_gamma",),
        simplification=Simplification(False, "onnxsim took more than 120 s", 1118, 1118),
        parity=Parity(32, 4.25e-6, 131.375),
    )


def answers(recipe: Recipe) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reference right nine times in ten; the engine differs by noise, and answers `flips` right images wrongly."""
    rng = np.random.default_rng(7)
    classes = len(recipe.labels)
    labels = np.arange(recipe.images) % classes
    reference = rng.normal(0, 1, (recipe.images, classes)).astype(np.float32)
    target = np.where(np.arange(recipe.images) % 10 == 9, (labels + 1) % classes, labels)
    reference[np.arange(recipe.images), target] += 12
    engine = reference + rng.normal(0, 0.05, reference.shape).astype(np.float32)
    right = np.flatnonzero(reference.argmax(1) == labels)[: recipe.flips]
    engine[right] = np.roll(engine[right], 1, axis=1)
    engine[: recipe.nan_rows] = np.nan
    return reference, engine, labels


def write_drift(folder: Path, recipe: Recipe) -> None:
    reference, engine, labels = answers(recipe)
    comparison = compare(reference, engine, labels)
    verdict, reason = judge(comparison, 0.5, random_weights=recipe.random_weights)
    with (folder / "logits.npz").open("wb") as stream:
        np.savez_compressed(stream, reference=reference, engine=engine, labels=labels)
    judged = "model.int8.onnx" if recipe.precision == "int8" else "engine.engine"
    report = DriftReport(
        reference=Source("model.onnx", sha256_file(folder / "model.onnx"), "ONNX Runtime, CPU"),
        engine=Source(judged, sha256_file(folder / judged), "ONNX Runtime, CPU: the graph, not the engine (no GPU here)"),
        data="/data/test-images",
        data_sha256="2" * 64,
        preprocess_sha256="3" * 64,
        budget_points=0.5,
        judged_by="numbers" if recipe.random_weights else "accuracy",
        random_weights=recipe.random_weights,
        verdict=verdict,
        reason=reason,
        **vars(comparison),
    )
    write_artifact(folder / "drift.json", report)


def manifest(folder: Path, recipe: Recipe) -> EngineManifest:
    def recorded(file: str) -> FileRecord:
        return FileRecord(file, sha256_file(folder / file))

    int8, kind = recipe.precision == "int8", recipe.precision
    lost = sum(f.mac_fraction for f in recipe.fallbacks)
    actual = {kind: 1.0 - lost, **({"fp16": lost} if lost else {})}
    data = (folder / "engine.engine").read_bytes()
    return EngineManifest(
        model="ufovit_t",
        precision=kind,
        target="rtx",
        created="2026-11-22T14:36:06+00:00",
        checkpoint=None if recipe.random_weights else FileRecord("ufovit_t.safetensors", "4" * 64),
        onnx=recorded("model.onnx"),
        qdq_onnx=recorded("model.int8.onnx") if int8 else None,
        calibration=CalibrationRecord("calibration.json", sha256_file(folder / "calibration.json"), 512, "1" * 64)
        if int8
        else None,
        engine=EngineRecord("engine.engine", sha256_bytes(data), len(data), "trt_rtx", "1.7.1.116", ("8.9", "12.0")),
        input=TensorInfo("image", (-1, 3, 64, 64), "float32"),
        output=TensorInfo("logits", (-1, len(recipe.labels)), "float32"),
        preprocess={"image_size": 64, "mean": [0.286, 0.286, 0.286], "sha256": "3" * 64},
        labels=recipe.labels,
        receipt=Receipt(actual.get("int8", 0.0), {kind: 1.0}, actual, recipe.fallbacks),
        random_weights=recipe.random_weights,
        notes=("a note with <i>markup</i>",),
    )
