"""zuko, nflows and normflows: normalising flows, whose networks are called while a density is computed."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from tests.libraries.check import Row
from tests.libraries.plain.network import Made, network
from tests.libraries.taps import Layer, at, call, out

FEATURES, CONTEXT = 3, 2


def conditional(name: str) -> Made:
    """A flow of zuko: its call returns a distribution, whose transforms call the networks."""
    import zuko

    flow = getattr(zuko.flows, name)(FEATURES, CONTEXT, transforms=2, hidden_features=(8, 8))
    x, context = torch.randn(7, FEATURES), torch.randn(7, CONTEXT)
    return flow, lambda n: -n(context).log_prob(x).mean()


def autoregressive(residual: bool) -> Made:
    from nflows import transforms
    from nflows.distributions.normal import StandardNormal
    from nflows.flows.base import Flow

    def masked() -> Any:
        return transforms.MaskedAffineAutoregressiveTransform(
            FEATURES, 8, context_features=CONTEXT, num_blocks=1, use_residual_blocks=residual
        )

    steps = transforms.CompositeTransform([masked(), transforms.ReversePermutation(FEATURES), masked()])
    x, context = torch.randn(7, FEATURES), torch.randn(7, CONTEXT)
    return Flow(steps, StandardNormal([FEATURES])), lambda n: -n.log_prob(x, context=context).mean()


def coupling(scale: str) -> Made:
    import normflows

    steps = []
    for _ in range(2):
        net = normflows.nets.MLP([2, 8, 4], init_zeros=False)
        steps += [normflows.flows.AffineCouplingBlock(net, scale_map=scale), normflows.flows.Permute(4, mode="swap")]
    x = torch.randn(7, 4)
    base = normflows.distributions.base.DiagGaussian(4, trainable=False)
    return normflows.NormalizingFlow(base, steps), lambda n: n.forward_kld(x)


def scales(z: Any) -> Any:
    """The raw scales, beside which stand the shifts."""
    return z.view(-1, FEATURES, 2)[..., 0]


def made(path: str, residual: bool) -> list[Layer]:
    """One network of nflows: what the context gives is added in place, and the scales enter a softplus."""
    block = f"{path}.blocks.0"
    hidden = [call(block, "relu"), call(block, "relu", 1, name=f"{block}.relu:1")]
    plain = [call(path, "relu", 1), out(f"{block}.linear")]
    context, final = out(f"{path}.context_layer"), out(f"{path}.final_layer", scales)
    return [context, *(hidden if residual else plain), final]


def density(residual: bool) -> list[Layer]:
    """The last step's result is an output; its log-determinant is a term of the loss."""
    paths = [f"_transform._transforms.{i}.autoregressive_net" for i in (0, 2)]
    return [*(one for path in paths for one in made(path, residual)), out("_transform._transforms.2", at(0))]


HYPER = ["transform.transforms.{2}.hyper.0", "transform.transforms.{2}.hyper.2", "transform.transforms.{2}.hyper.4"]
# Between the two networks there is a rotation, made of a parameter alone.
ROTATED = [f"transform.transforms.{i}.hyper.{k}" for i in (0, 2) for k in (0, 2, 4)]
PARAMETERS = [f"flows.{i}.flows.1.param_map.net.{k}" for i in (0, 2) for k in (0, 2)]

ROWS: list[Row] = [
    network("zuko", "MAF", partial(conditional, "MAF"), HYPER),
    network("zuko", "NSF", partial(conditional, "NSF"), HYPER),
    network("zuko", "NICE", partial(conditional, "NICE"), HYPER),
    network("zuko", "GF", partial(conditional, "GF"), ROTATED),
    network("nflows", "masked autoregressive", partial(autoregressive, False), density(False)),
    network("nflows", "masked autoregressive, residual", partial(autoregressive, True), density(True)),
    network("normflows", "affine coupling", partial(coupling, "exp"), PARAMETERS),
    network("normflows", "affine coupling, sigmoid", partial(coupling, "sigmoid"), PARAMETERS),
]
