"""Check weights, image files and libraries before a build changes anything: a refusal leaves an earlier build unchanged.

Names, numbers, labels and metadata are checked by `edge.pipeline.build_request` and `build_inputs`. The checks here take
longer and run only when some step has to run.
"""

from importlib import import_module
from pathlib import Path

from calib.errors import MissingError
from edge.pipeline.build_inputs import BuildInputs
from edge.pipeline.build_request import BuildRequest
from edge.pipeline.open_network import stated_network
from edge.progress import Advance
from engines.backends import require_backend
from engines.build_folder.file_names import MODEL

BUILD_LIBRARIES = ("torch", "onnx", "onnxscript", "onnxruntime", "safetensors", "PIL", "jinja2", "matplotlib")
"""Import names of the libraries of the extra `build` that a build needs."""


def check_inputs(request: BuildRequest, inputs: BuildInputs, first_step: str, advance: Advance) -> None:
    """Check everything that the steps from `first_step` on need.

    Raises:
        MissingError: a library of the build or of the target's backend is missing or does not load.
        InputError: weights that do not fit the model, an image that cannot be decoded, a pattern of layers that matches none;
            each named.
    """
    if first_step == "report":
        return
    libraries = ("onnx", "onnxruntime", "jinja2", "matplotlib")
    for library in (*libraries, "torch", "onnxscript") if first_step == "export" else libraries:
        try:
            import_module(library)
        except ImportError as error:
            raise missing_library(library) from error
    if first_step != "drift":
        require_backend(request.target.backend)
    if first_step in ("certify", "calibrate"):  # an export or import checks its own graph before it is complete
        check_patterns(request, inputs, request.out / MODEL)
    info = inputs.network.info
    if first_step == "export" and info is not None and info.file:
        from edge.model.checkpoint import load_checkpoint

        load_checkpoint(
            Path(info.file),
            model=info.config.name,
            image_size=info.config.image_size,
            network=stated_network(request.network),
        )
    images = [(image_set, i) for image_set in (inputs.calib_images, inputs.eval_images) for i in range(len(image_set))]
    for done, (image_set, i) in enumerate(images, start=1):
        image_set.pixels(i)
        advance(done / len(images))


def check_patterns(request: BuildRequest, inputs: BuildInputs, graph: Path) -> None:
    """Raise UsageError for a pattern of --keep-float that matches no layer of the graph."""
    if request.precision == "int8":
        from calib.graph import load_graph
        from calib.qdq_placement import QuantScheme, plan_quantization

        model, _ = load_graph(graph)
        plan_quantization(model, QuantScheme(exclude=inputs.keep_float))


def missing_library(name: str) -> MissingError:
    """The error for a missing library of the extra `build`."""
    return MissingError(f"{name} is not installed", next_command="pip install 'ufovit-edge[build]'")
