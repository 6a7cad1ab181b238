"""Structures that are hard to watch, and losses that say in other ways what the logits are."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support import networks as n
from tests.support.cases import Case, classification_batch


def negative_log_likelihood(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.nll_loss(network(batch[0]), batch[1])


def log_softmax_in_loss(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.nll_loss(F.log_softmax(network(batch[0]), dim=1), batch[1])


def loss_module(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.CrossEntropyLoss(label_smoothing=0.1)(network(batch[0]), batch[1])


def called_forward(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(network.forward(batch[0]), batch[1])


def mean_squared_error(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.mse_loss(network(batch[0]), batch[1])


def binary_cross_entropy(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.binary_cross_entropy(network(batch[0]), batch[1])


def sigmoid_in_loss(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.binary_cross_entropy(torch.sigmoid(network(batch[0])), batch[1])


def focal_loss(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    logits = network(batch[0])
    p = torch.sigmoid(logits)
    entropy = F.binary_cross_entropy_with_logits(logits, batch[1], reduction="none")
    return (entropy * (p - batch[1]) ** 2).mean()


def log_of_probabilities(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.nll_loss(network(batch[0]).log(), batch[1])


def with_accuracy(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    logits = network(batch[0])
    loss = F.binary_cross_entropy_with_logits(logits, batch[1])
    ((torch.sigmoid(logits) > 0.5) == batch[1]).double().mean()
    return loss


def accuracy_first(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    logits = network(batch[0])
    (logits.softmax(1).argmax(1) == batch[1]).double().mean()
    with torch.no_grad():
        network(batch[0])
    return F.cross_entropy(logits, batch[1])


def each_token(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(network(batch[0]).transpose(1, 2), batch[1])


def token_rows(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(network(batch[0]).flatten(0, 1), batch[1].flatten())


def input_with_gradient(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(network(batch[0].clone().requires_grad_()), batch[1])


def loss_inside(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return network(*batch)


def two_losses(network: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    first, second = network(batch[0])
    return F.cross_entropy(first, batch[1]) + F.cross_entropy(second, batch[2])


def two_batches(network: nn.Module, batch: tuple) -> Tensor:
    (x1, y1), (x2, y2) = batch
    return F.cross_entropy(network(x1), y1) + F.cross_entropy(network(x2), y2)


def triplet(network: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    anchor, positive, negative = (network(x) for x in batch)
    return F.triplet_margin_loss(anchor, positive, negative)


def self_teaching(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.mse_loss(network(batch[0]), network(batch[1]).detach())


def teaching_without_gradient(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    with torch.no_grad():
        target = network(batch[1])
    return F.mse_loss(network(batch[0]), target)


flat = partial(classification_batch, 5, 6)
tokens = partial(classification_batch, 4, 5, 8)
images = partial(classification_batch, 4, 3, 6, 6)
digits = partial(classification_batch, 4, 1, 28, 28, classes=10)


def regression(outputs: int = 2) -> tuple[Tensor, Tensor]:
    return torch.randn(5, 6), torch.randn(5, outputs)


def binary(*outputs: int) -> tuple[Tensor, Tensor]:
    return torch.randn(5, 6), torch.randint(2, (5, *outputs)).double()


def token_batch() -> tuple[Tensor, Tensor]:
    return torch.randn(4, 5, 6), torch.randint(3, (4, 5))


def dense(name: str, between, layers: int, features: int = 8) -> Case:
    return Case(name, lambda: n.Dense(between, features), flat, layers=layers)


RESIDUAL = (
    "conv",
    "blocks.0.bn1",
    "blocks.0.relu",
    "blocks.1.bn1",
    "blocks.1.relu",
    "fc",
)
LENET = ("conv1", "conv2", "fc1", "fc2")
MLP = ("0", "2")

STRUCTURE_CASES = [
    Case("LeNet-5", n.LeNet5, digits, names=LENET),
    Case(
        "MNIST example",
        n.MNISTExample,
        digits,
        negative_log_likelihood,
        layers=4,
        output_layer="softmax",
    ),
    Case("reused ReLU", lambda: n.ReusedReLU(False), flat, names=("fc1", "fc2", "fc3")),
    Case("reused ReLU in place", lambda: n.ReusedReLU(True), flat, names=("fc1", "fc2", "fc3")),
    *(
        Case(f"residual sum, {style}", partial(n.Residual, style), images, names=RESIDUAL)
        for style in ("functional", "functional in place", "method in place", "added in place")
    ),
    dense("gated by hand", n.gated_by_hand, 2, features=4),
    dense("half in place", n.half_in_place, 2),
    dense("view in place", n.viewed_in_place, 2),
    dense("overwritten and used", n.overwritten_and_used, 2),
    dense("SiLU by hand", lambda x: x * x.sigmoid(), 2),
    dense("nonlinearity of a nonlinearity", lambda x: torch.tanh(F.softplus(x)), 3),
    dense("module made in forward", lambda x: nn.ReLU()(x), 2),
    dense("in-place module made in forward", lambda x: nn.ReLU(inplace=True)(x), 2),
    Case("modules' forward called", n.CalledForward, flat),
    Case("network's forward called", lambda: n.mlp(3), flat, called_forward, names=MLP),
    Case("attention", n.Attention, tokens, names=("norm", "head")),
    *(
        Case(
            f"encoder layer, {activation}, {'pre' if norm_first else 'post'}-norm",
            partial(n.Encoder, activation, norm_first),
            tokens,
            names=("encoder.linear1", "head"),
        )
        for activation in ("relu", "gelu")
        for norm_first in (False, True)
    ),
    Case(
        "tokens",
        n.Tokens,
        token_batch,
        each_token,
        names=("embed", "relu", "head"),
    ),
    Case("signal", n.Signal, partial(classification_batch, 4, 2, 12), names=("bn1", "norm", "fc")),
    Case(
        "segmentation",
        n.Segmentation,
        lambda: (torch.randn(3, 2, 6, 6), torch.randint(3, (3, 6, 6))),
        names=("conv1", "conv2"),
    ),
    Case("frozen backbone", n.Frozen, flat, layers=3, partly_live=True),
    Case("dead head", n.DeadHead, flat, layers=4, partly_live=True),
    Case("detached branch", n.DetachedBranch, flat, names=("left", "right", "fc"), partly_live=True),
    *(
        Case(
            f"checkpoint, {'reentrant' if reentrant else 'non-reentrant'}",
            partial(n.Checkpointed, use_reentrant=reentrant),
            flat,
            names=("fc1", "fc2", "fc3"),
        )
        for reentrant in (False, True)
    ),
    Case("nonlinearity of the input", n.activated_input, flat, layers=3, partly_live=True),
    Case(
        "input with gradient",
        n.activated_input,
        flat,
        input_with_gradient,
        layers=3,
        partly_live=True,
    ),
    Case(
        "loss inside the network",
        n.LossInside,
        flat,
        loss_inside,
        names=("fc1", "fc2"),
        output_layer="softmax",
    ),
    # the loss sees rows of tokens, so the batch of "squared_mean" is a matter of opinion
    Case(
        "tokens in rows",
        n.Tokens,
        token_batch,
        token_rows,
        layers=3,
        reductions=("mean", "sum"),
    ),
    Case("log_softmax in the loss", lambda: n.mlp(3), flat, log_softmax_in_loss, names=MLP),
    Case(
        "log_softmax module",
        lambda: n.mlp(3, nn.LogSoftmax(1)),
        flat,
        negative_log_likelihood,
        names=MLP,
        output_layer="softmax",
    ),
    Case("loss module, smoothed labels", lambda: n.mlp(3), flat, loss_module, names=MLP),
    Case("regression", lambda: n.mlp(2), regression, mean_squared_error, names=MLP),
    Case(
        "sigmoid output",
        lambda: n.mlp(2, nn.Sigmoid()),
        lambda: binary(2),
        binary_cross_entropy,
        names=MLP,
        output_layer="activation",
    ),
    Case(
        "squeezed sigmoid output",
        lambda: n.mlp(1, nn.Sigmoid(), nn.Flatten(0)),
        binary,
        binary_cross_entropy,
        names=MLP,
        output_layer="activation",
    ),
    Case("sigmoid in the loss", lambda: n.mlp(2), lambda: binary(2), sigmoid_in_loss, names=MLP),
    Case("focal loss", lambda: n.mlp(2), lambda: binary(2), focal_loss, names=MLP),
    Case(
        "softmax output",
        lambda: n.mlp(3, nn.Softmax(1)),
        flat,
        log_of_probabilities,
        names=MLP,
        output_layer="softmax",
    ),
    Case("sigmoid for accuracy", lambda: n.mlp(2), lambda: binary(2), with_accuracy, names=MLP),
    Case("squeezed logits", lambda: n.mlp(1, nn.Flatten(0)), binary, with_accuracy, layers=2),
    Case("softmax for accuracy", lambda: n.mlp(3), flat, accuracy_first, names=MLP),
    Case(
        "two heads",
        n.TwoHeads,
        lambda: (torch.randn(5, 6), torch.randint(3, (5,)), torch.randint(4, (5,))),
        two_losses,
        names=("fc", "head1", "head2"),
    ),
    Case(
        "two batches",
        lambda: n.mlp(3),
        lambda: (flat(), classification_batch(3, 6)),
        two_batches,
        names=MLP,
    ),
    Case(
        "two batches, in place",
        lambda: n.Residual("functional in place"),
        lambda: (images(), classification_batch(2, 3, 6, 6)),
        two_batches,
        names=RESIDUAL,
    ),
    Case(
        "triplet",
        lambda: n.mlp(3),
        lambda: (torch.randn(5, 6), torch.randn(5, 6), torch.randn(5, 6)),
        triplet,
        names=MLP,
    ),
    Case(
        "one of two passes detached",
        lambda: n.mlp(2),
        lambda: (torch.randn(5, 6), torch.randn(5, 6)),
        self_teaching,
        names=MLP,
        partly_live=True,
    ),
    Case(
        "one of two passes without gradient",
        lambda: n.mlp(2),
        lambda: (torch.randn(5, 6), torch.randn(5, 6)),
        teaching_without_gradient,
        names=MLP,
    ),
]

# What cannot be penalised exactly has to be refused, never left out in silence
HARD_CASES = [
    Case(
        "overwritten by a sum",
        lambda: n.Dense(n.sum_in_place_after),
        flat,
        layers=2,
        refusal="fc1",
    ),
]
