"""A network of two layers in float64, and inputs for it."""

import torch
from torch import nn

SAMPLES = 5


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def two_layers(bias=True):
    return nn.Sequential(nn.Linear(4, 6, bias), nn.ReLU(), nn.Linear(6, 3, bias)).double()
