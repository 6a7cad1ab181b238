"""pyro, gpytorch and pytorch-crf: networks inside models whose likelihood the library computes."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.libraries.check import Row
from tests.libraries.plain.network import Made, network
from tests.libraries.taps import Layer, Tap

PIXELS, LATENT, TAGS = 6, 3, 4


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.pixels = nn.Linear(LATENT, 8), nn.Linear(8, PIXELS)

    def forward(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.pixels(F.softplus(self.hidden(z))))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.mean, self.scale = nn.Linear(PIXELS, 8), nn.Linear(8, LATENT), nn.Linear(8, LATENT)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = F.softplus(self.hidden(x))
        return self.mean(h), torch.exp(self.scale(h))


class Autoencoder(nn.Module):
    """A model and a guide of pyro."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(), Decoder()

    def model(self, x: Tensor) -> None:
        import pyro
        from pyro import distributions

        pyro.module("decoder", self.decoder)
        with pyro.plate("images", len(x)):
            prior = distributions.Normal(x.new_zeros(len(x), LATENT), 1.0).to_event(1)
            z = pyro.sample("latent", prior)
            pyro.sample("pixels", distributions.Bernoulli(self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        import pyro
        from pyro import distributions

        pyro.module("encoder", self.encoder)
        with pyro.plate("images", len(x)):
            pyro.sample("latent", distributions.Normal(*self.encoder(x)).to_event(1))


def autoencoder() -> Made:
    import pyro
    from pyro.infer import Trace_ELBO

    images = torch.randint(0, 2, (7, PIXELS)).double()

    def step(n: Any) -> Tensor:
        pyro.clear_param_store()
        return Trace_ELBO().differentiable_loss(n.model, n.guide, images)

    return Autoencoder(), step


def deep_kernel() -> Made:
    """A Gaussian process on the features of a network."""
    import gpytorch

    class Process(gpytorch.models.ExactGP):
        def __init__(self, x: Tensor, y: Tensor) -> None:
            super().__init__(x, y, gpytorch.likelihoods.GaussianLikelihood())
            self.features = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
            self.mean = gpytorch.means.ConstantMean()
            self.kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel(ard_num_dims=2))

        def forward(self, x: Tensor) -> Any:
            h = self.features(x)
            return gpytorch.distributions.MultivariateNormal(self.mean(h), self.kernel(h))

    x, y = torch.randn(9, 3), torch.randn(9)
    net = Process(x, y).double()
    likelihood = gpytorch.mlls.ExactMarginalLogLikelihood(net.likelihood, net)
    return net, lambda n: -likelihood(n(x), y)


class Tagger(nn.Module):
    """A sequence tagger with a conditional random field, within `forward` or behind it."""

    def __init__(self, inside: bool) -> None:
        from torchcrf import CRF

        super().__init__()
        self.words, self.rnn = nn.Embedding(20, 6), nn.LSTM(6, 5, batch_first=True, bidirectional=True)
        self.tags, self.field, self.inside = nn.Linear(10, TAGS), CRF(TAGS, batch_first=True), inside

    def forward(self, words: Tensor, tags: Tensor, mask: Tensor) -> Any:
        scores = self.tags(self.rnn(self.words(words))[0])
        return (-self.field(scores, tags, mask), scores) if self.inside else scores


def tagger(inside: bool) -> Made:
    words, tags = torch.randint(0, 20, (3, 6)), torch.randint(0, TAGS, (3, 6))
    mask = torch.tensor([4, 6, 6])[:, None] > torch.arange(6)

    def step(n: Any) -> Tensor:
        found = n(words, tags, mask)
        return found[0] if inside else -n.field(found, tags, mask)

    return Tagger(inside), step


VAE = ["encoder.hidden", "encoder.mean", "encoder.scale", "decoder.hidden", "decoder.pixels"]
GATES = [Layer(f"rnn.l0{way}", (Tap("rnn", "gates", turns=turn),)) for turn, way in enumerate(("", "_reverse"))]

ROWS: list[Row] = [
    network("pyro-ppl", "variational autoencoder", autoencoder, VAE),
    # The features enter the kernel, which the loss calls.
    network("gpytorch", "deep kernel", deep_kernel, ["features.0", "features.2"]),
    network("pytorch-crf", "tagger", partial(tagger, False), [*GATES, "tags"]),
    network("pytorch-crf", "tagger, loss inside", partial(tagger, True), [*GATES, "tags"]),
]
