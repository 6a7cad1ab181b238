"""Recurrent networks of many settings, their loss, and the gradient by hand."""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_psp import PSPCallback
from tests.support.lightning_cases import fit
from tests.support.unrolled import BATCH, FEATURES, STEPS, Recurrent, Setting, penalty, unrolled, unrolled_cells

KINDS = ("rnn_tanh", "rnn_relu", "lstm", "gru")


SETTINGS = [
    *(Setting(kind) for kind in KINDS),
    *(Setting(kind, levels=2, bidirectional=True, batch_first=False) for kind in KINDS),
    *(Setting(kind, levels=2, packing="unsorted", readout=1) for kind in KINDS),
    *(Setting(kind, levels=3, bidirectional=True, bias=False, packing="sorted", batch_first=False) for kind in KINDS),
    *(Setting(kind, levels=3, dropout=0.5, learned_states=True) for kind in KINDS),
    *(Setting(kind, levels=2, bidirectional=True, dropout=0.5, packing="unsorted") for kind in KINDS),
    *(Setting(kind, bidirectional=True, packing="unsorted", learned_states=True, readout=1) for kind in KINDS),
    *(Setting(kind, unbatched=True, bias=False, learned_states=True) for kind in KINDS),
    Setting("gru", unbatched=True, batch_first=False, levels=2, bidirectional=True, readout=1),
    *(Setting("lstm", proj_size=2, levels=2, bidirectional=both, learned_states=both) for both in (False, True)),
    Setting("lstm", proj_size=2, bias=False, packing="unsorted", readout=1),
    Setting("lstm", levels=2, readout=2),
    Setting("lstm", bidirectional=True, packing="unsorted", readout=2, proj_size=2),
    Setting("lstm", frozen=True, levels=2),
    Setting("gru", frozen=True, learned_states=True),
]


LAM = 0.3


def built(setting: Setting) -> Recurrent:
    torch.manual_seed(0)
    return Recurrent(setting).double()


def batches(number: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(BATCH, STEPS, FEATURES, dtype=torch.float64, generator=generator) for _ in range(number)]


def loss_of(logits: Tensor) -> Tensor:
    rows = logits.flatten(0, -2)
    # the loss sees the logits as the network returned them, rows being rows of labels
    labels = torch.arange(len(rows)).remainder(2).reshape(logits.shape[:-1])
    return F.cross_entropy(logits.movedim(-1, 1) if logits.ndim > 2 else logits, labels)


def seeded_loss(network: nn.Module, batch: Tensor) -> Tensor:
    torch.manual_seed(2)  # of dropout
    return loss_of(network(batch))


def gradients_of(value: Tensor, network: nn.Module) -> dict[str, Tensor]:
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(value, list(trained.values()), allow_unused=True)
    return {k: torch.zeros_like(p) if g is None else g for (k, p), g in zip(trained.items(), found, strict=True)}


def cells_as_one_layer(network: nn.Module, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    logits, passes = unrolled_cells(network, batch)
    head = passes.pop("head")
    return logits, {"cell": torch.cat([*passes.values()]), "head": head}


def expected_gradients(
    network: nn.Module,
    batch: Tensor,
    reduction: str = "mean",
    explicit: Callable[..., Any] = unrolled,
    left_out: tuple[str, ...] = (),
) -> dict[str, Tensor]:
    network = copy.deepcopy(network)
    torch.manual_seed(2)
    logits, potentials = explicit(network, batch)
    chosen = {name: z for name, z in potentials.items() if z.requires_grad and name not in left_out}
    expected = gradients_of(loss_of(logits) + LAM * penalty(chosen, reduction), network)
    torch.manual_seed(2)
    plain = gradients_of(loss_of(explicit(network, batch)[0]), network)
    # without the gates' part of the penalty the tests would fail
    assert any((expected[name] - g).norm() > 1e-3 * expected[name].norm() for name, g in plain.items())
    return expected


def assert_equal_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-8 * gradient.norm(), name


def lightning_gradients(network: nn.Module, loss: Any, batches: list[Tensor], callback: PSPCallback, **settings: Any):
    module, trainer = fit(network, loss, batches, callback, **settings)
    return module.gradients, trainer
