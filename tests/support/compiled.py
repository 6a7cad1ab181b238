"""A training under `torch.compile` next to the same one without it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lightning_psp import PSPCallback
from tests.support.small import quiet_trainer

LAM = 0.3
COMPILED = [
    pytest.mark.usefixtures("fresh_compiler"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    # torch's own, where a compiled block reads what another one made
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    # where Lightning's own code breaks a graph
    pytest.mark.filterwarnings("ignore:Dynamo"),
    pytest.mark.filterwarnings("ignore:Graph break"),
]
FEATURES, HIDDEN, CLASSES, BATCH = 6, 8, 3, 4


class Block(nn.Module):
    """Overwrites its input, and gives a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(HIDDEN, HIDDEN)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(self.act(x))


class Network(nn.Module):
    """Five layers: two of blocks of one class, others by functions, and logits."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(FEATURES, HIDDEN)
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.silu(self.embed(x))
        return self.head(torch.tanh(self.blocks(x * 2.0)))


class Model(LightningModule):
    """Trains a network, and keeps the gradients of every backward pass."""

    def __init__(self, network: nn.Module | None = None) -> None:
        super().__init__()
        self.network = Network() if network is None else network
        self.gradients: list[dict[str, Tensor]] = []

    def forward(self, features: Tensor) -> Tensor:
        return self.network(features)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor | None:
        return functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        self(batch[0])

    def test_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        self(batch[0])

    def on_after_backward(self) -> None:
        self.gradients.append(
            {
                name.replace("_orig_mod.", ""): parameter.grad.clone()
                for name, parameter in self.named_parameters()
                if parameter.grad is not None
            }
        )

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)


def one_hot(labels: Tensor) -> Tensor:
    return functional.one_hot(labels, CLASSES).double()


class Loss(Model):
    """A loss given as a function of the network's output."""

    def __init__(self, loss: Callable[[Any, Tensor], Tensor], network: nn.Module | None = None) -> None:
        super().__init__(network)
        self.loss = loss

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor | None:
        return self.loss(self(batch[0]), batch[1])


def uses(loss: Callable[[Any, Tensor], Tensor], network: Callable[[], nn.Module] = Network) -> Callable[[], Loss]:
    return lambda: Loss(loss, network())


class Manual(Model):
    """Calls its backward passes and the optimiser itself."""

    def __init__(self, network: nn.Module | None = None) -> None:
        super().__init__(network)
        self.automatic_optimization = False

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor | None:
        self.optimizers().zero_grad()
        self.backward_passes(self(batch[0]), batch[1])
        self.optimizers().step()
        return None

    def backward_passes(self, logits: Any, labels: Tensor) -> None:
        self.manual_backward(functional.cross_entropy(logits, labels))


def batches(number: int = 2, last: int = BATCH, shape: tuple[int, ...] = (FEATURES,), seed: int = 0) -> DataLoader[Any]:
    """Random features and labels; the last batch may be smaller."""
    generator = torch.Generator().manual_seed(seed)
    samples = (number - 1) * BATCH + last
    features = torch.randn(samples, *shape, dtype=torch.float64, generator=generator)
    return DataLoader(
        TensorDataset(features, torch.randint(CLASSES, (samples,), generator=generator)), batch_size=BATCH
    )


@dataclass
class Trained:
    """What came of a training.

    Args:
        gradients: of each backward pass, by parameter.
        values: what was logged.
        graphs: how many graphs were compiled.
    """

    gradients: list[dict[str, Tensor]]
    values: dict[str, float]
    graphs: int


def graphs() -> int:
    """How many graphs were compiled so far."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def train(
    module: LightningModule,
    callback: PSPCallback | None = None,
    data: DataLoader[Any] | None = None,
    validation: DataLoader[Any] | None = None,
    **settings: Any,
) -> Trained:
    """Fits a module, which `torch.compile` may have wrapped."""
    before = graphs()
    trainer = quiet_trainer(*([callback] if callback else []), **settings)
    with_validation = {} if validation is None else {"val_dataloaders": validation}
    trainer.fit(module, batches() if data is None else data, **with_validation)
    values = {key: float(value) for key, value in trainer.callback_metrics.items()}
    return Trained(trainer.lightning_module.gradients, values, graphs() - before)


def assert_same_gradients(found: Trained, expected: Trained, tolerance: float = 1e-8) -> None:
    """Where a loss does not reach a parameter, compiled code gives zeros for no gradient."""
    assert len(found.gradients) == len(expected.gradients) > 0
    for mine, others in zip(found.gradients, expected.gradients, strict=True):
        assert mine.keys() >= others.keys()
        length = torch.cat([gradient.double().flatten() for gradient in others.values()]).norm()
        for name, gradient in mine.items():
            other = others.get(name, torch.zeros_like(gradient)).double()
            error = (gradient.double() - other).norm()
            assert error <= tolerance * max(other.norm(), 1e-4 * length), name


def assert_same(found: Trained, expected: Trained, tolerance: float = 1e-8) -> None:
    """The same gradients and the same logged values."""
    assert_same_gradients(found, expected, tolerance)
    assert found.values.keys() == expected.values.keys()
    for key, value in expected.values.items():
        assert abs(found.values[key] - value) <= 1e-6 * abs(value), key


def compare(
    make: Callable[[], LightningModule],
    compile_parts: Callable[[Any], Any],
    make_callback: Callable[[], PSPCallback] = lambda: PSPCallback(lam=LAM),
    tolerance: float = 1e-8,
    **arguments: Any,
) -> Trained:
    """Trains a module with and without compilation and asserts that nothing else differs.

    Args:
        make: makes the module.
        compile_parts: compiles the module or parts of it, and returns what is to be fitted if that is not the module.
        make_callback: makes the callback.
        tolerance: how far gradients may differ.
        arguments: those of `train`.
    """

    def made() -> LightningModule:
        torch.manual_seed(0)
        return make().double()

    expected = train(made(), make_callback(), **arguments)
    without = train(made(), None, **arguments)
    assert_differ(without, expected)
    module = made()
    wrapped = compile_parts(module)
    found = train(module if wrapped is None else wrapped, make_callback(), **arguments)
    assert found.graphs > 0
    assert_same(found, expected, tolerance)
    return found


def assert_differ(one: Trained, other: Trained) -> None:
    """Without the penalty the comparison would fail."""
    pairs = zip(one.gradients[0].items(), other.gradients[0].items(), strict=True)
    assert any((a - b).norm() > 1e-3 * b.norm() for (_, a), (_, b) in pairs)


def network(module: Any, **options: Any) -> None:
    module.network = torch.compile(module.network, **{"backend": "aot_eager", **options})


def network_by_method(module: Any, **options: Any) -> None:
    module.network.compile(**{"backend": "aot_eager", **options})


def module_by_method(module: Any, **options: Any) -> None:
    module.compile(**{"backend": "aot_eager", **options})


def whole_module(module: Any, **options: Any) -> Any:
    return torch.compile(module, **{"backend": "aot_eager", **options})


def blocks_by_method(module: Any, **options: Any) -> None:
    for block in module.network.blocks:
        block.compile(**{"backend": "aot_eager", **options})


def blocks_wrapped(module: Any, **options: Any) -> None:
    blocks = module.network.blocks
    for number, block in enumerate(blocks):
        blocks[number] = torch.compile(block, **{"backend": "aot_eager", **options})


def nested(module: Any, **options: Any) -> None:
    blocks_by_method(module, **options)
    network(module, **options)


def forward_of_network(module: Any, **options: Any) -> None:
    module.network.forward = torch.compile(module.network.forward, **{"backend": "aot_eager", **options})


def function(module: Any, **options: Any) -> None:
    inner = module.network

    @torch.compile(**{"backend": "aot_eager", **options})
    def compute(features: Tensor) -> Tensor:
        result: Tensor = inner(features)
        return result

    module.forward = compute


def step(module: Any, **options: Any) -> None:
    module.training_step = torch.compile(module.training_step, **{"backend": "aot_eager", **options})


WAYS = [
    network,
    network_by_method,
    module_by_method,
    whole_module,
    blocks_by_method,
    blocks_wrapped,
    nested,
    forward_of_network,
    function,
    step,
]
