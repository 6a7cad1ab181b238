"""Solvers, neurons, layers and policies of libraries in networks of one's own: what a call of them does to layers."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.libraries.check import Case, Row
from tests.libraries.plain.network import Made, network
from tests.libraries.taps import Layer, into, out, outs


class Field(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y)


class Solved(nn.Module):
    """A neural ODE between two linear maps."""

    def __init__(self, adjoint: bool) -> None:
        super().__init__()
        self.first, self.field, self.head, self.adjoint = nn.Linear(3, 4), Field(), nn.Linear(4, 2), adjoint

    def forward(self, x: Tensor) -> Tensor:
        import torchdiffeq

        solve = torchdiffeq.odeint_adjoint if self.adjoint else torchdiffeq.odeint
        times = torch.tensor([0.0, 0.5, 1.0])
        return self.head(solve(self.field, torch.relu(self.first(x)), times, method="rk4")[-1])


def solved(adjoint: bool) -> Made:
    x, y = torch.randn(6, 3), torch.randn(6, 2)
    return Solved(adjoint), lambda n: F.mse_loss(n(x), y)


class Spiking(nn.Module):
    """Two layers of leaky neurons over four steps, of which the last layer's membranes are the logits."""

    def __init__(self) -> None:
        import snntorch

        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 2)
        self.neurons, self.readout = (snntorch.Leaky(beta=0.9, threshold=0.1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        hidden, membrane, found = self.neurons.reset_mem(), self.readout.reset_mem(), []
        for _ in range(4):
            spikes, hidden = self.neurons(self.first(x), hidden)
            _, membrane = self.readout(self.last(spikes), membrane)
            found.append(membrane)
        return torch.stack(found)


MEMBRANES = Layer("membranes", out("").taps, named=False)


def spiking() -> Made:
    x, labels = torch.randn(7, 3), torch.randint(0, 2, (7,))
    return Spiking(), lambda n: sum(F.cross_entropy(membrane, labels) for membrane in n(x))


def named_neurons() -> Case:
    import snntorch

    net, step = spiking()
    return Case(net.double().train(), step, [*outs("first", "last"), MEMBRANES], activations=(snntorch.Leaky,))


def rearranged() -> Made:
    """Layers of einops between linear maps and nonlinearities."""
    from einops.layers.torch import EinMix, Rearrange, Reduce

    net = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        Rearrange("b c h w -> b h w c"),
        nn.GELU(),
        EinMix("b h w c -> b h w d", weight_shape="c d", bias_shape="d", c=4, d=6),
        Rearrange("b h w d -> b d h w"),
        nn.ReLU(),
        Reduce("b d (h i) (w j) -> b (d h w)", "max", i=2, j=2),
        nn.Linear(24, 3),
    )
    images, labels = torch.randn(5, 1, 6, 6), torch.randint(0, 3, (5,))
    return net, lambda n: F.cross_entropy(n(images), labels)


def splines() -> Made:
    """A Kolmogorov-Arnold network: a SiLU and splines on each edge."""
    from kan import KAN

    settings = {"auto_save": False, "symbolic_enabled": False, "save_act": False}
    x, y = torch.rand(7, 3), torch.randn(7, 2)
    return KAN(width=[3, 4, 2], grid=3, k=3, seed=0, **settings), lambda n: F.mse_loss(n(x), y)


def policy(discrete: bool) -> Made:
    """An actor and a critic with the loss of proximal policy optimisation."""
    from gymnasium import spaces
    from stable_baselines3.common.policies import ActorCriticPolicy

    actions = spaces.Discrete(3) if discrete else spaces.Box(-1, 1, (2,))
    net = ActorCriticPolicy(spaces.Box(-1, 1, (5,)), actions, lambda _: 1e-3, net_arch=[8, 8])
    seen, advantages, before = torch.randn(7, 5), torch.randn(7), torch.randn(7)
    taken = torch.randint(0, 3, (7,)) if discrete else torch.randn(7, 2)

    def step(n: Any) -> Tensor:
        values, log_prob, entropy = n.evaluate_actions(seen, taken)
        ratio = torch.exp(log_prob - before)
        gain = torch.min(advantages * ratio, advantages * ratio.clamp(0.8, 1.2)).mean()
        return 0.5 * F.mse_loss(values.flatten(), advantages) - gain - 0.01 * entropy.mean()

    return net, step


def keyed() -> Made:
    """A module that takes and returns a dictionary of tensors of the library's own class."""
    from tensordict import TensorDict
    from tensordict.nn import TensorDictModule

    net = TensorDictModule(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), ["seen"], ["value"])
    x, y = torch.randn(7, 3), torch.randn(7, 2)
    return net, lambda n: F.mse_loss(n(TensorDict({"seen": x}, [7]))["value"], y)


# One SiLU serves both levels: the first is given data, and the second what the first level's edges add up to.
EDGES = [
    into("act_fun.0.base_fun", lambda turn, args, kwargs: turn % 2 == 0, live=False),
    into("act_fun.0.base_fun", lambda turn, args, kwargs: turn % 2 == 1, name="act_fun.0"),
    out("", name="act_fun.1"),
]
POLICY = [f"mlp_extractor.{net}.{i}" for net in ("policy_net", "value_net") for i in (0, 2)]
HEADS = ["action_net", "value_net"]

ROWS: list[Row] = [
    network("torchdiffeq", "neural ODE", partial(solved, False), ["first", "field.net.0", "head"]),
    # What the adjoint method computes without gradient shows no layers.
    network(
        "torchdiffeq",
        "neural ODE, adjoint",
        partial(solved, True),
        ["first", "head"],
        says="OdeintAdjointMethod",
        must_say=True,
    ),
    network("snntorch", "leaky neurons", spiking, [MEMBRANES], says="ATan", must_say=True),
    Row("snntorch", "leaky neurons, named as activations", named_neurons),
    network("einops", "Rearrange, Reduce, EinMix", rearranged, ["0", "3", "7"]),
    network("pykan", "KAN", splines, EDGES),
    network("stable-baselines3", "policy, Gaussian", partial(policy, False), [*POLICY, *HEADS]),
    network("stable-baselines3", "policy, categories", partial(policy, True), [*POLICY, *HEADS]),
    network("tensordict", "TensorDictModule", keyed, ["module.0", "module.2"]),
]
