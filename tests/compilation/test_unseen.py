"""What no potential accounts for is named in compiled code, too."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_psp import PSPCallback
from tests.support.compiled import COMPILED, LAM, Model, Network, batches, network, network_by_method, step
from tests.support.networks import Cube
from tests.support.small import quiet_trainer

pytestmark = COMPILED
WAYS = pytest.mark.parametrize("way", [network, network_by_method, pytest.param(step, marks=pytest.mark.slow)])


class Unseen(Network):
    """A function between two layers that are found."""

    def __init__(self, function):
        super().__init__()
        self.function, self.between = function, nn.Linear(8, 8)

    def forward(self, x):
        x = self.between(functional.silu(self.embed(x)))
        return self.head(torch.tanh(self.blocks(self.function(x) * 2.0)))


def fitted(module, way):
    wrapped = way(module)
    trainer = quiet_trainer(PSPCallback(lam=LAM))
    trainer.fit(module if wrapped is None else wrapped, batches())
    return {key.removeprefix("psp_z2_train/network.") for key in trainer.callback_metrics if "train/" in key}


@WAYS
@pytest.mark.parametrize(
    ("message", "function"),
    [
        (r"network\.atan.*'torch\.atan'", torch.atan),
        (r"network\.mul.*class of a module", lambda z: z * z),
        (r"(a torch\.autograd\.Function in network\.|Cube in the network).*class of a module", Cube.apply),
    ],
)
def test_a_function_is_named_with_the_remedy(way, message, function):
    with pytest.warns(UserWarning, match=f"No layer was found for .*{message}"):
        fitted(Model(Unseen(function)).double(), way)


class ReadsWhatOthersRead(Network):
    """A block takes the square of what a nonlinearity gave outside of it."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(Squares(), Squares())


class Squares(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x):
        return torch.tanh(self.inner(x.square()))


def blocks(module):
    for block in module.network.blocks:
        block.compile(backend="aot_eager")


def test_a_function_of_a_result_from_outside_of_the_graph_is_not_named():
    assert fitted(Model(ReadsWhatOthersRead()).double(), blocks) >= {"embed", "blocks.0.inner", "blocks.1.inner"}


@WAYS
def test_a_network_of_which_only_the_output_was_found(way):
    class Cut(Network):
        def forward(self, x):
            return self.head(self.embed(x).clamp(min=0))

    with pytest.warns(UserWarning, match="only the output was found"):
        assert fitted(Model(Cut()).double(), way) == {"head"}
