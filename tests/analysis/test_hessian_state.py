"""What the Hessian's measures leave as it was, and what they refuse."""

from __future__ import annotations

import gc
import random
import sys
import weakref

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_psp.analysis import hessian_eigenvalues, hessian_trace
from lightning_psp.analysis import hessian_products as products_module
from tests.support.cases import cross_entropy


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.norm, self.fc2 = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x):
        return self.fc2(torch.tanh(self.norm(self.fc1(x))))


def batches(*sizes):
    return [(torch.randn(size, 6), torch.randint(3, (size,))) for size in sizes]


def state_of(network, generator):
    """Everything that has to be as it was, in values that compare."""
    tensors = [*network.parameters(), *network.buffers()]
    return {
        "values": [(id(tensor), tensor._version, tensor.tolist()) for tensor in tensors],
        "gradients": [(id(weight.grad), str(weight.grad)) for weight in network.parameters()],
        "flags": [weight.requires_grad for weight in network.parameters()],
        "modes": [part.training for part in network.modules()],
        "hooks": [
            len(hooks)
            for part in network.modules()
            for hooks in (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks)
        ],
        "random": [torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())],
        "generator": generator.get_state().tolist(),
        "torch": [
            torch.is_grad_enabled(),
            torch.backends.cudnn.enabled,
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.mem_efficient_sdp_enabled(),
        ],
    }


def network_in_use():
    network = Network()
    network.fc2.eval()
    network.fc1.bias.requires_grad_(False)
    network(torch.randn(5, 6)).sum().backward()
    return network


@pytest.mark.parametrize("most_bytes", [0, 2**31])
@pytest.mark.parametrize("fails", [None, ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("lam", [0.0, 0.1])
@pytest.mark.parametrize("measure", [hessian_eigenvalues, hessian_trace])
def test_everything_is_as_it_was(monkeypatch, measure, lam, fails, most_bytes):
    monkeypatch.setattr(products_module, "MOST_KEPT_BYTES", most_bytes)
    network, (batch,), calls = network_in_use(), batches(20), []
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(TensorDataset(*batch), batch_size=8, shuffle=True, generator=generator)

    def loss(network, batch):
        calls.append(network.training)
        if fails and len(calls) > 2:
            raise fails
        torch.rand(1), random.random(), np.random.rand()
        return cross_entropy(network, batch)

    with torch.no_grad():
        before = state_of(network, generator)
        if fails:
            with pytest.raises(fails):
                measure(network, loader, loss=loss, lam=lam)
        else:
            measure(network, loader, loss=loss, lam=lam)
        assert state_of(network, generator) == before
    assert calls
    assert not any(calls)


def test_kept_graphs_are_let_go():
    network, held = Network(), []

    def loss(network, batch):
        held.append(weakref.ref(output := network(batch[0])))
        return nn.functional.cross_entropy(output, batch[1])

    gc.collect()
    gc.disable()
    try:
        hessian_eigenvalues(network, batches(8, 8), loss=loss, k=1)
        assert len(held) == 2
        assert not any(reference() is not None for reference in held)
    finally:
        gc.enable()


def test_batches_go_to_the_device_of_the_network(monkeypatch):
    # The device without memory, which is refused, stands for an accelerator.
    for module in ("hessian_products", "unchanged"):
        monkeypatch.setattr(f"lightning_psp.analysis.{module}.refuse_lazy", lambda name, tensor: None)
    network, devices = Network().to("meta"), []

    def loss(network, batch):
        devices.append(batch["deep"][0].device.type)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        hessian_trace(network, [{"deep": [torch.ones(2, 6)]}], loss=loss)
    assert devices == ["meta"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"k": 0}, ValueError, "Expected argument `k` to be at least 1 but got 0"),
        ({"k": 1.5}, TypeError, "Expected argument `k` to be an integer but got 1.5"),
        ({"k": 1000}, ValueError, "Expected argument `k` to be at most 99, .* but got 1000"),
        ({"tolerance": 0}, ValueError, "Expected argument `tolerance` to be a finite number above 0 but got 0"),
        ({"lam": -1}, ValueError, "Expected argument `lam` to be a finite number of at least 0 but got -1"),
        ({"reduction": "max"}, ValueError, "Expected argument `reduction` to be one of .* but got 'max'"),
        ({"seed": -1}, ValueError, "Expected argument `seed` to be at least 0 but got -1"),
        ({"loss": 3}, TypeError, "Expected argument `loss` to be a function .* but got int"),
        ({"data": iter([])}, TypeError, "Expected argument `data` to be an iterable that starts again"),
        ({"data": [(torch.ones(2, 6), torch.tensor([1, -100]))]}, ValueError, "class for each sample .* -100, which"),
        ({"data": []}, ValueError, "Expected argument `data` to give at least one batch"),
        ({"masks": {"fc3.weight": torch.ones(1).bool()}}, ValueError, "Expected argument `masks` .* got 'fc3.weight'"),
        ({"masks": {"fc1.bias": torch.ones(7).bool()}}, ValueError, r"\(8,\) but got \(7,\)"),
        ({"masks": {"fc1.bias": torch.ones(8)}}, (TypeError, ValueError), "mask.* bool"),
        ({"loss": lambda network, batch: network(batch[0])}, ValueError, "`loss` to give .* one number .*shape"),
        ({"loss": lambda network, batch: 0.5}, ValueError, "`loss` to give a tensor with one number but got float"),
        ({"loss": lambda network, batch: torch.tensor(1.0)}, ValueError, "without graph"),
        ({"loss": lambda network, batch: network.fc1.weight.sum() / 0}, ValueError, "finite loss but got"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    arguments = {"data": batches(4), **arguments}
    with pytest.raises(error, match=message):
        hessian_eigenvalues(Network(), **arguments)


def test_what_has_no_weights_to_differentiate():
    network = Network().requires_grad_(False)
    with pytest.raises(ValueError, match="`module` to have a parameter that asks for a gradient"):
        hessian_trace(network, batches(4))
    masks = {name: torch.zeros_like(weight, dtype=torch.bool) for name, weight in Network().named_parameters()}
    with pytest.raises(ValueError, match="`masks` to keep at least one weight"):
        hessian_trace(Network(), batches(4), masks=masks)
    with pytest.raises(TypeError, match=r"'weight' to be real floating point but got torch\.complex64"):
        hessian_trace(nn.Linear(2, 2, dtype=torch.complex64), batches(4))
    with pytest.raises(ValueError, match="`samples` to be at least 2 but got 1"):
        hessian_trace(Network(), batches(4), samples=1)
    with pytest.raises(ValueError, match="'weight' is not made yet"):
        hessian_trace(nn.LazyLinear(2), batches(4))
    with pytest.raises(ValueError, match="'weight' is on the meta device, without numbers"):
        hessian_trace(nn.Linear(2, 2, device="meta"), batches(4))


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


@pytest.mark.parametrize("measure", [hessian_eigenvalues, hessian_trace])
def test_second_derivatives_that_are_wrong(measure):
    """Autograd takes the derivative of such a function for a constant, without a word."""

    def loss(network, batch):
        return cross_entropy(lambda x: network.fc2(Once.apply(network.fc1(x))), batch)

    with pytest.raises(RuntimeError, match="wrong second derivative"):
        measure(Network(), batches(8), loss=loss)


@pytest.mark.parametrize("measure", [hessian_eigenvalues, hessian_trace])
def test_second_derivatives_that_torch_does_not_have(measure):
    def loss(network, batch):
        return nn.functional.multi_margin_loss(network(batch[0]), batch[1])

    with pytest.raises(NotImplementedError, match=r"cannot be differentiated twice, .*multi_margin_loss_backward"):
        measure(Network(), batches(8), loss=loss)


@pytest.mark.parametrize("measure", [hessian_eigenvalues, hessian_trace])
def test_data_that_are_fewer_in_a_later_pass(monkeypatch, measure):
    class Shrinking:
        passes = 0

        def __iter__(self):
            self.passes += 1
            return iter(batches(8, 4)[: 3 - self.passes])

    monkeypatch.setattr(products_module, "MOST_KEPT_BYTES", 0)
    with pytest.raises(ValueError, match="the same samples in every pass but got 12 in one and 8 in another"):
        measure(Network(), Shrinking())


@pytest.mark.parametrize("measure", [hessian_eigenvalues, hessian_trace])
def test_weights_in_the_same_memory(measure):
    network = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    network[2].weight.data = network[0].weight.data
    with pytest.raises(ValueError, match=r"'2\.weight' lies in the memory of '0\.weight'.* one parameter of both"):
        measure(network, batches(4))
    network[2].weight = network[0].weight
    measure(network, batches(4))


@pytest.mark.parametrize("measure", [hessian_eigenvalues, hessian_trace])
def test_weights_that_are_not_finite(measure):
    network = Network()
    network.fc1.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="Expected argument `loss` to give a finite loss but got nan"):
        measure(network, batches(4))

    def loss(network, batch):
        return network.fc1.weight.abs().pow(1.5).sum()  # whose second derivative at 0 is infinite

    network.fc1.weight.data.zero_()
    with pytest.raises(ValueError, match="not finite"):
        measure(network, batches(4), loss=loss)


def test_eigenvalues_that_have_not_converged():
    with pytest.raises(RuntimeError, match=r"converged.* residuals .* are .*, and `tolerance=1e-12` asks for") as error:
        hessian_eigenvalues(Network(), batches(40), k=2, tolerance=1e-12)
    assert "float64" in str(error.value)


def test_without_scipy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.sparse.linalg", None)
    with pytest.raises(ImportError, match=r"`hessian_eigenvalues` needs SciPy, .*'lightning_psp\[analysis\]'"):
        hessian_eigenvalues(Network(), batches(4))
    assert isinstance(hessian_trace(Network(), batches(4)).value, float)


def test_gradients_of_the_user_are_not_asked_for_by_hooks():
    network, seen = Network(), []
    network.fc1.weight.register_post_accumulate_grad_hook(lambda weight: seen.append(weight))
    hessian_trace(network, batches(4), samples=2)
    assert not seen
    assert all(isinstance(weight, Tensor) and weight.grad is None for weight in network.parameters())
