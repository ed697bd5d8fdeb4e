"""Weights beside the ONNX file: read, digested, and never from outside its folder."""

import hashlib

import numpy as np
import onnx
import pytest
from import_graphs import plain, run, save_external

from calib.errors import GraphError
from edge.onnx_import.external_data import read_model, tensors_of
from edge.onnx_import.import_model import import_onnx
from edge.onnx_import.imported import ImportOptions


def test_weights_are_joined_and_digested(tmp_path):
    path = save_external(plain(), tmp_path)
    model, digest, changes = read_model(path)
    both = path.read_bytes() + (tmp_path / "net.onnx.data").read_bytes()
    assert digest == hashlib.sha256(both).hexdigest()
    assert [change.node for change in changes] == ["net.onnx.data"]
    images = np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)
    np.testing.assert_array_equal(run(model, x=images)[0], run(plain(), x=images)[0])


def test_the_digest_of_one_file_is_its_own(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(plain().SerializeToString())
    assert read_model(path)[1] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_digest_sees_the_weights(tmp_path):
    path = save_external(plain(), tmp_path)
    before = read_model(path)[1]
    data = bytearray((tmp_path / "net.onnx.data").read_bytes())
    data[0] ^= 1
    (tmp_path / "net.onnx.data").write_bytes(data)
    assert read_model(path)[1] != before


def test_a_missing_file_of_weights_is_named(tmp_path):
    path = save_external(plain(), tmp_path)
    (tmp_path / "net.onnx.data").unlink()
    with pytest.raises(GraphError, match=r"(?s)second file, which is missing.*put net.onnx.data beside net.onnx"):
        import_onnx(path, ImportOptions())


def test_a_pointer_in_place_of_weights_is_recognised(tmp_path):
    path = save_external(plain(), tmp_path)
    (tmp_path / "net.onnx.data").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(GraphError, match=r"(?s)Git LFS pointer.*next: git lfs pull"):
        read_model(path)


def moved(path, **entries):
    """The file with other places for its weights."""
    model = onnx.load(path, load_external_data=False)
    for tensor in tensors_of(model):
        for entry in tensor.external_data:
            entry.value = str(entries.get(entry.key, entry.value))
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(
    "location", ["../outside.data", "/etc/hostname", "a/../../outside.data", "", "link.data", "folder.data", "a\0b"]
)
def test_nothing_outside_the_folder_is_read(location, tmp_path):
    folder = tmp_path / "inside"
    folder.mkdir()
    (tmp_path / "outside.data").write_bytes(bytes(10_000))
    (folder / "link.data").symlink_to(tmp_path / "outside.data")
    (folder / "folder.data").mkdir()
    path = moved(save_external(plain(), folder), location=location)
    with pytest.raises(GraphError, match=r"outside the folder|not a regular file"):
        read_model(path)


def test_a_link_inside_the_folder_is_followed(tmp_path):
    path = save_external(plain(), tmp_path)
    (tmp_path / "net.onnx.data").rename(tmp_path / "blob")
    (tmp_path / "net.onnx.data").symlink_to("blob")
    assert read_model(path)[0].graph.initializer[0].raw_data


@pytest.mark.parametrize(
    "entries", [{"offset": -1}, {"offset": 2**40}, {"length": 2**40}, {"length": -1}, {"offset": "a"}, {"length": 3}]
)
def test_a_place_that_does_not_fit_is_refused(entries, tmp_path):
    path = moved(save_external(plain(), tmp_path), **entries)
    with pytest.raises(GraphError, match=r"external weights|does not hold what it declares|cannot be read"):
        read_model(path)
