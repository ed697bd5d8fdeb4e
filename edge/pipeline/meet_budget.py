"""Meet an accuracy budget by leaving layers in float: ranked by quantization error per MAC, tried on held-out images."""

from dataclasses import replace
from pathlib import Path

import onnx

from calib.budget import BudgetResult, drop_points, fit_budget
from calib.calibration_table import CalibrationTable
from calib.macs import count_macs
from calib.qdq_placement import QuantScheme, plan_quantization
from calib.qdq_writer import serialize
from calib.quantize import quantize_graph
from calib.sensitivity import IMAGES, measure_sensitivity, rank_groups
from edge.images.graph_input import GraphImages
from edge.progress import Progress
from edge.runtime.ort_runner import BATCH, OrtRunner, run_all
from edge.tasks.task import Outputs


def fit(
    model: onnx.ModelProto,
    table: CalibrationTable,
    scheme: QuantScheme,
    images: GraphImages,
    reference: Outputs,
    budget: float,
    progress: Progress,
) -> BudgetResult:
    """Find the largest INT8 share of the MACs whose drop on `images` is within `budget` points; report the trials.

    Judged by the first output, (n, classes). Without labels the share of changed answers, which no drop can exceed,
    stands for the drop.
    """
    plan = plan_quantization(model, scheme)
    with progress.task("sensitivity of every group") as advance:
        few, judged = images.take(IMAGES), onnx.ModelProto()
        judged.CopyFrom(model)
        del judged.graph.output[1:]
        groups = measure_sensitivity(
            judged, table, plan, few.batches(BATCH), threads=2, progress=lambda done, total: advance(done / total)
        )
    macs = count_macs(model, measure=True).by_name

    def evaluate(float_nodes: tuple[str, ...]) -> float:
        trial = quantize_graph(model, replace(table, float_nodes=float_nodes), scheme, "a trial of the search")
        runner = OrtRunner(Path("a trial of the search"), data=serialize(trial), throughput=True)
        drop = drop_points(reference[0], run_all(runner, images.batches(BATCH))[0], images.labels)
        progress.say(f"    {len(float_nodes)} of {len(plan.nodes)} layers in float: drop {drop:+.2f} points")
        return drop

    ranked = rank_groups(groups)
    with progress.task(f"search for {budget:g} points on {len(images)} images"):
        result = fit_budget(ranked, evaluate, macs, budget, largest=len(ranked) - 1)
    trials = f"{result.evaluations} trial{'s' * (result.evaluations > 1)}"
    progress.say(
        f"budget       {'met' if result.met else 'NOT MET'}: drop {result.drop:+.2f} points of {result.budget:g} with "
        f"{result.int8_share:.1%} of the multiply-accumulates in INT8, {trials}; one image is {100 / len(images):.2g} points"
    )
    return result
