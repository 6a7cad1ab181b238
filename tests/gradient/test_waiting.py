"""A training step waits for no accelerator because of the callback, and few kernels are added to it."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_psp import PSPCallback
from tests.support.waiting import READING, LossScaling, steps_of

NORMS = {"aten::linalg_vector_norm", "aten::pow", "aten::addcmul"}
# Those that no kernel runs for.
FREE = {"aten::detach", "aten::view", "aten::new_empty", "aten::lift_fresh", "aten::alias", "aten::permute"}
MOST_OTHERS = 12  # for the sums over layers


class Convolutions(nn.Sequential):
    """In-place activations, a batch norm and a GELU."""

    layers = 4

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
            *(nn.Flatten(), nn.Linear(64, 8), nn.GELU(), nn.Linear(8, 3)),
        )


class Deep(nn.Sequential):
    """Thirty layers."""

    layers = 30

    def __init__(self) -> None:
        super().__init__(
            nn.Flatten(),
            nn.Linear(64, 8),
            *(part for _ in range(28) for part in (nn.ReLU(), nn.Linear(8, 8))),
            *(nn.ReLU(), nn.Linear(8, 3)),
        )


class Transformer(nn.Module):
    """Attention and a gated unit."""

    layers = 4

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.gate, self.head = nn.Linear(8, 8), nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(nn.functional.glu(self.gate(self.block(images.flatten(1, 2)))).mean(1))


class Checkpointed(nn.Module):
    """A part is computed again in the backward pass."""

    layers = 3

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(64, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(images.flatten(1)))
        return self.third(checkpoint(lambda x: torch.relu(self.second(x)), hidden, use_reentrant=False))


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize("reduction", ["mean", "sum", "squared_mean"])
@pytest.mark.parametrize("kind", [Convolutions, Deep, Transformer, Checkpointed])
def test_no_step_but_the_first_reads_a_value(kind, reduction):
    first, *others = steps_of(kind(), *batch(), PSPCallback(reduction=reduction), number=4)
    assert first.read  # what is said once after it
    assert not any(step.read for step in others)


@pytest.mark.parametrize("reduction", ["mean", "squared_mean"])
def test_the_scale_of_half_precision_is_read_every_hundredth_time(reduction):
    callback = PSPCallback(reduction=reduction)
    steps = steps_of(Convolutions(), *batch(), callback, number=102, precision=LossScaling())
    logging = {49, 99}  # every 50 steps there are values for loggers
    assert {index for index, step in enumerate(steps) if step.read} == {0, 100} | logging
    assert len(steps[100].read) == 1


def test_another_training_has_another_scale():
    """It is read again, for half precision has no room for the ratio of any two scales."""
    callback = PSPCallback()
    first, second = (steps_of(Convolutions(), *batch(), callback, number=2, precision=LossScaling()) for _ in range(2))
    assert [len(step.read) for step in second] == [len(step.read) for step in first]


def test_steps_that_measure_read_two_numbers_and_the_others_none():
    steps = steps_of(Convolutions(), *batch(), PSPCallback(lam="auto"), number=21)
    assert [len(step.read) for step in steps[1:]] == [2 if number % 10 == 0 else 0 for number in range(1, 21)]


@pytest.mark.parametrize("kind", [Convolutions, Deep])
def test_three_kernels_are_added_for_each_layer(kind):
    without = steps_of(kind(), *batch(), number=3)[-1].called
    added = steps_of(kind(), *batch(), PSPCallback(), number=3)[-1].called
    added.subtract(without)
    assert {name: added.pop(name) for name in NORMS} == dict.fromkeys(NORMS, kind.layers)
    # An activation in place becomes one that is not.
    others = {name: number for name, number in added.items() if number and name not in FREE and "relu" not in name}
    assert sum(others.values()) <= MOST_OTHERS, others


def test_what_arrives_is_cast_once_for_all_layers_of_a_type():
    class InHalfPrecision(Deep):
        def forward(self, images):
            return super().forward(images.bfloat16()).float()

    network = InHalfPrecision().bfloat16()
    without = steps_of(network, *batch(), number=3)[-1].called
    added = steps_of(network, *batch(), PSPCallback(), number=3)[-1].called
    added.subtract(without)
    assert added["aten::addcmul"] == network.layers
    assert 1 <= added["aten::_to_copy"] <= MOST_OTHERS


@pytest.mark.parametrize("name", sorted(READING))
def test_what_reads_is_noticed(name):
    class Reads(Convolutions):
        def forward(self, images):
            logits = super().forward(images)
            read = {
                "aten::_local_scalar_dense": lambda: logits.sum().item(),
                "aten::_to_copy": lambda: logits.cpu(),
                "aten::nonzero": lambda: logits.nonzero(),
                "aten::equal": lambda: torch.equal(logits, logits),
                "aten::_unique2": lambda: logits.unique(),
            }[name]
            read()
            return logits

    assert steps_of(Reads(), *batch(), number=2)[-1].read == [name]
