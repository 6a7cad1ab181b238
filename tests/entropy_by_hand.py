"""PSP-entropy counted state by state."""

import itertools
import math
from collections import Counter

from tests.small import CLASSES


def entropy_by_hand(z, labels, order, classes=CLASSES):
    """Joint entropy in bits of every set of columns of z [observations, units] in every class: its mean over sets."""
    states = [[int(value > 0) for value in row] for row in z.tolist()]
    sets = list(itertools.combinations(range(len(states[0])), order))
    total = 0.0
    for chosen, number in itertools.product(sets, range(classes)):
        rows = [
            tuple(row[unit] for unit in chosen)
            for row, label in zip(states, labels.tolist(), strict=True)
            if label == number
        ]
        total -= sum(n / len(rows) * math.log2(n / len(rows)) for n in Counter(rows).values())
    return total / len(sets)
