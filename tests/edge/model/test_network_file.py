"""Network files: what a person wrote is read as it stands, anything else is refused by name. Oracle: TOML written by hand."""

import pytest

from calib.errors import UsageError
from edge.model.network_file import NetworkFile, check_labels, find_network_file, read_labels, read_network_file

WHOLE = """
task = "classify"
labels = ["cat", "dog"]
[network]
depth = 6
image_size = [320, 192]
stem_widths = [8, 16, 32, 64]
kv_axis = "last"
[preprocess]
mean = [0.485, 0.456, 0.406]
resize = 256
"""


@pytest.fixture
def write(tmp_path):
    def file(text, name="my.toml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return file


def test_everything_is_read(write):
    path = write(WHOLE)
    assert read_network_file(path) == NetworkFile(
        {"depth": 6, "image_size": [320, 192], "stem_widths": [8, 16, 32, 64], "kv_axis": "last"},
        {"mean": [0.485, 0.456, 0.406], "resize": 256},
        ("cat", "dog"),
        "classify",
        str(path),
    )


def test_everything_may_be_left_out(write):
    path = write("")
    assert read_network_file(path) == NetworkFile(file=str(path))


def test_labels_from_a_text_file_beside_it(write):
    write(b"\xef\xbb\xbfT-shirt/top\r\nAnkle boot\r\nZ\xc3\xbcrich\r\n\r\n", "labels.txt")
    assert read_network_file(write('labels = "labels.txt"')).labels == ("T-shirt/top", "Ankle boot", "Zürich")


def test_it_is_found_beside_the_model(write, tmp_path):
    assert find_network_file(tmp_path / "my.onnx") is None
    path = write("")
    for name in ("my.onnx", "my.pth", "my.pth.tar", "my"):
        assert find_network_file(tmp_path / name) == path
    for name in ("", ".", "/", "..", "...", ".tar", "other.onnx"):
        assert find_network_file(tmp_path / name) is None
    assert find_network_file(path) is None, "a network file has none of its own"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("deepth = 6", ["unknown key", "deepth", "network, preprocess, labels, task"]),
        ("[network]\ndeepth = 6", ["unknown key", "[network] deepth", "depth, dim"]),
        ("[preprocess]\nmeans = 6", ["unknown key", "[preprocess] means", "mean, std"]),
        ('[network]\ndepth = "6"', ["ill-typed", "[network] depth = '6'", "a whole number"]),
        ("[network]\ndepth = true", ["ill-typed", "depth = True"]),
        ("[network]\ndepth = 6.0", ["ill-typed", "depth = 6.0"]),
        ('[network]\nstem_widths = ["a"]', ["ill-typed", "stem_widths"]),
        ("[network]\nstem_widths = " + str([1] * 50), ["ill-typed", "stem_widths"]),
        ("[network]\nimage_size = 2024-01-01", ["ill-typed", "image_size"]),
        ("[preprocess]\nmean = [nan, 0, 0]", ["ill-typed", "mean = [nan"]),
        ("[preprocess]\nmean = {a = 1}", ["ill-typed", "mean"]),
        ("network = 3", ["ill-typed", "network = 3", "a table"]),
        ("[[network]]\ndepth = 6", ["ill-typed", "network", "a table"]),
        ("task = 3", ["ill-typed", "task = 3", "a text"]),
        ("labels = 3", ["ill-typed", "labels = 3"]),
        ('labels = ["a", "b", "a"]', ["label stands twice", "label 3", "'a', which is label 1 too"]),
        ('labels = ["a", ""]', ["label is not a text", "label 2", "an empty one"]),
        ("labels = [1]", ["label is not a text", "label 1", "1"]),
        ('labels = "none.txt"', ["label file not found", "none.txt"]),
        ("a = 1\ndepth = ?", ["not a TOML file", "line 2"]),
        ("a = 1\na = 2", ["not a TOML file"]),
        (b"\xff\xfed\0e\0", ["not a TOML file", "UTF-16"]),
        (b"a = '\xe4'", ["not a TOML file", "utf-8"]),
        ("version https://git-lfs.github.com/spec/v1", ["Git LFS pointer"]),
        ("a = " + "[" * 50_000, ["not a TOML file", "too deeply nested"]),
        ("labels" + ".a" * 200_000 + " = 1", ["not a TOML file", "a key of more than 32 parts"]),
        ("labels" + r'."\"" ' * 100_000 + " = 1", ["not a TOML file", "a key of more than 32 parts"]),
        ("labels = {" + "a = {" * 70 + "}" * 71, ["not a TOML file"]),
        ("a = 1" + "0" * 5000, ["not a TOML file"]),
        ("#" + " " * (1 << 20), ["file is too large"]),
    ],
    ids=lambda value: repr(value)[:30] if isinstance(value, str | bytes) else "",
)
def test_refusals(write, text, says):
    path = write(text)
    with pytest.raises(UsageError) as error:
        read_network_file(path)
    assert [part for part in says if part not in str(error.value)] == [], str(error.value)
    assert len(str(error.value)) < 1000


def test_what_is_not_a_file(tmp_path):
    with pytest.raises(UsageError, match="network file not found"):
        read_network_file(tmp_path / "none.toml")
    with pytest.raises(UsageError, match="not a regular file"):
        read_network_file(tmp_path)


@pytest.mark.parametrize("data", [b"", b"\0" * 9, b"a\n\xe4\n", b"a\n\nb\n", b"a\nb\na\n"])
def test_label_files_that_are_refused(write, data):
    with pytest.raises(UsageError, match=r"labels\.txt"):
        read_labels(write(data, "labels.txt"))


def test_labels_with_blanks_and_commas_are_whole_lines(write):
    assert read_labels(write("a, b\n  c d \n", "labels.txt")) == ("a, b", "c d")
    assert check_labels(["x"], "here") == ("x",)
