"""PSP-entropy counted in loops with numpy, and the soft one class by class, independent of the package."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import torch


def observations(z, target, unit="element", unit_dim=1):
    """States `[observations, units]` and the class of each observation."""
    z, target = np.asarray(z, dtype=np.float64), np.asarray(target)
    if z.ndim == 1:
        z = z[:, None]
    rows, classes = [], []
    for sample, label in zip(z, target, strict=True):
        if unit == "element":
            found = [sample.reshape(-1)]
        else:
            found = list(
                np.moveaxis(sample, unit_dim - 1 if unit_dim > 0 else unit_dim, -1).reshape(-1, z.shape[unit_dim])
            )
        rows += found
        classes += [int(label)] * len(found)
    return np.stack(rows) > 0, np.array(classes)


def bits(counts):
    """Entropy of a distribution given by its counts."""
    p = np.array([count for count in counts if count], dtype=np.float64) / sum(counts)
    return float(-(p * np.log2(p)).sum())


def classwise(states, classes, num_classes):
    """Entropy of each unit within each class."""
    found = np.zeros((num_classes, states.shape[1]))
    for label in set(classes.tolist()):
        for unit in range(states.shape[1]):
            on = int(states[classes == label, unit].sum())
            found[label, unit] = bits([on, int((classes == label).sum()) - on])
    return found


def of_set(states, classes, units):
    """Joint entropy of a set of units, summed over classes."""
    labels = set(classes.tolist())
    return sum(bits(list(Counter(map(tuple, states[classes == c][:, list(units)])).values())) for c in labels)


def mean_over_sets(states, classes, order):
    """PSP-entropy of the order."""
    sets = list(itertools.combinations(range(states.shape[1]), order))
    return sum(of_set(states, classes, units) for units in sets) / len(sets)


def entropy_by_hand(z, target, order):
    """Joint entropy in bits of the sets of units of potentials `[observations, units]`: its mean over sets."""
    return mean_over_sets(*observations(z, target), order)


def soft_entropy(z, labels, temperature):
    """The soft entropy of a layer, written out class by class."""
    total = 0.0
    for label in labels.unique():
        p = (1 / (1 + torch.exp(-z[labels == label].flatten(1) / temperature))).mean(0)
        total = total - p * p.log2() - (1 - p) * (1 - p).log2()
    return total.mean()
