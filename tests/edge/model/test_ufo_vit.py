"""Oracle: the whole network in float64 numpy, written from the description of the architecture, without torch."""

import numpy as np
import pytest
import torch
from scipy.special import erf


class Reference:
    """UFO-ViT on one normalised image (3, S, S), from the tensors of a checkpoint."""

    def __init__(self, tensors, heads, axis):
        self.t = {name: t.double().numpy() for name, t in tensors.items()}
        self.heads, self.axis, self.grid = heads, axis, None

    def linear(self, name, x):
        return x @ self.t[f"{name}.weight"].T + self.t[f"{name}.bias"]

    def layer_norm(self, name, x):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        return scaled * self.t[f"{name}.weight"] + self.t[f"{name}.bias"]

    def batch_norm(self, name, x):
        mean, var, weight, bias = (
            self.t[f"{name}.{k}"][:, None, None] for k in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / np.sqrt(var + 1e-5) * weight + bias

    def gelu(self, x):
        return x / 2 * (1 + erf(x / np.sqrt(2)))

    def conv3x3(self, name, x, stride=1, depthwise=False):
        weight, padded = self.t[f"{name}.weight"], np.pad(x, ((0, 0), (1, 1), (1, 1)))
        h, w = x.shape[1] // stride, x.shape[2] // stride
        out = np.zeros((weight.shape[0], h, w))
        for i in range(3):
            for j in range(3):
                window = padded[:, i : i + h * stride : stride, j : j + w * stride : stride]
                tap = weight[:, :, i, j]
                out += _apply(tap, window, depthwise)
        return out + self.t.get(f"{name}.bias", np.zeros(len(out)))[:, None, None]

    def attention(self, name, queries, tokens):
        q, k, v = self.linear(f"{name}.q", queries), self.linear(f"{name}.k", tokens), self.linear(f"{name}.v", tokens)
        out = []
        for h, (qh, kh, vh) in enumerate(zip(*(np.split(x, self.heads, axis=1) for x in (q, k, v)), strict=True)):
            kv = kh.T @ vh
            kv = kv / np.linalg.norm(kv, axis=0 if self.axis == "contraction" else 1, keepdims=True)
            gain = self.t[f"{name}.xnorm_q.gamma"][0, h, 0, 0] * self.t[f"{name}.xnorm_kv.gamma"][0, h, 0, 0]
            out.append(gain * (qh / np.linalg.norm(qh, axis=1, keepdims=True)) @ kv)
        return self.linear(f"{name}.proj", np.concatenate(out, axis=1))

    def patch_interaction(self, name, x):
        image = self.gelu(self.conv3x3(f"{name}.conv1", x.T.reshape(-1, *self.grid), depthwise=True))
        image = self.conv3x3(f"{name}.conv2", self.batch_norm(f"{name}.norm", image), depthwise=True)
        return image.reshape(len(image), -1).T

    def feed_forward(self, name, x):
        return self.linear(f"{name}.2", self.gelu(self.linear(f"{name}.0", x)))

    def stem(self, x):
        for i in range(4):
            x = self.batch_norm(f"stem.{3 * i + 1}", self.conv3x3(f"stem.{3 * i}", x, stride=2))
            x = self.gelu(x) if i < 3 else x
        self.grid = x.shape[1:]
        return x.reshape(len(x), -1).T

    def __call__(self, image, depth=2, class_layers=2):
        x = self.stem(image.astype(np.float64)) + self.t["pos_embed"][0]
        for b in (f"blocks.{i}" for i in range(depth)):
            normed = self.layer_norm(f"{b}.norm1", x)
            x = x + self.t[f"{b}.scale1.gain"] * self.attention(f"{b}.attn", normed, normed)
            x = x + self.t[f"{b}.scale2.gain"] * self.patch_interaction(f"{b}.lpi", self.layer_norm(f"{b}.norm2", x))
            x = x + self.t[f"{b}.scale3.gain"] * self.feed_forward(f"{b}.ffn", self.layer_norm(f"{b}.norm3", x))
        cls = self.t["cls_token"][0]
        for b in (f"cls_blocks.{i}" for i in range(class_layers)):
            normed = self.layer_norm(f"{b}.norm1", np.concatenate([cls, x]))
            cls = cls + self.t[f"{b}.scale1.gain"] * self.attention(f"{b}.attn", normed[:1], normed)
            cls = cls + self.t[f"{b}.scale2.gain"] * self.feed_forward(f"{b}.ffn", self.layer_norm(f"{b}.norm2", cls))
        return self.linear("head", self.layer_norm("norm", cls))[0]


def _apply(tap, window, depthwise):
    """One tap of a 3x3 kernel: (C_out, C_in) or, depthwise, (C, 1) on a window (C_in, h, w)."""
    return tap[:, :, None] * window if depthwise else np.einsum("oc,chw->ohw", tap, window)


@pytest.mark.parametrize("axis", ["contraction", "last"])
@pytest.mark.parametrize("image_size", [32, 48])
def test_network_is_the_architecture(make_network, axis, image_size):
    network = make_network(kv_axis=axis, image_size=image_size).double()
    images = np.random.default_rng(8).normal(size=(3, 3, image_size, image_size))
    with torch.no_grad():
        found = network(torch.from_numpy(images)).numpy()
    reference = Reference(network.state_dict(), heads=2, axis=axis)
    np.testing.assert_allclose(found, np.stack([reference(image) for image in images]), rtol=0, atol=1e-10)
    other = Reference(network.state_dict(), heads=2, axis="last" if axis == "contraction" else "contraction")
    assert np.abs(found[0] - other(images[0])).max() > 1e-3
    assert np.abs(found[0] - found[1]).max() > 1e-3, "the logits depend on the image"


@pytest.mark.parametrize(
    "changes",
    [
        {"image_size": (48, 80), "class_layers": 1, "depth": 1},
        {"image_size": (64, 32), "ffn_expansion": 2, "class_layers": 3},
        {"dim": 20, "heads": 5, "stem_widths": (3, 6, 9, 20), "depth": 3},
    ],
    ids=repr,
)
def test_any_shape_is_the_architecture(make_network, changes):
    network = make_network(**changes).double()
    cfg = network.cfg
    image = np.random.default_rng(9).normal(size=(3, cfg.height, cfg.width))
    with torch.no_grad():
        found = network(torch.from_numpy(image[None])).numpy()[0]
    reference = Reference(network.state_dict(), cfg.heads, "contraction")
    np.testing.assert_allclose(found, reference(image, cfg.depth, cfg.class_layers), rtol=0, atol=1e-10)
    assert np.abs(found - reference(image[:, ::-1], cfg.depth, cfg.class_layers)).max() > 1e-3, "rows are told apart"


def test_every_tensor_matters(make_network, tiny_images):
    """Negative control of the test above: a small change of any one tensor moves the logits beyond its tolerance."""
    network = make_network().double()
    tensors = {n: t for n, t in network.state_dict().items() if not n.endswith("num_batches_tracked")}
    image = tiny_images[0]
    before = Reference(tensors, 2, "contraction")(image)
    silent = []
    for name, tensor in tensors.items():
        changed = {**tensors, name: tensor + 0.01 * torch.sin(torch.arange(tensor.numel()).double()).reshape(tensor.shape)}
        if np.abs(Reference(changed, 2, "contraction")(image) - before).max() < 1e-8:
            silent.append(name)
    assert silent == []
