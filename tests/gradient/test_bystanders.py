"""What happens beside the one forward and backward pass of a step: more passes, targets, calls without gradient."""

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_psp import PSPCallback, record_potentials
from tests.support.cases import REDUCTIONS, cross_entropy
from tests.support.gradients import assert_equal_gradients
from tests.support.lightning_cases import Training
from tests.support.reference import reference_step


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(6, 4, dtype=torch.float64), torch.randint(3, (6,))


def fit(module: Training, callback: PSPCallback) -> Trainer:
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[callback],
        precision="64-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader([batch()], batch_size=None)
    trainer.fit(module, loader, loader if isinstance(module, SquashesTargets) else None)
    return trainer


class Twice(Training):
    """Goes back through one loss twice."""

    def backward(self, loss: Tensor) -> None:
        loss.backward(retain_graph=True)
        loss.backward()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("output", [True, False])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_second_pass_from_one_loss_adds_no_penalty(reduction, output, is_compiled):
    step = reference_step(network(), cross_entropy, batch(), reduction, "output" if output else "activation")
    lam = step.balanced_lam()
    expected = {name: 2 * step.loss_gradients[name] + lam * g for name, g in step.penalty_gradients.items()}
    made = torch.compile(network(), backend="aot_eager") if is_compiled else network()
    module = Twice(made, cross_entropy)

    fit(module, PSPCallback(lam=lam, reduction=reduction, output=output))

    (gradients,) = module.gradients
    found = {name.replace("_orig_mod.", ""): gradient for name, gradient in gradients.items()}
    assert_equal_gradients(found, expected, 1e-8)


class SquashesTargets(Training):
    """Applies a nonlinearity to data in its steps."""

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, _ = batch
        return F.mse_loss(self.network(inputs), torch.sigmoid(100 * inputs[:, :3]))

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        self.training_step(batch)


def test_a_nonlinearity_of_data_in_the_step_is_no_layer():
    trainer = fit(SquashesTargets(network(), cross_entropy), PSPCallback(lam=0.1))

    layers = {name for name in trainer.callback_metrics if name.startswith("psp_z2")}
    assert layers == {f"psp_z2_{stage}/network.{layer}" for stage in ("train", "val") for layer in "02"}


def test_a_call_without_gradient_in_a_block_with_gradient_is_an_error_with_the_remedy():
    made = network()
    with (
        pytest.raises(ValueError, match=r"with torch.no_grad\(\), record_potentials"),
        record_potentials(made),
        torch.no_grad(),
    ):
        made(batch()[0])


class RecordsItself(Training):
    """Records its potentials in its steps."""

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        with record_potentials(self.network) as potentials:
            loss = super().training_step(batch)
        assert list(potentials) == ["0", "2"]
        return loss


def test_recording_in_a_penalised_step_leaves_the_penalty_as_it_is():
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)).double()
    step = reference_step(made, cross_entropy, batch())
    module = RecordsItself(made, cross_entropy)

    fit(module, PSPCallback(lam=0.5))

    (gradients,) = module.gradients
    assert_equal_gradients(gradients, step.gradients(0.5), 1e-8)


class Masked(nn.Module):
    """Some of its potentials are minus infinity, which their nonlinearity makes zeros of."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.tensor([-torch.inf, 0.0, 0.0, 0.0, -torch.inf])
        return self.second(torch.sigmoid(self.first(x) + mask))


@pytest.mark.filterwarnings("ignore:The potentials of layer 'network.sigmoid' hold NaN or infinity")
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("is_compiled", [False, True])
def test_watching_alone_leaves_gradients_at_infinite_potentials(is_compiled):
    torch.manual_seed(0)
    made = Masked().double()
    expected = reference_step(made, cross_entropy, batch()).loss_gradients
    module = Training(torch.compile(made, backend="aot_eager") if is_compiled else made, cross_entropy)

    fit(module, PSPCallback(lam=0.0))

    (gradients,) = module.gradients
    found = {name.replace("_orig_mod.", ""): gradient for name, gradient in gradients.items()}
    assert_equal_gradients(found, expected, 1e-8)
