"""Choice of layers, reductions and layers of other kinds, compiled, against the same without."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_psp import PSPCallback
from tests.support.compiled import (
    BATCH,
    COMPILED,
    FEATURES,
    HIDDEN,
    LAM,
    Model,
    Network,
    batches,
    compare,
    network,
    step,
    whole_module,
)
from tests.support.small import quiet_trainer

pytestmark = COMPILED


@pytest.mark.parametrize(
    "settings",
    [
        {"layer_lam": {"network.blocks*": 0.0, "network.head": 0.5}},
        {"exclude": ["network.blocks*"]},
        {"output": False},
    ],
)
def test_choice_of_layers(settings):
    compare(Model, network, lambda: PSPCallback(lam=LAM, **settings))


class Convolutions(Network):
    """Units in dimension 1 of a batch norm, and in the last of a linear map of three dimensions."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Conv1d(2, HIDDEN, 3, padding=1), nn.BatchNorm1d(HIDDEN)
        self.tokens = nn.Linear(FEATURES, 5)

    def forward(self, x):
        x = functional.relu(self.norm(self.embed(x)), inplace=True)
        x = functional.silu(self.tokens(x)).mean(-1)
        return self.head(torch.tanh(self.blocks(x * 2.0)))


@pytest.mark.parametrize(
    "reduction", [*(pytest.param(r, marks=pytest.mark.slow) for r in ("mean", "squared_mean")), "sum"]
)
@pytest.mark.parametrize("way", [step, pytest.param(network, marks=pytest.mark.slow)])
def test_reductions(reduction, way):
    data = batches(2, last=BATCH - 1, shape=(2, FEATURES))
    compare(lambda: Model(Convolutions()), way, lambda: PSPCallback(lam=LAM, reduction=reduction), data=data)


class Evaluated(Model):
    """Nothing uses what the network returns in validation."""

    def __init__(self):
        super().__init__()
        self.network.blocks = nn.Sequential(
            nn.Unflatten(1, (1, HIDDEN)), nn.TransformerEncoderLayer(HIDDEN, 2, 16, dropout=0.0, batch_first=True)
        )
        self.network.blocks.append(nn.Flatten())


@pytest.mark.parametrize("way", [network, whole_module])
def test_validation(way):
    trained = compare(Evaluated, way, validation=batches(2, last=3), max_epochs=2)
    assert "psp_z2_val/network.blocks.1.linear1" in trained.values


class Recurrent(Network):
    def __init__(self, make):
        super().__init__()
        self.recurrent = make(HIDDEN, HIDDEN)

    def forward(self, x):
        x = functional.silu(self.embed(x))
        x = self.recurrent(x[:, None])[0][:, 0] if isinstance(self.recurrent, nn.LSTM) else self.recurrent(x)
        return self.head(x * 2.0)


def test_a_recurrent_layer_inside_breaks_the_graph():
    def make():
        return Model(Recurrent(lambda *sizes: nn.LSTM(*sizes, batch_first=True)))

    assert "psp_z2_train/network.recurrent" in compare(make, network).values


def test_a_recurrent_cell_inside_is_refused_with_the_remedy():
    def make():
        return Model(Recurrent(nn.GRUCell))

    module = make().double()
    network(module)
    with pytest.raises(Exception, match=r"'network.recurrent'.*torch.compiler.disable"):
        quiet_trainer(PSPCallback(lam=LAM)).fit(module, batches())

    def follow(module):
        cell = module.network.recurrent
        cell.forward = torch.compiler.disable(cell.forward)
        network(module)

    compare(make, follow)


class Checkpointed(Network):
    def forward(self, x):
        x = functional.silu(self.embed(x))
        x = torch.utils.checkpoint.checkpoint(self.inner, x, use_reentrant=False)
        return self.head(torch.tanh(x))

    def inner(self, x):
        return self.blocks(x * 2.0)


def test_a_checkpoint_inside_is_refused_with_the_remedy():
    def make():
        return Model(Checkpointed())

    module = make().double()
    network(module)
    with pytest.raises(Exception, match=r"'network.relu'.*activation checkpoint.*torch.compiler.disable"):
        quiet_trainer(PSPCallback(lam=LAM)).fit(module, batches())

    def follow(module):
        module.network.inner = torch.compiler.disable(module.network.inner)
        network(module)

    compare(make, follow)


class CheckpointsItsBlocks(Network):
    def forward(self, x):
        x = functional.silu(self.embed(x))
        return self.head(torch.tanh(torch.utils.checkpoint.checkpoint(self.blocks, x, use_reentrant=False)))


def test_a_checkpoint_around_compiled_code_is_refused_with_the_remedy():
    module = Model(CheckpointsItsBlocks()).double()
    module.network.blocks.compile(backend="aot_eager")

    with pytest.raises(NotImplementedError, match=r"'network.blocks.*Compile this part .* or checkpoint it, not both"):
        quiet_trainer(PSPCallback(lam=LAM)).fit(module, batches())
