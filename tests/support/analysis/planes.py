"""Networks, solutions and data for planes, and the measures of a network written out in float64."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 3


class MLP(nn.Module):
    """Two hidden layers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(torch.tanh(self.fc2(F.relu(self.fc1(x)))))


class Normalised(nn.Module):
    """A convolution, batch norm, and a linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv1d(1, 3, 2), nn.BatchNorm1d(3), nn.Linear(9, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.bn(self.conv(x.unsqueeze(1)))).flatten(1))


def batches(samples: int = 23, size: int = 10, dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, Tensor]]:
    """Inputs `[batch, 4]` and classes; the last batch is smaller."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(samples, 4, generator=generator, dtype=dtype)
    labels = torch.randint(0, CLASSES, (samples,), generator=generator)
    return list(zip(x.split(size), labels.split(size), strict=True))


def solutions(network: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Two state dicts with random values; variances are positive."""
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = {}
        for name, value in network.state_dict().items():
            random = torch.randn(value.shape, dtype=torch.float64)
            random = random.abs() + 0.1 if "running_var" in name else random
            state[name] = random.to(value.dtype) if value.is_floating_point() else torch.full_like(value, seed)
        found.append(state)
    return found[0], found[1]


def states_of(network: nn.Module) -> dict[str, Tensor]:
    """A copy of the state dict."""
    return copy.deepcopy(network.state_dict())


def measures_of_mlp(state: dict[str, Tensor], data: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Loss, error, ⟨z²⟩ and entropies of an `MLP`, by their formulas."""
    x, labels = (torch.cat(parts) for parts in zip(*data, strict=True))
    weights = {name: value.double() for name, value in state.items()}
    z1 = x.double() @ weights["fc1.weight"].T + weights["fc1.bias"]
    z2 = z1.clamp(min=0) @ weights["fc2.weight"].T + weights["fc2.bias"]
    z3 = z2.tanh() @ weights["fc3.weight"].T + weights["fc3.bias"]
    log_sums = z3.exp().sum(1).log()
    own = torch.stack([scores[label] for scores, label in zip(z3, labels, strict=True)])
    return {
        "loss": (log_sums - own).sum().item() / len(x),
        "error": sum(int(scores.argmax()) != int(label) for scores, label in zip(z3, labels, strict=True)) / len(x),
        "z2": sum((z * z).sum().item() / z.numel() for z in (z1, z2, z3)) / 3,
        "entropy": sum(entropy(z, labels) for z in (z1, z2)) / 2,
        "entropy2": sum(pair_entropy(z, labels) for z in (z1, z2)) / 2,
    }


def entropy(z: Tensor, labels: Tensor) -> float:
    """First order: the mean over units of the entropy of a state in bits, summed over classes."""
    total = 0.0
    for unit in range(z.shape[1]):
        for label in range(CLASSES):
            total += bits([int(value > 0) for value in z[labels == label, unit]])
    return total / z.shape[1]


def pair_entropy(z: Tensor, labels: Tensor) -> float:
    """Second order: the mean over pairs."""
    values = []
    for i in range(z.shape[1]):
        for j in range(i + 1, z.shape[1]):
            parts = [z[labels == label] > 0 for label in range(CLASSES)]
            values.append(sum(bits([2 * int(a) + int(b) for a, b in part[:, [i, j]]]) for part in parts))
    return sum(values) / len(values)


def bits(states: list[int]) -> float:
    """The entropy of what occurs in a list."""
    shares = [states.count(state) / len(states) for state in set(states)]
    return -sum(share * math.log2(share) for share in shares)
