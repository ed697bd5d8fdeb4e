"""`ufovit bundle`: pack everything a device needs to build and check its own engine into one file."""

from pathlib import Path

from calib.errors import UsageError
from edge.cli.console import terminal_progress
from edge.cli.outputs import check_outputs
from edge.pipeline.request_checks import check_counts
from engines.build_folder.bundle_format import SUFFIX
from engines.build_folder.folder import BuildFolder

IMAGES = 2000
"""At the shipped network's flip rate an engine without any drop passes a budget of half a point with 87 % of such samples."""


def bundle(build: Path, /, *, data: Path | None = None, images: int = IMAGES, out: Path | None = None) -> int:
    """Pack graph, calibration, certificate, preprocessing, labels, test images with FP32 answers, and the budget.

    On the device: scripts/build_engine.sh --bundle FILE. Exit codes: 0 done, 2 bad input, 4 something this machine lacks.

    Args:
        build: Build folder of `ufovit build` for a GPU target
        data: Images that judge the engine on the device, in the formats of `ufovit build --data`. Default: those of the
            verdict on the build
        images: Number of images to pack, 1 to 1,000,000, spread evenly over the data
        out: Bundle file. Default: BUILD.ufovit
    """
    from edge.pipeline.pack_bundle import check_packable, images_to_pack, make_bundle

    check_counts(images=images)
    folder = BuildFolder(build)
    check_packable(folder)
    chosen = images_to_pack(folder, data).take(images)
    path = out or build.resolve().with_name(build.resolve().name + SUFFIX)
    if path.is_dir():
        raise UsageError("a bundle must be a file", where=path, next_command=f"pass --out {path / build.name}{SUFFIX}")
    check_outputs(path, inputs=(build, data))
    progress = terminal_progress()
    with progress.task("reference answers") as advance:
        info = make_bundle(folder, chosen, path, advance)
    progress.say(
        f"{path}: {path.stat().st_size / 1e6:.1f} MB, {info.model} {info.precision}, {len(chosen)} images of {info.data}"
    )
    progress.say(f"on the device: scripts/build_engine.sh --bundle {path.name}")
    return 0
