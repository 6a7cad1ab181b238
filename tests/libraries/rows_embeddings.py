"""lightly and pytorch-metric-learning: losses of embeddings, of two passes of one network or of pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tests.libraries.check import Case, Row
from tests.libraries.taps import Layer, into, outs


class Trained(nn.Module):
    """What a LightningModule of these libraries' examples holds: a backbone, heads and the loss."""

    def __init__(self, loss: nn.Module, **parts: nn.Module) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        for name, part in parts.items():
            self.add_module(name, part)
        self.criterion = loss


def network(
    library: str,
    name: str,
    make: Callable[[], tuple[Trained, Callable[[Any], Tensor]]],
    layers: Iterable[str | Layer],
    says: str = "",
) -> Row:
    layers = list(layers)

    def made() -> Case:
        net, step = make()
        expected = [one for entry in layers for one in (outs(entry) if isinstance(entry, str) else [entry])]
        return Case(net.double().train(), step, expected, says=says)

    return Row(library, name, made)


def views() -> tuple[Tensor, Tensor]:
    return torch.randn(6, 3, 8, 8), torch.randn(6, 3, 8, 8)


def two_views(loss: str, head: str, *sizes: int) -> Callable[[], tuple[Trained, Callable[[Any], Tensor]]]:
    """A projection of each of two views, and a loss of the pair."""

    def make() -> tuple[Trained, Callable[[Any], Tensor]]:
        import lightly.loss
        from lightly.models.modules import heads

        first, second = views()
        net = Trained(getattr(lightly.loss, loss)(), head=getattr(heads, head)(*sizes))
        return net, lambda n: n.criterion(n.head(n.backbone(first)), n.head(n.backbone(second)))

    return make


def simsiam() -> tuple[Trained, Callable[[Any], Tensor]]:
    import lightly.loss
    from lightly.models.modules import heads

    first, second = views()
    net = Trained(
        lightly.loss.NegativeCosineSimilarity(),
        projection=heads.SimSiamProjectionHead(8, 10, 6),
        prediction=heads.SimSiamPredictionHead(6, 4, 6),
    )

    def step(n: Any) -> Tensor:
        z0, z1 = n.projection(n.backbone(first)), n.projection(n.backbone(second))
        p0, p1 = n.prediction(z0), n.prediction(z1)
        return 0.5 * (n.criterion(z0.detach(), p1) + n.criterion(z1.detach(), p0))

    return net, step


def metric(loss: str, **settings: Any) -> Callable[[], tuple[Trained, Callable[[Any], Tensor]]]:
    """Embeddings of images with labels."""

    def make() -> tuple[Trained, Callable[[Any], Tensor]]:
        from pytorch_metric_learning import losses

        head = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 6))
        images, labels = torch.randn(8, 3, 8, 8), torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
        net = Trained(getattr(losses, loss)(**settings), head=head)
        return net, lambda n: n.criterion(n.head(n.backbone(images)), labels)

    return make


EMBEDDING = ["backbone.1", "head.0", "head.2"]

ROWS: list[Row] = [
    # What enters the loss's own softmax: the similarities of all pairs.
    network(
        "lightly",
        "SimCLR",
        two_views("NTXentLoss", "SimCLRProjectionHead", 8, 10, 6),
        ["backbone.1", "head.layers.1", Layer("similarities", into("criterion.cross_entropy").taps, named=False)],
    ),
    network(
        "lightly",
        "Barlow Twins",
        two_views("BarlowTwinsLoss", "BarlowTwinsProjectionHead", 8, 10, 6),
        ["backbone.1", "head.layers.1", "head.layers.4", "head.layers.6"],
    ),
    network(
        "lightly",
        "VICReg",
        two_views("VICRegLoss", "VICRegProjectionHead", 8, 10, 6, 2),
        ["backbone.1", "head.layers.1", "head.layers.3"],
    ),
    network(
        "lightly",
        "SimSiam",
        simsiam,
        ["backbone.1", "projection.layers.1", "projection.layers.4", "prediction.layers.1", "prediction.layers.3"],
    ),
    *[
        network("pytorch-metric-learning", loss, metric(loss), EMBEDDING)
        for loss in ("TripletMarginLoss", "ContrastiveLoss", "NTXentLoss", "MultiSimilarityLoss")
    ],
]
