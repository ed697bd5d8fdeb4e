"""A network in which one tensor ruins everything, and the same network without it.

Oracles: the plant itself; SQNR written down in numpy on outputs of the whole graphs in onnxruntime; sums of noise by hand.
"""

from dataclasses import replace

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto as T
from onnx import helper as h

from calib.artifact import read_artifact, write_artifact
from calib.calibration_table import CalibrationTable
from calib.graph import load_graph
from calib.placement import PlacementSearch, choose, judging_batches, leaving_order, measured_costs, ranking_images, spread
from calib.placement_record import FrontierPoint
from calib.qdq_placement import QuantScheme, plan_quantization
from calib.qdq_writer import read_qdq, serialize
from calib.quantize import CalibrateConfig, calibrate_graph, quantize_graph
from calib.sensitivity import GroupNoise

WILD = 500.0


def planted(make_model, wild, width=8):
    """x (b, 4, 8) -> five layers; in channel 0 of the tensor that `reader` reads, all values are `wild` times as large.

    `reader` weighs that channel down, so that float computes the same as without it; in INT8 its scale leaves the other
    channels next to nothing.
    """
    rng = np.random.default_rng(4)

    def draw(rows, columns):
        return (rng.normal(size=(rows, columns)) / np.sqrt(rows)).astype(np.float32)

    factor = np.ones(width, np.float32)
    factor[0] = wild
    constants = {"w1": draw(8, 64), "w2": draw(64, 64), "w3": draw(64, width), "wild": factor}
    constants |= {"w5": draw(8, 64), "w6": draw(64, 5)}
    constants["w4"] = draw(width, 8) / factor[:, None]
    n = h.make_node
    nodes = [
        n("MatMul", ["x", "w1"], ["a"], name="one"),
        n("Relu", ["a"], ["ra"], name="relu1"),
        n("MatMul", ["ra", "w2"], ["b"], name="two"),
        n("Relu", ["b"], ["rb"], name="relu2"),
        n("MatMul", ["rb", "w3"], ["c"], name="three"),
        n("Mul", ["c", "wild"], ["d"], name="scaled"),
        n("MatMul", ["d", "w4"], ["e"], name="reader"),
        n("MatMul", ["e", "w5"], ["f"], name="five"),
        n("Relu", ["f"], ["rf"], name="relu5"),
        n("MatMul", ["rf", "w6"], ["y"], name="six"),
    ]
    return make_model(nodes, constants, [("x", T.FLOAT, ["b", 4, 8])], [("y", T.FLOAT, ["b", 4, 5])])


def even(make_model):
    """Ten layers alike, from x (b, 4, 8): none costs much more than another for its work."""
    rng = np.random.default_rng(4)
    constants = {f"w{i}": (rng.normal(size=(8, 8)) / 2).astype(np.float32) for i in range(10)}
    nodes, tensor = [], "x"
    for i in range(10):
        nodes.append(h.make_node("MatMul", [tensor, f"w{i}"], [f"m{i}"], name=f"layer{i}"))
        tensor = "y" if i == 9 else f"r{i}"
        nodes.append(h.make_node("Tanh" if i < 9 else "Identity", [f"m{i}"], [tensor], name=f"after{i}"))
    return make_model(nodes, constants, [("x", T.FLOAT, ["b", 4, 8])], [("y", T.FLOAT, ["b", 4, 8])])


@pytest.fixture
def images():
    return np.random.default_rng(5).normal(size=(64, 4, 8)).astype(np.float32)


def calibrated(folder, model, images, **settings):
    """Table, refined graph and Q/DQ graph; the table has gone through its file."""
    source, refined, file = folder / "source.onnx", folder / "refined.onnx", folder / "table.json"
    source.write_bytes(serialize(model))
    config = CalibrateConfig(**{"effort": "fast", "placement": PlacementSearch(), **settings})
    table = calibrate_graph(source, refined, lambda: np.split(images, 8), images=64, data_sha256="images", config=config)
    write_artifact(file, table)
    assert read_artifact(file, CalibrationTable, remake="") == table
    graph = load_graph(refined)[0]
    return table, graph, quantize_graph(graph, table, config.scheme, "a test")


def sqnr(model, quantized, images):
    def run(graph):
        session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
        return session.run(None, {"x": images})[0].astype(np.float64)

    exact = run(model)
    return 10 * np.log10(np.sum(exact**2) / np.sum((exact - run(quantized)) ** 2))


def test_the_layer_that_ruins_everything_is_found_and_left_in_float(make_model, images, tmp_path):
    model = planted(make_model, WILD)
    table, graph, quantized = calibrated(tmp_path, model, images)
    placement = table.placement
    assert table.float_nodes == placement.float_nodes
    assert placement.float_nodes[0] == "reader"
    assert "d" not in read_qdq(quantized)
    assert set(table.tensors) == set(plan_quantization(graph, QuantScheme(exclude=table.float_nodes)).activations)
    all_int8 = calibrated(tmp_path, model, images, placement=None)[2]
    unseen = np.random.default_rng(6).normal(size=(64, 4, 8)).astype(np.float32)
    assert sqnr(model, quantized, unseen) > sqnr(model, all_int8, unseen) + 10
    first = max(placement.groups, key=lambda group: group.cost_db)
    assert first.nodes == ("reader",)
    assert "reader" in placement.reasons()
    assert float(placement.reasons()["reader"].split()[2]) > 10


def test_with_nothing_to_gain_everything_is_in_int8(make_model, images, tmp_path):
    model = even(make_model)
    table, _, quantized = calibrated(tmp_path, model, images)
    assert table.placement.float_groups == 0
    assert len(table.placement.frontier) == 2, "where the most layers in float gain nothing, no more is measured"
    assert table.float_nodes == ()
    without = calibrated(tmp_path, model, images, placement=None)
    assert "placement" not in without[0].to_json()
    assert serialize(quantized) == serialize(without[2])
    assert replace(table, placement=None) == without[0]


def test_the_same_images_give_the_same_bytes(make_model, images, tmp_path):
    files = []
    for _ in range(2):
        calibrated(tmp_path, planted(make_model, WILD), images)
        files.append((tmp_path / "table.json").read_bytes())
    assert files[0] == files[1]


def test_the_frontier_is_what_the_whole_graphs_have_and_the_choice_never_has_less(make_model, images, tmp_path):
    model = planted(make_model, WILD)
    table, _, _ = calibrated(tmp_path, model, images)
    placement = table.placement
    assert placement.chosen.sqnr_db >= placement.all_int8.sqnr_db
    assert placement.all_int8.int8_share == 1.0
    total = 4 * (8 * 64 + 64 * 64 + 64 * 8 + 8 * 8 + 8 * 64 + 64 * 5)
    assert placement.chosen.int8_share <= 1 - 4 * 64 / total
    assert min(point.int8_share for point in placement.frontier) >= placement.least_share >= 0.9 - 1e-12
    held_out = np.concatenate([images[i : i + 4] for i in range(12, 64, 16)])
    assert placement.images == len(held_out)
    scheme = QuantScheme(exclude=placement.float_nodes)
    everything = calibrated(tmp_path, model, images, placement=None)[0]
    measured = sqnr(model, quantize_graph(model, everything, scheme, ""), held_out)
    assert measured == pytest.approx(placement.chosen.sqnr_db, abs=0.05)


def test_a_share_asked_for_is_kept_and_a_layer_too_large_stays_in_int8(make_model, images, tmp_path):
    model = planted(make_model, WILD, width=64)  # the reader is 8 % of the multiply-accumulates
    assert "reader" in calibrated(tmp_path, model, images)[0].float_nodes
    kept = calibrated(tmp_path, model, images, placement=PlacementSearch(least_share=0.97))[0].placement
    assert "reader" not in kept.float_nodes
    assert kept.least_share == 0.97
    assert kept.chosen.int8_share >= 0.97


def test_refinements_leave_the_same_layers_in_float(make_model, images, tmp_path):
    table, graph, quantized = calibrated(tmp_path, planted(make_model, WILD), images, effort="balanced")
    assert table.float_nodes[0] == "reader"
    assert not any(name == "reader" for name in plan_quantization(graph, QuantScheme(exclude=table.float_nodes)).nodes)
    assert sqnr(planted(make_model, WILD), quantized, images) > 25


@pytest.mark.slow
def test_refined_layers_stay_in_float_only_where_that_beats_refining_everything(make_model, images, tmp_path, monkeypatch):
    """The judged images tell: with `all`, `auto` and an `auto` whose gain does not suffice."""
    model = planted(make_model, WILD)
    held_out = np.concatenate([images[i : i + 4] for i in range(12, 64, 16)])

    def found(**settings):
        table, _, quantized = calibrated(tmp_path, model, images, effort="balanced", **settings)
        return table, sqnr(model, quantized, held_out)

    table, placed = found()
    everything, all_int8 = found(placement=None)
    comparison = table.comparison
    assert table.float_nodes
    assert comparison.sqnr_db[comparison.kept] == pytest.approx(placed, abs=0.05)
    assert comparison.sqnr_db["all in INT8"] == pytest.approx(all_int8, abs=0.05)
    monkeypatch.setattr("calib.refine.effort_results._clearly_better", lambda _one, _other: False)
    kept, same = found()
    assert kept.float_nodes == ()
    assert (kept.placement.float_groups, len(kept.placement.frontier)) == (0, len(table.placement.frontier))
    assert same == all_int8
    assert replace(kept, placement=None, comparison=None) == replace(everything, comparison=None)
    assert kept.comparison.sqnr_db["with layers in float"] == pytest.approx(placed, abs=0.05)


def test_a_layer_that_gives_infinities_in_int8_stays_in_float(make_model, tmp_path):
    """log(0): on the scale of a large value a small one rounds to 0."""
    rng = np.random.default_rng(7)
    constants = {"swap": np.array([[0, 1], [1, 0]], np.float32), "w": rng.normal(size=(2, 40)).astype(np.float32)}
    nodes = [
        h.make_node("MatMul", ["x", "swap"], ["s"], name="swap"),
        h.make_node("Log", ["s"], ["l"], name="log"),
        h.make_node("MatMul", ["l", "w"], ["y"], name="head"),
    ]
    model = make_model(nodes, constants, [("x", T.FLOAT, ["b", 4, 2])], [("y", T.FLOAT, ["b", 4, 40])])
    images = np.exp(rng.normal(size=(64, 4, 2))).astype(np.float32) * np.array([1e3, 1e-3], np.float32)
    placement = calibrated(tmp_path, model, images)[0].placement
    assert placement.float_nodes == ("swap",)
    assert placement.groups[0].isolated_db == -300
    assert placement.chosen.sqnr_db > placement.all_int8.sqnr_db + 20


def counted_placement(folder, model, images, *counts):
    """Placement with an engine of so many steps for each graph in turn, and the codes of the graphs that were counted."""
    graphs, steps = [], iter(counts)

    def count(quantized):
        graphs.append(set(read_qdq(quantized)))
        return next(steps)

    table, _, quantized = calibrated(folder, model, images, placement=PlacementSearch(count_steps=count))
    return table.placement, graphs, set(read_qdq(quantized))


def test_steps_are_counted_of_all_int8_and_of_the_choice(make_model, images, tmp_path):
    model = planted(make_model, WILD)
    uncounted = calibrated(tmp_path, model, images)[0].placement
    placement, graphs, chosen = counted_placement(tmp_path, model, images, 40, 40)
    assert {point.steps for point in uncounted.frontier} == {None}
    assert "steps" not in str(uncounted)
    assert "d" in graphs[0], "everything in INT8 first"
    assert graphs[1] == chosen
    assert "d" not in chosen
    assert (placement.all_int8.steps, placement.chosen.steps) == (40, 40)
    assert placement.float_nodes == uncounted.float_nodes
    assert str(placement).endswith("dB on 16 held-out calibration images, 40 -> 40 steps per image")
    assert sum(point.steps is not None for point in placement.frontier) == 2


def test_a_placement_whose_engine_takes_far_more_steps_is_given_up_and_named(make_model, images, tmp_path):
    model = planted(make_model, WILD)
    placement, _, chosen = counted_placement(tmp_path, model, images, 40, *[400] * 3)
    assert placement.float_groups == 0
    assert "d" in chosen
    assert "dB would take 400 steps per image in place of 40" in str(placement)
    assert placement.reasons() == {}


POINTS = [FrontierPoint(0, 1.0, 30.0), FrontierPoint(1, 0.99, 34.0), FrontierPoint(3, 0.95, 35.5), FrontierPoint(9, 0.9, 36.5)]


@pytest.mark.parametrize(
    ("steps", "chosen", "counted"),
    [
        ({0: 100, 3: 100}, 3, (0, 3)),  # scores with 100 steps each: 30, 33.75, 34.25, 34
        ({0: 100, 3: 90}, 3, (0, 3)),  # fewer steps count as equal
        ({0: 100, 3: 102, 9: 100}, 9, (0, 3, 9)),  # 34.25 - 0.5 < 34, which 33.75 cannot surpass
        ({0: 100, 3: 120, 9: 120, 1: 110}, 1, (0, 1, 3, 9)),  # 29.25, 29, 31.25
        ({0: 100, 3: 120, 9: 120, 1: 120}, 0, (0, 1, 3, 9)),  # 28.75: everything in INT8 has 30
        ({0: 100, 3: None, 9: 100}, 9, (0, 9)),  # no engine can be built
        ({0: None}, 3, ()),
    ],
)
def test_a_percent_more_steps_has_to_buy_as_much_as_a_percent_of_the_work(steps, chosen, counted):
    asked = []

    def count(point):
        asked.append(point.float_groups)
        return steps[point.float_groups]

    choice, frontier = choose(POINTS, count)
    assert choice.float_groups == chosen
    assert choice in frontier
    assert set(asked) == set(steps), "no more engines are built than may change the choice"
    assert tuple(point.float_groups for point in frontier if point.steps is not None) == counted
    assert [replace(point, steps=None) for point in frontier] == POINTS


def test_without_a_clear_gain_nothing_is_counted():
    points = [POINTS[0], FrontierPoint(4, 0.99, 30.4)]
    assert choose(points, lambda _point: pytest.fail("counted")) == (points[0], tuple(points))


def noise(name, decibels, macs):
    return GroupNoise((name,), macs, decibels)


def test_the_order_is_by_gain_per_work_within_the_share():
    groups = [noise("heavy", 10.0, 500), noise("light", 10.0, 100), noise("idle", 60.0, 10), noise("rest", 20.0, 390)]
    order = leaving_order(groups, [True] * 4, 1000, 0.15)
    assert [cost.nodes[0] for cost in order.costs] == ["light", "heavy", "idle", "rest"]
    assert order.leaving == 1
    np.testing.assert_allclose(order.predicted_db, [-10 * np.log10(0.21 + 1e-6), -10 * np.log10(0.11 + 1e-6)])
    np.testing.assert_allclose(order.costs[0].cost_db, 10 * np.log10((0.21 + 1e-6) / (0.11 + 1e-6)))
    more = leaving_order(groups, [True] * 4, 1000, 0.65)
    assert [cost.nodes[0] for cost in more.costs[: more.leaving]] == ["light", "heavy"]
    fixed = leaving_order(groups, [True, False, True, True], 1000, 0.65)
    assert "light" not in [cost.nodes[0] for cost in fixed.costs[: fixed.leaving]]


def test_costs_add_up_to_what_was_measured():
    order = leaving_order([noise(str(i), 20.0 + i, 10) for i in range(9)], [True] * 9, 90, 0.5)
    frontier = [FrontierPoint(0, 1.0, 10.0), FrontierPoint(2, 0.8, 16.0), FrontierPoint(4, 0.6, 15.0)]
    costs = [group.cost_db for group in measured_costs(order, frontier)]
    assert sum(costs[:2]) == pytest.approx(6.0)
    assert costs[0] / costs[1] == pytest.approx(order.costs[0].cost_db / order.costs[1].cost_db)
    assert costs[2:4] == [0.0, 0.0], "nothing was gained"
    assert costs[4:] == [group.cost_db for group in order.costs[4:]]


def test_what_is_measured_holds_both_ends_and_stays_within_its_number():
    costs = leaving_order([noise(str(i), 20.0 + i / 4, 10) for i in range(90)], [True] * 90, 900, 0.5)
    tried = spread(costs.predicted_db, costs.costs, 6)
    assert tried[0] == 0
    assert tried[-1] == costs.leaving
    assert len(tried) <= 6
    assert spread([12.0], (), 4) == (0,)


@pytest.mark.parametrize(
    ("images", "groups", "most"), [(32, 74, 2), (512, 74, 8), (512, 209, 4), (512, 3, 16), (10_000, 700, 16)]
)
def test_the_ranking_takes_few_images(images, groups, most):
    assert ranking_images(images, groups) == most


def test_judges_are_spread_over_what_is_held_out():
    batches = [np.full((4, 1), i) for i in range(16)]
    assert [int(b[0, 0]) for b in judging_batches(batches)] == [0, 4, 8, 12]
    assert len(judging_batches(batches[:2])) == 2
