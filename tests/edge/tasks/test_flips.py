"""`flips.npz`: which images are kept, how small, and what is refused. Oracle: means and indices worked out by hand."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from report_folder import Recipe, make_folder, photo, render
from rich.console import Console

from calib.errors import InputError
from edge.drift.drift_report import Source, Subject, judge_sides, write_drift
from edge.drift.pictures import KEPT, parse_pictures, picture, write_pictures
from edge.inspect.describers import describe_file
from edge.tasks.budget import Budget
from edge.tasks.classification.flips import worst_flips
from edge.tasks.classification.logits import Logits
from edge.tasks.registry import load_task


def silent(_share: float) -> None:
    pass


@pytest.mark.parametrize("random_weights", [False, True])
def test_the_drift_step_keeps_the_pictures(tmp_path: Path, *, random_weights: bool) -> None:
    side, asked = Source("x", "0" * 64, "here"), []
    subject = Subject(side, side, "images", "1" * 64, "2" * 64)
    reference = np.tile(np.float32([3, 0, 0]), (9, 1))
    engine = reference.copy()
    engine[4], engine[6], engine[7] = [0, 3, 0], [0, 0, 9], [0, 1, 0]
    labels = np.array([0, 0, 0, 0, 0, 0, 0, 1, 2])

    def pixels(index: int) -> np.ndarray:
        asked.append(index)
        return photo(index)

    task, sides = load_task("classification", ("a", "b", "c")), Logits(reference, engine, labels).sides
    report = judge_sides(task, subject, sides, Budget(), random_weights=random_weights)
    write_drift(tmp_path, task, report, sides, pixels)
    found = parse_pictures((tmp_path / "flips.npz").read_bytes(), tmp_path / "flips.npz")
    assert found.indices.tolist() == asked == ([] if random_weights else [6, 4, 7]), (
        "worst first; 7 turned right; 8 is wrong twice"
    )
    for index, kept in zip(found.indices, found.pictures, strict=True):
        np.testing.assert_array_equal(kept, photo(index))


@pytest.mark.parametrize("shape", [(1, 1, 1), (28, 28, 1), (64, 64, 3), (65, 7, 3), (480, 640, 4), (3000, 2, 3)])
def test_a_picture_keeps_shape_and_mean(shape: tuple[int, int, int]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)
    small = picture(pixels)
    scale = max(1.0, max(shape[:2]) / 64)
    assert small.shape == (max(1, round(shape[0] / scale)), max(1, round(shape[1] / scale)), 3)
    if scale == 1:
        np.testing.assert_array_equal(small, np.broadcast_to(pixels[:, :, :3], (*shape[:2], 3)))
    else:
        assert small.mean() == pytest.approx(pixels[:, :, :3].mean(), rel=0.05)


def test_pictures_are_read_back_and_stay_small(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    photos = [rng.integers(0, 256, (200 + 10 * i, 300, 3)).astype(np.uint8) for i in range(24)]
    write_pictures(tmp_path / "flips.npz", np.arange(24), photos.__getitem__)
    assert (tmp_path / "flips.npz").stat().st_size < 300_000
    found = parse_pictures((tmp_path / "flips.npz").read_bytes(), tmp_path / "flips.npz")
    for kept, original in zip(found.pictures, photos, strict=True):
        np.testing.assert_array_equal(kept, picture(original))
    shown = io.StringIO()
    Console(file=shown, width=100).print(describe_file(tmp_path / "flips.npz"))
    assert "24 whose answer flipped" in shown.getvalue()
    assert "64 x 43" in shown.getvalue()


def test_at_most_24_are_kept_and_ties_keep_their_order() -> None:
    reference = np.tile(np.float32([4, 0]), (40, 1))
    engine = np.tile(np.float32([0, 4]), (40, 1))
    engine[7] = [-9, 9]
    assert worst_flips(reference, engine, None)[:KEPT].tolist() == [7, *(i for i in range(24) if i != 7)]
    assert worst_flips(reference, reference, None).tolist() == []


SPOILED = {
    "twice the same": {"indices": np.array([3, 3]), "shapes": np.ones((2, 2), np.int64), "pixels": np.zeros(6, np.uint8)},
    "too large": {"indices": np.array([3]), "shapes": np.array([[65, 1]]), "pixels": np.zeros(195, np.uint8)},
    "no size": {"indices": np.array([3]), "shapes": np.array([[0, 1]]), "pixels": np.zeros(0, np.uint8)},
    "floats": {"indices": np.array([3.0]), "shapes": np.array([[1, 1]]), "pixels": np.zeros(3, np.uint8)},
    "objects": {"indices": np.array([3]), "shapes": np.array([[1, 1]]), "pixels": np.array([None])},
}


@pytest.mark.parametrize("what", SPOILED)
def test_damaged_pictures_are_refused(tmp_path: Path, what: str) -> None:
    make_folder(tmp_path, Recipe(flips=2))
    np.savez(tmp_path / "flips.npz", **SPOILED[what])
    with pytest.raises(InputError, match=r"flip|pictures"):
        render(tmp_path, silent)
