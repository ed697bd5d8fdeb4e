"""A finished build folder made from the artifacts' own dataclasses: no network, no training, realistic numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from calib.artifact import write_artifact
from calib.calibration_table import CalibrationTable, TensorScale, save_table
from calib.files import sha256_bytes, sha256_file
from calib.placement_record import Placement
from edge.attribution.attribution_record import (
    Attribution,
    DriftFinding,
    FloatDrift,
    GraphFile,
    InputDrift,
    LayerDrift,
    TapCheck,
)
from edge.drift.drift_report import Source, Subject, judge_sides, write_drift
from edge.model.export_record import ExportRecord, Parity, Simplification
from edge.report import page
from edge.stability.certificate import Checks, HeadRanges, Int8Loss, IslandCost, SiteCertificate, XNormCertificate
from edge.stability.site_certificate import network_verdict
from edge.stability.verdict import Judgement
from edge.tasks.budget import Budget
from edge.tasks.classification.logits import Logits
from edge.tasks.registry import load_task
from engines.build_folder.folder import BuildFolder
from engines.build_folder.manifest import (
    CalibrationRecord,
    EngineManifest,
    EngineRecord,
    FileRecord,
    TensorInfo,
    write_manifest,
)
from engines.build_folder.step_record import StepRecord, write_record
from engines.plan_kernels import PlanKernels, PlanStep, summarize_steps
from engines.precision_receipt import Fallback, Receipt

T = TypeVar("T")
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
PLAN_STEPS = (
    PlanStep("pad", "CastReplConc", ("image/Cast", "stem.0/Conv"), 0, 30_000),
    PlanStep("product", "fully_connected", ("blocks.0.attn.v/<i>MatMul</i>", "blocks.0.attn.q/MatMul"), 110_600, 65_856),
    *[PlanStep("pointwise", "MulAddMinMaxRounCast", ("blocks.0.attn.q/Add", "blocks.0.attn.k/Add"), 770, 28_224)] * 60,
    PlanStep("reformat", "Tran", (), 0, 36_864),
    PlanStep("reduction", "CastMulSum", ("blocks.0.attn.xnorm_kv/ReduceL2",), 0, 37_632),
    PlanStep("product", "corrltn", ("blocks.1.lpi.conv1/Conv",), 8_448, 75_264),
    PlanStep("attention", "_gemm_mha_v2", ("head/Gemm",), 0, None),
)
"""What the engine runs; 63 of the steps are those of one block."""
PLAN = summarize_steps(PLAN_STEPS)


@dataclass(frozen=True)
class Recipe:
    """What the folder is to hold: images, answers that turn wrong or right (`better`), rows of NaN, the kind, its XNorms.

    The last kv of `xnorm_blocks` blocks is repaired by folding, kept in an FP32 island, or stays unstable; "untouched" needs
    no repair at all. The q of the second block has no certified bound.
    """

    flips: int = 0
    images: int = 2000
    nan_rows: int = 0
    precision: str = "int8"
    random_weights: bool = False
    fallbacks: tuple[Fallback, ...] = ()
    labels: tuple[str, ...] = LABELS
    xnorm: Literal["folded", "island", "unstable", "untouched"] = "folded"
    xnorm_blocks: int = 3
    labelled: bool = True
    better: int = 0
    plan: PlanKernels | None = PLAN
    placement: Placement | None = None


def make_folder(folder: Path, recipe: Recipe) -> Path:
    """Write every artifact that a report reads, each consistent with the others."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(b"the FP32 graph is never parsed by the report")
    (folder / "engine.engine").write_bytes(b"engine" * 50_000)
    int8 = recipe.precision == "int8"
    if recipe.precision != "fp32":
        (folder / "model.folded.onnx").write_bytes(b"the folded graph is never parsed either")
        write_artifact(folder / "xnorm.json", certificate(folder, recipe))
    if int8:
        onnx.save(quantize_graph(), folder / "model.int8.onnx")
        save_table(folder / "calibration.json", replace(table(folder), placement=recipe.placement))
    write_artifact(folder / "export.json", export_record(folder))
    judge_folder(folder, recipe)
    write_manifest(folder, manifest(folder, recipe))
    files = ("export.json", "model.onnx")
    write_record(folder, {"export": StepRecord("0" * 64, {f: sha256_file(folder / f) for f in files})})
    return folder


def render(folder: Path, advance: Callable[[float], None]) -> str:
    """The report of the build in a folder."""
    return page.render(BuildFolder(folder), advance)


def quantize_graph() -> onnx.ModelProto:
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
    """amax grows along the network; the last tensor's is a proven bound below what the images gave."""
    scales = {name: TensorScale.from_amax(0.03 * 2.5**i, name, "entropy") for i, name in enumerate(TENSORS)}
    scales[TENSORS[-1]] = TensorScale.from_amax(100.0, TENSORS[-1], "entropy", bound=0.03 * 2.5 ** (len(TENSORS) - 1))
    return CalibrationTable(sha256_file(folder / "model.folded.onnx"), "1" * 64, 512, "entropy", scales)


def certificate(folder: Path, recipe: Recipe) -> XNormCertificate:
    """A q and a kv per block; every kv may overflow before the repair, and the last does."""
    before, after = [], []
    for i in range(recipe.xnorm_blocks):
        q = replace(site(f"blocks.{i}.attn.xnorm_q/<b>ReduceL2</b>", "q"), bound_sum_sq=None if i == 1 else 600.0 + i)
        kv = site(f"blocks.{i}.attn.xnorm_kv/ReduceL2", "kv")
        after += [q, folded(kv)]
        before += [q, broken(kv) if i == recipe.xnorm_blocks - 1 else at_risk(kv)]
    if recipe.xnorm == "untouched":
        after = before = [site(s.name, s.operand) for s in before]
    elif recipe.xnorm == "island":
        after[-1] = replace(before[-1], island=True, verdicts=after[-1].verdicts, verdict="stable")
    elif recipe.xnorm == "unstable":
        after[-1] = before[-1]
    precisions = ("fp16", "int8") if recipe.precision == "int8" else ("fp16",)
    islands = sum(s.island for s in after)
    return XNormCertificate(
        onnx_sha256=sha256_file(folder / "model.onnx"),
        folded_onnx_sha256=sha256_file(folder / "model.folded.onnx"),
        data_sha256="7" * 64,
        images=384,
        precisions=precisions,
        sites=tuple(after),
        before=tuple(before),
        verdict=network_verdict(tuple(after), precisions),
        verdict_before=network_verdict(tuple(before), precisions),
        islands=IslandCost(islands, 3 * islands, 12345 * islands),
        checks=Checks(24, logits_bit_identical=True, ranges_as_scaled=True),
    )


def site(name: str, operand: Literal["q", "kv"]) -> SiteCertificate:
    """A stable XNorm of two heads, certified."""
    fine = Judgement("stable", "certified", "6.8 bits below <b>overflow</b> for every input")
    return SiteCertificate(
        name=name,
        operand=operand,
        axis=-1,
        heads=2,
        dim=48,
        tokens=64 if operand == "kv" else 0,
        vectors=24576,
        zero_vectors=0,
        eps=2.0**-14,
        eps_kind="clamp",
        max_abs=11.5,
        sum_sq_max=278.5,
        sum_sq_min=5.25,
        bound_max_abs=24.0,
        bound_sum_sq=580.0,
        output_bound=3.0,
        fp16_headroom_bits=6.8,
        fp16_floor_bits=16.4,
        quantities=(),
        by_head=HeadRanges((11.5, 9.0), (5.25, 7.0), (278.5, 99.0), (580.0, 300.0)),
        fold_exponent=0,
        fold={},
        island=False,
        verdicts={
            "fp16": fine,
            "bf16": fine,
            "int8": Judgement("stable", "observed", "0.00% dead vectors, direction error 0.008"),
        },
        verdict="stable",
        errors={"fp16": 4e-4, "bf16": 3e-3, "fp16/fp32": 3.5e-4, "bf16/fp32": 2.8e-3},
        int8_dead_fraction=0.0,
        int8_direction_error=0.008,
        int8_clipped_fraction=0.0002,
        int8_in_front=Int8Loss(0.0, 0.027, 0.0004),
    )


def at_risk(kv: SiteCertificate) -> SiteCertificate:
    """The same where some input overflows."""
    risk = Judgement("at risk", "certified", "some input may bring sum a^2 to 2.42e+06")
    large = replace(kv, sum_sq_min=6.5, sum_sq_max=24957.5, bound_sum_sq=2423155.0, fp16_headroom_bits=-5.2)
    return replace(large, verdicts={**kv.verdicts, "fp16": risk}, verdict="at risk")


def broken(kv: SiteCertificate) -> SiteCertificate:
    """The same where the images overflow, and nothing is certified."""
    lost = Judgement("unstable", "observed", "sum a^2 overflows in 97.7% of the vectors of head 1")
    large = replace(kv, sum_sq_min=13979.5, sum_sq_max=8.85e7, bound_sum_sq=None, fp16_headroom_bits=-10.4)
    return replace(large, verdicts={**kv.verdicts, "fp16": lost}, verdict="unstable", errors={**kv.errors, "fp16": None})


def folded(kv: SiteCertificate) -> SiteCertificate:
    """The same after a folding that differs between the heads of V."""
    block = kv.name.split(".attn.", maxsplit=1)[0]
    fold = {f"{block}.attn.k/MatMul.weight": (3, 3), f"{block}.attn.v/MatMul.weight": (2, 1)}
    return replace(kv, sum_sq_min=0.0063, sum_sq_max=24.375, bound_sum_sq=2366.0, fold=fold, fold_exponent=5)


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
    wrong = np.flatnonzero(reference.argmax(1) != labels)[: recipe.better]
    engine[wrong, labels[wrong]] += 20
    engine[: recipe.nan_rows] = np.nan
    return reference, engine, labels


def judge_folder(folder: Path, recipe: Recipe) -> None:
    reference, engine, labels = answers(recipe)
    task = load_task("classification", recipe.labels)
    sides = Logits(reference, engine, labels if recipe.labelled else None).sides
    judged = "model.int8.onnx" if recipe.precision == "int8" else "engine.engine"
    subject = Subject(
        reference=Source("model.onnx", sha256_file(folder / "model.onnx"), "ONNX Runtime, CPU"),
        engine=Source(judged, sha256_file(folder / judged), "ONNX Runtime, CPU: the graph, not the engine (no GPU here)"),
        data="/data/test-images",
        data_sha256="2" * 64,
        preprocess_sha256="3" * 64,
    )
    report = judge_sides(task, subject, sides, Budget(), random_weights=recipe.random_weights)
    write_drift(folder, task, report, sides, photo)


def photo(index: int) -> np.ndarray:
    """A colour image of 12 x 8 that tells which it is: its red is the index modulo 251."""
    pixels = np.full((12, 8, 3), 40, np.uint8)
    pixels[:, :, 0] = index % 251
    pixels[3:9, 2:6, 1] = 200
    return pixels


def filled(cls: type[T], **known: Any) -> T:
    """An object of a dataclass; fields that nobody here cares about are empty, or the decibels of no difference."""
    empty = {"int": 0, "float": 300.0, "str": "", "bool": True}
    types = {f.name: getattr(f.type, "__name__", str(f.type)) for f in fields(cls)}  # type: ignore[arg-type]  # only dataclasses come here
    rest = {
        name: None if "None" in kind else () if kind.startswith("tuple") else empty[kind]
        for name, kind in types.items()
        if name not in known
    }
    return cls(**known, **rest)


def attribution(folder: Path) -> Attribution:
    """Six layers, the fourth to blame."""
    layers = tuple(
        filled(
            LayerDrift,
            name=f"blocks.{i // 2}.{('attn.q', 'ffn.1')[i % 2]}/MatMul",
            op_type="MatMul",
            output=f"out{i}",
            precision="fp16" if i == 0 else "int8",
            accumulated_db=60.0 - 5 * i,
            introduced_db=12.5 if i == 3 else 50.0 - i,
            logits_share=0.75 if i == 3 else None,
        )
        for i in range(6)
    )
    graph = GraphFile("model.onnx", sha256_file(folder / "model.onnx"))
    judged = GraphFile("model.int8.onnx", sha256_file(folder / "model.int8.onnx"))
    return filled(
        Attribution,
        sentence="One layer is to <b>blame</b>",
        culprits=(DriftFinding("weights", layers[3].name, (layers[3].name,), "its weights were <i>scaled</i>"),),
        reference=graph,
        base=graph,
        judged=judged,
        ran_on="ONNX Runtime, CPU",
        images=64,
        input=filled(InputDrift),
        float_graph=filled(FloatDrift),
        taps=filled(TapCheck),
        layers=layers,
    )


def manifest(folder: Path, recipe: Recipe) -> EngineManifest:
    def recorded(file: str) -> FileRecord:
        return FileRecord(file, sha256_file(folder / file))

    int8, kind = recipe.precision == "int8", recipe.precision
    certified = kind != "fp32"
    lost = sum(f.mac_fraction for f in recipe.fallbacks)
    actual = {kind: 1.0 - lost, **({"fp16": lost} if lost else {})}
    data = (folder / "engine.engine").read_bytes()
    return EngineManifest(
        model="ufovit_t",
        precision=kind,
        target="rtx",
        task="classification",
        created="2026-11-22T14:36:06+00:00",
        checkpoint=None if recipe.random_weights else FileRecord("ufovit_t.safetensors", "4" * 64),
        onnx=recorded("model.onnx"),
        xnorm=recorded("xnorm.json") if certified else None,
        folded_onnx=recorded("model.folded.onnx") if certified else None,
        qdq_onnx=recorded("model.int8.onnx") if int8 else None,
        calibration=CalibrationRecord("calibration.json", sha256_file(folder / "calibration.json"), 512, "1" * 64)
        if int8
        else None,
        engine=EngineRecord("engine.engine", sha256_bytes(data), len(data), "trt_rtx", "1.7.1.116", ("8.9", "12.0")),
        input=TensorInfo("image", (-1, 3, 64, 64), "float32"),
        outputs=(TensorInfo("logits", (-1, len(recipe.labels)), "float32"),),
        preprocess={"image_size": 64, "mean": [0.286, 0.286, 0.286], "sha256": "3" * 64},
        labels=recipe.labels,
        receipt=Receipt(actual.get("int8", 0.0), {kind: 1.0}, actual, recipe.fallbacks, plan=recipe.plan),
        random_weights=recipe.random_weights,
        notes=("a note with <i>markup</i>",),
    )
