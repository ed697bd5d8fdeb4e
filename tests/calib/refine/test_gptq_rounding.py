"""Oracles: float64 sums over the inputs themselves, least squares, and GPTQ written down row by row without blocks."""

import numpy as np
import pytest
from for_all import for_all

from calib.qdq_writer import quantize_weight
from calib.refine.bias_correction import correction
from calib.refine.gptq_rounding import DAMPING, refit, round_matrix
from calib.refine.input_moments import measure_moments
from calib.refine.linear_consumers import Geometry
from calib.scales import SMALLEST_SCALE

MANY = 1 << 40
"""Patches enough that their number adds nothing to the damping."""


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def correlated(rows, features, groups=1, seed=1):
    """(n, G, K) inputs that lie near a few directions, as activations do."""
    random = np.random.default_rng(seed)
    few = max(1, features // 4)
    mixed = random.normal(size=(rows, groups, few)) @ random.normal(size=(few, features))
    return mixed + 0.1 * random.normal(size=(rows, groups, features))


def second_moments(x, y=None):
    return np.einsum("ngk,ngl->gkl", x, x if y is None else y) / len(x)


def nearest(matrix):
    """Each element rounded by itself, on the scales that the graph will use."""
    return np.stack([dequantized(m) for m in matrix])


def dequantized(m):
    values, steps = quantize_weight(m.astype(np.float32), 1, "w")
    return values.astype(np.float64) * steps.astype(np.float64)


def output_error(x, matrix, rounded):
    return np.mean(np.einsum("ngk,gkm->ngm", x, rounded - matrix) ** 2)


def on_grid(result):
    for m in result:
        values, steps = quantize_weight(m.astype(np.float32), 1, "w")
        back = values.astype(np.float32) * steps
        np.testing.assert_array_equal(back.view(np.uint32), (m + 0.0).astype(np.float32).view(np.uint32))
        np.testing.assert_array_equal(back.astype(np.float64), m)


SHAPES = {
    "one": (1, 1, 5),
    "few": (1, 7, 3),
    "block": (1, 64, 8),
    "more": (1, 65, 8),
    "blocks": (1, 150, 6),
    "groups": (4, 9, 2),
}


@pytest.mark.parametrize("shape", SHAPES)
@for_all(size=[1e-3, 1.0, 300.0])
def test_the_result_lies_on_its_own_grid(shape, size):
    groups, rows, columns = SHAPES[shape]
    x = correlated(400, rows, groups)
    matrix = size * draw(groups, rows, columns)
    result = round_matrix(matrix, second_moments(x), MANY, "w")
    on_grid(result)
    span = np.abs(matrix).max(axis=1) / 127
    assert np.all(np.abs(np.abs(result).max(axis=1) / 127 - span) <= span * 2**-5), "on the grid that the weight had before"


def test_the_control_is_off_the_grid():
    """The control: a weight that is not rounded is not on its grid."""
    with pytest.raises(AssertionError):
        on_grid(draw(1, 7, 3))


@pytest.mark.parametrize("shape", ["few", "block", "blocks", "groups"])
def test_errors_cancel_on_correlated_inputs(shape):
    groups, rows, columns = SHAPES[shape]
    x = correlated(800, rows, groups)
    matrix = draw(groups, rows, 8 * columns)
    found = output_error(x, matrix, round_matrix(matrix, second_moments(x), MANY, "w"))
    assert found < 0.8 * output_error(x, matrix, nearest(matrix))
    fresh = correlated(800, rows, groups) + 0.05 * draw(800, groups, rows, seed=9)
    assert output_error(fresh, matrix, round_matrix(matrix, second_moments(x), MANY, "w")) < output_error(
        fresh, matrix, nearest(matrix)
    )


def test_on_white_inputs_there_is_nothing_to_gain_and_nothing_lost():
    x, matrix = draw(20000, 1, 40), draw(1, 40, 200, seed=1)
    found = output_error(x, matrix, round_matrix(matrix, np.eye(40)[None], MANY, "w"))
    assert found == pytest.approx(output_error(x, matrix, nearest(matrix)), rel=0.03)


def by_the_book(matrix, gram):
    """Optimal brain quantization of one group in GPTQ's order: the inverse of H loses the row that is done, step by step."""
    scale = np.abs(matrix).max(axis=0) / 127
    half = scale.astype(np.float16)
    half = np.where(half.astype(np.float64) < scale, np.nextafter(half, np.float16(np.inf)), half).astype(np.float64)
    inverse = np.linalg.inv(gram + DAMPING * np.mean(np.diag(gram)) * np.eye(len(matrix)))
    work, result = matrix.copy(), np.zeros_like(matrix)
    widest = np.abs(matrix).argmax(axis=0)
    for k in np.argsort(-np.diag(gram), kind="stable"):
        level = np.clip(np.round(work[k] / half), -127, 127)
        level[widest == k] = 127 * np.sign(work[k, widest == k])
        result[k] = level * half
        work -= np.outer(inverse[:, k] / inverse[k, k], work[k] - result[k])  # rows that are done have a 0 there
        inverse -= np.outer(inverse[:, k], inverse[k]) / inverse[k, k]
    return result


@pytest.mark.parametrize("rows", [1, 2, 63, 64, 65, 150])
def test_rounding_equals_textbook_gptq_for_every_block_size(rows):
    x, matrix = correlated(500, rows), draw(1, rows, 6, seed=rows)
    gram = second_moments(x)
    found = round_matrix(matrix, gram, MANY, "w")[0]
    np.testing.assert_allclose(found, by_the_book(matrix[0], gram[0]), rtol=1e-9, atol=1e-12)


def test_groups_are_rounded_independently():
    x, matrix = correlated(400, 9, 3), draw(3, 9, 5)
    gram = second_moments(x)
    whole = round_matrix(matrix, gram, MANY, "w")
    for g in range(3):
        np.testing.assert_allclose(whole[g], round_matrix(matrix[g : g + 1], gram[g : g + 1], MANY, "w")[0], rtol=1e-12)


def test_the_given_weights_are_not_changed():
    matrix, x = draw(1, 70, 5), correlated(100, 70)
    before = matrix.copy()
    round_matrix(matrix, second_moments(x), MANY, "w")
    np.testing.assert_array_equal(matrix, before)


@pytest.mark.parametrize("dead", ["some", "all"])
def test_dead_inputs_do_no_harm(dead):
    """Inputs that are 0 on all images say nothing of their weights: these are rounded to the nearest."""
    x, matrix = correlated(400, 12), draw(1, 12, 5)
    gone = slice(None) if dead == "all" else slice(3, 6)
    x[:, :, gone] = 0
    result = round_matrix(matrix, second_moments(x), MANY, "w")
    on_grid(result)
    step = np.abs(nearest(matrix)).max(axis=1) / 127
    assert np.all(np.abs(result - matrix)[:, gone] <= step[:, None] / 2 * (1 + 1e-3) + np.abs(matrix).max() * 2**-9)
    assert np.isfinite(refit(matrix, second_moments(x), np.zeros((1, 12, 12)), MANY)).all()


@pytest.mark.parametrize("amax", [0.0, 1e-7, 40 * SMALLEST_SCALE, 126.9 * SMALLEST_SCALE])
def test_channels_of_the_smallest_scale_do_not_grow(amax):
    """A pruned channel stays zero; a tiny one stays within its step."""
    matrix = draw(1, 30, 4)
    matrix[:, :, 2] *= amax / np.abs(matrix[:, :, 2]).max()
    result = round_matrix(matrix, second_moments(correlated(400, 30)), MANY, "w")
    on_grid(result)
    if amax == 0:
        assert not result[:, :, 2].any()
    assert np.abs(result[:, :, 2]).max() <= amax + 3 * SMALLEST_SCALE


def test_a_constant_offset_is_compensated_by_the_refit():
    """Inputs that arrive 5 % too large in one direction: the weights can make up for it."""
    x = 2 + draw(4000, 1, 10)
    seen = x * 1.05
    matrix = draw(1, 10, 6, seed=1)
    fitted = refit(matrix, second_moments(seen), second_moments(seen, x - seen), MANY)
    wrong = [
        np.mean((np.einsum("ngk,gkm->ngm", seen, w) - np.einsum("ngk,gkm->ngm", x, matrix)) ** 2) for w in (fitted, matrix)
    ]
    assert wrong[0] < 0.02 * wrong[1]
    np.testing.assert_allclose(fitted, matrix / 1.05, rtol=0.1, atol=0.05)


@pytest.mark.parametrize("groups", [1, 3])
def test_the_refit_is_ridge_regression(groups):
    """Least squares on the inputs themselves, with rows that hold the weights where they were."""
    x = correlated(300, 8, groups)
    seen = x + 0.3 * draw(300, groups, 8, seed=4) + 0.1
    matrix = draw(groups, 8, 5, seed=2)
    found = refit(matrix, second_moments(seen), second_moments(seen, x - seen), MANY)
    for g in range(groups):
        hold = np.sqrt(300 * DAMPING * np.mean(seen[:, g] ** 2)) * np.eye(8)
        tall = np.concatenate([seen[:, g], hold])
        wish = np.concatenate([x[:, g] @ matrix[g], hold @ matrix[g]])
        np.testing.assert_allclose(found[g], np.linalg.lstsq(tall, wish, rcond=None)[0], rtol=1e-6, atol=1e-9)


def test_a_refit_on_few_patches_does_not_lose_on_others():
    """One patch an image, K = 400 against 200 images: what is learnt from them must hold on fresh ones."""
    matrix = draw(1, 400, 20, seed=3)
    x, fresh = draw(200, 1, 400, seed=5), draw(3000, 1, 400, seed=6)
    seen, fresh_seen = (v + 0.2 * draw(*v.shape, seed=7) for v in (x, fresh))

    def lost(fitted):
        return np.mean((np.einsum("ngk,gkm->ngm", fresh_seen, fitted) - np.einsum("ngk,gkm->ngm", fresh, matrix)) ** 2)

    moments = second_moments(seen), second_moments(seen, x - seen)
    assert lost(refit(matrix, *moments, len(x))) < 1.05 * lost(matrix), "0.2 dB at most, where there is nothing to learn"
    assert lost(refit(matrix, *moments, MANY)) > 1.5 * lost(matrix), "the control: trusted as if they were many, they mislead"


def test_without_an_error_there_is_nothing_to_refit():
    matrix = draw(1, 8, 5)
    np.testing.assert_array_equal(refit(matrix, second_moments(correlated(50, 8)), np.zeros((1, 8, 8)), MANY), matrix)


CASES = {
    "rows": (Geometry(), (16, 3, 6)),
    "images": (Geometry(2, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)), (16, 4, 5, 5)),
}


def moments_of(kind):
    """Moments over two batches, and all the patches they were taken from: x and x'."""
    geometry, shape = CASES[kind]
    exact = draw(*shape, seed=1).astype(np.float32) + 0.3
    found = exact + (0.1 * draw(*shape, seed=2) + 0.05).astype(np.float32)
    pairs = [(exact[part], found[part]) for part in (slice(0, 6), slice(6, 16))]
    moments = measure_moments(geometry, 0.0234375, pairs)
    every = np.random.default_rng(0)
    x, seen = (geometry.patches(v, 1 << 30, every).astype(np.float64) for v in (exact, found))
    return moments, x, np.clip(np.round(seen / 0.0234375), -128, 127) * 0.0234375


@pytest.mark.parametrize("kind", CASES)
def test_moments_are_the_means_over_all_patches(kind):
    """More are asked for per image than there are, so that none is left out."""
    moments, x, seen = moments_of(kind)
    assert moments.count == len(x)
    np.testing.assert_allclose(moments.mean, x.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(moments.quantized_mean, seen.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(moments.gram, second_moments(seen), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(moments.cross, second_moments(seen, x - seen), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", CASES)
def test_the_corrected_mean_is_the_float_mean(kind):
    moments, x, seen = moments_of(kind)
    groups, rows = x.shape[1:]
    matrix = draw(groups, rows, 3, seed=5)
    rounded = nearest(matrix)
    wish, got = (np.einsum("ngk,gkm->ngm", *pair).reshape(len(x), -1).mean(axis=0) for pair in ((x, matrix), (seen, rounded)))
    np.testing.assert_allclose(got + correction(moments, matrix, rounded), wish, rtol=1e-5, atol=1e-5)
    assert np.abs(got - wish).max() > 0.01, "the control: there was something to correct"


def test_patches_longer_than_memory_allows_keep_their_means_only(monkeypatch):
    monkeypatch.setattr("calib.refine.input_moments.LARGEST_K", 5)
    moments, x, _ = moments_of("rows")
    assert moments.gram is None
    assert moments.cross is None
    np.testing.assert_allclose(moments.mean, x.mean(axis=0), rtol=1e-5)


@pytest.mark.parametrize(("length", "per_image"), [(6, 32), (50, 50), (300, 128)])
def test_longer_patches_need_more_of_them(length, per_image):
    values = draw(3, 200, length).astype(np.float32)
    moments = measure_moments(Geometry(), 0.0234375, [(values, values)])
    assert moments.count == 3 * per_image


def test_both_activations_are_cut_at_the_same_positions():
    """Of 500 rows 32 are drawn: only rows of the same places differ by no more than half a step."""
    values = draw(4, 500, 6).astype(np.float32)
    step = 2.0**-4  # nothing is clipped
    assert np.abs(values).max() < 127 * step
    alike = measure_moments(Geometry(), step, [(values, values)])
    apart = measure_moments(Geometry(), step, [(values, np.roll(values, 1, axis=1))])
    assert np.abs(alike.mean - alike.quantized_mean).max() <= step / 2
    assert np.abs(alike.cross).max() < 0.01
    assert np.abs(apart.cross).max() > 0.5, "the control"
