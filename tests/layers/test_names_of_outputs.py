"""An output that no module with weights gave has the name of the module that returned it, whatever the loss is."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_psp import PSPCallback
from tests.support.layers.case import LayerCase
from tests.support.layers.cases_outputs import FEATURES, Trunk
from tests.support.layers.watched import fit, logged_layers, recorded

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")


class Two(nn.Module):
    """The sum of what two networks give."""

    def __init__(self):
        super().__init__()
        self.one, self.other = Trunk(3), Trunk(3)

    def forward(self, x):
        return self.one(x) + self.other(x)


class Around(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.unused = Two(), nn.Linear(1, 1)

    def forward(self, x):
        return self.inner(x)


LOSSES = {
    "by hand": lambda y, labels: y.square().mean(),
    "mse_loss": lambda y, labels: functional.mse_loss(y, torch.zeros_like(y)),
    "cross_entropy": functional.cross_entropy,
    "of a multiple": lambda y, labels: functional.cross_entropy(y / 2, labels),
    "of a sigmoid": lambda y, labels: functional.binary_cross_entropy(y.sigmoid(), torch.ones_like(y)),
}


@pytest.mark.parametrize(("network", "name"), [(Two, ""), (Around, "inner")])
@pytest.mark.parametrize("loss", LOSSES)
def test_name(loss, network, name):
    case = LayerCase(
        loss,
        network,
        lambda: (torch.randn(4, FEATURES), torch.randint(3, (4,))),
        lambda network, batch: LOSSES[loss](network(batch[0]), batch[1]),
        lambda network, batch: None,
    )
    hidden = {f"{name}.{tower}.first".lstrip(".") for tower in ("one", "other")}
    assert set(recorded(case)[2]) == hidden | {name or "output"}
    in_module = {f"network.{layer}" for layer in hidden} | {f"network.{name}".rstrip(".")}
    assert set(recorded(case, by_module=True)[2]) == in_module
    assert set(logged_layers(fit(case, PSPCallback(lam=0.1))[1])) == in_module
