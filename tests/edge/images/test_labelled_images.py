"""Images written with Pillow from known pixels must come back as those pixels, or be refused by name."""

import os
import random
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from calib.errors import InputError
from edge.camera.sources.registry import open_source
from edge.images.class_labels import label_index
from edge.images.idx import write_idx
from edge.images.labelled_images import ImageSet, has_labels, open_images, open_unlabelled
from edge.images.picture_file import decode
from edge.images.preprocess import Preprocess

LABELS = ("T-shirt/top", "Trouser", "Ankle boot")
RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, size=(5, 7, 3), dtype=np.uint8)


@pytest.fixture
def class_folders(tmp_path):
    """make(root, {folder: {file: pixels}}) -> the root, with PNG files."""

    def make(root="set", content=None):
        content = content or {"Trouser": {"a.png": RGB}, "T-shirt_top": {"b.png": RGB[::-1], "deep/c.png": RGB[:, ::-1]}}
        for folder, files in content.items():
            for file, pixels in files.items():
                path = tmp_path / root / folder / file
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.ascontiguousarray(pixels)).save(path)
        return tmp_path / root

    return make


def test_folder_per_class(class_folders):
    found = open_images(class_folders(), LABELS)
    by_name = dict(zip(found.names, found.labels.tolist(), strict=True))
    assert by_name == {"Trouser/a.png": 1, "T-shirt_top/b.png": 0, "T-shirt_top/deep/c.png": 0}
    np.testing.assert_array_equal(found.pixels(found.names.index("Trouser/a.png")), RGB)
    np.testing.assert_array_equal(found.pixels(found.names.index("T-shirt_top/deep/c.png")), RGB[:, ::-1])


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("T-shirt/top", 0),
        ("t-shirt_top", 0),
        ("T shirt top", 0),
        ("TROUSER", 1),
        ("ankle-boot", 2),
        ("Ankle boot", 2),
        ("0", 0),
        ("2", 2),
        ("02", 2),
    ],
)
def test_labels_are_matched(name, index):
    assert label_index(name, LABELS, "here") == index


@pytest.mark.parametrize("name", ["3", "-1", "boot", "", "T", "1.0", "²", "anklebootx"])
def test_other_labels_are_refused_with_the_list(name):
    with pytest.raises(InputError, match=r"labels do not match[\s\S]*where: here[\s\S]*T-shirt/top, Trouser, Ankle boot"):
        label_index(name, LABELS, "here")


def test_a_label_that_is_a_number_is_a_label_first():
    assert label_index("1", ("2", "1", "0"), "") == 1


def test_an_ambiguous_spelling_is_refused():
    assert label_index("a-b", ("a-b", "a_b"), "") == 0
    with pytest.raises(InputError, match="labels do not match"):
        label_index("A B", ("a-b", "a_b"), "")


def test_an_unknown_folder_is_refused_with_the_labels(class_folders):
    root = class_folders(content={"Trouser": {"a.png": RGB}, "Hat": {"b.png": RGB}})
    with pytest.raises(InputError, match=r"where: .*Hat[\s\S]*found: Hat[\s\S]*T-shirt/top, Trouser, Ankle boot"):
        open_images(root, LABELS)


def test_folders_without_images(tmp_path):
    with pytest.raises(InputError, match="images not found"):
        open_images(tmp_path / "none", LABELS)
    with pytest.raises(InputError, match=r"no class folders[\s\S]*Trouser"):
        open_images(tmp_path, LABELS)
    (tmp_path / "Trouser").mkdir()
    (tmp_path / "Trouser" / "notes.md").write_text("none")
    (tmp_path / ".cache").mkdir()
    with pytest.raises(InputError, match=r"no images[\s\S]*\.png"):
        open_images(tmp_path, LABELS)


def test_hidden_files_and_folders_are_no_images(class_folders, tmp_path):
    """AppleDouble files, notebook checkpoints and thumbnails, at every depth; a dot elsewhere in a name hides nothing."""
    hidden = {"._a.png": RGB, ".ipynb_checkpoints/a.png": RGB, "deep/._c.png": RGB, "deep/.cache/more/d.png": RGB}
    content = {"Trouser": {"a.b.png": RGB, "deep/c.png": RGB[::-1]}}
    root = class_folders(content={"Trouser": {**content["Trouser"], **hidden}, ".Trouser": {"x.png": RGB}})
    plain = class_folders("plain", content)
    expected = ("Trouser/a.b.png", "Trouser/deep/c.png")
    for found in (open_images(root, LABELS), open_unlabelled(root)):
        assert found.names == expected
    assert open_images(root, LABELS).sha256 == open_images(plain, LABELS).sha256
    source = open_source(str(root))
    assert [source.read() is None for _ in range(3)] == [False, False, True]
    folder = class_folders(".hidden", content)
    assert open_images(folder, LABELS).names == expected, "the folder that is given may itself be hidden"


def test_folders_of_tools_are_no_images(class_folders):
    """What archivers, storage and desktops leave, beside the class folders and in them."""
    content = {"Trouser": {"a.png": RGB}}
    left = {"Trouser": {"a.png": RGB, "__MACOSX/b.png": RGB[::-1], "x/@eaDir/c.png": RGB[:, ::-1]}, "__MACOSX": {"d.png": RGB}}
    root = class_folders(content=left)
    for file in ("Thumbs.db", ".DS_Store", "desktop.ini", "Trouser/Thumbs.db", "Trouser/x/.DS_Store"):
        (root / file).write_bytes(b"\0")
    assert open_images(root, LABELS).names == open_unlabelled(root).names == ("Trouser/a.png",)
    assert open_images(root, LABELS).sha256 == open_images(class_folders("plain", content), LABELS).sha256
    with pytest.raises(InputError, match="found: MACOSX"):
        open_images(class_folders("other", {"MACOSX": {"d.png": RGB}}), LABELS)


def test_copies_are_counted_once_and_told(class_folders, tmp_path):
    """By content: neither a second name nor a second line is evidence. The digest is that of the set without them."""
    once = class_folders("once", {"Trouser": {"a.png": RGB, "b.png": RGB[::-1]}})
    twice = class_folders("twice", {"Trouser": {"a.png": RGB, "b.png": RGB[::-1], "c.png": RGB, "deep/a.png": RGB}})
    plain, found = open_images(once, LABELS), open_images(twice, LABELS)
    assert plain.notes == ()
    assert (found.names, found.sha256) == (("Trouser/a.png", "Trouser/b.png"), plain.sha256)
    assert found.notes == found.take(1).notes
    (note,) = found.notes
    assert note == "copies counted once: 2 of 4 images (Trouser/c.png = Trouser/a.png, Trouser/deep/a.png = Trouser/a.png)"
    assert len(open_unlabelled(twice)) == 2
    lines = "twice/Trouser/a.png,Trouser\ntwice/Trouser/b.png,1\n"
    (tmp_path / "l.csv").write_text(lines * 2)
    listed = open_images(tmp_path / "l.csv", LABELS)
    assert (len(listed), listed.sha256) == (2, plain.sha256)
    assert "2 of 4" in listed.notes[0]


def test_what_may_hold_labels(class_folders, tmp_path):
    root = class_folders()
    for name in ("l.CSV", "l.tsv", "a.npy", "train-images.idx3-ubyte"):
        (tmp_path / name).write_bytes(b"")
    assert [has_labels(tmp_path / name) for name in ("set", "l.CSV", "l.tsv")] == [True] * 3
    assert [has_labels(tmp_path / name) for name in ("a.npy", "train-images.idx3-ubyte")] == [False] * 2
    assert not has_labels(root / "Trouser/a.png")
    write_idx(tmp_path / "train-images.idx3-ubyte", np.zeros((2, 3, 4), np.uint8))
    write_idx(tmp_path / "train-labels.idx1-ubyte", np.array([2, 0], np.uint8))
    assert has_labels(tmp_path / "train-images.idx3-ubyte")
    assert open_images(tmp_path / "train-images.idx3-ubyte", LABELS).labels.tolist() == [2, 0]


def test_a_picture_with_two_labels_is_refused_by_line_and_by_file(class_folders, tmp_path):
    root = class_folders("set", {"Trouser": {"a.png": RGB}, "T-shirt_top": {"b.png": RGB}})
    with pytest.raises(InputError, match=r"one picture with two labels[\s\S]*Trouser/a\.png[\s\S]*class 0 at .*b\.png"):
        open_images(root, LABELS)
    assert len(open_unlabelled(root)) == 1, "without labels nothing contradicts"
    (tmp_path / "l.csv").write_text("set/Trouser/a.png,1\n\nset/Trouser/a.png,2\n")
    with pytest.raises(InputError, match=r"where: .*l\.csv:3[\s\S]*class 2 here, class 1 at .*l\.csv:1"):
        open_images(tmp_path / "l.csv", LABELS)


def test_hidden_idx_files_are_no_images(tmp_path):
    write_idx(tmp_path / "t-images-idx3-ubyte.gz", np.zeros((1, 2, 2), np.uint8))
    write_idx(tmp_path / "t-labels-idx1-ubyte.gz", np.zeros(1, np.uint8))
    (tmp_path / "._t-images-idx3-ubyte.gz").write_bytes(b"\0\5\x16\7")
    assert len(open_images(tmp_path, LABELS)) == len(open_unlabelled(tmp_path)) == 1


def test_a_name_that_no_artifact_can_hold_is_refused(class_folders):
    root = class_folders()
    (root / "Trouser/a.png").rename(root / "Trouser/\udcff.png")
    with pytest.raises(InputError, match=r"not UTF-8[\s\S]*\\udcff\.png[\s\S]*rename"):
        open_images(root, LABELS)


def test_digest_is_of_pixels_and_labels_not_of_names(class_folders):
    content = {"Trouser": {"a.png": RGB}, "Ankle boot": {"b.png": RGB[::-1]}}
    base = open_images(class_folders("one", content), LABELS)
    assert open_images(class_folders("two", content), LABELS).sha256 == base.sha256
    one_pixel = RGB.copy()
    one_pixel[0, 0, 0] ^= 1
    moved = {"T-shirt_top": content["Trouser"], "Ankle boot": content["Ankle boot"]}
    for other in ({**content, "Trouser": {"a.png": one_pixel}}, moved):
        found = open_images(class_folders(f"other{len(str(other))}", other), LABELS)
        assert found.sha256 != base.sha256


CSV = "file,label\n# a comment\n\nimg/a.png,Trouser\nimg/b.png,2\n"
TXT = "# a comment\n\nimg/a.png Trouser\nimg/b.png\t2\n"


@pytest.mark.parametrize(("name", "text"), [("l.csv", CSV), ("l.txt", TXT), ("l.csv", "\ufeff" + CSV[11:])])
def test_lists(class_folders, tmp_path, name, text):
    class_folders(".", {"img": {"a.png": RGB, "b.png": RGB[::-1]}})
    (tmp_path / name).write_text(text, encoding="utf-8")
    found = open_images(tmp_path / name, LABELS)
    assert found.names == ("img/a.png", "img/b.png")
    assert found.labels.tolist() == [1, 2]
    np.testing.assert_array_equal(found.pixels(1), RGB[::-1])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.CSV", "img/a.png,Trouser\nimg/my b.png,Ankle boot\n"),
        ("l.tsv", "img/a.png\tTrouser\nimg/my b.png\tAnkle boot\n"),
        ("l.TSV", "path\ttarget\nimg/a.png\t1\nimg/my b.png\t2\n"),
        ("l.csv", "filename,class\nimg/a.png,1\nimg/my b.png,2\n"),
        ("l.csv", "# made by hand\n\nimage,label\nimg/a.png,1\nimg/my b.png,2\n"),
        ("l.csv", "ImageId,Label\nimg/a.png,1\nimg/my b.png,2\n"),
        ("l.txt", "path target\nimg/a.png Trouser\nimg/my b.png Ankle boot\n"),
        ("l.Txt", "img/a.png trouser\nimg/my b.png\tankle-boot\n"),
        ("l.txt", 'img/a.png \'Trouser\'\n"img/my b.png" "Ankle boot"\n'),
        ("l.txt", "img/a.png 1\nimg/my b.png 2\n"),
    ],
)
def test_suffixes_headers_and_blanks(class_folders, tmp_path, name, text):
    class_folders(".", {"img": {"a.png": RGB, "my b.png": RGB[::-1]}})
    (tmp_path / name).write_text(text)
    found = open_images(tmp_path / name, LABELS)
    assert found.names == ("img/a.png", "img/my b.png")
    assert found.labels.tolist() == [1, 2]


def test_a_label_is_never_taken_for_a_header(class_folders, tmp_path):
    class_folders(".", {"img": {"a.png": RGB, "b.png": RGB[::-1]}})
    (tmp_path / "l.csv").write_text("img/a.png,label\nimg/b.png,class\n")
    assert open_images(tmp_path / "l.csv", ("label", "class")).labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.csv", "name,kind\nimg/a.png,Trouser\n", r"neither an image with a label nor[\s\S]*csv:1[\s\S]*remove the line"),
        ("l.csv", "1,img/a.png\n", r"columns are exchanged[\s\S]*csv:1[\s\S]*1, img/a\.png"),
        ("l.csv", "img/a.png;1\n", r"malformed line[\s\S]*separated by a comma"),
        ("l.tsv", "img/a.png,1\n", r"malformed line[\s\S]*separated by a tab"),
        ("l.txt", "img/a.png Rain boot\n", r"labels do not match[\s\S]*found: boot[\s\S]*\.csv list"),
        ("l.csv", "img/a.png,1\n".encode("utf-16"), r"list cannot be read[\s\S]*UTF-16 text"),
        ("l.list", "img/a.png,1\n", r"not labelled images[\s\S]*\.csv \.tsv \.txt"),
        ("l.csv", "img/a.png,Trouser\nimg/b.png\n", r"malformed line[\s\S]*l\.csv:2"),
        ("l.csv", "img/a.png,Trouser,3\n", r"malformed line[\s\S]*l\.csv:1"),
        ("l.txt", "img/a.png Trouser\n\nimg/b.png\n", r"malformed line[\s\S]*l\.txt:3"),
        ("l.csv", "img/a.png,Trouser\nimg/b.png,Hat\n", r"labels do not match[\s\S]*l\.csv:2[\s\S]*Hat"),
        ("l.csv", "img/a.png,Trouser\nimg/x.png,0\nimg/y.png,0\n", r"images not found[\s\S]*x\.png, .*y\.png \(2 in all\)"),
        ("l.csv", "file,label\n", r"no images"),
        ("l.txt", "", r"no images"),
        ("l.csv", b"\xff\xfe,1\n", r"l\.csv"),
        ("l.csv", "img/a.png,0\n" + "x" * 200_000 + ",0\n", r"list cannot be read[\s\S]*l\.csv:2[\s\S]*field limit"),
        ("l.csv", 'img/a.png,0\n"' + "x,0\n" * 60_000, r"list cannot be read[\s\S]*l\.csv:2"),
        ("l.csv", "img/a.png,0\n" + "x" * 5000 + ".png,0\n", r"images not found[\s\S]*\(1 in all\)"),
        ("l.csv", "img/a.png\0,0\n", r"images not found|contains NUL"),
        ("l.txt", "img/a.png\0 0\n", r"images not found"),
        ("l.csv", "img/a.png," + "1" * 5000 + "\n", r"labels do not match[\s\S]*found: 1{100}\n"),
        ("l.csv", "img/a.png,1" + ",1" * 5000 + "\n", r"malformed line[\s\S]{,400}$"),
        ("l.txt", "img/a.png \ud800\n".encode(errors="surrogatepass"), r"list cannot be read[\s\S]*l\.txt"),
        ("l.txt", b"\n" * (2**22 + 1), r"list cannot be read[\s\S]*4,194,305 lines"),
    ],
)
def test_lists_that_are_refused(class_folders, tmp_path, name, text, message):
    class_folders(".", {"img": {"a.png": RGB, "b.png": RGB[::-1]}})
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message):
        open_images(tmp_path / name, LABELS)


@pytest.mark.parametrize("name", ["l.csv", "l.txt"])
def test_a_list_that_is_no_file_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match=rf"not a regular file[\s\S]*{name}[\s\S]*a pipe"):
        open_images(tmp_path / name, LABELS)


def test_a_list_takes_seconds(class_folders, tmp_path):
    """Labels in another spelling and as indices, of 5,000 classes."""
    class_folders(".", {"img": {"a.png": RGB, "b.png": RGB[::-1]}})
    labels = tuple(f"class {i}" for i in range(5000))
    (tmp_path / "l.csv").write_text("img/a.png,CLASS-7\nimg/b.png,998\n" * 5000)
    started = time.process_time()
    assert open_images(tmp_path / "l.csv", labels).labels.tolist() == [7, 998]
    assert time.process_time() - started < 15, "spelling all labels for each row takes 40 s"


GREY = np.arange(35, dtype=np.uint8).reshape(5, 7) * 7
WIDE = (GREY.astype(np.uint16) * 257).copy()


def saved(path, image, **options):
    image.save(path, **options)
    return decode(path)


def test_grey_and_rgb(tmp_path):
    np.testing.assert_array_equal(saved(tmp_path / "g.png", Image.fromarray(GREY)), GREY[:, :, None])
    np.testing.assert_array_equal(saved(tmp_path / "c.png", Image.fromarray(RGB)), RGB)
    np.testing.assert_array_equal(saved(tmp_path / "c.bmp", Image.fromarray(RGB)), RGB)


def test_palette(tmp_path):
    image = Image.frombytes("P", (7, 5), (GREY % 4).tobytes())
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 8, 7]], np.uint8)
    image.putpalette(colours.ravel().tolist())
    np.testing.assert_array_equal(saved(tmp_path / "p.png", image), colours[GREY % 4])
    np.testing.assert_array_equal(saved(tmp_path / "t.png", image, transparency=b"\x80\xff\x00\x10"), colours[GREY % 4])
    np.testing.assert_array_equal(saved(tmp_path / "p.gif", image), colours[GREY % 4])


def test_transparency_is_dropped(tmp_path):
    alpha = np.full((5, 7, 1), 40, np.uint8)
    alpha[0] = 0
    np.testing.assert_array_equal(saved(tmp_path / "a.png", Image.fromarray(np.concatenate([RGB, alpha], 2))), RGB)
    grey_alpha = Image.fromarray(np.dstack([GREY, alpha[:, :, 0]]))
    assert grey_alpha.mode == "LA"
    np.testing.assert_array_equal(saved(tmp_path / "la.png", grey_alpha), GREY[:, :, None])


def test_one_bit(tmp_path):
    bits = (GREY // 7) % 2 * 255
    np.testing.assert_array_equal(saved(tmp_path / "1.png", Image.fromarray(bits).convert("1")), bits[:, :, None])


def test_cmyk(tmp_path):
    """Oracle: the subtractive formula R = 255 (1 - C)(1 - K), with rounding."""
    ink = RNG.integers(0, 256, size=(5, 7, 4), dtype=np.uint8)
    expected = (255 - ink[:, :, :3].astype(float)) * (255 - ink[:, :, 3:].astype(float)) / 255
    found = saved(tmp_path / "k.tif", _cmyk(ink))
    assert found.dtype == np.uint8
    np.testing.assert_allclose(found, expected, atol=1)
    plain = np.full((16, 16, 4), (200, 30, 90, 20), np.uint8)
    flat = saved(tmp_path / "k.jpg", _cmyk(plain), quality=95)
    np.testing.assert_allclose(flat, np.broadcast_to([50.7, 207.4, 152.1], flat.shape), atol=4)


def _cmyk(ink):
    return Image.frombytes("CMYK", (ink.shape[1], ink.shape[0]), ink.tobytes())


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bit_grey(tmp_path, suffix):
    assert WIDE.max() > 255
    np.testing.assert_array_equal(saved(tmp_path / f"w{suffix}", Image.fromarray(WIDE)), GREY[:, :, None])
    ends = np.array([[0, 256, 257, 65534, 65535]], np.uint16)
    np.testing.assert_array_equal(saved(tmp_path / f"e{suffix}", Image.fromarray(ends))[0, :, 0], [0, 0, 1, 254, 255])


def test_exif_orientation(tmp_path):
    """Orientation 6: the stored image must be turned clockwise by 90 degrees, its bottom left pixel comes to the top left."""
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[3, 0] = (255, 128, 64)
    exif = Image.Exif()
    exif[0x0112] = 6
    found = saved(tmp_path / "r.png", Image.fromarray(pixels), exif=exif)
    assert found.shape == (6, 4, 3)
    assert found[0, 0].tolist() == [255, 128, 64]
    assert np.count_nonzero(found) == 3
    assert saved(tmp_path / "n.png", Image.fromarray(pixels)).shape == (4, 6, 3)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp", ".tif", ".ppm", ".pgm"])
def test_unreadable_images_are_named(tmp_path, suffix):
    path = tmp_path / f"broken{suffix}"
    Image.fromarray(GREY if suffix == ".pgm" else RGB).save(path)
    whole = path.read_bytes()
    for length in sorted({0, 1, 2, 5, 10, 20, 30, len(whole) // 2, len(whole) * 3 // 4}):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=rf"cannot be decoded[\s\S]*broken{suffix}"):
            decode(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp", ".tif", ".ppm"])
def test_damaged_images_give_pixels_or_a_named_refusal(tmp_path, suffix):
    path = tmp_path / f"damaged{suffix}"
    Image.fromarray(RGB).save(path)
    whole = path.read_bytes()
    rng = random.Random(1)
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(bytes(data))
        try:
            outcome = decode(path).dtype
        except InputError as error:
            outcome = str(error)
        assert outcome == np.uint8 or path.name in outcome


def test_an_unreadable_image_in_a_set_is_named_when_it_is_reached(class_folders):
    root = class_folders()
    (root / "Trouser" / "bad.png").write_bytes(b"nothing")
    images = open_images(root, LABELS)
    with pytest.raises(InputError, match=r"Trouser/bad\.png"):
        list(images.batches(Preprocess(8, 8, (0.5,) * 3, (0.5,) * 3), 2))


def numbered(count):
    pixels = lambda i: np.full((2, 2, 1), i, np.uint8)  # noqa: E731  # an attribute, not a function of its own
    names = tuple(str(i) for i in range(count))
    return ImageSet("made", names, np.arange(count, dtype=np.int64), "digest", pixels)


@given(total=st.integers(1, 200), count=st.integers(1, 220))
@settings(max_examples=80, deadline=None)
def test_take_is_even_and_repeatable(total, count):
    taken, again = numbered(total).take(count), numbered(total).take(count)
    positions = taken.labels.tolist()
    assert len(taken) == min(total, count) == len(set(positions))
    assert positions == sorted(positions) == again.labels.tolist()
    assert [taken.pixels(i)[0, 0, 0] for i in range(len(taken))] == positions
    assert taken.names == tuple(map(str, positions))
    gaps = np.diff(positions)
    assert not len(gaps) or gaps.max() - gaps.min() <= 1, "evenly spread"
    if 1 < count <= total:
        assert (positions[0], positions[-1]) == (0, total - 1)
    assert (taken.sha256 == "digest") == (count >= total)
    assert taken.sha256 == again.sha256


def test_digest_of_a_part_depends_on_the_part():
    assert len({numbered(50).take(n).sha256 for n in range(1, 51)}) == 50


def test_batches_keep_the_order():
    preprocess = Preprocess(2, 2, (0.0,) * 3, (1.0,) * 3)
    batches = list(numbered(7).batches(preprocess, 3))
    assert [b.shape for b in batches] == [(3, 3, 2, 2), (3, 3, 2, 2), (1, 3, 2, 2)]
    np.testing.assert_allclose(np.concatenate(batches)[:, 0, 0, 0] * 255, np.arange(7), atol=1e-4)
