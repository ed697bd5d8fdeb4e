"""Open the network that a build is of: a size of the family, a checkpoint of any UFO-ViT, or any ONNX file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from calib.errors import GraphError, UsageError
from edge.assets import SHIPPED_CHECKPOINT, SHIPPED_MODEL
from edge.images.preprocess import Preprocess
from edge.model.metadata import CheckpointInfo, is_safetensors, read_info
from edge.model.network_file import NetworkFile, find_network_file, read_labels, read_network_file
from edge.model.sizes import SIZES, config
from edge.pipeline.network_options import NetworkOptions
from edge.tasks.registry import class_names, load_task
from edge.tasks.task import Task
from edge.tasks.task_names import CLASSIFICATION, TASK_OPTIONS, TENSORS, option_of, task_named
from engines.layer_records import TensorInfo

if TYPE_CHECKING:
    from edge.onnx_import.imported import ImportedFile
    from edge.pipeline.build_request import BuildRequest

ONNX_SUFFIX = ".onnx"


@dataclass(frozen=True)
class Network:
    """What the steps of a build need to know of its network.

    Attributes:
        name: in the manifest: the size, or the name of the file.
        task: the meaning of the outputs, with the names of the classes.
        file: path of the checkpoint or ONNX file, empty for random weights; `sha256` is its digest.
        random_weights: the weights were never trained.
        info: metadata of a UFO-ViT, None for the network of an ONNX file.
        imported: the import of an ONNX file, with its graph where it was read; None for a UFO-ViT.
    """

    name: str
    task: Task
    preprocess: Preprocess
    file: str = ""
    sha256: str = ""
    random_weights: bool = False
    info: CheckpointInfo | None = None
    imported: ImportedFile | None = None

    def batch(self, largest: int) -> int:
        """Images per run on the CPU: `largest`, or one for a graph that takes no more."""
        return largest if self.imported is None or self.imported.image_input.shape[0] is None else 1

    @property
    def xnorm_sites(self) -> int | None:
        """Number of XNorms that the graph must have; None where it is not known."""
        return None if self.info is None else self.info.config.xnorm_sites

    @property
    def xnorm_kv_axis(self) -> int | None:
        """Axis that the XNorms of K^T V must have; None where it is not known."""
        return None if self.info is None else self.info.config.xnorm_kv_axis


def open_network(request: BuildRequest) -> Network:
    """Open and check the network of a request. Raises InputError; touches nothing."""
    if is_onnx(request.model):
        return _open_onnx(request, Path(request.model))
    options = request.network
    info = _checkpoint_info(request)
    options.require_none(request.model, but=("task", "network"))
    task = load_task(CLASSIFICATION, info.labels) if task_of_option(options.task) == CLASSIFICATION else load_task(TENSORS)
    return Network(info.config.name, task, info.preprocess, info.file, info.sha256, info.random_weights, info=info)


def task_of_option(option: str | None) -> str:
    """The name of the task of --task; a network classifies where nothing is said. Raises UsageError."""
    return CLASSIFICATION if option is None else task_named(option)


def is_onnx(model: str) -> bool:
    """Whether MODEL names an ONNX file."""
    return Path(model).suffix.lower() == ONNX_SUFFIX


def _checkpoint_info(request: BuildRequest) -> CheckpointInfo:
    """Metadata of the requested checkpoint, or of the random weights."""
    if request.random_weights:
        shipped = read_info(SHIPPED_CHECKPOINT)
        size = shipped.config.image_size if request.image_size is None else request.image_size
        return CheckpointInfo(
            config=config(request.model, image_size=size, classes=len(shipped.labels)),
            labels=shipped.labels,
            preprocess=shipped.preprocess.for_image_size(size),
            random_weights=True,
            training={"seed": request.seed},
        )
    if request.model not in SIZES:
        return _open_checkpoint(Path(request.model), request)
    if request.checkpoint is None and request.model != SHIPPED_MODEL:
        raise UsageError(
            f"no checkpoint of {request.model} is shipped",
            where="--checkpoint",
            allowed=f"{SHIPPED_MODEL} without --checkpoint",
            next_command="pass --checkpoint FILE, or --random-weights to try the tools on random weights",
        )
    info = _open_checkpoint(request.checkpoint or SHIPPED_CHECKPOINT, request)
    info.require_model(request.model)
    return info


def _open_checkpoint(path: Path, request: BuildRequest) -> CheckpointInfo:
    stated = stated_network(request.network)
    if is_safetensors(path):
        return read_info(path, stated).for_image_size(request.image_size)
    from edge.model.checkpoint import load_checkpoint

    return load_checkpoint(path, image_size=request.image_size, network=stated)[1]


def stated_network(options: NetworkOptions) -> NetworkFile | None:
    """What the file of --network states; None without the option. Raises UsageError."""
    return None if options.network is None else read_network_file(options.network)


def _open_onnx(request: BuildRequest, path: Path) -> Network:
    """Import an ONNX file, and complete what it does not state."""
    from edge.pipeline.onnx_options import import_options, preprocess_of
    from edge.pipeline.recall_import import recall_import

    options = request.network
    network_file = options.network or find_network_file(path)
    file = NetworkFile() if network_file is None else read_network_file(network_file)
    if file.network:
        found, allowed = "a table [network]", "shapes are those of the graph; [network] is for a checkpoint of UFO-ViT"
        raise UsageError("the network file does not fit an ONNX file", where=file.file, found=found, allowed=allowed)
    read_as = import_options(options)
    imported = None if request.force else recall_import(path, read_as, request.out)
    if imported is None:
        from edge.onnx_import import import_onnx

        imported = import_onnx(path, read_as)
    if (imported.image_input.shape[0] or 1) > 1:
        raise GraphError(
            "the network takes a fixed number of images at a time, and answers otherwise with another number",
            where=path,
            found=imported.image_input.shape[0],
            allowed="a free batch, or one image",
            next_command="export it with a free batch, or one image",
        )
    task = _task(options, file, imported.outputs)
    preprocess = preprocess_of(imported, options, file, f"ufovit build {path} {request.precision}")
    return Network(path.stem, task, preprocess, str(path), imported.data_sha256, imported=imported)


def _task(options: NetworkOptions, file: NetworkFile, outputs: tuple[TensorInfo, ...]) -> Task:
    """What the outputs of an ONNX file mean. Raises UsageError, naming the option or file that does not fit them."""
    if options.task is None and file.task is not None and file.task not in TASK_OPTIONS:
        raise UsageError("unknown task", where=f"{file.file}, task", found=file.task, allowed=", ".join(TASK_OPTIONS))
    name = task_of_option(options.task or file.task)
    labels = read_labels(options.labels) if options.labels is not None else file.labels
    try:
        names = class_names(name, labels, outputs)
    except UsageError as error:
        raise error.at(options.labels or f"{file.file}, labels") from error
    if options.labels is not None and not names:
        what = f"--labels does not apply to --task {option_of(name)}"
        raise UsageError(what, where=options.labels, allowed="without it, or --task classify")
    return load_task(name, names, outputs)
