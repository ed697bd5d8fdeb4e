"""`ufovit checkpoint`: weights of any training become a checkpoint that computes the same, or are refused in one sentence.

Oracle: the network in torch that the weights are from; torch and safetensors write the files.
"""

import argparse

import numpy as np
import pytest
import safetensors.torch
import torch

from calib.errors import InputError
from edge.cli import run
from edge.model.checkpoint import load_checkpoint
from edge.model.metadata import read_info

NAME, SHAPE = "ufovit_d2_c32_h2", {"depth": 2, "dim": 32, "heads": 2}
PREPARED = ("--mean", "0.1,0.2,0.3", "--std", "0.5")


@pytest.fixture(scope="module")
def network(make_network):
    return make_network(3)


@pytest.fixture(scope="module")
def tensors(network):
    return network.state_dict()


@pytest.fixture
def call(capsys):
    """call(code, *arguments) -> what `ufovit checkpoint` printed; errors are in the toolkit's own words."""

    def check(code, *arguments):
        assert run(["checkpoint", *map(str, arguments)]) == code, capsys.readouterr()
        out, err = capsys.readouterr()
        assert [bad for bad in ("Traceback", "weights_only", "\x1b", "internal error") if bad in out + err] == []
        return out + err

    return check


def renamed(tensors, prefix):
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def same_logits(path, network, images):
    loaded, info = load_checkpoint(path)
    with torch.no_grad():
        assert torch.equal(loaded(torch.from_numpy(images)), network(torch.from_numpy(images)))
    return info


WRAPPED = {
    "a.pth": lambda t: t,
    "a.pt": lambda t: {"state_dict": t, "epoch": 3},
    "a.ckpt": lambda t: {"state_dict": t, "pytorch-lightning_version": "2.0", "hyper_parameters": {"lr": 1e-3}},
    "a.pth.tar": lambda t: {"model_state_dict": t, "optimizer": {"state": {0: {"step": torch.tensor(1)}}}},
    "a": lambda t: {"model": t, "best": 0.9, "classes": ["a"]},
    "a.weights": lambda t: {"network": {"state_dict": t}},
}


@pytest.mark.parametrize("name", WRAPPED)
def test_what_trainings_write_is_read_by_its_content(call, network, tensors, tmp_path, tiny_images, name):
    path, out = tmp_path / name, tmp_path / "out.safetensors"
    torch.save(WRAPPED[name](tensors), path, _use_new_zipfile_serialization=name != "a.pt")
    before = path.read_bytes()
    text = call(0, path, *PREPARED, "--labels", "ant,bee,cat,dog,eel", "--out", out)
    assert f"next: ufovit build {out} int8" in text
    info = same_logits(out, network, tiny_images)
    assert (info.config.name, info.config.image_size, info.config.classes) == (NAME, 32, 5)
    assert info.labels == ("ant", "bee", "cat", "dog", "eel")
    assert info.preprocess.as_json() == {"image_size": 32, "resize": 32, "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.5)}
    assert info.training["source"] == name
    assert path.read_bytes() == before


def test_safetensors_under_any_name_keep_their_half_precision(call, tensors, tmp_path):
    path, out = tmp_path / "a.pth", tmp_path / "out.safetensors"
    halves = {name: t.half() for name, t in tensors.items() if "num_batches" not in name}
    path.write_bytes(safetensors.torch.save(halves))
    call(0, path, *PREPARED, "--out", out)
    stored = safetensors.torch.load_file(out)
    assert stored.keys() == halves.keys()
    assert all(torch.equal(stored[name], halves[name]) for name in halves)
    assert read_info(out).labels == ("0", "1", "2", "3", "4")
    again = tmp_path / "again.safetensors"
    call(0, out, "--out", again)
    assert again.read_bytes() == out.read_bytes(), "a checkpoint is one already"


def test_without_out_it_tells_and_writes_nothing(call, tensors, tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"model": tensors, "ema": tensors}, path)
    told = call(0, path)
    for text in ("under 'model'", "--ema", "depth 2, dim 32, heads 2", "classes 5", "32 px", "--mean R,G,B --std R,G,B"):
        assert text in told
    assert "nothing was written" in call(0, path, *PREPARED)
    assert [file.name for file in tmp_path.iterdir()] == ["a.pth"]


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "model.module._orig_mod."])
def test_a_prefix_is_named_and_stripped_on_request(call, network, tensors, tmp_path, tiny_images, prefix):
    path, out = tmp_path / "a.pth", tmp_path / "out.safetensors"
    torch.save(renamed(tensors, prefix), path)
    told = call(2, path, *PREPARED, "--out", out)
    assert f"all {len(tensors)} names begin with {prefix}" in told
    assert f"next: ufovit checkpoint {path} --strip-prefix" in told
    assert not out.exists()
    call(0, path, *PREPARED, "--strip-prefix", "--out", out)
    same_logits(out, network, tiny_images)


def test_blocks_that_were_compiled_one_by_one(call, network, tensors, tmp_path, tiny_images):
    path, out = tmp_path / "a.pth", tmp_path / "out.safetensors"
    torch.save({name.replace("blocks.1.", "blocks.1._orig_mod."): t for name, t in tensors.items()}, path)
    assert "names with _orig_mod." in call(2, path)
    call(0, path, *PREPARED, "--strip-prefix", "--out", out)
    same_logits(out, network, tiny_images)


def test_a_name_without_the_prefix_is_reported(call, tensors, tmp_path):
    torch.save(renamed(tensors, "module.") | {"loss.weight": torch.ones(1)}, tmp_path / "a.pth")
    told = call(2, tmp_path / "a.pth", *PREPARED, "--strip-prefix")
    assert "unexpected: loss.weight" in told
    torch.save(renamed(tensors, "module.") | {"head.bias": torch.ones(5)}, tmp_path / "b.pth")
    assert "prefix" in call(2, tmp_path / "b.pth", *PREPARED, "--strip-prefix"), "two tensors for one name"


@pytest.mark.parametrize(
    "wrap",
    [
        lambda raw, mean: {"model": raw, "model_ema": mean},
        lambda raw, mean: {"state_dict": raw, "ema": {"module": mean, "decay": 0.99}},
        lambda raw, mean: {"state_dict": raw | renamed(mean, "ema_model.")},
        lambda raw, mean: {"model": raw, "averaged": renamed(mean, "module.") | {"n_averaged": torch.tensor(3)}},
    ],
)
def test_the_moving_average_on_request(call, make_network, network, tensors, tmp_path, tiny_images, wrap):
    path, average = tmp_path / "a.pth", make_network(4)
    torch.save(wrap(tensors, average.state_dict()), path)
    for options, expected in (((), network), (("--ema", "--strip-prefix"), average)):
        out = tmp_path / f"out{len(options)}.safetensors"
        call(0, path, *PREPARED, *options, "--out", out)
        info = same_logits(out, expected, tiny_images)
        assert info.training.get("weights") == ("moving average" if options else None)


def test_no_average_to_take(call, tensors, tmp_path):
    torch.save(tensors, tmp_path / "a.pth")
    assert "holds no moving average" in call(2, tmp_path / "a.pth", "--ema")


def odd_files(network, tensors, folder):
    """Name -> (what is saved, the words of its refusal)."""
    other = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(4, 2)).state_dict()
    return {
        "a whole module": (network, ["a whole pickled module", "UfoVit", "torch.save(network.state_dict()"]),
        "a module inside": ({"state_dict": tensors, "net": torch.nn.Linear(1, 1)}, ["a whole pickled module"]),
        "arguments": ({"model": tensors, "args": argparse.Namespace(lr=1)}, ["Python objects", "argparse.Namespace"]),
        "a list": ([1, 2], ["holds no tensors by name", "list"]),
        "an empty dictionary": ({}, ["holds no tensors by name", "an empty one"]),
        "another network": (other, ["not the weights of a UFO-ViT", "no pos_embed", "0.weight", "ufovit build my.onnx"]),
        "numbers": ({"epoch": 3}, ["state_dict holds more than tensors", "epoch"]),
        "half a network": ({n: t for n, t in tensors.items() if "attn" not in n}, ["not the weights", "xnorm_q.gamma"]),
        "a tensor less": ({n: t for n, t in tensors.items() if n != "norm.bias"}, ["does not fit", "missing: norm.bias"]),
        "an odd head": (tensors | {"head.weight": torch.ones(5)}, ["head.weight has 1 axes instead of 2"]),
        "an odd expansion": (tensors | {"blocks.0.ffn.0.weight": torch.ones(33, 32)}, ["33 rows", "multiple of dim 32"]),
        "a mis-shaped tensor": (tensors | {"norm.bias": torch.ones(3)}, ["mis-shaped: norm.bias (3,) instead of (32,)"]),
        "block 10000": (tensors | {"blocks.10000.norm1.weight": torch.ones(32)}, ["depth must be positive", "10001"]),
        "no head": (tensors | {"head.weight": torch.ones(0, 32)}, ["classes must be positive"]),
    }


@pytest.mark.parametrize("legacy", [False, True])
def test_files_of_other_kinds_are_named(call, network, tensors, tmp_path, legacy):
    for number, (name, (content, says)) in enumerate(odd_files(network, tensors, tmp_path).items()):
        path = tmp_path / f"{number}.pth"
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        told = call(2, path, *PREPARED, "--out", tmp_path / "out.safetensors")
        if not (legacy and "module" in name):  # the older format does not tell which types it holds
            assert [text for text in says if text not in told] == [], (name, told)
        assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.filterwarnings("ignore")  # torch calls its own format outdated
def test_a_torchscript_archive(call, tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "a.pt")
    told = call(2, tmp_path / "a.pt")
    assert "TorchScript" in told
    assert "torch.jit.load(FILE).state_dict()" in told


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--out", "OUT"), ["how images are prepared", "no mean and no std"]),
        (("--out", "OUT", "--mean", "0.5"), ["no std"]),
        ((*PREPARED, "--out", "FILE"), ["would be replaced", "--overwrite"]),
        ((*PREPARED, "--overwrite"), ["--overwrite applies to writing"]),
        ((*PREPARED, "--model", "ufovit_t", "--out", "OUT"), ["depth is not that of ufovit_t", "found: 2", "allowed: 24"]),
        ((*PREPARED, "--model", "ufovit_q"), ["unknown model 'ufovit_q'"]),
        ((*PREPARED, "--model", "ufovit_t", "--network", "x.toml"), ["exclude each other"]),
        ((*PREPARED, "--network", "none.toml"), ["network file not found"]),
        ((*PREPARED, "--labels", "a,b,c", "--out", "OUT"), ["labels do not match", "3 labels", "for 5 classes"]),
        ((*PREPARED, "--labels", "a,b,c,d,a", "--out", "OUT"), ["label stands twice", "label 5"]),
        ((*PREPARED, "--labels", "none.txt", "--out", "OUT"), ["label file not found"]),
        ((*PREPARED, "--image-size", "64", "--out", "OUT"), ["does not fit the weights", "4 tokens, 16 for 64x64"]),
        ((*PREPARED, "--image-size", "big"), ["not an image size"]),
        ((*PREPARED, "--resize", "16", "--out", "OUT"), ["cuts more than it resizes"]),
        (("--mean", "x", "--std", "0.5", "--out", "OUT"), ["not numbers", "--mean"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_options_that_do_not_fit(call, tensors, tmp_path, options, says):
    path, out = tmp_path / "a.pth", tmp_path / "out.safetensors"
    torch.save(tensors, path)
    before = path.read_bytes()
    told = call(2, path, *({"OUT": out, "FILE": path}.get(option, option) for option in options))
    assert [text for text in says if text not in told] == [], told
    assert path.read_bytes() == before
    assert not out.exists()


def test_what_is_not_a_file(call, tmp_path):
    assert "checkpoint not found" in call(2, tmp_path / "none.pth", *PREPARED)
    (tmp_path / "a.onnx").write_bytes(b"\x08\x0a\x12\x07pytorch")
    assert "neither safetensors nor a file of torch.save" in call(2, tmp_path / "a.onnx")
    for folder in (tmp_path, "/", "."):
        assert "not a regular file" in call(2, folder, *PREPARED, "--out", tmp_path / "out")


def test_its_own_file_is_replaced_when_told(call, network, tensors, tmp_path, tiny_images):
    path = tmp_path / "a.pth"
    torch.save(tensors, path)
    call(0, path, *PREPARED, "--out", path, "--overwrite")
    same_logits(path, network, tiny_images)


# --- network files


def test_a_rectangle_needs_its_sides(call, make_network, tmp_path):
    network = make_network(image_size=(32, 80), class_layers=1, kv_axis="last")
    path, out = tmp_path / "a.pth", tmp_path / "out.safetensors"
    torch.save(network.state_dict(), path)
    told = call(2, path, *PREPARED, "--out", out)
    assert "do not tell the image size" in told
    assert "height * width = 2560" in told
    assert f"next: ufovit checkpoint {path} --image-size HEIGHTxWIDTH" in told
    (tmp_path / "a.toml").write_text(
        'labels = ["a", "b", "c", "d", "e"]\n[network]\nimage_size = [32, 80]\nkv_axis = "last"\n'
        '[preprocess]\nmean = [0.5, 0.5, 0.5]\nstd = [0.25, 0.25, 0.25]\nfit = "stretch"\n'
    )
    images = np.random.default_rng(2).normal(size=(2, 3, 32, 80)).astype(np.float32)
    info = same_logits(path, network, images)
    assert (info.config.image_size, info.config.kv_axis, info.config.class_layers) == ((32, 80), "last", 1)
    assert (info.preprocess.fit, info.preprocess.shape, info.labels) == ("stretch", (3, 32, 80), tuple("abcde"))
    call(0, path, "--out", out)
    assert same_logits(out, network, images).as_json() | {"training": {}} == info.as_json()
    call(0, out, "--out", tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == out.read_bytes()
    _, turned = load_checkpoint(out, image_size=(80, 32))
    assert (turned.config.grid, turned.preprocess.shape) == ((5, 2), (3, 80, 32))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[network]\ndepth = 3", "depth contradicts"),
        ("[network]\nstem_widths = [1, 2, 3, 32]", "stem_widths contradicts"),
        ("[network]\nimage_size = 48", "image_size contradicts"),
        ("[network]\nkv_axis = 'last'", "kv_axis contradicts"),
        ("[preprocess]\nresize = 40", "resize contradicts"),
        ("[preprocess]\nmean = [0.1, 0.2, 0.4]", "mean contradicts"),
        ("labels = ['0', '1', '2', '3', 'x']", "labels contradicts"),
    ],
)
def test_a_network_file_that_contradicts_the_metadata(call, tensors, tmp_path, text, says):
    torch.save(tensors, tmp_path / "a.pth")
    out = tmp_path / "out.safetensors"
    call(0, tmp_path / "a.pth", *PREPARED, "--out", out)
    beside = tmp_path / "out.toml"
    beside.write_text("[network]\ndepth = 2\nstem_widths = [4, 8, 16, 32]\n[preprocess]\nstd = [0.5, 0.5, 0.5]")
    read_info(out)
    beside.write_text(text)
    for read in (read_info, load_checkpoint):
        with pytest.raises(InputError, match=says):
            read(out)
    assert says in call(2, out, "--out", tmp_path / "other.safetensors")
