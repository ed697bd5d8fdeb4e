"""`golden.npz`: one image, and the tensor that the network was fed for it when the build was made.

    pixels   uint8 (H, W, C)      the first calibration image, C 1 or 3, at most twice the size that the network sees
    tensor   float32 or uint8     the same image after `Preprocess`, of its shape: (C, H, W) or (H, W, C)

Everything that preprocesses images for the build later (drift, camera, bench; on a device too) first computes the tensor again
and compares it with the stored one. Needs numpy alone, except for shrinking a large image.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calib.artifact import Artifact
from calib.errors import ArtifactError, VerdictError
from calib.files import write_bytes
from edge.images.npz import parse_npz
from edge.images.placement import exact_scale
from edge.images.preprocess import Preprocess, Tensor, Uint8, check_size
from edge.numeric_tolerances import PREPROCESS_ABS, PREPROCESS_LEVELS_SHARE
from engines.build_folder.file_names import GOLDEN
from engines.build_folder.folder import BuildFolder
from engines.build_folder.safe_files import REMAKE

_LARGEST_SIDE_RATIO = 2


@dataclass(frozen=True)
class GoldenPair:
    """An image uint8 (H, W, C), C 1 or 3, and the tensor, float32 or uint8, three axes, that was made of it."""

    pixels: Uint8
    tensor: Tensor


def make_golden(pixels: Uint8, preprocess: Preprocess) -> GoldenPair:
    """The pair of an image uint8 (H, W, C); a large one is shrunk first."""
    small = shrunk(pixels, preprocess)
    return GoldenPair(small, preprocess(small))


def write_golden(path: Path, pair: GoldenPair) -> None:
    """Write the pair atomically; equal pairs are written as equal bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, pixels=pair.pixels, tensor=pair.tensor)
    write_bytes(path, buffer.getvalue())


def parse_golden(data: bytes, path: Path) -> GoldenPair:
    """The pair that the bytes of `golden.npz` hold; `path` is what errors name. Raises InputError for any other bytes."""
    arrays = parse_npz(data, ("pixels", "tensor"), path, refusal="not a golden pair", remake=REMAKE)
    pixels, tensor = arrays["pixels"], arrays["tensor"]
    image = pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] in (1, 3) and pixels.size
    prepared = tensor.ndim == 3 and {tensor.shape[0], tensor.shape[2]} & {1, 3} and tensor.dtype in (np.float32, np.uint8)
    if not image or not prepared:
        found = f"{pixels.dtype} {pixels.shape}, {tensor.dtype} {tensor.shape}"
        allowed = "uint8 (H, W, 1 or 3), and float32 or uint8 (C, H, W) or (H, W, C) with C 1 or 3"
        raise ArtifactError("not an image and its tensor", where=path, found=found, allowed=allowed, next_command=REMAKE)
    check_size(pixels.shape[0], pixels.shape[1], path)
    return GoldenPair(pixels, tensor)


GOLDEN_ARTIFACT = Artifact(GOLDEN, parse_golden)


def check_golden(pair: GoldenPair, preprocess: Preprocess, where: object) -> None:
    """Compare this machine's preprocessing with the stored tensor; `where` is what the error names.

    Raises VerdictError when they differ by more than rounding: nothing measured or shown would then be the engine's.
    """
    tensor, allowed = preprocess(pair.pixels), allowed_difference(preprocess)
    alike = (tensor.shape, tensor.dtype) == (pair.tensor.shape, pair.tensor.dtype)
    apart = np.abs(tensor.astype(np.float32) - pair.tensor.astype(np.float32)) if alike else np.array([np.inf])
    difference = float(apart.max())
    if tensor.dtype == np.uint8 and float(apart.mean()) > PREPROCESS_LEVELS_SHARE:
        difference = max(difference, 2 * allowed)  # one level nearly everywhere is another way to round
    if not difference <= allowed:
        raise VerdictError(
            "this machine preprocesses images in another way",
            where=where,
            found=f"largest difference {difference:g}",
            allowed=f"<= {allowed:g}",
            next_command="use the same ufovit-edge and a sound numpy on both machines",
        )


def allowed_difference(preprocess: Preprocess) -> float:
    """Largest difference of a tensor that rounding explains: PREPROCESS_ABS for pixels scaled to [0, 1], one level for uint8.

    Where pixels keep a larger scale, such as 0 to 255, what they are divided by afterwards counts.
    """
    if preprocess.dtype == "uint8":
        return 1.0
    return PREPROCESS_ABS * max(1.0, 255.0 / preprocess.scale / max(1.0, *preprocess.std))


def require_golden(build: BuildFolder) -> None:
    """Raise ArtifactError where a build has no golden pair, as those of older toolkits."""
    if not build.has(GOLDEN):
        raise ArtifactError(
            "the build holds no golden pair, which says what preprocessing must give",
            where=build.path / GOLDEN,
            allowed="the file that the build wrote",
            next_command=f"copy {GOLDEN} along, or build again: {REMAKE}",
        )


def check_build_golden(build: BuildFolder, preprocess: Preprocess) -> GoldenPair:
    """The golden pair of a build, once this machine's preprocessing agrees with it.

    Raises ArtifactError where it is missing or damaged; VerdictError as `check_golden` does.
    """
    require_golden(build)
    pair = build.read(GOLDEN_ARTIFACT)
    check_golden(pair, preprocess, f"{build.path / GOLDEN}: the first calibration image")
    return pair


def shrunk(image: Uint8, preprocess: Preprocess) -> Uint8:
    """An image of at most twice the pixels that the network sees along its sides, uint8."""
    seen = (preprocess.height, preprocess.width)
    numerator, denominator = exact_scale(image.shape[:2], seen, preprocess.resize, preprocess.fit)
    if _LARGEST_SIDE_RATIO * numerator >= denominator:
        return image
    from PIL import Image

    shorter = min(image.shape[:2])
    wanted = max(1, round(shorter * _LARGEST_SIDE_RATIO * numerator / denominator))
    height, width = (round(side * wanted / shorter) for side in image.shape[:2])
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    resized = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))
    return resized[:, :, None] if resized.ndim == 2 else resized
