"""PyTorch Geometric: what a message passing layer gives, attention over edges, shifted softplus."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.libraries.check import Case, Row
from tests.libraries.taps import Layer, call, expand, out, outs

NODES, FEATURES, CLASSES = 9, 6, 4


def network(
    name: str,
    make: Callable[[], tuple[nn.Module, Callable[[nn.Module], Tensor]]],
    layers: Iterable[str | Layer],
    says: str = "",
) -> Row:
    layers = list(layers)

    def made() -> Case:
        net, step = make()
        expected = [one for entry in layers for one in (outs(entry) if isinstance(entry, str) else [entry])]
        return Case(net.double().train(), step, expected, says=says)

    return Row("torch_geometric", name, made)


def classifier(name: str, **settings: Any) -> Callable[[], tuple[nn.Module, Callable[[nn.Module], Tensor]]]:
    """Classes of nodes."""

    def make() -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
        from torch_geometric.nn import models

        nodes, edges = torch.randn(NODES, FEATURES), torch.randint(0, NODES, (2, 24))
        labels = torch.randint(0, CLASSES, (NODES,))
        net = getattr(models, name)(FEATURES, 8, 3, CLASSES, **settings)
        return net, lambda n: F.cross_entropy(n(nodes, edges), labels)

    return make


def schnet() -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    """Energies of molecules."""
    from torch_geometric.nn import SchNet

    edges = torch.randint(0, NODES, (2, 24))
    edges = edges[:, edges[0] != edges[1]]

    def neighbours(positions: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        return edges, (positions[edges[0]] - positions[edges[1]]).norm(dim=-1)

    atoms, places = torch.randint(1, 8, (NODES,)), torch.randn(NODES, 3)
    molecules, energies = torch.tensor([0] * 4 + [1] * 5), torch.randn(2, 1)
    net = SchNet(8, 8, 2, 10, interaction_graph=neighbours)
    return net, lambda n: F.mse_loss(n(atoms, places, molecules), energies)


ROWS: list[Row] = [
    network("GCN", classifier("GCN"), ["convs.{3}"]),
    network("GraphSAGE", classifier("GraphSAGE"), ["convs.{3}"]),
    # The attention over edges has a leaky ReLU, and a softmax over each node's edges that is written out.
    network(
        "GAT", classifier("GAT"), [*(call(path, "leaky_relu") for path in expand("convs.{3}")), "convs.{3}"], says="exp"
    ),
    network("GIN", classifier("GIN"), ["convs.{3}.nn.lins.{2}"]),
    network(
        "GIN with batch norms",
        classifier("GIN", norm="batch_norm"),
        ["convs.{3}.nn.norms.0.module", "norms.{2}.module", "convs.2.nn.lins.1"],
    ),
    # The spread of the neighbours is a root with a bound below it, and the squares are said to be no layer.
    network(
        "PNA",
        classifier(
            "PNA",
            aggregators=["mean", "max", "std"],
            scalers=["identity", "amplification"],
            deg=torch.tensor([1, 2, 3, 2, 1]),
        ),
        ["convs.{3}.lin"],
        says="var_aggr.mul",
    ),
    # The energy of a molecule is a sum over its atoms.
    network(
        "SchNet",
        schnet,
        [
            "interactions.{2}.mlp.0",
            "interactions.{2}.conv.lin2",
            "lin1",
            Layer("energy", out("").taps, named=False),
        ],
    ),
]
