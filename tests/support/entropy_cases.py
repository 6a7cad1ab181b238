"""Shapes of potentials of which the entropy is known by counting, and random ones of a shape."""

import torch

CASES = {
    "one unit": ((30,), "element", 1),
    "units": ((30, 7), "element", 1),
    "elements of maps": ((12, 3, 4, 2), "element", 1),
    "channels": ((12, 3, 4, 2), "channel", 1),
    "channels of a sequence": ((9, 5, 6), "channel", -1),
    "channels in the middle": ((9, 4, 6, 3), "channel", 2),
    "channels from the end": ((9, 4, 6, 3), "channel", -2),
    "features as channels": ((30, 7), "channel", -1),
    "one unit as channel": ((30,), "channel", 1),
}


def batch(shape, num_classes=3, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(shape, generator=generator).to(dtype)
    return z, torch.randint(0, num_classes, shape[:1], generator=generator)
