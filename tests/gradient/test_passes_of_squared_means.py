"""What has no mean over the batch: passes of a layer whose shapes differ, and several passes of compiled code."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_psp import PSPCallback, psp_penalty, record_potentials
from tests.support.small import Classifier, loader, quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")


class Twice(Classifier):
    """Runs a part of itself on features and on some of them."""

    def __init__(self, *, is_compiled: bool, has_one_shape: bool) -> None:
        super().__init__()
        self.shared = nn.Conv1d(1, 2, 3)
        self.run = torch.compile(self._run, backend="aot_eager") if is_compiled else self._run
        self.has_one_shape = has_one_shape

    def _run(self, signal: torch.Tensor) -> torch.Tensor:
        return F.relu(self.shared(signal.unsqueeze(1))).mean(2)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        other = features.flip(1) if self.has_one_shape else features[:, 1:]
        return super().forward(features) + (self.run(features) + self.run(other)).sum(1, keepdim=True)


def train(network: Twice) -> None:
    torch.compiler.reset()
    quiet_trainer(PSPCallback(reduction="squared_mean"), max_steps=1).fit(network, loader(1))


def test_passes_of_different_shapes_are_refused():
    network = Twice(is_compiled=False, has_one_shape=False).double()
    with pytest.raises(ValueError, match=r"layer 'shared' in this step have different shapes: .* use reduction='mean'"):
        train(network)
    with record_potentials(network) as potentials:
        network(next(iter(loader(1)))[0])
    assert [*potentials] == ["first", "second", "shared", "shared:1", "output"]
    with pytest.raises(ValueError, match=r"layer 'shared' have different shapes: .* use reduction='mean'"):
        psp_penalty(potentials, "squared_mean")
    psp_penalty(potentials)


def test_several_passes_of_compiled_code_are_refused():
    with pytest.raises(NotImplementedError, match=r"'shared'.*call the network once with all inputs"):
        train(Twice(is_compiled=True, has_one_shape=True).double())


def test_passes_of_one_shape_are_taken():
    train(Twice(is_compiled=False, has_one_shape=True).double())
