"""Networks that run parts of themselves as activation checkpoints, of either kind."""

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn

from tests.support.cases import Case, classification_batch, cross_entropy
from tests.support.cases.structures import loss_inside

KINDS = pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "reentrant"])
GLOBALS = [name for name in vars(torch.utils.checkpoint) if name.startswith("_checkpoint_without_reentrant")] + [
    "CheckpointFunction"
]
ORIGINALS = {name: getattr(torch.utils.checkpoint, name) for name in GLOBALS}


def originals_are_back() -> bool:
    return all(getattr(torch.utils.checkpoint, name) is original for name, original in ORIGINALS.items())


class Checkpoint(nn.Module):
    """Runs a module as a checkpoint."""

    def __init__(self, part: nn.Module, reentrant: bool, **settings: Any) -> None:
        super().__init__()
        self.part, self.reentrant, self.settings = part, reentrant, settings

    def forward(self, *inputs: Tensor) -> Any:
        return torch.utils.checkpoint.checkpoint(self.part, *inputs, use_reentrant=self.reentrant, **self.settings)


class Styles(nn.Module):
    """Activations in all the ways in which they are written."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(7))
        self.relu, self.gelu = nn.ReLU(inplace=True), nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        a, b, c, d, e, f, g = self.layers
        x = self.gelu(b(self.relu(a(x))))
        x = F.leaky_relu(c(x), 0.1, inplace=True)
        x = d(x).sigmoid_()
        z = e(x)
        F.elu(z.view(-1, 8), inplace=True)
        x = F.silu(f(z))
        y = g(x)
        return F.relu(input=y)


class Branches(nn.Module):
    """Gives a tuple; one branch is cut off."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.cut = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, int]:
        left, right = F.relu(self.left(x), inplace=True), torch.tanh(self.right(y))
        return left + F.softplus(self.cut(x)).detach(), right, 3


class Joined(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.branches = Checkpoint(Branches(), reentrant)

    def forward(self, x: Tensor) -> Tensor:
        left, right, factor = self.branches(x, F.silu(x))
        return factor * left * right


class Twice(nn.Module):
    """Two blocks; the second nonlinearity lies outside the checkpoint, the first one at its entrance."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.one, self.two = (
            Checkpoint(nn.Sequential(nn.Tanh(), nn.Linear(8, 8), nn.ELU(), nn.Linear(8, 8)), reentrant)
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.two(F.relu(self.one(x))), inplace=True)


class Segments(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.parts = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True)) for _ in range(5)))
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        return torch.utils.checkpoint.checkpoint_sequential(self.parts, 3, x, use_reentrant=self.reentrant)


class LossOfHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.head(F.relu(self.hidden(x), inplace=True)), labels)


class LossInCheckpoint(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.first, self.loss = nn.Linear(6, 8), Checkpoint(LossOfHead(), reentrant)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return self.loss(torch.tanh(self.first(x)), labels)


class Offloaded(nn.Module):
    """Keeps tensors for the backward pass by hooks of its own, which hold what lies on the CPU already as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.part = layer()

    def forward(self, x: Tensor) -> Tensor:
        with torch.autograd.graph.save_on_cpu():
            return self.part(x)


def layer() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8), nn.ReLU(inplace=True))


def around(part: nn.Module) -> nn.Module:
    """A network that ends and begins outside the part."""
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), part, nn.Linear(8, 3))


def checkpointed(part: Any, reentrant: bool) -> nn.Module:
    return around(Checkpoint(part(), reentrant))


def nested(reentrant: bool) -> nn.Module:
    inner = Checkpoint(nn.Sequential(layer(), Checkpoint(layer(), reentrant), nn.Dropout(0.3), layer()), reentrant)
    return around(Checkpoint(nn.Sequential(layer(), inner, layer()), reentrant))


def frozen(reentrant: bool) -> nn.Module:
    network = nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), Checkpoint(layer(), reentrant), nn.Linear(8, 3)
    )
    network[0].requires_grad_(False)
    return network


def encoder(reentrant: bool) -> nn.Module:
    layers = [nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True) for _ in range(2)]
    return nn.Sequential(nn.Linear(6, 8), *(Checkpoint(part, reentrant) for part in layers), nn.Linear(8, 3))


def resnet18(reentrant: bool) -> nn.Module:
    from torchvision import models

    network = models.resnet18(num_classes=3)
    for name in ("layer1", "layer2", "layer3", "layer4"):
        setattr(network, name, Checkpoint(getattr(network, name), reentrant))
    return network


def seeded(network: nn.Module, batch: Any) -> Tensor:
    torch.manual_seed(3)  # for dropout
    return cross_entropy(network, batch)


def seeded_tokens(network: nn.Module, batch: Any) -> Tensor:
    torch.manual_seed(3)
    return F.cross_entropy(network(batch[0]).transpose(1, 2), batch[1])


flat = partial(classification_batch, 5, 6)


def checkpoint_cases(reentrant: bool) -> dict[str, Case]:
    tokens = Case(
        "encoder",
        partial(encoder, reentrant),
        lambda: (torch.randn(3, 4, 6), torch.randint(3, (3, 4))),
        seeded_tokens,
    )
    images = Case(
        "resnet18", partial(resnet18, reentrant), partial(classification_batch, 2, 3, 32, 32), needs_torchvision=True
    )
    inside = Case("loss", partial(LossInCheckpoint, reentrant), flat, loss_inside, output_layer="softmax")
    networks = {
        "styles": partial(checkpointed, Styles, reentrant),
        "dropout": lambda: around(Checkpoint(nn.Sequential(layer(), nn.Dropout(0.5), layer()), reentrant)),
        "branches": lambda: around(Joined(reentrant)),
        "twice": lambda: around(Twice(reentrant)),
        "segments": lambda: around(Segments(reentrant)),
        "nested": partial(nested, reentrant),
        "offloaded": partial(checkpointed, Offloaded, reentrant),
        "frozen": partial(frozen, reentrant),
    }
    plain = [
        Case(name, network, flat, seeded, partly_live=name in ("branches", "frozen"))
        for name, network in networks.items()
    ]
    return {case.name: case for case in [*plain, tokens, images, inside]}
