"""The options of `ufovit certify`. Each field of `CertifyOptions` is an option of the command."""

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
        images: Number of images. Default: as many as take about half a minute, 512 at most
        precision: Precision that the verdict covers, repeatable. Default: fp16 bf16 int8
        repair: Fold powers of two into the weights where needed; write the graph here
        out: Write the certificate here, as JSON
        emulate: Run this many images with every FP16 rounding emulated, and compare with FP32
        mean: Mean R,G,B on the [0, 1] scale, for a graph that does not record it
        std: Standard deviation R,G,B, likewise
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
    """The checked options and an FP32 ONNX file, or a build folder, whose FP32 graph is certified. Raises UsageError."""

    source: Path

    def __post_init__(self) -> None:
        check_counts(images=self.images)
        if self.emulate < 0:
            raise UsageError("--emulate must be a non-negative number of images", found=self.emulate, allowed="0 or more")
