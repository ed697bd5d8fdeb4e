"""Images as a graph takes them: which ones are chosen, what their digests speak of, and what is refused.

Oracles: set arithmetic on positions, the arrays themselves, the formula of the preprocessing.
"""

import dataclasses
import os
import shutil
import struct

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from peak_memory import at_most_mib
from PIL import Image

from calib.errors import InputError
from edge.images.graph_input import fixed_batch, from_array, input_shape, made_up, open_graph_images, parse_normalisation
from edge.images.preprocess import Preprocess
from edge.model.metadata import graph_preprocess

PLAIN = Preprocess(8, 8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def array(folder, values, name="images.npy"):
    np.save(folder / name, values)
    return folder / name


def numbered(folder, count):
    """Images whose every value is their number."""
    return array(folder, np.broadcast_to(np.arange(count, dtype=np.float32)[:, None, None, None], (count, 3, 2, 2)))


def numbers(images, size=7):
    return [int(image[0, 0, 0]) for batch in images.batches(size) for image in batch]


def pictures(folder, count, seed=0):
    folder.mkdir()
    for i, pixels in enumerate(np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3)).astype(np.uint8)):
        Image.fromarray(pixels).save(folder / f"{i:03}.png")
    return folder


def graph(batch="batch", sides=(3, 8, 8), inputs=1, listed_weight=False, kind=TensorProto.FLOAT):
    values = [helper.make_tensor_value_info(f"in{i}", kind, [batch, *sides]) for i in range(inputs)]
    weight = numpy_helper.from_array(np.ones(1, np.float32), "w")
    if listed_weight:
        values.insert(0, helper.make_tensor_value_info("w", TensorProto.FLOAT, [1]))
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    return helper.make_model(helper.make_graph([helper.make_node("Mul", ["in0", "w"], ["y"])], "g", values, [out], [weight]))


@pytest.mark.parametrize("size", [1, 2, 7, 50, 96, 97])
def test_take_and_without_are_disjoint_and_together_everything(tmp_path, size):
    images = from_array(numbered(tmp_path, size))
    for count in range(1, size + 2):
        taken, left = numbers(images.take(count)), numbers(images.without(count))
        assert len(taken) == len(images.take(count)) == min(count, size)
        assert sorted(taken + left) == list(range(size)), count
        assert taken == sorted(taken)
    if size > 1:
        assert numbers(images.take(2)) == [0, size - 1], "spread from end to end"


def test_the_same_images_every_time(tmp_path):
    path = numbered(tmp_path, 50)
    first, second = (from_array(path) for _ in range(2))
    assert first.sha256 == second.sha256
    assert (first.take(9).sha256, numbers(first.take(9))) == (second.take(9).sha256, numbers(second.take(9)))


def test_a_digest_speaks_of_the_choice_and_of_the_content(tmp_path):
    images = from_array(numbered(tmp_path, 50))
    choices = [images, images.take(49), images.take(9), images.without(9), images.take(20).take(9), images.without(20).take(9)]
    assert len({c.sha256 for c in choices}) == len(choices)
    assert images.take(50).sha256 == images.sha256 == images.take(99).sha256
    values = np.zeros((50, 3, 2, 2), np.float32)
    one = from_array(array(tmp_path, values, "one.npy"))
    values[49, 2, 1, 1] = 1e-30
    assert from_array(array(tmp_path, values, "two.npy")).sha256 != one.sha256


def test_pictures_are_prepared_and_their_digests_speak_of_pixels_and_preparation(tmp_path):
    folder = pictures(tmp_path / "a", 5)
    images = open_graph_images(folder, lambda: PLAIN)
    (batch,) = images.batches(9)
    pixels = np.stack([np.asarray(Image.open(folder / f"{i:03}.png"), np.float64) for i in range(5)]).transpose(0, 3, 1, 2)
    assert batch.dtype == np.float32
    assert np.allclose(batch, (pixels / 255 - 0.5) / 0.25, atol=1e-6)
    other = open_graph_images(folder, lambda: dataclasses.replace(PLAIN, mean=(0.4, 0.5, 0.5)))
    assert (other.sha256, other.preprocess_sha256 != images.preprocess_sha256) == (images.sha256, True)
    assert open_graph_images(pictures(tmp_path / "b", 5, seed=1), lambda: PLAIN).sha256 != images.sha256
    (folder / "000.png").rename(folder / "999.png")
    assert open_graph_images(folder, lambda: PLAIN).sha256 != images.sha256, "another order gives another choice"


def test_copies_among_pictures_are_told(tmp_path):
    folder = pictures(tmp_path / "a", 5)
    assert open_graph_images(folder, lambda: PLAIN).notes == ()
    shutil.copy(folder / "001.png", folder / "copy.png")
    images = open_graph_images(folder, lambda: PLAIN)
    assert len(images) == 5
    assert images.take(3).notes == ("copies counted once: 1 of 6 images (copy.png = 001.png)",)


def test_labels_stay_with_their_images(tmp_path):
    labels = np.arange(50) % 7
    images = from_array(numbered(tmp_path, 50), array(tmp_path, labels, "labels.npy"))
    for part in (images.take(9), images.without(9), images.without(9).take(4)):
        assert part.labels.tolist() == labels[numbers(part)].tolist()
    assert images.labels.dtype == np.int64


def test_made_up_images_are_the_same_every_time_and_of_a_normal_distribution():
    def values(images, size=7):
        return np.concatenate(list(images.batches(size)))

    first, second = made_up(64, (3, 8, 8)), made_up(64, (3, 8, 8))
    assert first.sha256 == second.sha256
    assert np.array_equal(values(first), values(second, 64))
    assert first.synthetic
    assert first.take(9).synthetic
    assert values(first).shape == (64, 3, 8, 8)
    assert abs(values(first).mean()) < 0.05
    assert abs(values(first).std() - 1) < 0.05
    assert len(np.unique(values(first)[:, 0, 0, 0])) == 64
    others = [made_up(65, (3, 8, 8)), made_up(64, (3, 8, 9)), made_up(64, (3, 8, 8), seed=1)]
    assert len({i.sha256 for i in (first, *others)}) == 4


def test_a_graph_of_one_image_at_a_time(tmp_path):
    images = dataclasses.replace(from_array(numbered(tmp_path, 9)), largest_batch=1)
    assert [len(batch) for batch in images.batches(4)] == [1] * 9
    assert [len(batch) for batch in images.take(3).batches(4)] == [1] * 3


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_number_names_its_image(tmp_path, value):
    values = np.zeros((50, 3, 2, 2), np.float32)
    values[37, 1, 0, 1] = value
    images = from_array(array(tmp_path, values))
    with pytest.raises(InputError, match=r"NaN or infinity in the images\n  where: .*images\.npy\n  found: image 37"):
        list(images.batches(20))
    assert len(list(images.take(2).batches(20))) == 1, "images that are not chosen do no harm"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((4, 3, 2, 2)), r"not an array of images\n.*\n  found: float64 \(4, 3, 2, 2\)\n  allowed: float32"),
        (np.zeros((4, 3, 2, 2), ">f4"), "not an array of images"),
        (np.zeros((4, 3, 2, 2), ">i2"), "found: >i2"),
        (np.zeros((4, 3, 2, 2), bool), "found: bool"),
        (np.zeros(4, np.float32), "not an array of images"),
        (np.zeros((0, 3, 2, 2), np.float32), r"found: float32 \(0, 3, 2, 2\)"),
    ],
)
def test_arrays_that_are_no_images(tmp_path, values, message):
    with pytest.raises(InputError, match=message):
        from_array(array(tmp_path, values))


@pytest.mark.parametrize("content", [b"", b"text", b"\x93NUMPY\x01\x00", None])
def test_files_that_are_no_arrays(tmp_path, content):
    path = tmp_path / "x.npy"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.npy") as raised:
        from_array(path)
    assert "pickle" not in str(raised.value)
    np.save(tmp_path / "objects.npy", np.array([{}, {}]), allow_pickle=True)
    with pytest.raises(InputError, match=r"objects\.npy"):
        from_array(tmp_path / "objects.npy")


HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }"


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (HEADER.replace("(2, 3)", "(2000000000, 300000)"), "24 bytes for an array of float32"),
        (HEADER.replace("(2, 3)", "(1" + "0" * 30 + ", 3)"), "24 bytes"),
        (HEADER.replace("(2, 3)", "(2, 2)"), "24 bytes"),
        (HEADER.replace("(2, 3)", "(-2, -3)"), "not of real numbers"),
        (HEADER.replace("(2, 3)", "(2, 3.0)"), "not the header"),
        (HEADER.replace("<f4", "|O"), "not of real numbers"),
        (HEADER.replace("(2, 3)", "(3,)").replace("<f4", "<c8"), "not of real numbers"),
        (HEADER.replace("(2, 3)", "()").replace("<f4", "V24"), "not of real numbers"),
        (HEADER.replace("(2, 3)", "(6,)").replace("<f4", "<U1"), "not of real numbers"),
        (HEADER.replace("'<f4'", "[('a', '<f4')]"), "not of real numbers"),
        (HEADER.replace("(2, 3)", "(" * 3000 + ")" * 3000), "not the header"),
        (HEADER.replace("(2, 3)", "(\\"), "not the header"),
        (HEADER.replace("(2, 3)", "('''"), "not the header"),
        (HEADER[:20], "not the header"),
    ],
)
def test_headers_are_compared_with_the_file(tmp_path, header, message):
    def write(text):
        path = tmp_path / "x.npy"
        path.write_bytes(b"\x93NUMPY\1\0" + struct.pack("<H", len(text) + 1) + text.encode() + b"\n" + bytes(24))
        return path

    assert len(from_array(write(HEADER))) == 2
    with pytest.raises(InputError, match=rf"x\.npy[\s\S]*found: .*{message}"), at_most_mib(16):
        from_array(write(header))


def test_arrays_as_other_programs_write_them(tmp_path):
    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    for name, stored, version in (("c", values, (1, 0)), ("f", np.asfortranarray(values), (2, 0))):
        with (tmp_path / f"{name}.npy").open("wb") as stream:
            np.lib.format.write_array(stream, stored, version)
        (batch,) = from_array(tmp_path / f"{name}.npy").batches(9)
        np.testing.assert_array_equal(batch, values)


def test_an_array_that_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.npy")
    with pytest.raises(InputError, match=r"x\.npy[\s\S]*not a regular file"):
        from_array(tmp_path / "x.npy")


@pytest.mark.parametrize("labels", [np.zeros(9, bool), np.zeros(8, np.int64), np.zeros(9), np.zeros((9, 1), np.int64)])
def test_labels_that_do_not_fit(tmp_path, labels):
    with pytest.raises(
        InputError, match=r"labels do not fit the images\n  where: .*labels\.npy\n.*\n  allowed: integers \(9,\)"
    ):
        from_array(numbered(tmp_path, 9), array(tmp_path, labels, "labels.npy"))


def test_the_input_of_a_graph(tmp_path):
    path = tmp_path / "x.onnx"
    assert input_shape(graph(), path) == (3, 8, 8)
    assert input_shape(graph(listed_weight=True), path) == (3, 8, 8), "a weight listed among the inputs is none"
    assert [fixed_batch(graph(batch, listed_weight=True), path) for batch in ("batch", None, 1)] == [None, None, 1]
    for model, message in (
        (graph(inputs=2), "must have one input\n.*\n  found: in0, in1"),
        (graph(sides=(3, "h", None)), r"no fixed size\n.*\n  found: \(batch, 3, h, \?\)\n.*\n  next: --input-shape"),
        (graph(sides=()), "no fixed size"),
    ):
        with pytest.raises(InputError, match=message):
            input_shape(model, path)
    with pytest.raises(InputError, match=r"fixed number of images at a time\n.*\n  found: 4\n.*\n  next: export"):
        fixed_batch(graph(4), path)


def test_a_preprocessing_must_come_from_somewhere(tmp_path):
    path = tmp_path / "x.onnx"
    given = parse_normalisation("0.5", "0.1,0.2,0.3")
    assert graph_preprocess(graph(), path, None, given, "") == Preprocess(8, 8, (0.5, 0.5, 0.5), (0.1, 0.2, 0.3))
    assert parse_normalisation(None, None) is None
    with pytest.raises(InputError, match="next: do this --mean R,G,B --std R,G,B"):
        graph_preprocess(graph(), path, None, None, "do this")
    rectangle = graph_preprocess(graph(sides=(8, 12, 3)), path, None, given, "")
    assert rectangle == Preprocess((8, 12), 8, (0.5, 0.5, 0.5), (0.1, 0.2, 0.3), layout="nhwc")
    one = parse_normalisation("0.5", "0.25")
    assert graph_preprocess(graph(sides=(1, 8, 8)), path, None, one, "") == Preprocess(8, 8, (0.5,), (0.25,), colour="grey")
    pixels = Preprocess((8, 12), 8, (0.0,) * 3, (1.0,) * 3, layout="nhwc", dtype="uint8")
    assert graph_preprocess(graph(sides=(8, 12, 3), kind=TensorProto.UINT8), path, None, None, "") == pixels
    with pytest.raises(InputError, match=r"takes grey images\n.*--mean"):
        graph_preprocess(graph(sides=(1, 8, 8)), path, None, given, "")
    for sides, kind in (((4, 8, 8), TensorProto.FLOAT), ((3, 8), TensorProto.FLOAT), ((3, 8, 8), TensorProto.INT64)):
        with pytest.raises(InputError, match="does not take pictures"):
            graph_preprocess(graph(sides=sides, kind=kind), path, None, given, "")
    with pytest.raises(InputError, match="std positive"):
        graph_preprocess(graph(), path, None, parse_normalisation("0", "0"), "")
