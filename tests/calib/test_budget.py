"""The search for the largest INT8 share within a budget. The oracle tries all 2^n sets of groups."""

from itertools import combinations

import numpy as np
import pytest
from for_all import for_all

from calib.budget import BudgetResult, drop_points, fit_budget
from calib.errors import DataError, InputError

ENOUGH = 10_000


class Additive:
    """Costs that add up: the drop is the sum over the groups in INT8. Notes what it is asked."""

    def __init__(self, costs):
        self.costs = costs
        self.asked = []

    def __call__(self, float_nodes):
        self.asked.append(float_nodes)
        return sum(cost for node, cost in self.costs.items() if node not in float_nodes)


class Noisy:
    """A random drop for each set, the same at every call. Notes what it is asked."""

    def __init__(self, rng):
        self.rng, self.drops, self.asked = rng, {}, []

    def __call__(self, float_nodes):
        self.asked.append(float_nodes)
        return self.drops.setdefault(float_nodes, float(self.rng.normal()))


def case(seed, groups=8, equal=False, order="cost"):
    """Groups of one node, MACs and costs at random, ranked by cost or by cost per MAC; 10 % of the MACs are in no group."""
    rng = np.random.default_rng(seed)
    names = [f"n{i}" for i in range(groups)]
    macs = {name: 100 if equal else int(rng.integers(1, 1000)) for name in names}
    costs = {name: float(rng.exponential()) for name in names}
    ranked = sorted(names, key=lambda name: -costs[name] / (macs[name] if order == "density" else 1))
    macs["never"] = sum(macs.values()) // 9
    return [(name,) for name in ranked], Additive(costs), macs, float(rng.uniform(0.05, 0.95)) * sum(costs.values())


def share(ranked, macs, float_nodes):
    return sum(macs[n] for group in ranked for n in group if n not in float_nodes) / sum(macs.values())


def exhaustive(ranked, evaluate, macs, budget):
    """The largest INT8 share of all sets that meet the budget."""
    sets = [sum(chosen, ()) for count in range(len(ranked) + 1) for chosen in combinations(ranked, count)]
    return max(share(ranked, macs, nodes) for nodes in sets if evaluate(nodes) <= budget)


def shortest_prefix(ranked, evaluate, budget):
    return next(k for k in range(len(ranked) + 1) if evaluate(sum(ranked[:k], ())) <= budget)


def check(result, evaluate, ranked, macs, budget):
    """What holds for every result; `evaluate` has noted what this search alone asked."""
    asked = list(evaluate.asked)
    assert isinstance(result, BudgetResult)
    assert result.met == (result.drop <= budget)
    assert result.drop == evaluate(result.float_nodes)
    assert result.int8_share == pytest.approx(share(ranked, macs, result.float_nodes), abs=1e-12)
    for nodes, part in result.float_groups.items():
        assert nodes in ranked
        assert part == pytest.approx(sum(macs[n] for n in nodes) / sum(macs.values()), abs=1e-12)
    assert result.evaluations == len(asked) == len(set(asked))
    good = [nodes for nodes in asked if evaluate(nodes) <= budget]
    assert result.met == bool(good)
    if good:
        assert result.int8_share == pytest.approx(max(share(ranked, macs, nodes) for nodes in good), abs=1e-12)
    else:
        assert result.drop == min(evaluate(nodes) for nodes in asked)


@pytest.mark.parametrize("order", ["cost", "density"])
@for_all(seed=range(40))
def test_additive_costs(seed, order):
    ranked, evaluate, macs, budget = case(seed, order=order)
    result = fit_budget(ranked, evaluate, macs, budget, evaluations=ENOUGH)
    check(result, evaluate, ranked, macs, budget)
    assert result.met
    prefix = shortest_prefix(ranked, evaluate, budget)
    plain = share(ranked, macs, sum(ranked[:prefix], ()))
    best = exhaustive(ranked, evaluate, macs, budget)
    assert plain - 1e-12 <= result.int8_share <= best + 1e-12
    if order == "density" and prefix:
        last = macs[ranked[prefix - 1][0]] / sum(macs.values())
        assert result.int8_share >= best - last - 1e-12
    for group in result.float_groups:
        fewer = [nodes for nodes in result.float_groups if nodes != group]
        assert evaluate(sum(fewer, ())) > budget, "no group can go back"


@for_all(seed=range(20))
def test_equal_macs_give_the_optimum(seed):
    ranked, evaluate, macs, budget = case(seed, equal=True)
    result = fit_budget(ranked, evaluate, macs, budget)
    assert result.int8_share == pytest.approx(exhaustive(ranked, evaluate, macs, budget), abs=1e-12)


def test_the_bound_needs_the_ranking_by_mac():
    """One heavy group before ten light ones: ranked by cost the heavy one goes, ranked by cost per MAC it stays."""
    costs = {"heavy": 1.0} | {f"light{i}": 0.15 for i in range(10)}
    macs = {"heavy": 900} | {f"light{i}": 10 for i in range(10)}
    by_cost = [(name,) for name in costs]
    by_mac = [*by_cost[1:], by_cost[0]]
    budget = 1.1
    assert fit_budget(by_cost, Additive(costs), macs, budget).int8_share < 0.11
    assert fit_budget(by_mac, Additive(costs), macs, budget).int8_share >= 0.9


def test_the_local_search_improves_on_the_prefix():
    costs = {"a": 5.0, "b": 3.0, "c": 2.0, "d": 0.1}
    macs = {"a": 10, "b": 500, "c": 20, "d": 20}
    ranked = [(name,) for name in costs]
    result = fit_budget(ranked, Additive(costs), macs, 3.2)
    assert shortest_prefix(ranked, Additive(costs), 3.2) == 2
    assert [*result.float_groups] == [("a",), ("b",)], "c alone would leave 5.1 - 2.0"
    result = fit_budget([ranked[1], ranked[0], *ranked[2:]], Additive(costs), macs, 5.1)
    assert [*result.float_groups] == [("a",)], "the first of the ranking goes back once the second is in float"


def test_nothing_needs_to_be_in_float():
    ranked, evaluate, macs, _ = case(0)
    result = fit_budget(ranked, evaluate, macs, 1e9)
    assert (result.met, result.float_groups, result.evaluations) == (True, {}, 1)
    assert evaluate.asked == [()]
    assert result.int8_share == pytest.approx(0.9, abs=0.01)


def test_each_set_is_evaluated_once():
    ranked, evaluate, macs, budget = case(5, groups=20)
    result = fit_budget(ranked, evaluate, macs, budget, evaluations=ENOUGH)
    assert len(evaluate.asked) == len(set(evaluate.asked)) == result.evaluations
    order = [node for group in ranked for node in group]
    assert all(list(asked) == sorted(asked, key=order.index) for asked in evaluate.asked)


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 8, 24])
@for_all(seed=range(5))
def test_evaluations_are_bounded(seed, limit):
    ranked, evaluate, macs, budget = case(seed, groups=60)
    result = fit_budget(ranked, evaluate, macs, budget, evaluations=limit)
    assert len(evaluate.asked) == result.evaluations <= limit
    check(result, evaluate, ranked, macs, budget)


def test_more_evaluations_never_give_less():
    for seed in range(10):
        ranked, evaluate, macs, budget = case(seed, groups=30)
        results = [fit_budget(ranked, evaluate, macs, budget, evaluations=n) for n in range(8, 60, 4)]
        shares = [r.int8_share for r in results]
        assert all(r.met for r in results)
        assert shares == sorted(shares)


def test_impossible_budgets_give_the_smallest_drop():
    ranked, evaluate, macs, _ = case(1)
    result = fit_budget(ranked, evaluate, macs, -0.5)
    check(result, evaluate, ranked, macs, -0.5)
    assert not result.met
    assert result.drop == pytest.approx(0, abs=1e-12)
    assert len(result.float_groups) == len(ranked)


@pytest.mark.parametrize("largest", [0, 1, 3])
def test_at_most_so_many_groups_in_float(largest):
    ranked, evaluate, macs, _ = case(2)
    budget = 1e-6
    result = fit_budget(ranked, evaluate, macs, budget, largest=largest)
    check(result, evaluate, ranked, macs, budget)
    assert not result.met
    assert len(result.float_groups) == largest
    assert all(len(asked) <= largest for asked in evaluate.asked)


@for_all(seed=range(30))
def test_noisy_evaluations_still_meet_the_budget(seed):
    """Drops that have nothing to do with the set: the result is still the best of what was tried."""
    ranked, _, macs, _ = case(seed, groups=12)
    evaluate = Noisy(np.random.default_rng(seed))
    for budget in (-3.0, -0.5, 0.0, 1.0):
        evaluate.asked.clear()
        check(fit_budget(ranked, evaluate, macs, budget), evaluate, ranked, macs, budget)


def test_float_that_is_worse_than_a_mixture():
    """All in float misses the budget by chance, four groups in float meet it."""
    ranked = [(f"n{i}",) for i in range(8)]
    macs = {f"n{i}": 1 for i in range(8)}
    drops = {8: 0.3, 4: 0.1, 3: 0.1, 2: 0.5, 1: 0.5, 0: 1.0}

    def evaluate(nodes):
        return drops.get(len(nodes), 0.4)

    result = fit_budget(ranked, evaluate, macs, 0.2)
    assert (result.met, len(result.float_groups)) == (True, 3)


def test_groups_of_several_nodes_go_together():
    ranked = [("q", "k", "v"), ("proj",), ("ffn",)]
    macs = {"q": 1, "k": 1, "v": 1, "proj": 2, "ffn": 5, "never": 10}
    result = fit_budget(ranked, Additive({"q": 1.0, "k": 1.0, "v": 1.0, "proj": 0.5, "ffn": 0.1}), macs, 0.7)
    assert result.float_nodes == ("q", "k", "v")
    assert result.float_groups == {("q", "k", "v"): 3 / 20}
    assert result.int8_share == 7 / 20


def test_a_drop_that_is_not_a_number_is_refused():
    with pytest.raises(InputError, match="not a number"):
        fit_budget([("a",), ("b",)], lambda _: float("nan"), {"a": 1, "b": 1}, 1.0)


def one_hot(answers, classes=4):
    return np.eye(classes, dtype=np.float32)[answers]


def test_drop_in_points():
    labels = np.array([0, 1, 2, 3, 0])
    reference = one_hot([0, 1, 2, 0, 1])  # 3 of 5
    changed = one_hot([0, 1, 1, 0, 1])  # 2 of 5
    assert drop_points(reference, changed, labels) == pytest.approx(20)
    assert drop_points(changed, reference, labels) == pytest.approx(-20), "a gain is a negative drop"
    assert drop_points(reference, changed) == pytest.approx(20)
    for count in (1, 3, 7):
        many = np.zeros(1000, int)
        many[:count] = 1
        wanted = float(f"{count / 10}")
        assert drop_points(one_hot(many * 0), one_hot(many)) == wanted, "a budget of 0.1 points is met by one answer in 1000"
        assert drop_points(one_hot(many * 0), one_hot(many), many * 0) == wanted
    assert drop_points(reference, reference, labels) == drop_points(reference, reference) == 0


def test_no_drop_exceeds_the_changed_classes():
    rng = np.random.default_rng(0)
    for _ in range(200):
        reference = rng.normal(size=(20, 4))
        logits = reference + rng.normal(size=(20, 4)) * rng.uniform(0, 2)
        labels = rng.integers(0, 4, 20)
        assert drop_points(reference, logits, labels) <= drop_points(reference, logits) + 1e-9
        assert drop_points(reference, logits, reference.argmax(1)) == pytest.approx(drop_points(reference, logits))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(4, int), "one label per row"),
        (np.zeros((5, 1), int), "one label per row"),
        (np.zeros(5), "one label per row"),
        (np.full(5, 4), "out of range"),
        (np.full(5, -1), "out of range"),
    ],
)
def test_labels_that_do_not_fit(labels, message):
    with pytest.raises(InputError, match=message):
        drop_points(one_hot([0] * 5), one_hot([0] * 5), labels)
    with pytest.raises(DataError, match="finite"):
        drop_points(one_hot([0] * 5), one_hot([0] * 5) * np.nan)
