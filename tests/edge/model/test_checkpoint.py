"""Checkpoints are read back as they were written, or refused with the reason and the names of what does not fit."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from calib.errors import InputError, MissingError
from edge.images.preprocess import Preprocess
from edge.model.checkpoint import load_checkpoint, random_network, save_checkpoint
from edge.model.metadata import METADATA_KEY, CheckpointInfo, read_info
from edge.model.ufo_vit import resize_position_embedding

NAME = "ufovit_tiny"
LABELS = ("a", "b", "c", "d", "e")


@pytest.fixture
def info(tiny_size):
    preprocess = Preprocess(32, 36, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    return CheckpointInfo(tiny_size, LABELS, preprocess, training={"top1": 0.9})


@pytest.fixture
def network(make_network):
    return make_network(3)


@pytest.fixture
def saved(info, network, tmp_path):
    path = tmp_path / "tiny.safetensors"
    save_checkpoint(network, info, path)
    return path


def tensors_of(network):
    return {k: t for k, t in network.state_dict().items() if not k.endswith("num_batches_tracked")}


def write_safetensors(path, tensors, metadata):
    safetensors.torch.save_file(tensors, path, {METADATA_KEY: json.dumps(metadata)})
    return path


def write_pth(path, tensors, metadata):
    torch.save({METADATA_KEY: metadata, "state_dict": tensors}, path)
    return path


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_round_trip(info, network, tmp_path, dtype):
    path = tmp_path / "tiny.safetensors"
    save_checkpoint(network, info, path, dtype)
    loaded, read = load_checkpoint(path, model=NAME)
    assert read == replace(info, file=str(path), sha256=read.sha256) == read_info(path)
    assert len(read.sha256) == 64
    assert not loaded.training
    assert tensors_of(loaded).keys() == tensors_of(network).keys()
    for name, tensor in tensors_of(loaded).items():
        stored = tensors_of(network)[name].numpy().astype(np.float16 if dtype == torch.float16 else np.float32)
        assert tensor.dtype == torch.float32
        np.testing.assert_array_equal(tensor.numpy(), stored.astype(np.float32), err_msg=name)


def test_same_network_gives_the_same_bytes(info, network, tmp_path):
    for name in ("one", "two"):
        save_checkpoint(network, info, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    with torch.no_grad():
        network.head.bias[0] += 1
    save_checkpoint(network, info, tmp_path / "three")
    assert (tmp_path / "three").read_bytes() != (tmp_path / "one").read_bytes()


def test_pth_with_plain_tensors(info, network, tmp_path, tiny_images):
    path = write_pth(tmp_path / "tiny.pth", network.state_dict(), info.as_json())
    loaded, read = load_checkpoint(path, model=NAME)
    assert read.labels == LABELS
    with torch.no_grad():
        assert torch.equal(loaded(torch.from_numpy(tiny_images)), network(torch.from_numpy(tiny_images)))


class _Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_pickle_is_refused_and_not_run(info, network, tmp_path):
    sprung = tmp_path / "sprung"
    path = tmp_path / "trap.pth"
    torch.save({METADATA_KEY: info.as_json(), "state_dict": network.state_dict(), "x": _Trap(sprung)}, path)
    with pytest.raises(InputError, match=r"cannot be read[\s\S]*trap\.pth"):
        load_checkpoint(path, model=NAME)
    assert not sprung.exists()
    torch.load(path, weights_only=False)
    assert sprung.exists(), "the trap works"


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_missing_file(tmp_path, suffix):
    for path in (tmp_path / f"none{suffix}", tmp_path):
        with pytest.raises(InputError, match="checkpoint not found"):
            load_checkpoint(path if path.suffix else path.with_suffix(suffix), model=NAME)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_truncated_at_any_length(info, network, tmp_path, suffix):
    path = tmp_path / f"tiny{suffix}"
    if suffix == ".pth":
        write_pth(path, network.state_dict(), info.as_json())
    else:
        save_checkpoint(network, info, path)
    whole = path.read_bytes()
    for length in (0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="cannot be read: truncated, damaged"):
            load_checkpoint(path, model=NAME)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("content", [b"no checkpoint", b"{}" * 50, b"\x80\x02]q\x00.", b"PK\x03\x04" + b"\0" * 60, bytes(64)])
def test_foreign_content(tmp_path, suffix, content, tiny_size):
    path = tmp_path / f"foreign{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"foreign{suffix}"):
        load_checkpoint(path, model=NAME)


def test_safetensors_of_somebody_else(tmp_path, network):
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file(tensors_of(network), path)
    with pytest.raises(InputError, match="does not name its model, labels and preprocessing"):
        load_checkpoint(path, model=NAME)


def test_pth_of_somebody_else(tmp_path, network, tiny_size):
    torch.save(network.state_dict(), tmp_path / "bare.pth")
    with pytest.raises(
        InputError, match=r"no ufovit metadata[\s\S]*next: ufovit checkpoint \S*bare\.pth .*--out \S*bare\.safetensors"
    ):
        load_checkpoint(tmp_path / "bare.pth", model=NAME)


@pytest.mark.parametrize("writer", [write_safetensors, write_pth])
@pytest.mark.parametrize(
    ("spoil", "kind", "names"),
    [
        (lambda t: t.pop("blocks.1.attn.q.weight"), "missing", ["blocks.1.attn.q.weight"]),
        (lambda t: t.update(extra=torch.zeros(1)), "unexpected", ["extra"]),
        (lambda t: t.update({"head.bias": torch.zeros(7)}), "mis-shaped", [r"head.bias \(7,\) instead of \(5,\)"]),
        (lambda t: t["norm.weight"].fill_(torch.nan), "not finite", ["norm.weight"]),
        (lambda t: t["norm.bias"][:1].fill_(-torch.inf), "not finite", ["norm.bias"]),
        (lambda t: [t.pop("norm.bias"), t.pop("cls_token")], "missing", ["cls_token, norm.bias"]),
    ],
)
def test_tensors_that_do_not_fit_are_named(info, network, tmp_path, writer, spoil, kind, names):
    tensors = {k: t.clone() for k, t in tensors_of(network).items()}
    spoil(tensors)
    path = writer(tmp_path / f"bad{'.pth' if writer is write_pth else ''}", tensors, info.as_json())
    with pytest.raises(InputError, match=rf"does not fit the model[\s\S]*{kind}: {names[0]}"):
        load_checkpoint(path, model=NAME)


def test_many_misfits_are_shortened(info, network, tmp_path):
    tensors = {k: t for k, t in tensors_of(network).items() if not k.startswith("blocks.1.")}
    gone = len(tensors_of(network)) - len(tensors)
    with pytest.raises(InputError, match=f"and {gone - 8} more"):
        load_checkpoint(write_safetensors(tmp_path / "bad", tensors, info.as_json()), model=NAME)


@pytest.mark.parametrize("image_size", [None, 48])
@pytest.mark.parametrize("shape", [(1, 5, 32), (4, 32), (1, 4, 16), (0,)])
def test_a_misshaped_position_embedding_is_named_at_any_image_size(info, network, tmp_path, shape, image_size):
    tensors = tensors_of(network) | {"pos_embed": torch.zeros(shape)}
    path = write_safetensors(tmp_path / "bad", tensors, info.as_json())
    with pytest.raises(InputError, match="mis-shaped: pos_embed"):
        load_checkpoint(path, model=NAME, image_size=image_size)


def test_pth_with_something_else_among_the_tensors(info, network, tmp_path):
    path = write_pth(tmp_path / "odd.pth", tensors_of(network) | {"head.bias": 3}, info.as_json())
    with pytest.raises(InputError, match=r"more than tensors[\s\S]*head\.bias"):
        load_checkpoint(path, model=NAME)


def test_another_model(saved):
    with pytest.raises(InputError, match=r"another model[\s\S]*found: ufovit_tiny[\s\S]*allowed: ufovit_s"):
        load_checkpoint(saved, model="ufovit_s")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": LABELS[:4]}, r"labels do not match the classes[\s\S]*4 labels, 4 different, for 5"),
        ({"labels": ("a", "a", "b", "c", "d")}, "5 labels, 4 different, for 5"),
        ({"labels": "abcde"}, "labels"),
        ({"labels": 5}, "labels"),
        ({"schema_version": 2}, "unknown checkpoint schema version"),
        ({"model": "ufovit_q"}, "unknown model 'ufovit_q'"),
        ({"model": ["ufovit_t"]}, "model"),
        ({"image_size": 48}, "disagree on the image size"),
        ({"image_size": "32"}, "image_size"),
        ({"image_size": 33}, "multiples of 16"),
        ({"classes": None}, "classes"),
        ({"kv_axis": "first"}, "unknown XNorm axis"),
        ({"preprocess": {"image_size": 32}}, "malformed preprocessing"),
        ({"preprocess": None}, "ill-typed[\\s\\S]*preprocess: None"),
        ({"training": [1]}, "training"),
        ({"depth": 3}, r"depth is not that of ufovit_tiny[\s\S]*found: 3[\s\S]*allowed: 2"),
        ({"class_layers": 1}, "class_layers is not that of ufovit_tiny"),
        ({"stem_widths": [1, 2, 3, 32]}, "stem_widths is not that of ufovit_tiny"),
        ({"depth": "2"}, "ill-typed[\\s\\S]*depth"),
        ({"image_size": [32, 48]}, "disagree on the image size[\\s\\S]*32 and 32x48 px"),
        ({"image_size": [32]}, "disagree|multiples of 16"),
        ({"image_size": [32, "32"]}, "multiples of 16"),
        ({"model": "mine", "depth": 2, "dim": 32}, "unknown model 'mine'"),
        ({"model": "mine", "depth": 2, "dim": 32, "heads": 3}, "divisible by heads"),
        ({"model": "mine", "depth": 10**9, "dim": 32, "heads": 2}, "depth must be positive"),
        ({"model": "mine", "depth": 256, "dim": 4096, "heads": 2}, "too large"),
        ({"model": "mine", "depth": 2, "dim": 32, "heads": 2, "stem_widths": [4, 8, 16, [32]]}, "stem_widths"),
        ({"model": "../mine", "depth": 2, "dim": 32, "heads": 2}, "invalid name"),
        ({"random_weights": "false"}, "random_weights"),
    ],
)
def test_metadata_that_do_not_fit(info, network, tmp_path, change, message):
    path = write_safetensors(tmp_path / "bad", tensors_of(network), info.as_json() | change)
    with pytest.raises(InputError, match=message):
        load_checkpoint(path, model=NAME)


@pytest.mark.parametrize("field", ["model", "image_size", "classes", "kv_axis", "labels", "preprocess"])
def test_metadata_that_lack_a_field(info, network, tmp_path, field):
    metadata = {k: v for k, v in info.as_json().items() if k != field}
    with pytest.raises(InputError, match=rf"incomplete[\s\S]*no '{field}'"):
        load_checkpoint(write_safetensors(tmp_path / "bad", tensors_of(network), metadata), model=NAME)


def test_metadata_that_are_no_json(network, tmp_path):
    path = tmp_path / "bad"
    safetensors.torch.save_file(tensors_of(network), path, {METADATA_KEY: "{"})
    with pytest.raises(InputError, match=r"not a JSON file[\s\S]*bad, metadata 'ufovit'"):
        load_checkpoint(path, model=NAME)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "mine", "depth": 3, "class_layers": 1, "ffn_expansion": 2},
        {"name": "mine", "image_size": (32, 48), "stem_widths": (3, 4, 5, 32), "heads": 4},
    ],
    ids=repr,
)
def test_checkpoints_of_other_shapes(make_network, info, tmp_path, changes):
    network = make_network(2, **changes)
    path, preprocess = tmp_path / "mine.safetensors", Preprocess(network.cfg.image_size, 32, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    save_checkpoint(network, replace(info, config=network.cfg, preprocess=preprocess), path, torch.float32)
    loaded, read = load_checkpoint(path, model="mine")
    assert read == read_info(path)
    assert loaded.cfg == read.config == network.cfg
    assert all(torch.equal(t, tensors_of(loaded)[name]) for name, t in tensors_of(network).items())
    with pytest.raises(InputError, match=r"next: ufovit build \S*mine\.safetensors PRECISION"):
        load_checkpoint(path, model="ufovit_t")
    taller, at_64 = load_checkpoint(path, image_size=(64, 32))
    assert torch.equal(taller.pos_embed.data, resize_position_embedding(network.pos_embed.data, network.cfg.grid, (4, 2)))
    assert at_64.preprocess.shape == (3, 64, 32)


def test_another_image_size_interpolates_the_position_embedding(saved):
    original, at_32 = load_checkpoint(saved, model=NAME)
    resized, at_64 = load_checkpoint(saved, model=NAME, image_size=64)
    expected = resize_position_embedding(original.pos_embed.data, (2, 2), (4, 4))
    assert torch.equal(resized.pos_embed.data, expected)
    assert expected.std() > 0
    assert at_64.config == replace(at_32.config, image_size=64)
    assert (at_64.preprocess.image_size, at_64.preprocess.resize) == (64, 72)
    for name, tensor in tensors_of(original).items():
        assert name == "pos_embed" or torch.equal(tensor, resized.state_dict()[name])
    with pytest.raises(InputError, match="multiples of 16"):
        load_checkpoint(saved, model=NAME, image_size=50)


def test_drawn_weights_are_never_loaded_silently(info, network, tmp_path):
    save_checkpoint(network, replace(info, random_weights=True), tmp_path / "drawn")
    assert load_checkpoint(tmp_path / "drawn", model=NAME)[1].random_weights
    first, same = (random_network(info.config, 7).head.weight for _ in range(2))
    assert torch.equal(first, same)


@pytest.mark.parametrize("existing", [None, b"an older checkpoint"])
@pytest.mark.parametrize("fails_in", ["write", "fsync"])
def test_a_full_disk_leaves_what_was_there(info, network, tmp_path, monkeypatch, existing, fails_in):
    path = tmp_path / "tiny.safetensors"
    if existing:
        path.write_bytes(existing)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def half(self, data):
        with self.open("wb") as stream:
            stream.write(data[: len(data) // 2])
        full()

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", half) if fails_in == "write" else patch.setattr(os, "fsync", full)
        with pytest.raises(MissingError, match="disk full, nothing was written"):
            save_checkpoint(network, info, path)
    assert [p.name for p in tmp_path.iterdir()] == ([path.name] if existing else [])
    assert not existing or path.read_bytes() == existing


def test_metadata_are_read_without_torch(saved):
    code = (
        "import sys; from pathlib import Path; from edge.model import metadata, sizes;"
        "sizes.SIZES['ufovit_tiny'] = sizes.UfoVitConfig('ufovit_tiny', 2, 32, 2);"
        "print(metadata.read_info(Path(sys.argv[1])).labels, 'torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(saved)], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == f"{LABELS} False"
