"""Oracle: UFO attention from its formula in float64, one query and one column at a time; counts from closed formulas."""

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from for_all import for_all
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from calib.errors import InputError
from edge.model.attention import UfoAttention
from edge.model.sizes import SIZES, UfoVitConfig, config, image_size_text, parse_image_size
from edge.model.ufo_vit import UfoVit, init_weights, resize_position_embedding
from edge.model.xnorm import XNORM_EPS, l2_normalize

AXES = ("contraction", "last")


def reference_attention(attention, queries, tokens, axis):
    """A(x)_ij = gamma_q gamma_kv cos(q_i, column j of K^T V), head by head; with "last" the rows of K^T V have length 1."""
    p = {name: t.detach().double().numpy() for name, t in attention.state_dict().items()}

    def linear(name, x):
        return np.einsum("oc,bnc->bno", p[f"{name}.weight"], x) + p[f"{name}.bias"]

    q, k, v = linear("q", queries), linear("k", tokens), linear("v", tokens)
    batch, rows, channels = q.shape
    d = channels // attention.heads
    out = np.zeros((batch, rows, channels))
    for b in range(batch):
        for h in range(attention.heads):
            head = slice(h * d, (h + 1) * d)
            kv = sum(np.outer(k[b, n, head], v[b, n, head]) for n in range(tokens.shape[1]))
            for j in range(d):
                column = kv[:, j] / np.linalg.norm(kv[:, j]) if axis == "contraction" else kv[:, j] / np.linalg.norm(kv, axis=1)
                for i in range(rows):
                    unit = q[b, i, head] / math.sqrt(sum(value**2 for value in q[b, i, head]))
                    out[b, i, h * d + j] = unit @ column * p["xnorm_q.gamma"][0, h, 0, 0] * p["xnorm_kv.gamma"][0, h, 0, 0]
    return linear("proj", out)


@pytest.fixture
def make_attention():
    def make(axis="contraction", seed=0, dim=12, heads=3):
        torch.manual_seed(seed)
        attention = UfoAttention(dim, heads, axis).double()
        with torch.no_grad():
            for norm in (attention.xnorm_q, attention.xnorm_kv):
                norm.gamma.copy_(torch.randn_like(norm.gamma))
        return attention

    return make


@pytest.mark.parametrize("rows", ["all tokens", "class token"])
@for_all(axis=AXES)
def test_attention_is_the_formula(make_attention, axis, rows):
    attention = make_attention(axis)
    tokens = np.random.default_rng(1).normal(size=(2, 7, 12))
    queries = tokens if rows == "all tokens" else tokens[:, :1]
    expected = reference_attention(attention, queries, tokens, axis)
    other = reference_attention(attention, queries, tokens, AXES[1 - AXES.index(axis)])
    with torch.no_grad():
        found = attention(torch.from_numpy(queries), torch.from_numpy(tokens)).numpy()
        single = attention.float()(torch.from_numpy(queries).float(), torch.from_numpy(tokens).float()).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(single, expected, rtol=0, atol=1e-5)
    assert np.abs(found - other).max() > 0.1, "the other axis is another function"


def test_gammas_belong_to_heads(make_attention):
    attention = make_attention()
    tokens = torch.from_numpy(np.random.default_rng(1).normal(size=(1, 5, 12)))
    before = reference_attention(attention, tokens.numpy(), tokens.numpy(), "contraction")
    with torch.no_grad():
        attention.xnorm_q.gamma.copy_(attention.xnorm_q.gamma.roll(1, dims=1))
        assert np.abs(attention(tokens, tokens).numpy() - before).max() > 0.1


def adversarial(case):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(1, 9, 12))
    return {
        "ordinary": x,
        "huge": x * 1e12,
        "minute": x * 1e-12,
        "equal tokens": np.repeat(x[:, :1], 9, axis=1),
        "one hot": np.eye(12)[None, :9] * 1e4,
        "zero": np.zeros_like(x),
        "wide-ranging": x * 10.0 ** rng.integers(-6, 7, size=(1, 9, 1)),
    }[case]


@pytest.mark.parametrize("case", ["ordinary", "huge", "minute", "equal tokens", "one hot", "zero", "wide-ranging"])
@for_all(axis=AXES)
def test_output_is_bounded_by_the_gammas_whatever_the_input(make_attention, axis, case):
    attention = make_attention(axis)
    attention.proj = nn.Identity()
    tokens = torch.from_numpy(adversarial(case))
    with torch.no_grad():
        heads = attention(tokens, tokens).reshape(9, 3, 4)  # (N, H, D)
        bound = (attention.xnorm_q.gamma * attention.xnorm_kv.gamma).abs().reshape(1, 3, 1)
    factor = 1.0 if axis == "contraction" else math.sqrt(4)
    assert torch.isfinite(heads).all()
    assert (heads.abs() <= bound * factor * (1 + 1e-12)).all()


@pytest.mark.parametrize(("axis", "reached"), [("contraction", 1.0), ("last", math.sqrt(4))])
def test_the_bound_is_reached(axis, reached):
    """K^T V with equal rows e_0 and queries along (1, ..., 1): the worst case of either axis."""
    attention = UfoAttention(4, 1, axis).double()
    with torch.no_grad():
        for layer in (attention.q, attention.k, attention.v):
            layer.weight.zero_()
            layer.bias.fill_(1.0)
        attention.v.bias.copy_(torch.tensor([1.0, 0, 0, 0]))
        attention.proj = nn.Identity()
        tokens = torch.zeros(1, 3, 4, dtype=torch.float64)
        assert attention(tokens, tokens).max().item() == pytest.approx(reached, rel=1e-12)


@pytest.mark.parametrize(("dtype", "powers"), [(torch.float32, range(-8, 9)), (torch.float16, range(-2, 3))])
def test_powers_of_two_cancel_bit_by_bit(dtype, powers):
    a = torch.from_numpy(np.random.default_rng(3).uniform(0.5, 2, size=(1, 2, 5, 8))).to(dtype)
    for power in powers:
        assert torch.equal(l2_normalize(a * 2.0**power, -1), l2_normalize(a, -1))
        assert torch.equal(l2_normalize(a * 2.0**power, -2), l2_normalize(a, -2))


def test_an_added_eps_would_not_cancel():
    """Negative control of the test above: it can tell a clamp from a sum."""
    a = torch.from_numpy(np.random.default_rng(3).uniform(0.5, 2, size=(5, 8)).astype(np.float32))

    def added(x):
        return x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) + XNORM_EPS)

    assert not torch.equal(added(a * 2.0**-8), added(a))


def test_eps_survives_half_precision():
    assert float(np.float16(XNORM_EPS)) == XNORM_EPS == float(np.finfo(np.float16).smallest_normal)
    assert float(torch.tensor(XNORM_EPS, dtype=torch.bfloat16)) == XNORM_EPS
    assert float(np.float16(1e-8)) == 0.0, "what an eps in circulation becomes"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_zero_rows_give_zero_and_nothing_gives_nan(dtype):
    scales = torch.tensor([0.0, 2.0**-24, 2.0**-20, 2.0**-14, 1.0, 200.0, 6e4]).reshape(-1, 1)
    a = (torch.from_numpy(np.random.default_rng(4).uniform(-1, 1, size=(7, 64))) * scales).to(dtype)
    found = l2_normalize(a, -1)
    assert found.dtype == dtype
    assert torch.isfinite(found).all()
    assert (found[0] == 0).all()
    assert float(torch.linalg.vector_norm(found[4].double())) == pytest.approx(1, rel=1e-2)


def closed_parameters(c):
    n, d, f = c.height * c.width // 256, c.dim, c.ffn_expansion
    widths = [3, *(c.stem_widths or (d // 8, d // 4, d // 2, d))]
    stem = sum(9 * a * b + 2 * b for a, b in itertools.pairwise(widths))
    attention, ffn = 4 * (d * d + d) + 2 * c.heads, 2 * f * d * d + (f + 1) * d
    block = 3 * 2 * d + attention + (2 * 10 * d + 2 * d) + ffn + 3 * d
    class_block = 2 * 2 * d + attention + ffn + 2 * d
    return stem + n * d + d + c.depth * block + c.class_layers * class_block + 2 * d + (d + 1) * c.classes


def closed_macs(c):
    n, d, per_head, f = c.height * c.width // 256, c.dim, c.dim // c.heads, c.ffn_expansion
    widths = [3, *(c.stem_widths or (d // 8, d // 4, d // 2, d))]
    stem = sum(9 * widths[i] * widths[i + 1] * (c.height >> (i + 1)) * (c.width >> (i + 1)) for i in range(4))
    block = 4 * n * d * d + 2 * n * d * per_head + 2 * 9 * n * d + 2 * f * n * d * d
    class_block = 2 * (n + 1) * d * d + 2 * d * d + (n + 1) * d * per_head + d * per_head + 2 * f * d * d
    return stem + c.depth * block + c.class_layers * class_block + d * c.classes


def readme_sizes():
    """Rows of the README's table: name -> [depth, dim, heads, parameters, GMAC]."""
    text = (Path(__file__).parents[3] / "edge/README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(ufovit_\w)` \|(.*)\|$", text, re.MULTILINE)
    return {name: [float(cell.replace(",", "")) for cell in cells.split("|")] for name, cells in rows}


@pytest.mark.parametrize("name", SIZES)
def test_table_of_sizes(name):
    """The README's table, at 224 px with 1000 classes; the network itself is counted by torch, on no device."""
    cfg = config(name)
    depth, dim, heads, parameters, gmac = readme_sizes()[name]
    assert (depth, dim, heads) == (cfg.depth, cfg.dim, cfg.heads)
    with torch.device("meta"):
        network = UfoVit(cfg).eval().requires_grad_(False)
        with FlopCounterMode(display=False) as counter:
            assert network(torch.zeros(1, 3, 224, 224)).shape == (1, 1000)
    assert sum(p.numel() for p in network.parameters()) == closed_parameters(cfg)
    assert counter.get_total_flops() == 2 * closed_macs(cfg)
    assert closed_parameters(cfg) == parameters
    assert float(f"{closed_macs(cfg) / 1e9:.3g}") == gmac


def test_attention_costs_grow_linearly_with_the_tokens():
    small, large = closed_macs(config("ufovit_t", image_size=224)), closed_macs(config("ufovit_t", image_size=448))
    assert large / small == pytest.approx(4, rel=0.01), "twice the side, four times the tokens"


@for_all(size=[16, 48, 80])
def test_any_multiple_of_the_stride_is_an_image_size(make_network, size):
    network = make_network(image_size=size)
    with torch.no_grad():
        assert network(torch.zeros(3, 3, size, size)).shape == (3, 5)


@pytest.mark.parametrize(
    "changes",
    [
        {"image_size": (48, 80)},
        {"image_size": (80, 48), "class_layers": 1},
        {"stem_widths": (5, 6, 7, 24), "dim": 24, "heads": 3},
        {"ffn_expansion": 2, "class_layers": 4, "depth": 1, "heads": 1},
        {"dim": 20, "heads": 5, "stem_widths": (2, 3, 4, 20)},
    ],
    ids=repr,
)
def test_other_shapes(changes):
    """Counted by hand, and by torch on no device; an input turned on its side is of another number of tokens a row."""
    cfg = UfoVitConfig(**{"name": "x", "depth": 2, "dim": 32, "heads": 2, "image_size": 32, "classes": 5} | changes)
    with torch.device("meta"):
        network = UfoVit(cfg).eval().requires_grad_(False)
        with FlopCounterMode(display=False) as counter:
            assert network(torch.zeros(3, 3, cfg.height, cfg.width)).shape == (3, 5)
    assert sum(p.numel() for p in network.parameters()) == closed_parameters(cfg)
    assert counter.get_total_flops() == 3 * 2 * closed_macs(cfg)
    assert sum("xnorm" in name for name, _ in network.named_parameters()) == cfg.xnorm_sites
    matrices = [p.numel() for n, p in network.named_parameters() if (p.ndim > 1 and "lpi" not in n) or "pos" in n]
    assert sum(matrices) - cfg.weights == cfg.dim + cfg.xnorm_sites * cfg.heads, "but for class token and gammas"


def test_a_square_is_one_number_and_the_usual_stem_none():
    square = UfoVitConfig("x", 2, 32, 2, image_size=(48, 48), stem_widths=(4, 8, 16, 32))
    assert square == UfoVitConfig("x", 2, 32, 2, image_size=48)
    assert UfoVitConfig("x", 2, 32, 2, image_size=(48, 80)).grid == (3, 5)


@pytest.mark.parametrize(
    ("text", "size"), [("224", 224), ("320x192", (320, 192)), ("48X48", 48), (" 32 ", 32), ("16x4096", (16, 4096))]
)
def test_image_sizes_of_the_command_line(text, size):
    assert parse_image_size(text) == size
    assert parse_image_size(image_size_text(size)) == size


@for_all(text=["", "x", "320x", "320x192x3", "-32", "3.5", "320*192", "99999999", "50", "320x100", "320x8192", "0x0"])
def test_other_texts_are_not_image_sizes(text):
    with pytest.raises(InputError, match="--image-size"):
        parse_image_size(text)


@for_all(size=[0, -16, 8, 17, 24, 225])
def test_other_image_sizes_are_refused(size):
    with pytest.raises(InputError, match=r"stem[\s\S]*found: -?\d+ px[\s\S]*multiples of 16"):
        config("ufovit_t", image_size=size)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 36, "heads": 4}, "divisible by heads and by 8"),
        ({"heads": 3}, "divisible by heads and by 8"),
        ({"heads": 0}, "positive"),
        ({"dim": 0}, "positive"),
        ({"classes": 0}, "positive"),
        ({"depth": 0}, "positive"),
        ({"kv_axis": "first"}, "contraction, last"),
        ({"class_layers": 0}, "positive"),
        ({"ffn_expansion": 0}, "positive"),
        ({"ffn_expansion": 2.5}, "positive"),
        ({"depth": True}, "positive"),
        ({"depth": 257}, "up to 256"),
        ({"dim": 8192}, "up to 4,096"),
        ({"classes": 2**40}, "up to 1,048,576"),
        ({"dim": 4096, "depth": 256}, r"too large[\s\S]*parameters"),
        ({"stem_widths": (8, 16, 32)}, "four numbers, the last equal to dim"),
        ({"stem_widths": (4, 8, 16, 16)}, "four numbers, the last equal to dim"),
        ({"stem_widths": (0, 8, 16, 32)}, "positive"),
        ({"dim": 36, "heads": 5, "stem_widths": (4, 8, 16, 36)}, "divisible by heads"),
        ({"image_size": (32, 40)}, "multiples of 16"),
        ({"image_size": (32, 32, 32)}, "multiples of 16"),
        ({"image_size": ()}, "multiples of 16"),
        ({"name": "../x"}, "invalid name"),
        ({"name": ""}, "invalid name"),
    ],
)
def test_impossible_shapes_cannot_be_made(changes, message):
    with pytest.raises(InputError, match=message):
        UfoVitConfig(**{"name": "x", "depth": 2, "dim": 32, "heads": 2} | changes)


def test_unknown_model_lists_the_known_ones():
    with pytest.raises(InputError, match=", ".join(SIZES)):
        config("ufovit_xxl")


def test_images_of_a_batch_do_not_see_each_other(make_network, tiny_images):
    network = make_network()
    with torch.no_grad():
        together = network(torch.from_numpy(tiny_images))
        alone = torch.cat([network(torch.from_numpy(image[None])) for image in tiny_images])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    assert together.std(0).min() > 1e-3, "the images do matter"


def test_drawn_weights_follow_their_seed(make_network):
    networks = [UfoVit(make_network().cfg) for _ in range(3)]
    for network, seed in zip(networks, (1, 1, 2), strict=True):
        init_weights(network, seed)
    first, same, other = (torch.cat([p.flatten() for p in network.parameters()]) for network in networks)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def cubic_matrix(size_in, size_out):
    """Cubic convolution (Keys, a = -0.75) of one axis, half-pixel centres, edge pixels repeated: (size_out, size_in)."""

    def weight(t):
        t, a = abs(t), -0.75
        if t <= 1:
            return (a + 2) * t**3 - (a + 3) * t**2 + 1
        return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0

    matrix = np.zeros((size_out, size_in))
    for i in range(size_out):
        x = (i + 0.5) * size_in / size_out - 0.5
        for tap in range(math.floor(x) - 1, math.floor(x) + 3):
            matrix[i, min(max(tap, 0), size_in - 1)] += weight(x - tap)
    return matrix


@pytest.mark.parametrize("grid", [(2, 2), (7, 7), (3, 5)])
@pytest.mark.parametrize("old", [(4, 4), (2, 8)])
def test_position_embedding_is_interpolated_row_by_row(old, grid):
    embed = np.random.default_rng(6).normal(size=(1, 16, 3)).astype(np.float32)
    image = embed[0].reshape(*old, 3)  # tokens are in row-major order
    rows, columns = (cubic_matrix(*sides) for sides in zip(old, grid, strict=True))
    expected = np.einsum("ir,jc,rcd->ijd", rows, columns, image)
    found = resize_position_embedding(torch.from_numpy(embed), old, grid).numpy()
    np.testing.assert_allclose(found, expected.reshape(1, -1, 3), rtol=0, atol=1e-5)
    transposed = np.einsum("ir,jc,rcd->ijd", rows, columns, image.reshape(*old[::-1], 3).transpose(1, 0, 2))
    assert np.abs(found - transposed.reshape(1, -1, 3)).max() > 0.1


def test_position_embedding_of_the_same_grid_is_left_alone():
    embed = torch.randn(1, 16, 3)
    assert torch.equal(resize_position_embedding(embed, (2, 8), (2, 8)), embed)
