"""Networks that users prune, small enough for tests, and the weights that their layers compute with."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torchvision.models import resnet18

from support.networks import LeNet5, LeNet300

VOCABULARY, WIDTH = 11, 8


class TiedTransformer(nn.Module):
    """A language model whose head has the weights of its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 2 * WIDTH, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(tokens)))


class LinearBesideLSTM(nn.Module):
    """An LSTM, which has no weights to prune, between linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, WIDTH)
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, sequence: Tensor) -> Tensor:
        return self.head(self.lstm(self.first(sequence).relu())[0][:, -1])


def old_weight_norm(layer: nn.Module, name: str = "weight", dim: int | None = 0) -> nn.Module:
    """Weight norm by a hook, without torch's warning that it is deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nn.utils.weight_norm(layer, name, dim)


def _with_weight_norm(weight_norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return nn.Sequential(
        weight_norm(nn.Conv2d(1, 4, 3)),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(144, 8),
        nn.ReLU(),
        weight_norm(nn.Linear(8, 3)),
    )


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "lenet300": LeNet300,
    "lenet5": LeNet5,
    "resnet18": lambda: resnet18(num_classes=10),
    "tied transformer": TiedTransformer,
    "lstm": LinearBesideLSTM,
    "weight norm": lambda: _with_weight_norm(parametrizations.weight_norm),
    "old weight norm": lambda: _with_weight_norm(old_weight_norm),
}


@torch.no_grad()
def effective_weights(network: nn.Module) -> dict[str, Tensor]:
    """The weights of linear and convolution layers, each once, by the name of the parameter that makes them."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    for part in network.modules():
        if not isinstance(part, (nn.Linear, nn.Conv2d)):
            continue
        if parametrize.is_parametrized(part):
            key, weight = part.parametrizations.weight.original1, part.weight
        elif hasattr(part, "weight_v"):
            for hook in part._forward_pre_hooks.values():
                hook(part, None)
            key, weight = part.weight_v, part.weight
        else:
            key, weight = part.weight, part.weight
        if id(key) not in seen:
            seen.add(id(key))
            found[names[id(key)]] = weight.detach().clone()
    order = {name: position for position, name in enumerate(names.values())}
    return dict(sorted(found.items(), key=lambda entry: order[entry[0]]))
