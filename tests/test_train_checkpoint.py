"""The training script: cut off and resumed it lands on the same bits, every size goes through it, bad input is refused."""

import argparse
import itertools
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from calib.errors import InputError, VerdictError
from edge.assets import CALIBRATION_IMAGES, SHIPPED_CHECKPOINT, SHIPPED_MODEL
from edge.images.idx import read_idx, write_idx
from edge.images.preprocess import Preprocess
from edge.images.resampling import resample_matrix
from edge.model.checkpoint import load_checkpoint
from edge.model.sizes import SIZES, config
from scripts import train_checkpoint

SCRIPT = Path(__file__).resolve().parents[1] / "scripts/train_checkpoint.py"
CHEAP = ("--image-size", "32", "--batch", "4", "--warmup", "2", "--threads", str(torch.get_num_threads()))
IMAGES = 40  # the first 24 are trained on


@pytest.fixture(scope="module")
def script():
    """The script as a module that holds out 16 images and averages every other step."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("HELD_OUT", 16), ("AVERAGE_EVERY", 2), ("PRINT_EVERY", 3)):
            patch.setattr(train_checkpoint, name, value)
        yield train_checkpoint


@pytest.fixture
def data(tmp_path):
    """A folder of the four files, of the first calibration images."""
    folder = tmp_path / "data"
    folder.mkdir()
    labels = CALIBRATION_IMAGES.with_name(CALIBRATION_IMAGES.name.replace("images-idx3", "labels-idx1"))
    for name, source in (("images-idx3", CALIBRATION_IMAGES), ("labels-idx1", labels)):
        write_idx(folder / f"train-{name}-ubyte.gz", read_idx(source)[:IMAGES])
        write_idx(folder / f"t10k-{name}-ubyte.gz", read_idx(source)[IMAGES : IMAGES + 8])
    return folder


@pytest.fixture
def small(monkeypatch):
    """ufovit_t with one block."""
    monkeypatch.setitem(SIZES, "ufovit_t", replace(SIZES["ufovit_t"], depth=1, dim=32))


@pytest.fixture
def train(script, data, tmp_path, monkeypatch):
    """Run the script; the folder that it writes to. `stop_at`: interrupt it at this step of the run."""

    def run(*options, out="out", stop_at=None):
        steps = itertools.count()

        def step(*args):
            if next(steps) == stop_at:
                raise KeyboardInterrupt
            return real(*args)

        real = script.train_step
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", [str(SCRIPT), "--data", str(data), "--out", str(tmp_path / out), *CHEAP, *options])
            patch.setattr(script, "train_step", step)
            script.main()
        return tmp_path / out

    return run


def weights(folder, model=SHIPPED_MODEL):
    return load_checkpoint(folder / f"{model}.safetensors", model=model)[0].state_dict()


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- the run


@pytest.mark.slow
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("save_every", "stop_at"), [(1, 1), (2, 5), (4, 7)])
def test_a_training_that_was_cut_off_lands_on_the_same_bits(train, save_every, stop_at):
    whole = train("--epochs", "2", out="whole")  # 12 steps
    saves = ("--epochs", "2", "--save-every", str(save_every))
    with pytest.raises(KeyboardInterrupt):
        train(*saves, stop_at=stop_at)
    resumed = train(*saves)
    assert equal(weights(whole), weights(resumed))


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_a_resume_that_forgets_the_optimizer_is_noticed(train, script, monkeypatch):
    whole = train("--epochs", "2", out="whole")
    with pytest.raises(KeyboardInterrupt):
        train("--epochs", "2", "--save-every", "2", stop_at=5)
    real = script.resume
    monkeypatch.setattr(script, "resume", lambda *args: real(*args[:2], {k: v for k, v in args[2].items() if k != "optimizer"}))
    assert not equal(weights(whole), weights(train("--epochs", "2", "--save-every", "2")))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("options", "longest"), [((), 0.996), (("--ema", "0.3"), 0.3)])
def test_what_is_kept_is_the_moving_average(train, script, monkeypatch, options, longest):
    name, seen = "head.weight", []

    def step(model, *args):
        loss = real(model, *args)
        seen.append(model.state_dict()[name].clone())
        return loss

    real = script.train_step
    monkeypatch.setattr(script, "train_step", step)
    got = weights(train("--epochs", "2", "--warmup", "1", "--lr", "1e-2", *options))[name]
    wanted = seen[1]
    for updates, weight in enumerate(seen[3::2], start=1):
        share = min(longest, [0.1, 2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15][updates])
        wanted = share * wanted + (1 - share) * weight
    torch.testing.assert_close(got, wanted, rtol=2e-3, atol=1e-6)  # stored in FP16
    assert not torch.allclose(got, seen[-1], rtol=2e-3, atol=1e-6), "not the last weights"


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_seed_decides(train):
    assert equal(weights(train("--epochs", "1", out="a")), weights(train("--epochs", "1", out="b")))
    assert not equal(weights(train("--epochs", "1", out="a")), weights(train("--epochs", "1", "--seed", "1", out="c")))


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_it_learns(train, data, capsys):
    train("--epochs", "14", "--lr", "5e-3", "--smoothing", "0", "--bf16")
    losses = [float(loss) for loss in re.findall(r"loss (\S+)", capsys.readouterr().out)]
    assert len(losses) == 14 * 6 // 3
    frequencies = np.bincount(read_idx(data / "train-labels-idx1-ubyte.gz")[:24]) / 24
    blind = -sum(p * np.log(p) for p in frequencies if p)  # the least that one can reach without looking at the images
    assert losses[0] > blind
    assert np.mean(losses[-4:]) < 0.75 * blind


@pytest.mark.slow
@pytest.mark.parametrize("model", list(SIZES))
def test_every_size(train, model, data, monkeypatch):
    monkeypatch.setitem(SIZES, model, replace(SIZES[model], depth=1))  # as wide as it is, with as many heads
    out = train("--model", model, "--epochs", "1", "--batch", "24")  # one step
    _, info = load_checkpoint(out / f"{model}.safetensors", model=model)
    assert (info.config.image_size, info.config.classes) == (32, 10)
    assert info.training["data"].startswith("Fashion-MNIST, first 24 training images")
    np.testing.assert_array_equal(
        read_idx(out / "calibration-images-idx3-ubyte.gz"), read_idx(data / "train-images-idx3-ubyte.gz")[24:]
    )
    np.testing.assert_array_equal(read_idx(out / "test-labels-idx1-ubyte.gz"), read_idx(data / "t10k-labels-idx1-ubyte.gz"))


@pytest.mark.slow
def test_any_shape(train):
    shape = ("--depth", "1", "--dim", "24", "--heads", "3")
    out = train(*shape, "--epochs", "1", "--batch", "24", "--image-size", "48x32")
    _, info = load_checkpoint(out / "ufovit_d1_c24_h3.safetensors")
    assert (info.config.depth, info.config.dim, info.config.heads, info.config.grid) == (1, 24, 3, (3, 2))
    assert (info.preprocess.shape, info.preprocess.fit, info.labels) == ((3, 48, 32), "stretch", train_checkpoint.LABELS)
    with pytest.raises(InputError, match="divisible by heads"):
        train("--dim", "25")
    with pytest.raises(InputError, match="not an image size"):
        train("--image-size", "large")


@pytest.mark.slow
def test_init_starts_from_a_checkpoint_of_another_image_size(train):
    """A learning rate of zero moves no parameter; the position embedding is the one that a build of that size would take."""
    got = weights(train("--epochs", "1", "--batch", "24", "--lr", "0", "--init", str(SHIPPED_CHECKPOINT)))
    model, _ = load_checkpoint(SHIPPED_CHECKPOINT, model=SHIPPED_MODEL, image_size=32)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(got[name], parameter, rtol=1e-3, atol=1e-6)  # stored in FP16


# --- refused


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("option", "value"), [("lr", "1e-4"), ("seed", "1"), ("model", "ufovit_s"), ("epochs", "3")])
def test_the_state_of_another_training_is_refused_and_kept(train, tmp_path, option, value):
    with pytest.raises(KeyboardInterrupt):
        train("--epochs", "2", "--save-every", "1", stop_at=1)
    before = (tmp_path / "out/state.pt").read_bytes()
    with pytest.raises(InputError, match=rf"{option} .*, now .*(?s:.)*next: rm .*state\.pt"):
        train("--epochs", "2", f"--{option}", value)
    assert (tmp_path / "out/state.pt").read_bytes() == before


@pytest.mark.usefixtures("small")
def test_an_invalid_state_is_refused(train, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/state.pt").write_bytes(b"not a state")
    with pytest.raises(InputError, match="not a training state"):
        train()


@pytest.mark.usefixtures("small")
def test_divergence_stops_the_training_and_keeps_the_last_state(train, script, tmp_path, monkeypatch):
    saved = []
    real = script.save_state
    monkeypatch.setattr(script, "save_state", lambda *args: (saved.append(args[-1]), real(*args)))
    with pytest.raises(VerdictError, match="diverged"):
        train("--epochs", "8", "--save-every", "1", "--lr", "1e30")
    assert saved, "the first loss is that of the random weights"
    kept = torch.load(tmp_path / "out/state.pt", weights_only=True)
    assert kept["step"] == saved[-1] < 48
    assert not (tmp_path / "out/ufovit_t.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("train-images-idx3", np.zeros((40, 32, 32), np.uint8), "unsupported training set"),
        ("train-labels-idx1", np.zeros(39, np.uint8), "images and labels do not match"),
        ("train-labels-idx1", np.full(40, 10, np.uint8), "labels do not match the network"),
    ],
)
def test_other_data_are_refused(train, data, name, values, message):
    write_idx(data / f"{name}-ubyte.gz", values)
    with pytest.raises(InputError, match=message):
        train()


def test_too_few_images_are_refused(train, data):
    for kind, shape in (("images-idx3", (19, 28, 28)), ("labels-idx1", (19,))):
        write_idx(data / f"train-{kind}-ubyte.gz", np.zeros(shape, np.uint8))
    with pytest.raises(InputError, match="unsupported training set"):
        train()


def test_a_checkpoint_of_other_classes_is_refused(script, monkeypatch):
    monkeypatch.setattr(script, "LABELS", tuple("0123456789"))
    with pytest.raises(InputError, match="other classes"):
        script.new_model(SIZES[SHIPPED_MODEL], argparse.Namespace(init=SHIPPED_CHECKPOINT))


@pytest.mark.slow
def test_an_error_is_told_without_a_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, "--data", tmp_path / "none", "--out", tmp_path / "out"],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("train_checkpoint: file cannot be read\n  where: ")
    assert not (tmp_path / "out").exists()


# --- its parts


@pytest.mark.parametrize("size", [32, 112, (48, 32)])
def test_input_is_what_the_toolkit_feeds_to_networks(script, size):
    images = read_idx(CALIBRATION_IMAGES)[:32]
    preprocess = script.whole_image(config(SHIPPED_MODEL, image_size=size))
    resample = tuple(torch.tensor(resample_matrix(28, side)) for side in (preprocess.height, preprocess.width))
    wanted = preprocess.batch(images[..., None])
    got = script.network_input(torch.from_numpy(images.copy()), resample)
    np.testing.assert_allclose(got.numpy(), wanted, rtol=0, atol=2e-6)


def candidates(image, shift=2):
    """Every shift of an image by up to `shift` pixels, flipped or not."""
    padded = np.pad(image, shift)
    size = len(image)
    for row, column, side in itertools.product(range(2 * shift + 1), range(2 * shift + 1), (1, -1)):
        yield padded[row : row + size, column : column + size][:, ::side]


def test_augmented_images_are_shifted_flipped_and_no_more(script):
    images = read_idx(CALIBRATION_IMAGES)[:64]
    got = script.augment(images, np.random.default_rng(0), erase=0)
    found = [
        [number for number, wanted in enumerate(candidates(image)) if np.array_equal(wanted, out)]
        for image, out in zip(images, got, strict=True)
    ]
    assert all(found)
    assert len({numbers[0] for numbers in found}) > 25, "of the 50 ways"


def test_erased_is_one_rectangle_of_a_quarter_to_half_of_each_side(script):
    blank = np.zeros((400, 28, 28), np.uint8)  # a shift of it is itself
    got = script.augment(blank, np.random.default_rng(0), erase=0.25) > 0
    erased = got[got.any((1, 2))]
    assert 70 < len(erased) < 130  # binomial: 100, standard deviation 8.7
    for mask in erased:
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert all(7 <= side <= 14 for side in box.shape)
        assert box.mean() > 0.9, "noise of 1 to 255, and 0 in one pixel of 256"


def test_every_image_is_drawn_once_an_epoch(script):
    epochs = [np.concatenate([script.draw_batch(step, 20, 5, seed=0)[0] for step in range(4 * e, 4 * e + 4)]) for e in range(2)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert not np.array_equal(*epochs)


def test_schedule_warms_up_and_decays_to_zero(script):
    rates = [script.schedule(step, warmup=10, total=110) for step in range(111)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10)
    np.testing.assert_allclose([rates[10], rates[35], rates[60], rates[110]], [1, (1 + 2**-0.5) / 2, 0.5, 0], atol=1e-12)


def test_top1_counts_hits(script):
    images = read_idx(CALIBRATION_IMAGES)[:20]
    preprocess = Preprocess(28, 28, (0.0,) * 3, (1.0,) * 3)
    brightness = torch.nn.Module()
    brightness.forward = lambda x: torch.stack([0.5 - x.mean((1, 2, 3)), x.mean((1, 2, 3)) - 0.5], 1)
    bright = (images.mean((1, 2)) / 255 > 0.5).astype(np.int64)
    bright[:5] = 1 - bright[:5]
    assert script.top1(brightness, preprocess, images, bright, torch.device("cpu")) == 15 / 20
