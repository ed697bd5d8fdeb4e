"""`ufovit calibrate`: INT8 scales and a TensorRT-legal Q/DQ graph for any ONNX file."""

from pathlib import Path

from edge.cli.console import terminal_progress
from edge.pipeline.calibrate_request import CalibrateOptions, CalibrateRequest

_DEFAULT = CalibrateOptions()


def calibrate(graph: Path, /, *, options: CalibrateOptions = _DEFAULT, out: Path | None = None) -> int:
    """Calibrate a float graph on images, and write it with Q/DQ.

    Writes model.int8.onnx, calibration.json, model.refined.onnx (the float graph that the scales fit) and calibration.cache.

    Every layer that stays in float is named with its share of the multiply-accumulates and the reason.

    Exit codes: 0 done, 1 budget or INT8 floor not met or a layer not in INT8, 2 bad input, 3 an output that is the same for
    every image or a share that cannot be counted, so that nothing is judged, 4 something this machine lacks. With 3 and with a
    budget or floor that is not met, the files are written.

    Args:
        graph: An ONNX file (FP32) with one input
        out: Output folder. Default: build/calibrate/GRAPH
    """
    from edge.pipeline.calibrate import calibrate_file

    settings = {**vars(options), "keep_float": tuple(filter(None, options.keep_float))}
    request = CalibrateRequest(graph, out or Path("build/calibrate") / graph.stem, **settings)
    return calibrate_file(request, terminal_progress())
