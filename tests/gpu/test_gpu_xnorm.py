"""edge.stability.fp16_ops: the oracles are torch's own FP16 and BF16 arithmetic on the device at hand, and float64.

A GPU and torch's CPU kernels compute a product, a quotient or a root of 16-bit numbers in FP32 and round it once, as the
emulation says: equal to the bit. Sums are another matter: FP32 accumulators add in an order of their own, FP16 accumulators
round on the way. How far that may lead is in the table of tolerances below.

Everything runs on the CPU; on a GPU too where there is one: `pytest tests/gpu -m gpu`.
"""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from for_all import for_all

from edge.model.xnorm import XNORM_EPS
from edge.stability.float_formats import BF16, FP16
from edge.stability.fp16_ops import MMA_DEPTH, emulate_product, emulate_xnorm, exact_xnorm, relative_error
from edge.stability.site import Eps

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
EPS = (Eps("clamp", "norm", XNORM_EPS, "clip", "eps"),)

# Tolerances, in units in the last place of the 16-bit format.
EXACT = 0  # one operation, rounded once; and sums added in the very same order
NORM = 1  # a norm from an FP32 sum: another order moves the sum by a few 2^-24, its rounding to 16 bits by one step at most
XNORM = 3  # a norm that is one step off moves a quotient by two, and both quotients are rounded
PRODUCT = 1  # K^T V from FP32 accumulators: as NORM, beside what `slack` allows where terms cancel
FP32_SUM = 2.0**-22  # of one addition in an FP32 accumulator, relative to the sum of magnitudes: tensor cores truncate


CUDA = [pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else []  # else hundreds would be skipped


@pytest.fixture(params=["cpu", *CUDA])
def device(request):
    return request.param


@pytest.fixture(params=[FP16, BF16], ids=lambda f: f.name)
def fmt(request):
    return request.param


def put(x, fmt, device):
    """float32 array -> 16-bit tensor."""
    return torch.from_numpy(np.ascontiguousarray(x)).to(device).to(DTYPES[fmt.name])


def get(tensor):
    return tensor.to(torch.float32).cpu().numpy()


def spacing(x, fmt):
    """Distance from |x| to the next larger number of the format; of subnormal numbers below the smallest normal one."""
    exponent = np.floor(np.log2(np.maximum(np.abs(x.astype(np.float64)), fmt.smallest_normal)))
    return np.exp2(exponent - (fmt.significant_bits - 1))


def agree(found, expected, fmt, ulps, slack=0.0):
    """Element by element: NaN where NaN is, infinities alike, else |found - expected| <= ulps units in the last place + slack.

    A number may stand for infinity, and infinity for a number, where the tolerance reaches over the border of overflow.
    """
    if found.shape != expected.shape or (np.isnan(found) != np.isnan(expected)).any():
        return False
    border = fmt.largest + spacing(np.float32(fmt.largest), fmt)
    with np.errstate(invalid="ignore"):  # signalling NaN
        a, b = (np.clip(x.astype(np.float64), -border, border) for x in (found, expected))
    allowed = ulps * np.maximum(spacing(np.nan_to_num(a), fmt), spacing(np.nan_to_num(b), fmt)) + slack
    with np.errstate(invalid="ignore"):
        return bool((np.isnan(found) | (np.abs(a - b) <= allowed)).all())


def normal(*shape, scale=1.0, seed=0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def wide(fmt, *shape, seed=1):
    """Both signs, magnitudes from below the smallest subnormal number to beyond the largest one."""
    random = np.random.default_rng(seed)
    low, high = np.log2(fmt.smallest_subnormal) - 3, min(np.log2(fmt.largest) + 1, 127.9)
    exponents = random.uniform(low, high, shape)
    return (np.exp2(exponents) * random.choice([-1, 1], shape)).astype(np.float32)


SCALES = {
    "ordinary": 1.0,
    "large": 300.0,  # squares overflow FP16 when summed
    "larger": 4000.0,  # squares overflow FP16, norms just do not
    "small": 2.0**-11,  # squares are subnormal in FP16, or zero
    "smaller": 2.0**-20,  # the numbers themselves are subnormal in FP16, their squares zero
}


@pytest.fixture(params=SCALES, ids=str)
def scale(request):
    return SCALES[request.param]


# The comparator ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ulps", [NORM, XNORM, PRODUCT])
def test_the_comparator_sees_damage(fmt, ulps):
    x = fmt.round(normal(4, 8))
    assert agree(x, x, fmt, EXACT)
    for damaged in (2 * x, x / 2, 0 * x, -x, x[:3], np.where(x == x[1, 2], np.nan, x), np.where(x == x[1, 2], np.inf, x)):
        assert not agree(damaged, x, fmt, ulps)
        assert not agree(x, damaged, fmt, ulps)
    one_bad = x.copy()
    one_bad[2, 3] += (ulps + 1) * spacing(x[2:3, 3], fmt)[0]
    assert not agree(one_bad, x, fmt, ulps)
    assert agree(one_bad, x, fmt, ulps + 1)
    assert agree(np.float32([np.inf, np.nan]), np.float32([np.inf, np.nan]), fmt, EXACT)
    assert not agree(np.float32([np.inf]), np.float32([-np.inf]), fmt, ulps)
    assert not agree(np.float32([np.inf]), np.float32([fmt.largest]), fmt, EXACT)
    assert agree(np.float32([np.inf]), np.float32([fmt.largest]), fmt, 1)


# One operation ------------------------------------------------------------------------------------------------------------


def test_rounding_is_the_devices(device, fmt):
    """Numbers of every size, ties, the border of overflow, subnormal numbers, infinities, NaN."""
    bits = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    numbers = get(torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(DTYPES[fmt.name]))
    finite = np.sort(numbers[np.isfinite(numbers)]).astype(np.float64)
    ties = ((finite[:-1] + finite[1:]) / 2).astype(np.float32)
    border = np.float64(fmt.largest) + spacing(np.float32(fmt.largest), fmt) / 2
    edge = np.float32([border, np.nextafter(np.float32(border), np.float32(0)), -border, np.inf, -np.inf, np.nan, 0.0, -0.0])
    with np.errstate(all="ignore"):
        x = np.concatenate([bits, numbers, ties, np.nextafter(ties, np.float32(1)), edge, wide(fmt, 10_000)])
    expected = fmt.round(x)
    found = get(put(x, fmt, device))
    assert agree(found, expected, fmt, EXACT)
    assert (np.signbit(found) == np.signbit(expected))[~np.isnan(x)].all()
    other = FP16 if fmt is BF16 else BF16
    assert not agree(found, other.round(x), fmt, 1), "control: the other format"


@pytest.mark.parametrize("operation", ["square", "square root", "division", "clamp", "addition"])
def test_one_operation_is_rounded_once(device, fmt, operation):
    x, y = (fmt.round(wide(fmt, 20_000, seed=s)) for s in (1, 2))
    a, b = (put(v, fmt, device) for v in (x, y))
    with np.errstate(all="ignore"):
        found, exact = {
            "square": lambda: (a * a, x * x),
            "square root": lambda: (a.abs().sqrt(), np.sqrt(np.abs(x))),
            "division": lambda: (a / b, x / y),
            "clamp": lambda: (a.clamp_min(XNORM_EPS), np.maximum(x, np.float32(XNORM_EPS))),
            "addition": lambda: (a + b, x + y),
        }[operation]()
    assert agree(get(found), fmt.round(exact), fmt, EXACT)
    if operation != "clamp":
        assert not agree(exact, fmt.round(exact), fmt, EXACT), "control: without the rounding"


# XNorm --------------------------------------------------------------------------------------------------------------------

LENGTHS = (48, 3, 7, 17, 196)


def finish(a, total, fmt):
    """root, clamp, quotient in the device's 16 bits."""
    return a / total.sqrt().to(DTYPES[fmt.name]).clamp_min(XNORM_EPS)


def tree(values, axis):
    """Sum of 16-bit numbers as threads of a warp reduce: thread i adds what thread i + half holds, zero where there is none."""
    values = values.movedim(axis, 0)
    while len(values) > 1:
        half = (len(values) + 1) // 2
        upper = torch.zeros_like(values[:half])
        upper[: len(values) - half] = values[half:]
        values = values[:half] + upper
    return values.movedim(0, axis)


def one_by_one(values, axis):
    total, *rest = values.split(1, dim=axis)
    for value in rest:
        total = total + value
    return total


@pytest.mark.parametrize("kernel", ["vector_norm", "squares in FP32"])
@for_all(axis=[-1, -2], length=LENGTHS)
def test_xnorm_with_an_fp32_sum(device, fmt, scale, kernel, length, axis):
    x = normal(2, 3, *((5, length) if axis == -1 else (length, 5)), scale=scale)
    a = put(x, fmt, device)
    if kernel == "vector_norm":  # torch squares and adds in FP32 and rounds the norm
        norm = torch.linalg.vector_norm(a, dim=axis, keepdim=True)
        assert norm.dtype == DTYPES[fmt.name]
        found = a / norm.clamp_min(XNORM_EPS)
    else:
        found = finish(a, (a.float() * a.float()).sum(axis, keepdim=True, dtype=torch.float32), fmt)
    expected = emulate_xnorm(x, axis, fmt, "fp32", EPS)
    assert agree(get(found), expected, fmt, XNORM)
    for damaged in (2 * expected, np.flip(expected, axis), 0 * expected):
        assert not agree(get(found), damaged, fmt, XNORM)


@for_all(axis=[-1, -2], length=LENGTHS)
def test_xnorm_step_by_step_in_16_bits_is_the_emulation_to_the_bit(device, fmt, scale, length, axis):
    x = normal(2, 3, *((5, length) if axis == -1 else (length, 5)), scale=scale)
    a = put(x, fmt, device)
    found = get(finish(a, tree(a * a, axis), fmt))
    assert agree(found, emulate_xnorm(x, axis, fmt, "storage", EPS), fmt, EXACT)
    if fmt is FP16 and scale == SCALES["larger"]:
        assert (found == 0).mean() > 0.5, "squares overflow, and what is divided by infinity is zero"
        assert not agree(found, emulate_xnorm(x, axis, fmt, "fp32", EPS), fmt, XNORM), "control: the other accumulator"


@pytest.mark.parametrize("order", ["one by one", "torch.sum"])
@for_all(length=LENGTHS)
def test_another_order_of_the_sum_stays_within_its_roundings(device, fmt, length, order):
    """Each addition of positive numbers errs by half a unit at most: n - 1 of them one by one, log2 n in a tree, 1 in FP32."""
    x = normal(2, 3, 5, length)
    squares = put(x, fmt, device).square()
    total = (
        one_by_one(squares, -1) if order == "one by one" else squares.sum(-1, keepdim=True)
    )  # torch adds in FP32, rounds once
    depth = int(np.ceil(np.log2(length)))
    roundings = depth + (length - 1 if order == "one by one" else 1)
    a = put(x, fmt, device)
    expected = emulate_xnorm(x, -1, fmt, "storage", EPS)
    ulps = int(np.ceil(roundings / 2)) + XNORM
    assert agree(get(finish(a, total, fmt)), expected, fmt, ulps)
    if fmt is FP16:  # 196 additions of BF16 lose more than half of the sum
        assert not agree(get(finish(a, 0.5 * total, fmt)), expected, fmt, ulps), "control: half of the sum"


@pytest.mark.parametrize("order", ["tree", "one by one", "torch.sum", "FP32 sum of FP16 squares"])
@for_all(size=[300.0, -300.0])
def test_squares_that_overflow_fp16_give_zeros_in_every_order(device, order, size):
    x = np.full((2, 3, 5, 48), size, np.float32)
    a = put(x, FP16, device)
    squares = a * a
    assert torch.isinf(squares).all()
    total = {
        "tree": lambda: tree(squares, -1),
        "one by one": lambda: one_by_one(squares, -1),
        "torch.sum": lambda: squares.sum(-1, keepdim=True),
        "FP32 sum of FP16 squares": lambda: squares.sum(-1, keepdim=True, dtype=torch.float32),
    }[order]()
    found = get(finish(a, total, FP16))
    assert (found == 0).all()
    assert agree(found, emulate_xnorm(x, -1, FP16, "storage", EPS), FP16, EXACT)
    assert (np.abs(emulate_xnorm(x, -1, FP16, "fp32", EPS)) > 0.1).all()
    assert (np.abs(emulate_xnorm(x, -1, BF16, "storage", EPS)) > 0.1).all(), "BF16 has the range of FP32"


def test_a_sum_that_overflows_fp16_though_no_square_does(device):
    x = np.full((1, 48), 100.0, np.float32)  # 48 x 10^4
    a = put(x, FP16, device)
    for total in (tree(a * a, -1), one_by_one(a * a, -1), (a * a).sum(-1, keepdim=True)):
        assert torch.isinf(total).all()
        assert agree(get(finish(a, total, FP16)), emulate_xnorm(x, -1, FP16, "storage", EPS), FP16, EXACT)
    wider = get(finish(a, (a * a).sum(-1, keepdim=True, dtype=torch.float32), FP16))
    assert agree(wider, emulate_xnorm(x, -1, FP16, "fp32", EPS), FP16, XNORM)
    assert (wider > 0.1).all()


@pytest.mark.parametrize("eps", [(), EPS], ids=["no eps", "eps"])
def test_zeros_and_squares_that_vanish(device, fmt, eps):
    """0 / 0 is NaN without an eps, and zero with one; where squares vanish, the clamp decides."""
    tiny = np.sqrt(fmt.smallest_subnormal) / 4
    x = np.stack([np.zeros(48), np.full(48, tiny)]).astype(np.float32)
    a = put(x, fmt, device)
    norm = tree(a * a, -1).sqrt()
    found = get(a / (norm.clamp_min(XNORM_EPS) if eps else norm))
    assert agree(found, emulate_xnorm(x, -1, fmt, "storage", eps), fmt, EXACT)
    assert (found[0] == 0).all() if eps else np.isnan(found[0]).all()
    assert np.isfinite(found[1]).all() if eps else (found[1] == np.inf).all()


@pytest.mark.parametrize("kind", ["clamp", "added"])
@pytest.mark.parametrize("accumulate", ["fp32", "storage"])
def test_an_eps_on_the_square(device, fmt, kind, accumulate):
    """Added or clamped in the type that the sum has."""
    x = np.concatenate([np.zeros((1, 48)), normal(4, 48), normal(4, 48, scale=2.0**-9)]).astype(np.float32)
    value, a = 1e-3, put(x, fmt, device)
    total = tree(a * a, -1) if accumulate == "storage" else (a.float() * a.float()).sum(-1, keepdim=True)
    guard = torch.tensor(value, dtype=total.dtype, device=device)
    total = torch.maximum(total, guard) if kind == "clamp" else total + guard
    found = get(a / total.sqrt().to(a.dtype))
    expected = emulate_xnorm(x, -1, fmt, accumulate, (Eps(kind, "square", value, "n", "eps"),))
    ulps = EXACT if accumulate == "storage" else XNORM
    assert agree(found, expected, fmt, ulps)
    assert (found[0] == 0).all()
    assert not agree(emulate_xnorm(x, -1, fmt, accumulate, EPS), expected, fmt, ulps), "control: another eps"


# K^T V --------------------------------------------------------------------------------------------------------------------

TOKENS = (49, 196, 16, 7, 1)


@contextmanager
def matmul_setting(name, value):
    """A switch of torch.backends.cuda.matmul, put back afterwards; one that this torch lacks skips the test."""
    switches = torch.backends.cuda.matmul
    if not hasattr(switches, name):
        pytest.skip(f"torch {torch.__version__} has no {name}")
    before = getattr(switches, name)
    setattr(switches, name, value)
    try:
        yield
    finally:
        setattr(switches, name, before)


def factors(tokens, scale=1.0, seed=3):
    """K^T (B, H, D, N), V (B, H, N, D)."""
    return normal(2, 3, 32, tokens, scale=scale, seed=seed), normal(2, 3, tokens, 32, scale=scale, seed=seed + 1)


def magnitudes(k, v, fmt):
    """Sum over tokens of |k v|, which every bound on the error of a sum is relative to."""
    return np.abs(fmt.round(k)).astype(np.float64) @ np.abs(fmt.round(v)).astype(np.float64)


def fp32_slack(k, v, fmt):
    return k.shape[-1] * FP32_SUM * magnitudes(k, v, fmt)


@for_all(tokens=TOKENS, size=[1.0, 16.0, 2.0**-9])
def test_kv_with_fp32_accumulators(device, fmt, tokens, size):
    k, v = factors(tokens, size)
    switch = f"allow_{fmt.name}_reduced_precision_reduction"  # partial sums of a split product would be added in 16 bits
    with matmul_setting(switch, False):
        found = get(torch.matmul(put(k, fmt, device), put(v, fmt, device)))
    expected = emulate_product(k, v, fmt, "fp32")
    slack = fp32_slack(k, v, fmt)
    assert agree(found, expected, fmt, PRODUCT, slack)
    exact = fmt.round(k).astype(np.float64) @ fmt.round(v).astype(np.float64)
    assert agree(found, exact.astype(np.float32), fmt, PRODUCT, slack)
    for damaged in (2 * expected, -expected, 0 * expected, np.flip(expected, -1), np.swapaxes(expected, -1, -2)):
        assert not agree(found, damaged, fmt, PRODUCT, slack)


def test_kv_that_overflows_fp16_is_infinite(device):
    k, v = (np.abs(x) + 30 for x in factors(196))  # 196 x 900 = 176 400
    with matmul_setting("allow_fp16_reduced_precision_reduction", False):
        found = get(torch.matmul(put(k, FP16, device), put(v, FP16, device)))
    assert (found == np.inf).all()
    for accumulate in ("fp32", "storage"):
        assert agree(found, emulate_product(k, v, FP16, accumulate), FP16, EXACT)
    assert np.isfinite(emulate_product(k, v, BF16, "storage")).all()


@for_all(tokens=TOKENS, size=[1.0, 16.0])
def test_kv_with_the_accumulator_rounded_every_16_products(device, fmt, tokens, size):
    """Tensor cores with FP16 accumulators, step by step in the device's arithmetic.

    An FP32 sum of 16 products in another order may move the accumulator by one unit at each step.
    """
    k, v = factors(tokens, size)
    a, b = put(k, fmt, device), put(v, fmt, device)
    total = torch.zeros((*a.shape[:-1], b.shape[-1]), dtype=a.dtype, device=device)
    for start in range(0, tokens, MMA_DEPTH):  # TF32, should it be on, holds 16-bit numbers exactly
        part = slice(start, start + MMA_DEPTH)
        total = (total.float() + a[..., part].float() @ b[..., part, :].float()).to(a.dtype)
    found, expected = get(total), emulate_product(k, v, fmt, "storage")
    assert (found == expected).mean() > 0.97
    steps = -(-tokens // MMA_DEPTH)
    slack = steps * 2.0 ** -(fmt.significant_bits - 1) * magnitudes(k, v, fmt) * (found != expected)
    assert agree(found, expected, fmt, PRODUCT, slack)
    assert not agree(found, 2 * expected, fmt, PRODUCT, slack)
    if tokens == 196:
        once = emulate_product(k, v, fmt, "fp32")
        assert (found == once).mean() < 0.9, "control: the roundings on the way are felt"


def test_an_fp16_accumulator_overflows_on_the_way(device):
    """98 tokens fill it, 98 empty it: 0 in FP32, infinity for ever in FP16. Sums of whole numbers, exact in any order."""
    k, v = (np.full(shape, 30.0, np.float32) for shape in ((1, 1, 32, 196), (1, 1, 196, 32)))
    v[..., 98:, :] *= -1
    with matmul_setting("allow_fp16_reduced_precision_reduction", False):
        found = get(torch.matmul(put(k, FP16, device), put(v, FP16, device)))
    assert (found == 0).all()
    assert agree(found, emulate_product(k, v, FP16, "fp32"), FP16, EXACT)
    assert np.isinf(emulate_product(k, v, FP16, "storage")).all()


@pytest.mark.gpu
@for_all(size=[1.0, 8.0], tokens=[16, 49, 196])
def test_kv_with_the_fp16_accumulators_of_cublas(tokens, size):
    """cuBLAS may take FP16 accumulators now, in an order of its own, or FP32 ones still.

    No rounding errs by more than half a unit of the largest partial sum; a library that rounds after each 8 products takes
    twice as many steps as the emulation.
    """
    k, v = factors(tokens, size)
    with matmul_setting("allow_fp16_accumulation", True):
        found = get(torch.matmul(put(k, FP16, "cuda"), put(v, FP16, "cuda")))
    steps = -(-tokens // MMA_DEPTH) + -(-tokens // 8)
    slack = steps * 2.0**-FP16.significant_bits * magnitudes(k, v, FP16)
    expected = emulate_product(k, v, FP16, "storage")
    assert agree(found, expected, FP16, PRODUCT, slack)
    assert not agree(found, 2 * expected, FP16, PRODUCT, slack)


@pytest.mark.gpu
def test_the_fp16_accumulators_of_cublas_overflow_or_are_fp32_ones():
    k, v = (np.full(shape, 30.0, np.float32) for shape in ((2, 3, 32, 2048), (2, 3, 2048, 32)))
    v[..., 1024:, :] *= -1
    with matmul_setting("allow_fp16_accumulation", True):
        found = get(torch.matmul(put(k, FP16, "cuda"), put(v, FP16, "cuda")))
    with matmul_setting("allow_fp16_accumulation", False), matmul_setting("allow_fp16_reduced_precision_reduction", False):
        wider = get(torch.matmul(put(k, FP16, "cuda"), put(v, FP16, "cuda")))
    assert (wider == 0).all()
    assert not np.isfinite(found).any() or agree(found, wider, FP16, EXACT)
    assert np.isinf(emulate_product(k, v, FP16, "storage")).all()


# Against float64 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", ["fp32", "storage"])
@for_all(axis=[-1, -2])
def test_device_and_emulation_are_as_far_from_float64(device, fmt, scale, axis, accumulate):
    """The number that a certificate is made of: relative error of the whole XN(K^T V)."""
    k, v = factors(49, np.sqrt(scale / 7))  # K^T V of about `scale`
    exact = exact_xnorm(k.astype(np.float64) @ v.astype(np.float64), axis, EPS)
    emulated = emulate_xnorm(emulate_product(k, v, fmt, accumulate), axis, fmt, accumulate, EPS)
    a = put(emulate_product(k, v, fmt, accumulate), fmt, device)
    total = tree(a * a, axis) if accumulate == "storage" else (a.float() * a.float()).sum(axis, keepdim=True)
    found = get(finish(a, total, fmt))
    ours, theirs = (relative_error(x, exact) for x in (emulated, found))
    assert theirs == pytest.approx(ours, rel=0.05, abs=2.0**-fmt.significant_bits / 10)
    if fmt is BF16 or scale == SCALES["ordinary"]:
        assert ours < 8 * 2.0**-fmt.significant_bits
    elif accumulate == "storage":
        assert ours > (0.9 if scale > 1 else 0.005), "what FP16 cannot hold shows: zeros, or digits lost below 2^-14"
    assert relative_error(2 * found, exact) > 0.9
