"""Inside torch's modules with weights nothing is followed, and the same layers are found as if it were."""

import threading
from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_psp import record_potentials
from lightning_psp.capture import network_calls


class Tied(nn.Module):
    """One weight in two modules, and a second pass of one of them."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.first(torch.tanh(self.second(torch.relu(self.first(x)))))


class Texts(nn.Module):
    """Features in the last dimension."""

    def __init__(self):
        super().__init__()
        self.tokens, self.norm, self.out = nn.Embedding(7, 4), nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(functional.gelu(self.norm(self.tokens(x.abs().long())))).mean(1)


class ByName(nn.Module):
    """The input of a module is given by its name."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.second(input=torch.relu(self.first(input=x)))


def pair(first=None):
    return nn.Sequential(first or nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))


def with_hook(register):
    network = pair()
    register(network)
    return network


def images(*parts):
    return nn.Sequential(nn.Unflatten(1, (1, 2, 2)), *parts, nn.Flatten(), nn.LazyLinear(3))


def own_forward():
    network = pair()
    network[0].forward = lambda x: torch.sigmoid(functional.linear(x, network[0].weight))
    return network


NETWORKS = {
    "plain": pair,
    "tied": Tied,
    "texts": Texts,
    "by name": ByName,
    "convolutions": lambda: images(
        *(nn.Conv2d(1, 3, 3, padding=1, padding_mode="circular"), nn.BatchNorm2d(3), nn.ReLU(inplace=True)),
        *(nn.ConvTranspose2d(3, 4, 2), nn.GroupNorm(2, 4), nn.SiLU()),
    ),
    "no weights": lambda: pair(nn.BatchNorm1d(4, affine=False)),
    "hook before": lambda: with_hook(lambda n: n[2].register_forward_pre_hook(lambda m, x: (torch.tanh(x[0] - 1),))),
    "hook behind": lambda: with_hook(lambda n: n[0].register_forward_hook(lambda m, x, y: torch.tanh(2 * y))),
    "own forward": own_forward,
    "spectral norm": lambda: pair(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))),
    "a module alone": lambda: nn.Linear(4, 3),
}


def found(network, x, is_followed, **settings):
    torch.manual_seed(0)
    follow = patch.object(network_calls, "unit_dim_of", lambda module, inputs: None)
    with (
        follow if is_followed else patch.object(network_calls, "unit_dim_of", wraps=network_calls.unit_dim_of) as asked
    ):
        with record_potentials(network, **settings) as potentials:
            functional.cross_entropy(network(x), torch.arange(len(x)) % 3)
        return potentials, asked


@pytest.mark.parametrize("has_gradient", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_same_layers(name, has_gradient):
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    network = NETWORKS[name]()
    network(x)  # makes what is lazy
    network.eval()
    with torch.set_grad_enabled(has_gradient):
        (potentials, _), (expected, _) = (found(network, x, is_followed) for is_followed in (False, True))
    assert list(potentials) == list(expected)
    assert potentials.unit_dims == expected.unit_dims
    assert potentials.outputs == expected.outputs
    assert potentials.nonlinearities == expected.nonlinearities
    for layer, z in expected.items():
        torch.testing.assert_close(potentials[layer], z, rtol=0.0, atol=0.0)


def test_functions_that_the_user_names_are_watched_inside_modules():
    network, x = pair(), torch.randn(5, 4)
    potentials, asked = found(network, x, False, activations=(torch.nn.functional.linear,))
    assert len(potentials) > 2
    asked.assert_not_called()


def test_an_error_inside_a_module_hides_nothing_that_comes_after_it():
    network = pair()
    with record_potentials(network) as potentials:
        with pytest.raises(RuntimeError):
            network(torch.randn(5, 3))
        network(torch.randn(5, 4))
    assert {layer: len(z) for layer, z in potentials.items()} == {"0": 5, "2": 5}


def test_functions_inside_modules_are_not_looked_at():
    network, x = NETWORKS["convolutions"](), torch.randn(5, 4)
    network(x)
    with patch("lightning_psp.capture.provenance.Provenance.weigh", side_effect=AssertionError) as weigh:
        found(network, x, False)
    weigh.assert_not_called()


def test_modules_that_other_threads_run_are_none_of_the_watchs(monkeypatch):
    """Such as transforms of a loader that prepares batches in a thread."""

    class Transform(nn.Module):
        def forward(self, x):
            is_running.set()
            assert may_end.wait(10)
            return torch.tanh(x)

    def linear_meanwhile(*args):
        if not is_running.is_set():
            thread.start()
            assert is_running.wait(10)
        return linear(*args)

    network, linear = pair(), functional.linear
    is_running, may_end = threading.Event(), threading.Event()
    thread = threading.Thread(target=Transform(), args=(torch.ones(2, 4),))
    monkeypatch.setattr(functional, "linear", linear_meanwhile)
    with record_potentials(network) as potentials:
        network(torch.ones(2, 4))
        may_end.set()
        thread.join()
        network(torch.ones(3, 4))
    assert {layer: len(z) for layer, z in potentials.items()} == {"0": 5, "2": 5}
