"""A training that looks at the pruned weights wherever they have to be 0."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks
from torch.utils.data import DataLoader

from lightning_psp.pruning import apply_masks, magnitude_masks, sparsity
from tests.support.pruning.networks import NETWORKS, VOCABULARY, effective_weights
from tests.support.small import quiet_trainer

Batch = tuple[Tensor, Tensor]
MakeOptimizer = Callable[[Any], torch.optim.Optimizer]


def loader_for(network: nn.Module, count: int = 3, seed: int = 0) -> DataLoader[Any]:
    """Batches of inputs and labels that fit a network of `tests.support.pruning.networks`."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count, 4), generator=generator)
    kind = type(network).__name__
    if kind == "TiedTransformer":
        inputs = torch.randint(VOCABULARY, (count, 4, 5), generator=generator)
        return DataLoader(list(zip(inputs, inputs.roll(1, 2), strict=True)), batch_size=None)
    shapes = {"LinearBesideLSTM": (6, 5), "LeNet5": (1, 28, 28), "LeNet300": (1, 28, 28), "ResNet": (3, 32, 32)}
    inputs = torch.randn(count, 4, *shapes.get(kind, (1, 8, 8)), generator=generator)
    return DataLoader(list(zip(inputs, labels, strict=True)), batch_size=None)


def adamw(**settings: Any) -> MakeOptimizer:
    return partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1, **settings)


def sgd(**settings: Any) -> MakeOptimizer:
    return partial(torch.optim.SGD, lr=0.05, weight_decay=0.1, **settings)


class Pruned(LightningModule):
    """Trains a network and keeps, in order, where its pruned weights were looked at and the largest one there.

    Args:
        network: the network.
        optimizer: makes the optimiser of some parameters.
    """

    def __init__(self, network: nn.Module, optimizer: MakeOptimizer | None = None) -> None:
        super().__init__()
        self.network = network
        self.make_optimizer = optimizer or partial(torch.optim.SGD, lr=0.05, momentum=0.9)
        self.masks: dict[str, Tensor] = {}
        self.seen: list[tuple[str, float]] = []

    def look(self, place: str) -> None:
        weights = effective_weights(self)
        # a mask that was named with `_orig_mod` or without it
        largest = [weights[name][~mask].abs().max().item() for name, mask in self.masks.items() if not mask.all()]
        assert largest
        self.seen.append((place, max(largest)))

    def loss(self, batch: Batch) -> Tensor:
        return functional.cross_entropy(self.network(batch[0]).flatten(0, -2), batch[1].flatten())

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        self.look("training step")
        loss = self.loss(batch)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        self.look("validation step")
        self.log("val_loss", self.loss(batch), batch_size=4)

    def on_train_batch_end(self, *_: Any) -> None:
        self.look("after a batch")

    def on_train_end(self) -> None:
        self.look("at the end")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make_optimizer(self.parameters())


class TwoOptimizers(Pruned):
    """Manual optimisation by two optimisers, the second after a look at what the first has done."""

    def __init__(self, network: nn.Module, optimizer: MakeOptimizer | None = None) -> None:
        super().__init__(network, optimizer)
        self.automatic_optimization = False

    def training_step(self, batch: Batch, batch_index: int) -> None:
        for optimizer in self.optimizers():
            self.look("training step")
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        parameters = list(self.parameters())
        return [self.make_optimizer(parameters[:2]), self.make_optimizer(parameters[2:])]


class Compiled(Pruned):
    """The names of its parameters have `_orig_mod` in them."""

    def __init__(self, network: nn.Module, optimizer: MakeOptimizer | None = None) -> None:
        super().__init__(torch.compile(network, backend="eager"), optimizer)


class CompiledWhole(Pruned):
    """Compiled as a whole by its own method."""

    def __init__(self, network: nn.Module, optimizer: MakeOptimizer | None = None) -> None:
        super().__init__(network, optimizer)
        self.compile(backend="eager")


def masks_for(module: Pruned, share: float = 0.6) -> dict[str, Tensor]:
    """Masks by magnitude, which the module looks at, too."""
    module.masks = magnitude_masks(module, sparsity=share)
    return module.masks


def pruned_without_masks(module: Pruned) -> None:
    """Sets the weights to 0 once, as somebody does who has no callback."""
    apply_masks(module, masks_for(module))
    assert sparsity(module).network > 0.5


def fit(module: Pruned, *callbacks: Callback, **settings: Any) -> Trainer:
    """Two epochs, each with a validation."""
    precision = None if "plugins" in settings else "32-true"
    settings = {"precision": precision, "max_epochs": 2, **settings}
    checkpoint = settings.pop("ckpt_path", None)
    network = getattr(module.network, "_orig_mod", module.network)
    trainer = quiet_trainer(*callbacks, **settings)
    trainer.fit(module, loader_for(network), loader_for(network, 1, seed=1), ckpt_path=checkpoint)
    return trainer


def assert_held(
    module: Pruned, places: tuple[str, ...] = ("training step", "validation step", "after a batch", "at the end")
) -> None:
    """The module has looked at these places, and all pruned weights were 0."""
    assert {place for place, _ in module.seen} >= set(places)
    assert [(place, largest) for place, largest in module.seen if largest != 0] == []


def lenet300(seed: int = 0) -> Pruned:
    """A LeNet-300 that looks at the weights which its masks take away."""
    torch.manual_seed(seed)
    module = Pruned(NETWORKS["lenet300"](), sgd(momentum=0.9))
    masks_for(module)
    return module


class Starts(Callback):
    """Keeps the weights that a training starts with."""

    def __init__(self) -> None:
        self.state: dict[str, Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.state = copy.deepcopy(pl_module.state_dict())


def assert_state(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """The same names and the same values, bit by bit."""
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, msg=name)


def masked(state: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under masks."""
    return {name: value * masks.get(name, 1) for name, value in state.items()}


def hooks() -> tuple[int, int]:
    """How many hooks there are on the steps of all optimisers."""
    return len(_global_optimizer_pre_hooks), len(_global_optimizer_post_hooks)
