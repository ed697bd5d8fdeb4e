"""What the options that fix inputs take."""

import numpy as np
import pytest

from calib.errors import DataError, UsageError
from edge.onnx_import import parse_constant_input, parse_input_shape


def test_a_shape_is_read():
    assert parse_input_shape("x=1x3x224x224") == ("x", (1, 3, 224, 224))
    assert parse_input_shape("a=b=1X3") == ("a=b", (1, 3))


@pytest.mark.parametrize("text", ["", "x", "x=", "=1x3", "x=1x0", "x=1x-3", "x=axb", "x=1.5x2", "1x3"])
def test_what_is_not_a_shape_is_refused(text):
    with pytest.raises(UsageError, match=r"--input-shape is not understood"):
        parse_input_shape(text)


@pytest.mark.parametrize(("text", "value"), [("m=1", 1), ("m=-2", -2), ("m=0.5", 0.5), ("m=1e3", 1000.0)])
def test_a_number_is_read(text, value):
    name, array = parse_constant_input(text)
    assert (name, array.shape, array.item()) == ("m", (), value)
    assert type(array.item()) is type(value)


def test_an_array_is_read(tmp_path):
    values = np.arange(6, dtype=np.int64).reshape(2, 3)
    np.save(tmp_path / "m.npy", values)
    name, array = parse_constant_input(f"m={tmp_path / 'm.npy'}")
    assert name == "m"
    np.testing.assert_array_equal(array, values)


@pytest.mark.parametrize("text", ["", "m", "m=", "=1", "m=one", "m=1x3"])
def test_what_is_no_value_is_refused(text):
    with pytest.raises(UsageError, match=r"--constant-input is not understood"):
        parse_constant_input(text)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"version https://git-lfs.github.com/spec/v1", bytes(100)])
def test_a_damaged_array_is_refused(content, tmp_path):
    (tmp_path / "m.npy").write_bytes(content)
    with pytest.raises(DataError, match="not a NumPy array of numbers"):
        parse_constant_input(f"m={tmp_path / 'm.npy'}")
    np.save(tmp_path / "m.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError):
        parse_constant_input(f"m={tmp_path / 'm.npy'}")
    with pytest.raises(DataError, match="file not found"):
        parse_constant_input("m=absent.npy")
