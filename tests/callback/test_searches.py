"""Lightning's searches for learning rate and batch size run without callbacks, and the remedy that is documented."""

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.tuner import Tuner
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lightning_psp import PSPCallback, psp_penalty, record_potentials

LAM = 0.7


class Plain(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.hidden = nn.Linear(6, 8)
        self.head = nn.Linear(8, 3)
        self.lr = 0.1
        self.batch_size = 4
        self.gradients = []

    def forward(self, inputs):
        return self.head(torch.relu(self.hidden(inputs)))

    def training_step(self, batch, batch_index):
        return functional.cross_entropy(self(batch[0]), batch[1])

    def on_before_optimizer_step(self, optimizer):
        self.gradients.append([weight.grad.clone() for weight in self.parameters()])

    def train_dataloader(self):
        torch.manual_seed(1)
        return DataLoader(TensorDataset(torch.randn(12, 6), torch.arange(12) % 3), batch_size=self.batch_size)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Penalised(Plain):
    def training_step(self, batch, batch_index):
        with record_potentials(self) as potentials:
            loss = super().training_step(batch, batch_index)
        return loss + LAM * psp_penalty(potentials)


def trainer(folder, *callbacks):
    return Trainer(
        max_epochs=1,
        default_root_dir=folder,
        callbacks=[*callbacks],
        accelerator="cpu",
        precision="64-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def fitted(folder, module, *callbacks):
    trainer(folder, *callbacks).fit(module)
    return module.gradients


def rates(folder, module, *callbacks):
    Tuner(trainer(folder, *callbacks)).lr_find(module, num_training=4, update_attr=False)
    return module.gradients


def sizes(folder, module, *callbacks):
    Tuner(trainer(folder, *callbacks)).scale_batch_size(module, max_trials=1, steps_per_trial=2)
    return module.gradients


def test_the_penalised_step_has_the_gradients_of_the_callback(tmp_path):
    expected = fitted(tmp_path, Plain(), PSPCallback(lam=LAM))
    torch.testing.assert_close(fitted(tmp_path, Penalised()), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.filterwarnings("ignore:.*learning rate:UserWarning")
@pytest.mark.parametrize("search", [rates, sizes])
def test_a_search_sees_the_penalised_step_and_no_callback(tmp_path, search):
    """Should Lightning keep callbacks one day, the page on logging has to say so."""
    plain = search(tmp_path, Plain())
    assert len(plain) > 1
    torch.testing.assert_close(search(tmp_path, Plain(), PSPCallback(lam=LAM)), plain, rtol=0, atol=0)
    penalised = search(tmp_path, Penalised())
    assert not torch.allclose(penalised[0][0], plain[0][0])
    torch.testing.assert_close(penalised[0], fitted(tmp_path, Plain(), PSPCallback(lam=LAM))[0], rtol=1e-12, atol=1e-14)
