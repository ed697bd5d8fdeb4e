"""Quantize a float ONNX graph to INT8 with calibration images: refined float graph, calibration table, Q/DQ graph."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from glob import escape
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from calib.calibration_table import CalibrationTable
from calib.collect import CollectConfig, observe
from calib.errors import VerdictError
from calib.files import write_bytes
from calib.graph import load_graph
from calib.held_out import BLOCK, HeldOut, batch_of
from calib.lint import lint_graph
from calib.placement import PlacementSearch, ranking_images
from calib.qdq_placement import QuantScheme, plan_quantization
from calib.qdq_writer import insert_qdq, serialize
from calib.refine.effort import Effort, resolve_effort
from calib.refine.effort_results import Results, Source
from calib.sensitivity import group_nodes

_REFINE_SHARE = 0.8
_LISTED = 5


@dataclass(frozen=True)
class CalibrateConfig:
    """How to refine and calibrate.

    Attributes:
        effort: name in `calib.refine.effort.EFFORTS`, or a set of refinements.
        refine_threads: threads of ONNX Runtime while refining.
        bounds: refined graph -> (tensor -> largest magnitude on any image, where that is proven).
        placement: leave layers in float that INT8 costs too much, within these limits; None for none.
    """

    effort: str | Effort = "balanced"
    scheme: QuantScheme = field(default_factory=QuantScheme)
    collect: CollectConfig = field(default_factory=CollectConfig)
    refine_threads: int = 1
    bounds: Callable[[onnx.ModelProto], Mapping[str, float]] = lambda _model: {}
    placement: PlacementSearch | None = None

    def __post_init__(self) -> None:
        resolve_effort(self.effort)


def calibrate_graph(
    source: Path,
    refined: Path,
    batches: Callable[[], Iterable[NDArray[Any]]],
    *,
    images: int,
    data_sha256: str,
    config: CalibrateConfig,
    progress: Callable[[float], None] = lambda _done: None,
) -> CalibrationTable:
    """Calibrate a float graph, refine it, and write the graph of the result kept after a comparison on held-out images.

    Args:
        source: float graph with one input.
        refined: output path of the refined float graph; the bytes of the source where no refinement was better.
        batches: returns all images at each call: arrays (B, ...) float32 as the graph takes them.
        images: their number; `data_sha256` is their digest, for the table.
        progress: called with the fraction done.

    The same batches in the same order give the same bytes; without refinements the order does not matter either.
    """
    model, data = load_graph(source)
    effort, collect = resolve_effort(config.effort), config.collect
    collect.check_count(images)
    share = 1 - _REFINE_SHARE if effort.names else 0.75 if config.placement else 1.0
    batch, plan = batch_of(model), plan_quantization(model, config.scheme)
    ranking = ranking_images(images, len(group_nodes(plan))) if config.placement else 0
    held = HeldOut(images, batch or BLOCK, ranking=ranking, ranking_block=batch or 1)
    judges = HeldOut(images, batch or BLOCK, all=True)
    halves, sha256 = observe(
        source,
        held.keep(judges.keep(batches())),
        plan,
        collect,
        lambda done: progress(share * done / images),
    )
    results = Results(
        Source(model, sha256, halves, data_sha256, judges), config.scheme, collect, config.bounds, held, config.refine_threads
    )
    best = results.keep_best(effort, batches(), lambda done: progress(share + (1 - share) * done), config.placement)
    if share < 1:
        progress(1.0)
    write_bytes(refined, serialize(best.model) if best.table.refinements else data)
    return best.table


def quantize_graph(model: onnx.ModelProto, table: CalibrationTable, scheme: QuantScheme, where: object) -> onnx.ModelProto:
    """Insert Q/DQ into a float graph and lint the result; nodes that the table keeps in float stay in float.

    Raises VerdictError, naming layers, when something would not run in INT8.
    """
    plan = plan_quantization(model, replace(scheme, exclude=(*scheme.exclude, *map(escape, table.float_nodes))))
    quantized = insert_qdq(model, table, plan)
    findings = [f for f in lint_graph(quantized) if f.severity != "note"]
    if findings:
        raise VerdictError(
            "the quantized graph would not run in INT8",
            where=where,
            found="; ".join(f"{f.node}: {f.message}" for f in findings[:_LISTED]) + f" ({len(findings)} in all)",
        )
    return quantized
