"""Data split and merged in some order that hypothesis draws, for observers whose state must not depend on it."""

import numpy as np
from hypothesis import strategies as st


def merged_in_some_order(values, data, observe):
    """The observer of all values, from any split of any order of them, its parts merged in any order."""
    order = data.draw(st.permutations(range(len(values))))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=4)))
    parts = [observe(chunk) for chunk in np.split(values[list(order)], cuts)]
    while len(parts) > 1:
        i, j = data.draw(st.permutations(range(len(parts))))[:2]
        parts[i].merge(parts[j])
        del parts[j]
    return parts[0]


def three_parts(values, data, observe):
    """Observers of three parts of the values."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(values)), min_size=2, max_size=2)))
    return [observe(chunk) for chunk in np.split(values, cuts)]
