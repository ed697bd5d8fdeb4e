"""What `ufovit certify` is asked for. Each field of `CertifyOptions` is an option of the command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cyclopts import Parameter

from calib.errors import UsageError
from edge.pipeline.request_checks import check_counts


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class CertifyOptions:
    """How a graph is certified.

    Attributes:
        data: Images to measure on: a folder, an image, an IDX file. Default: the shipped ones
        images: How many. Default: about half a minute's worth, 512 at most
        precision: What the verdict is over, repeatable. Default: fp16 bf16 int8
        repair: Fold powers of two into the weights where needed; write the graph here
        out: Write the certificate here, as JSON
        emulate: Run this many images with every FP16 rounding emulated, and compare with FP32
        mean: R,G,B on the [0, 1] scale, for a graph that does not say
        std: R,G,B likewise
    """

    data: Path | None = None
    images: int | None = None
    precision: tuple[str, ...] = ()
    repair: Path | None = None
    out: Path | None = None
    emulate: int = 0
    mean: str | None = None
    std: str | None = None


@dataclass(frozen=True)
class CertifyRequest(CertifyOptions):
    """The options, checked, and an ONNX file (FP32), or a build folder, whose FP32 graph is taken. Raises UsageError."""

    source: Path

    def __post_init__(self) -> None:
        check_counts(images=self.images)
        if self.emulate < 0:
            raise UsageError("--emulate is no number of images", found=self.emulate, allowed="0 or more")
