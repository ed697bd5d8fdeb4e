"""Bundles that do not fit together, were damaged or altered are refused before anything is written."""

import hashlib
import io
import shutil
import zipfile

import numpy as np
import pytest
from bundle_contents import GRAPH, IMAGES, alter, contents, device, json_of, pack, preprocess_fields, refused
from tiny_project import LABELS

from calib.errors import MissingError
from engines.trt import api

pytestmark = pytest.mark.slow

try:
    api.load("rtx")
except MissingError as missing:
    pytest.skip(f"{missing}", allow_module_level=True)


@pytest.fixture
def project(rtx, tmp_path, tiny_size):
    """A writable copy of it."""
    shutil.copytree(rtx, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_an_altered_bundle_with_nothing_altered_is_accepted(project, on_a_gpu):
    """The control of the refusals below."""
    alter(project)
    on_a_gpu()
    assert device(project) == 0


@pytest.mark.parametrize(
    "changes", [{"mean": (0.5, 0.5, 0.49)}, {"std": (0.25, 0.26, 0.25)}, {"resize": 33}, {"image_size": 31}], ids=str
)
def test_another_preprocessing_than_the_golden_tensors_is_a_verdict(project, capsys, changes):
    alter(project, manifest=preprocess_fields(**changes))
    refused(project, capsys, 1, "preprocesses images in another way", "golden.npy")


def test_bgr_for_rgb_is_a_verdict(project, photos, capsys, on_a_gpu):
    assert pack(project, "--data", str(photos)) == 0
    golden = contents(project / "b.ufovit")["golden.npy"]
    alter(project, members={"golden.npy": golden[::-1].copy()})
    refused(project, capsys, 1, "preprocesses images in another way")
    alter(project, members={"golden.npy": golden})
    on_a_gpu()
    assert device(project, "--force") in (0, 3), "five images may be too few to say, but they are the right ones"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda golden: golden + np.float32(1e-3), 1),
        (lambda golden: golden * np.nan, 1),
        (lambda golden: golden[:, :31], 1),
        (lambda golden: golden[::-1, :, ::-1].copy(), 1),
        (lambda golden: golden + np.float32(1e-6), 0),
    ],
)
def test_the_golden_tensor_may_differ_by_rounding_only(project, capsys, on_a_gpu, change, code):
    alter(
        project, members={"golden.npy": np.ascontiguousarray(change(contents(project / "b.ufovit")["golden.npy"]), np.float32)}
    )
    if code:
        refused(project, capsys, code, "largest difference")
    else:
        on_a_gpu()
        assert device(project) == 0


def another(name, **changes):
    """A change of the manifest's record of a file."""
    return lambda folder: {name: {**json_of(folder / "rtx/manifest.json")[name], **changes}}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": "ufovit_t"}, ["mixes files of two builds", "model"]),
        ({"precision": "fp16"}, ["mixes files of two builds", "precision"]),
        ({"random_weights": True}, ["mixes files of two builds", "random_weights"]),
        ({"manifest": {"batch": [1, 1, 1]}}, ["mixes files of two builds", "batch"]),
        ({"manifest": {"int8_floor": 0.1}}, ["mixes files of two builds", "int8_floor"]),
        ({"manifest": another("typed_onnx", sha256="0" * 64)}, ["mixes files of two builds", GRAPH]),
        ({"manifest": another("calibration", sha256="0" * 64)}, ["mixes files of two builds", "calibration.json"]),
        ({"manifest": another("xnorm", file="../xnorm.json")}, ["mixes files of two builds", "xnorm.json"]),
        ({"manifest": another("onnx", sha256="0" * 64)}, ["mixes files of two builds", "reference"]),
        ({"manifest": {"typed_onnx": None}}, ["mixes files of two builds"]),
        ({"members": {GRAPH: b"another graph"}}, ["mixes files of two builds", GRAPH]),
        ({"members": {"xnorm.json": None}}, ["mixes files of two builds", "xnorm.json"]),
        ({"members": {"manifest.json": b"{}"}}, ["manifest.json"]),
        ({"members": {"manifest.json": b"[]"}}, ["manifest.json"]),
        ({"manifest": {"preprocess": {}}}, ["preprocess"]),
        ({"manifest": {"preprocess": {"image_size": 32, "resize": 32, "mean": 1, "std": 1, "sha256": ""}}}, ["preprocess"]),
        ({"batch": (0, 1, 1)}, ["batch sizes are not in increasing order"]),
        ({"int8_floor": 2.0}, ["INT8 floor"]),
        ({"budget_points": -1.0}, ["accuracy budget"]),
    ],
)
def test_a_bundle_that_does_not_fit_together_is_refused(project, capsys, changes, says):
    if callable(changes.get("manifest")):
        changes = {**changes, "manifest": changes["manifest"](project)}
    alter(project, **changes)
    refused(project, capsys, 2, *says)


def header(array, **changes):
    """An array as numpy.save writes it, with other fields in its header."""
    fields = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape, **changes}
    text = ("{" + "".join(f"'{k}': {v!r}, " for k, v in fields.items()) + "}").encode()
    return b"\x93NUMPY\x01\x00" + (len(text) + 1).to_bytes(2, "little") + text + b"\n" + array.tobytes()


ONES = np.ones(IMAGES, np.int64)
SHAPES = np.full((IMAGES, 3), (28, 28, 1), np.int64)
LOGITS = np.zeros((IMAGES, len(LABELS)), np.float32)


@pytest.mark.parametrize(
    ("member", "value", "says"),
    [
        ("labels.npy", ONES * 5, "a label is out of range"),
        ("labels.npy", -ONES, "a label is out of range"),
        ("labels.npy", ONES[:-1], "do not match"),
        ("labels.npy", ONES[:0], "do not match"),
        ("labels.npy", ONES.astype(np.int32), "do not match"),
        ("labels.npy", ONES[None], "do not match"),
        ("labels.npy", ONES.astype(">i8"), "unexpected dtype or shape"),
        ("logits.npy", LOGITS * np.nan, "NaN"),
        ("logits.npy", LOGITS + np.inf, "NaN or infinity"),
        ("logits.npy", LOGITS[:, :-1], "do not match"),
        ("logits.npy", LOGITS.astype(np.float64), "unexpected dtype or shape"),
        ("shapes.npy", SHAPES * 2, "do not match"),
        ("shapes.npy", SHAPES * [[-1, -1, 1]], "do not match"),
        ("shapes.npy", SHAPES[:, :2], "do not match"),
        ("shapes.npy", np.full((IMAGES, 3), 1 << 42, np.int64), "do not match"),
        ("shapes.npy", np.array([[1 << 32, 1 << 32, 1]] + [[28, 28, 1]] * (IMAGES - 1), np.int64), "do not match"),
        ("shapes.npy", SHAPES * [[1, 0, 1]], "do not match"),
        ("pixels.npy", np.zeros(IMAGES * 784 - 1, np.uint8), "do not match"),
        ("pixels.npy", np.zeros(IMAGES * 784, np.int8), "unexpected dtype or shape"),
        ("pixels.npy", b"", "not a NumPy array"),
        ("pixels.npy", b"PK\3\4" + bytes(100), "not a NumPy array"),
        ("pixels.npy", b"\x80\x04K\x01.", "not a NumPy array"),
        ("pixels.npy", header(np.zeros(8, np.uint8), shape=(10**11,)), "unexpected dtype or shape"),
        ("pixels.npy", header(np.zeros(8, np.uint8), shape=(10**30,)), "not a NumPy array"),
        ("pixels.npy", header(np.zeros(8, np.uint8), fortran_order=True), "not a NumPy array"),
        ("pixels.npy", header(np.zeros(8, np.uint8), descr="|O"), "not a NumPy array"),
        ("pixels.npy", header(np.zeros(8, np.uint8), descr="|V9"), "unexpected dtype or shape"),
        ("pixels.npy", header(np.zeros(8, np.uint8), descr=[("a", "|u1")]), "not a NumPy array"),
        ("pixels.npy", b"\x93NUMPY\x01\x00\x28\x23" + b"(" * 9000, "not a NumPy array"),
        ("golden.npy", np.zeros((3, 32), np.float32), "unexpected dtype or shape"),
    ],
)
def test_arrays_that_are_not_what_they_should_be_are_refused(project, capsys, member, value, says):
    alter(project, members={member: value})
    refused(project, capsys, 2, member if "do not match" not in says else "b.ufovit", says)


def test_sizes_that_overflow_64_bits_are_refused(project, capsys):
    """2^32 x 2^32 pixels are none, modulo 2^64: an image that would cost nothing."""
    shapes = np.array([[1 << 32, 1 << 32, 1], *SHAPES[1:].tolist()], np.int64)
    alter(project, members={"shapes.npy": shapes, "pixels.npy": np.zeros((IMAGES - 1) * 784, np.uint8)})
    refused(project, capsys, 2, "do not match")


def test_the_headers_above_are_numpys_own(project, on_a_gpu):
    """Control: `header` with nothing changed is what numpy reads and the device accepts."""
    pixels = contents(project / "b.ufovit")["pixels.npy"]
    assert np.array_equal(np.load(io.BytesIO(header(pixels))), pixels)
    alter(project, members={"pixels.npy": header(pixels)})
    on_a_gpu()
    assert device(project) == 0


def test_a_flipped_byte_is_refused_and_named(project, capsys):
    path = project / "b.ufovit"
    good = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        places = {i.filename: i.header_offset + 30 + len(i.filename) + i.compress_size // 2 for i in archive.infolist()}
    assert len(places) == 11
    for member, place in places.items():
        path.write_bytes(good[:place] + bytes([good[place] ^ 0x10]) + good[place + 1 :])
        refused(project, capsys, 2, member)
    path.write_bytes(good[:-1])
    refused(project, capsys, 2, "b.ufovit")


def test_a_member_that_is_not_the_listed_one_is_refused_before_anything_is_written(project, capsys):
    """Another graph in an archive that is whole and sealed, under the old bundle.json."""
    path = project / "b.ufovit"
    with zipfile.ZipFile(path) as archive:
        entries = [(entry, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for entry, data in entries:
            archive.writestr(entry, data[::-1] if entry.filename == GRAPH else data)
        archive.comment = b"0" * 64
    body = path.read_bytes()[:-64]
    path.write_bytes(body + hashlib.sha256(body).hexdigest().encode())
    refused(project, capsys, 2, GRAPH, "does not match its recorded digest")
