"""What `ufovit calibrate` refuses, and what it leaves behind when it is interrupted: an earlier run's files."""

import errno
import os
import tempfile

import numpy as np
import pytest
from calibrate_files import CHANNELS, CLASSES, contents, edited, figure, held_out, logits, network, sqnr_db
from onnx import TensorProto, helper, numpy_helper


@pytest.fixture
def earlier(calibrate, tmp_path, capsys):
    """The finished result of an earlier run in the folder that the next one would write to."""
    assert calibrate() == 0
    capsys.readouterr()
    return tmp_path / "out"


def output_of(name, sides):
    return lambda m: m.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *sides]))


def other_input(model):
    model.graph.input.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, [1]))


def free_size(model):
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_param = "side"


def half(model):
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16


def not_finite(model):
    bias = next(t for t in model.graph.initializer if t.name == "head.b")
    bias.CopyFrom(numpy_helper.from_array(np.full(CLASSES, np.inf, np.float32), "head.b"))


def old_opset(model):
    model.opset_import[0].version = 12


def test_bad_graphs(world, calibrate, earlier, tmp_path, capsys):
    (tmp_path / "text.onnx").write_text("no graph")
    source = world / "net.onnx"
    changes = [
        (other_input, "only one input may vary", "--constant-input"),
        (free_size, "leaves sizes of its input free", "--input-shape"),
        (not_finite, "float graph outputs NaN or infinity", "on image 1, counted from 0"),
    ]
    cases = [
        (tmp_path / "absent.onnx", "not found", "absent.onnx"),
        (tmp_path / "text.onnx", "not an ONNX file", "text.onnx"),
        (tmp_path, "not a regular file", "a folder"),
        (earlier / "model.int8.onnx", "already quantized", "float ONNX file"),
        *((edited(source, tmp_path / f"{i}.onnx", change), *said) for i, (change, *said) in enumerate(changes)),
    ]
    before = contents(tmp_path)
    for graph, *said in cases:
        out = tmp_path / "new" if graph.parent == earlier else earlier
        assert calibrate(graph=graph, out=out) == 2, graph
        error = capsys.readouterr().err
        assert all(text.lower() in error.lower() for text in said), error
    assert contents(tmp_path) == before


def test_bad_images(world, calibrate, earlier, tmp_path, capsys):
    good = np.load(world / "images.npy")
    chosen, left = good.copy(), good.copy()
    chosen[0, 0, 0, 0], left[40, 2, 15, 15] = np.nan, np.inf
    assert not np.isfinite(held_out(left)).all(), "image 40 does not calibrate"
    arrays = {
        "float64": (good.astype(np.float64), "float64"),
        "small": (good[:, :, :8], "(3, 8, 16)\n  allowed: (3, 16, 16)"),
        "flat": (good[0, 0, 0], "not an array of images"),
        "none": (good[:0], "(0, 3, 16, 16)"),
        "nan": (chosen, "found: image 0"),
        "inf": (left, "found: image 40"),
        "few": (good[:31], "too few calibration images"),
    }
    (tmp_path / "void.npy").touch()
    (tmp_path / "empty").mkdir()
    cases = [
        (tmp_path / name, said) for name, said in (("void.npy", "void.npy"), ("empty", "no images"), ("gone", "not found"))
    ]
    for name, (values, said) in arrays.items():
        np.save(tmp_path / f"{name}.npy", values)
        cases.append((tmp_path / f"{name}.npy", said))
    before = contents(tmp_path)
    for images, said in cases:
        for effort in ("fast", "balanced"):
            assert calibrate(images=images, effort=effort) == 2, images
            error = capsys.readouterr().err
            assert said in error, (images, error)
            assert images.name in error
            assert "Traceback" not in error
    assert contents(tmp_path) == before


def test_bad_holdout(world, calibrate, earlier, tmp_path, capsys):
    values = np.load(world / "test.npy")
    values[100, 0, 0, 0] = np.nan
    np.save(tmp_path / "nan.npy", values)
    np.save(tmp_path / "small.npy", values[:, :, :8])
    labels = np.load(world / "labels.npy")
    for name, array in (("short", labels[:-1]), ("real", labels / 1), ("large", labels + 1), ("negative", labels - 1)):
        np.save(tmp_path / f"{name}.npy", array)
    test, before = world / "test.npy", contents(tmp_path)
    cases = [
        (["--holdout", tmp_path / "nan.npy"], "found: image 100"),
        (["--holdout", tmp_path / "small.npy"], "allowed: (3, 16, 16)"),
        (["--holdout", tmp_path / "gone"], "not found"),
        (["--holdout", test, "--holdout-labels", tmp_path / "short.npy"], "integers (200,)"),
        (["--holdout", test, "--holdout-labels", tmp_path / "real.npy"], "integers (200,)"),
        (["--holdout", test, "--holdout-labels", tmp_path / "large.npy"], "allowed: 0 to 4"),
        (["--holdout", test, "--holdout-labels", tmp_path / "negative.npy"], "allowed: 0 to 4"),
        (["--holdout", test, "--holdout-labels", tmp_path / "gone.npy"], "gone.npy"),
        (["--holdout-labels", world / "labels.npy"], "--holdout-labels belongs to a --holdout"),
    ]
    for options, said in cases:
        assert calibrate(*options) == 2, options
        assert said in capsys.readouterr().err, options
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--effort", "slow"], "fast, balanced, best"),
        (["--method", "max"], "minmax, percentile, entropy, mse"),
        (["--method", "percentile:0"], "not a percentage"),
        (["--random", "64"], "--random excludes --images"),
        (["--random", "0"], "--random is out of range"),
        (["--count", "0"], "--count is out of range"),
        (["--count", "31"], "--count"),
        (["--max-drop", "-1"], "--max-drop is out of range"),
        (["--max-drop", "nan"], "--max-drop is out of range"),
        (["--max-drop", "inf"], "--max-drop is out of range"),
        (["--max-drop", "many"], "--max-drop"),
        (["--keep-float", "blocks.*"], "stem, fc1, fc2, head"),
        (["--keep-float", "*"], "nothing to quantize"),
        (["--mean", "0.5"], "belong together"),
        (["--mean", "a", "--std", "1"], "not numbers"),
        (["--colour", "red"], "--colour"),
    ],
)
def test_bad_options(calibrate, earlier, capsys, options, said):
    before = contents(earlier)
    assert calibrate(*options, effort="balanced") == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert "Traceback" not in captured.err
    assert "calibrate on" not in captured.out, "refused before the work"
    assert contents(earlier) == before


def test_too_few_made_up_images(calibrate, capsys):
    assert calibrate("--random", 31, images=None) == 2
    assert "next: ufovit calibrate" in (error := capsys.readouterr().err)
    assert "--random 64" in error


def test_an_output_that_is_no_class(world, calibrate, tmp_path, capsys):
    def tokens(model):
        del model.graph.output[:], model.graph.node[-2:]
        output_of("sum", (16, CHANNELS))(model)

    graph = edited(world / "net.onnx", tmp_path / "tokens.onnx", tokens)
    assert calibrate("--max-drop", 1, graph=graph) == 2
    assert "a graph that classifies" in capsys.readouterr().err
    assert calibrate(graph=graph, out=tmp_path / "tokens") == 0
    said = capsys.readouterr().out
    images = held_out(np.load(world / "images.npy"))
    found = sqnr_db(logits(graph, images), logits(tmp_path / "tokens/model.int8.onnx", images))
    assert figure(r"SQNR (\S+) dB on 32", said) == pytest.approx(found, abs=0.051)
    assert "agreement" not in said


@pytest.mark.parametrize("effort", ["fast", "balanced", "best"])
def test_a_tensor_that_is_always_zero_is_named(world, calibrate, earlier, tmp_path, capsys, effort):
    def dead(model):
        constants = {t.name: t for t in model.graph.initializer}
        for name, value in (("fc1.w", 0), ("fc1.b", -1)):
            values = np.full(constants[name].dims, value, np.float32)
            constants[name].CopyFrom(numpy_helper.from_array(values, name))

    before, graph = contents(earlier), edited(world / "net.onnx", tmp_path / "dead.onnx", dead)
    assert calibrate(graph=graph, effort=effort) == 2
    error = capsys.readouterr().err
    assert "where: tensor hidden\n  found: amax 0" in error
    assert "next: " in error
    assert contents(earlier) == before
    assert calibrate("--keep-float", "fc2", graph=graph, effort=effort, out=tmp_path / "kept") == 0


def test_places_that_cannot_be_written(world, calibrate, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    cases = [("file", 2, "--out is not a folder"), ("file/x", 4, "not a folder"), ("file/x/y", 4, "not a folder")]
    for out, code, said in cases:
        assert calibrate(out=tmp_path / out) == code
        captured = capsys.readouterr()
        assert said in captured.err
        assert "next: choose another --out" in captured.err
        assert "calibrate on" not in captured.out, "refused before the work"
    assert (tmp_path / "file").read_text() == "in the way"
    monkeypatch.setattr("calib.files.os.access", lambda _path, mode: not mode & os.W_OK)
    assert calibrate(out=tmp_path / "new") == 4
    assert "no permission to write" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def test_a_graph_is_not_overwritten_by_what_is_made_from_it(calibrate, stored, capsys):
    before = contents(stored)
    assert calibrate(graph=stored / "model.refined.onnx", out=stored) == 2
    assert "would be overwritten" in capsys.readouterr().err
    assert contents(stored) == before


@pytest.mark.parametrize("moment", ["refining", "observing", "judging", "searching"])
def test_an_interruption_leaves_nothing(world, calibrate, earlier, tmp_path, capsys, monkeypatch, moment):
    def interrupt(*_arguments, **_options):
        raise KeyboardInterrupt

    places = {
        "refining": "calib.refine.apply_refinements.walk",
        "observing": "calib.split_half.Halves.update",
        "judging": "edge.tasks.holdout_loss.sqnr_db",
        "searching": "edge.pipeline.meet_budget.drop_points",
    }
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(places[moment], interrupt)
    before = contents(tmp_path)
    for out in (earlier, tmp_path / "new"):
        assert calibrate("--max-drop", 5, effort="balanced", out=out) == 130
        assert "Traceback" not in capsys.readouterr().err
    assert contents(tmp_path) == before
    assert not list(temporary.iterdir())
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_what_an_earlier_run_left_stays_until_all_is_written(calibrate, earlier, tmp_path, monkeypatch, failure, capsys):
    def fail(_path, _table):
        raise failure

    before = contents(earlier)
    with monkeypatch.context() as patched:
        patched.setattr("edge.pipeline.calibrate.write_artifact", fail)
        assert calibrate(graph=network(tmp_path / "other.onnx", seed=9)) in (4, 130)
    assert contents(earlier) == before
    assert "Traceback" not in capsys.readouterr().err
    assert calibrate(graph=tmp_path / "other.onnx") == 0, "the control: the same command writes where nothing fails"
    assert contents(earlier) != before
