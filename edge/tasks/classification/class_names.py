"""Names of the classes of a network: the labels that a user gave, or the indices of the classes. Standard library only."""

from calib.errors import UsageError
from engines.layer_records import TensorInfo


def class_names(labels: tuple[str, ...], outputs: tuple[TensorInfo, ...]) -> tuple[str, ...]:
    """One name per class of a network with these outputs: `labels`, or "0" to "n-1" where none were given.

    Raises UsageError for outputs other than one (batch, classes), and for fewer or more labels than classes; the caller knows
    which file they come from.
    """
    shapes = [output.shape for output in outputs]
    if len(shapes) != 1 or len(shapes[0]) != 2 or shapes[0][1] < 1 or not outputs[0].dtype.startswith("float"):
        found = ", ".join(f"{output.name}: {output.dtype} {list(output.shape)}" for output in outputs)
        raise UsageError(
            "the network does not classify",
            where="--task classify",
            found=found or "no output",
            allowed="one floating-point output (batch, classes)",
            next_command="pass --task tensors, which compares the outputs as numbers",
        )
    classes = shapes[0][1]
    if labels and len(labels) != classes:
        raise UsageError(
            f"{'fewer' if len(labels) < classes else 'more'} labels than the network has outputs",
            found=f"{len(labels)} labels",
            allowed=f"{classes}, one per output, in their order; or none, for the numbers 0 to {classes - 1}",
        )
    return labels or tuple(map(str, range(classes)))
