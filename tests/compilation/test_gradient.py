"""Networks under `torch.compile`, against the explicit reference: some of all cases, and all with `-m slow`."""

import pytest
import torch
from torch import nn

from lightning_psp import PSPCallback
from tests.support.cases import Case
from tests.support.cases.activations import ACTIVATION_CASES
from tests.support.cases.structures import STRUCTURE_CASES
from tests.support.cases.torchvision import TORCHVISION_CASES
from tests.support.gradients import assert_equal_gradients, assert_matters
from tests.support.lightning_cases import fit
from tests.support.reference import reference_step

pytestmark = [
    pytest.mark.usefixtures("fresh_compiler"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
QUICK = {
    "ReLU in place",
    "LeNet-5",
    "residual sum, functional in place",
    "view in place",
    "overwritten and used",
    "encoder layer, gelu, pre-norm",
    "checkpoint, non-reentrant",
    "loss inside the network",
    "two heads",
    "triplet",
}
CASES = ACTIVATION_CASES + STRUCTURE_CASES + TORCHVISION_CASES


def compiled(network: nn.Module, **options) -> nn.Module:
    return torch.compile(network, **{"backend": "aot_eager", **options})


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case.name in QUICK else pytest.mark.slow) for case in CASES], ids=str
)
@pytest.mark.filterwarnings("ignore:Of a network of several layers, only the output was found")
def test_gradient_in_lightning(case: Case):
    network, (batch,) = case.build()
    step = reference_step(network, case.loss, batch, output_layer=case.output_layer)
    lam = step.balanced_lam()
    assert_matters(step, lam)

    if case.name.startswith("checkpoint"):
        with pytest.raises(Exception, match=r"activation checkpoint.*torch.compiler.disable"):
            fit(compiled(network), case.loss, [batch], PSPCallback(lam=lam))
        return
    module, trainer = fit(compiled(network), case.loss, [batch], PSPCallback(lam=lam))

    (gradients,) = module.gradients
    gradients = {name.replace("_orig_mod.", ""): gradient for name, gradient in gradients.items()}
    assert_equal_gradients(gradients, step.gradients(lam), 1e-8)
    layers = [key for key in trainer.callback_metrics if key.startswith("psp_z2_train/")]
    assert len(layers) == len(step.potentials)
    if case.names is not None:
        assert set(layers) == {f"psp_z2_train/network.{name}" for name in case.names}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_torchvision_under_inductor(name):
    pytest.importorskip("torchvision")
    case = next(case for case in TORCHVISION_CASES if case.name == name)
    network, (batch,) = case.build()
    step = reference_step(network, case.loss, batch, output_layer=case.output_layer)
    lam = step.balanced_lam()
    module, _ = fit(compiled(network, backend="inductor"), case.loss, [batch], PSPCallback(lam=lam))
    (gradients,) = module.gradients
    gradients = {name.replace("_orig_mod.", ""): gradient for name, gradient in gradients.items()}
    assert_equal_gradients(gradients, step.gradients(lam), 1e-8)
