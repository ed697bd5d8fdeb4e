"""Find the largest INT8 share of a network that stays within an accuracy budget (mixed INT8 / float precision).

Groups of nodes go to float, most costly first: a binary search finds how many are needed, then a local search tries to
return each of them to INT8, the one with most MACs first. Guarantees, with I the INT8 share of the MACs:

    always                         the result is the trial with the largest I among those that meet the budget: no ranking and
                                   no evaluation, however noisy, makes it worse than what was tried
    evaluate is monotone           more in float, no larger drop: I is at least that of the shortest prefix of the ranking
                                   that meets the budget, and no single group can return, if the evaluations suffice
    costs add up, ranked by cost   and all groups have equal MACs: I is the largest there is
    costs add up, ranked by cost   I is within the share of one group, the last that the binary search moved to float, of the
    per MAC                        largest there is (the greedy bound of the knapsack problem)

Ranked by cost alone and with unequal MACs there is no such bound: one heavy group at the head of the ranking goes to float
first, where ten light ones after it would have been enough. Where evaluate is not monotone the binary search may end at a
longer prefix than needed, and groups that could return may be tried at the wrong time; the result still meets the budget.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from calib.errors import DataError, InputError
from calib.metrics import top1_agreement

EVALUATIONS = 24
"""Largest number of evaluations: a binary search over 200 groups takes 9 of them."""

Evaluate = Callable[[tuple[str, ...]], float]


@dataclass(frozen=True)
class BudgetResult:
    """The best of all trials, their number `evaluations`; that with the smallest drop if none met the budget.

    Budget and drop are in points. `float_groups` maps the nodes of each group that stays in float to its share of the network's
    MACs, in the order of the ranking; the INT8 share is of these MACs, too.
    """

    met: bool
    budget: float
    float_groups: Mapping[tuple[str, ...], float]
    int8_share: float
    drop: float
    evaluations: int

    @property
    def float_nodes(self) -> tuple[str, ...]:
        """Nodes that stay in float."""
        return tuple(node for group in self.float_groups for node in group)


def fit_budget(
    groups_ranked: Sequence[tuple[str, ...]],
    evaluate: Evaluate,
    macs: Mapping[str, int],
    budget: float,
    *,
    largest: int | None = None,
    evaluations: int = EVALUATIONS,
) -> BudgetResult:
    """Find the largest INT8 share of the MACs whose drop is at most `budget`.

    Args:
        groups_ranked: nodes of each group, without overlaps, most costly first, see `calib.sensitivity.rank_groups`.
        evaluate: nodes in float, groups in the order of the ranking -> drop in points on held-out images; called once for each
            set of groups, with () first.
        macs: node -> MACs of the whole network, nodes that are never quantized included, see `calib.macs.count_macs`;
            0 for those that cannot be counted.
        budget: largest drop allowed, in points.
        largest: largest number of groups in float; None for all.

    If not even the `largest` most costly groups in float meet the budget, half as many are tried, and so on, since measured
    drops need not be monotone; if no trial meets it, the one with the smallest drop is returned with met = False.
    A NaN drop raises InputError.
    """
    search = _Search(groups_ranked, evaluate, macs, budget, evaluations)
    most = len(groups_ranked) if largest is None else min(largest, len(groups_ranked))
    if not search.meets(()) and search.shorten(most):
        search.return_to_int8()
    return search.result()


def drop_points(reference_logits: ArrayLike, logits: ArrayLike, labels: ArrayLike | None = None) -> float:
    """Top-1 accuracy lost relative to the reference, in percentage points; negative for a gain. Ties go to the lower index.

        with labels       100 (accuracy of reference_logits - accuracy of logits)
        without           100 (share of rows whose top-1 class changed), which no drop can exceed, whatever the labels

    Both logits are (B, classes), labels (B,) integers. Raises DataError for shapes that do not match, labels out of range, NaN
    and infinities.
    """
    agreement = top1_agreement(reference_logits, logits)
    before, after = np.asarray(reference_logits), np.asarray(logits)
    if labels is None:  # counted, so that one row in 1000 is exactly 0.1 points
        return 100.0 * round((1.0 - agreement) * len(before)) / len(before)
    truth = np.asarray(labels)
    if truth.shape != before.shape[:1] or truth.dtype.kind not in "iu":
        raise DataError("need one label per row", found=f"{truth.dtype} {truth.shape}", allowed=f"integers {before.shape[:1]}")
    if truth.min() < 0 or truth.max() >= before.shape[1]:
        raise DataError("label out of range", found=f"{truth.min()} to {truth.max()}", allowed=f"0 to {before.shape[1] - 1}")
    correct = [np.count_nonzero(values.argmax(axis=-1) == truth) for values in (before, after)]
    return 100.0 * float(correct[0] - correct[1]) / len(truth)


@dataclass
class _Search:
    """Trials by the set of groups in float, given as ascending positions in the ranking."""

    groups: Sequence[tuple[str, ...]]
    evaluate: Evaluate
    macs: Mapping[str, int]
    budget: float
    limit: int
    drops: dict[tuple[int, ...], float] = field(default_factory=dict)

    def meets(self, chosen: tuple[int, ...]) -> bool:
        """Whether a set meets the budget; False for a new set once the evaluations are used up."""
        if chosen not in self.drops:
            if len(self.drops) == self.limit:
                return False
            drop = float(self.evaluate(tuple(node for i in chosen for node in self.groups[i])))
            if math.isnan(drop):
                names = ", ".join(self.groups[i][0] for i in chosen) or "none"
                raise InputError("the drop is not a number", where=f"in float: {names}", found=drop)
            self.drops[chosen] = drop
        return self.drops[chosen] <= self.budget

    def shorten(self, most: int) -> bool:
        """Binary search for the shortest prefix of the ranking, of at most `most` groups, that meets the budget."""
        above = most
        while above and not self.meets(tuple(range(above))):
            above //= 2
        below = 0
        while above - below > 1:
            middle = (below + above) // 2
            if self.meets(tuple(range(middle))):
                above = middle
            else:
                below = middle
        return above > 0

    def return_to_int8(self) -> None:
        """Try each group of the best set in INT8, most MACs first; repeat while one of them can stay there."""
        chosen, before = self.best(), None
        while chosen != before:
            before = chosen
            for i in sorted(chosen, key=lambda i: -self.float_macs((i,))):
                fewer = tuple(j for j in chosen if j != i)
                if self.meets(fewer):
                    chosen = fewer

    def best(self) -> tuple[int, ...]:
        """The set with the largest INT8 share among those that meet the budget, else the one with the smallest drop."""
        if met := [chosen for chosen, drop in self.drops.items() if drop <= self.budget]:
            return min(met, key=lambda chosen: (self.float_macs(chosen), self.drops[chosen]))
        return min(self.drops, key=lambda chosen: (self.drops[chosen], self.float_macs(chosen)))

    def float_macs(self, chosen: Iterable[int]) -> int:
        return sum(self.macs[node] for i in chosen for node in self.groups[i])

    def result(self) -> BudgetResult:
        best, total = self.best(), max(sum(self.macs.values()), 1)
        in_groups = self.float_macs(range(len(self.groups)))
        return BudgetResult(
            met=self.drops[best] <= self.budget,
            budget=self.budget,
            float_groups={self.groups[i]: self.float_macs((i,)) / total for i in best},
            int8_share=(in_groups - self.float_macs(best)) / total,
            drop=self.drops[best],
            evaluations=len(self.drops),
        )
