"""The gradient of the PSP penalty, split by the layers that it comes from."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_psp.analysis.results import replacing, shown
from lightning_psp.analysis.unchanged import buffers_and_random_numbers_kept
from lightning_psp.functional.penalty import layer_penalties
from lightning_psp.functional.precision import widest_float
from lightning_psp.functional.progress import progress_bar
from lightning_psp.functional.reductions import Reduction
from lightning_psp.recording.potentials import check_module, record_potentials


@dataclass(frozen=True, eq=False, repr=False)  # tensors have no single truth value
class GradientParts:
    """What each layer's potentials contribute to the gradient of the penalty, for each parameter.

    Given by :func:`psp_gradient_parts`, which says what the numbers are.

    Args:
        parameters: names of the P trained parameters, as in ``named_parameters()``: the rows.
        layers: names of the L layers, in order of call: the columns.
        norms: ``[P, L]``, Euclidean norm of each part; exactly 0 where the layer does not depend on the parameter.
        shares: ``[P, L]``, signed share of each part in the whole gradient; each row sums to 1. NaN in the rows of
            parameters whose whole gradient is 0, and rounding error where the whole is (a bias before a batch norm in
            training mode).
        total: ``[P]``, Euclidean norm of the whole gradient, the sum of the parts.
        reduction: the scale of the penalty, as in :func:`~lightning_psp.psp_penalty`.
    """

    parameters: tuple[str, ...]
    layers: tuple[str, ...]
    norms: Tensor
    shares: Tensor
    total: Tensor
    reduction: Reduction

    def __repr__(self) -> str:
        return shown(self)

    def save(self, path: str | Path) -> None:
        """Writes everything to a JSON file, numbers in full precision.

        Args:
            path: the file; one that is there is replaced once the new one is written.
        """
        content = {name: _to_json(value) for name, value in vars(self).items()}
        text = json.dumps(content, indent=1, allow_nan=False) + "\n"
        with replacing(Path(path)) as file:
            file.write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> GradientParts:
        """Reads what :meth:`save` has written.

        Args:
            path: the file.

        Returns:
            The same parts, in float64 on the CPU.

        Raises:
            ValueError: if the file holds something else.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError:
            content = None
        if not isinstance(content, dict) or content.keys() != cls.__dataclass_fields__.keys():
            raise ValueError(f"Expected argument `path` to be a file of `GradientParts.save` but got {str(path)!r}.")
        shares = [[math.nan if share is None else share for share in row] for row in content["shares"]]
        return cls(
            parameters=tuple(content["parameters"]),
            layers=tuple(content["layers"]),
            norms=torch.tensor(content["norms"], dtype=torch.float64, device="cpu"),
            shares=torch.tensor(shares, dtype=torch.float64, device="cpu"),
            total=torch.tensor(content["total"], dtype=torch.float64, device="cpu"),
            reduction=content["reduction"],
        )


def psp_gradient_parts(
    module: nn.Module,
    inputs: Tensor | tuple[Any, ...],
    *,
    reduction: Reduction = "mean",
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    output: bool = True,
    activations: Sequence[str | type[nn.Module] | Callable[..., object]] = (),
) -> GradientParts:
    r"""Splits the gradient of the PSP penalty into the parts that come from each layer's potentials.

    The penalty is a sum over layers, :math:`R = \sum_m R_m`. A parameter :math:`w_l` of layer l moves the potentials of
    its own layer, and through them those of every later one, so its gradient has a part of each (Tartaglione et al.,
    2019, Eq. 14 and 15):

    .. math:: \frac{\partial R}{\partial w_l} = \frac{\partial R_l}{\partial w_l}
        + \sum_{m > l} \frac{\partial R_m}{\partial w_l}

    With :math:`R_m = \frac12 \sum_k z_{m,k}^2` the own part is :math:`z_l` times the layer's input, and each further
    one :math:`\sum_k z_{m,k}\, \partial z_{m,k} / \partial w_l`, by the chain rule. Every :math:`R_m` has the factors
    of :func:`~lightning_psp.psp_penalty`, so the parts add up to the gradient of that. Of each part
    :math:`g_{l,m} = \partial R_m / \partial w_l` of a whole gradient :math:`g_l = \sum_m g_{l,m}`

    - the norm :math:`\lVert g_{l,m} \rVert` says how large it is;
    - the share :math:`\langle g_{l,m}, g_l \rangle / \lVert g_l \rVert^2` says how much of the whole it makes up:
      negative where the layer works against the others, above 1 where others work against it.

    The network is run once, in the mode that it is in, without `torch.compile`, and then backwards once for the whole
    and once for each layer. Its gradients (``.grad``), buffers and modes are left as they were, and so is the
    state of random number generators. Besides the forward pass, twice the size of the parameters is held in memory.

    Args:
        module: the network.
        inputs: what the network is called with: a tensor, or a tuple of positional arguments.
        reduction: ``"mean"``, ``"sum"`` (the paper's Eq. 7) or ``"squared_mean"``.
        include: glob patterns on layer names.
        exclude: glob patterns on layer names.
        output: whether the output layer counts.
        activations: further module classes or torch functions whose input is a potential, or their dotted names.

    Returns:
        Norms and shares, a row for each trained parameter (one shared by several modules is a single one) and a
        column for each layer that depends on any. Frozen parameters, and layers before the first trained one, are left
        out.

    Raises:
        TypeError: if `module` is no module, or `inputs` neither a tensor nor a plain tuple.
        ValueError: if no layer depends on a trained parameter, a gradient is not finite, or `reduction` is unknown;
            and as :func:`~lightning_psp.record_potentials`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False))
        >>> _ = nn.init.constant_(network[0].weight, 3.0), nn.init.constant_(network[2].weight, 2.0)
        >>> parts = psp_gradient_parts(network, torch.ones(1, 1), reduction="sum")  # R = (3² + 6²) / 2
        >>> parts.parameters, parts.layers
        (('0.weight', '2.weight'), ('0', '2'))
        >>> parts.norms  # 3 · 1 of its own and 6 · 2 · 1 by the chain rule; nothing, and 6 · 3
        tensor([[ 3., 12.],
                [ 0., 18.]], dtype=torch.float64)
        >>> parts.shares
        tensor([[0.2000, 0.8000],
                [0.0000, 1.0000]], dtype=torch.float64)
    """
    check_module(module)
    if not isinstance(inputs, Tensor) and type(inputs) is not tuple:  # a packed sequence is a tuple, too
        raise TypeError(
            "Expected argument `inputs` to be a tensor or a tuple of positional arguments but got"
            f" {type(inputs).__name__}. Of a batch of inputs and labels give the inputs alone, such as `batch[0]`; for"
            " a network that takes this as it is, use `inputs=(x,)`."
        )
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    with torch.inference_mode(False), buffers_and_random_numbers_kept(module):  # which lifts no_grad, too
        # A compiled backward pass overwrites what it has read, while here each layer has one through the same graph.
        with (
            torch.compiler.set_stance("force_eager"),
            record_potentials(
                module, include=include, exclude=exclude, output=output, activations=activations
            ) as potentials,
        ):
            module(*arguments)
        # after the call, which makes those of lazy modules
        parameters = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        if not parameters or not any(potential.requires_grad for potential in potentials.values()):
            raise ValueError(
                "Expected argument `module` to have a layer that depends on a trained parameter but got none: no"
                f" parameter asks for a gradient, or none reaches the layers {', '.join(potentials)}."
            )
        terms = layer_penalties(potentials, reduction)
        layers = tuple(terms)
        potentials.clear()
        norms, shares, total = _split(terms, list(parameters.values()))
    for layer, column in zip(layers, norms.T, strict=True):
        if not column.isfinite().all():
            name = next(name for name, norm in zip(parameters, column, strict=True) if not norm.isfinite())
            raise ValueError(
                f"The gradient of layer {layer!r}'s penalty with respect to {name!r} is not finite: there is NaN or"
                " infinity in the inputs or parameters, or an overflow of the precision."
            )
    return GradientParts(tuple(parameters), layers, norms, shares, total, reduction)


def _split(terms: dict[str, Tensor], parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Norms `[P, L]`, shares `[P, L]` and total `[P]`. Takes the terms out of their dict."""
    device = next(iter(terms.values())).device
    whole = _gradients(torch.stack([term.to(device) for term in terms.values()]).sum(), parameters)
    norms = torch.zeros(len(parameters), len(terms), dtype=torch.float64, device="cpu")
    products, total = torch.zeros_like(norms), torch.zeros(len(parameters), dtype=torch.float64, device="cpu")
    for row, gradient in enumerate(whole):
        if gradient is not None:
            total[row] = _as_vector(gradient).norm()
    with progress_bar(len(terms), "layer", "PSP gradient") as progress:
        # From the last layer to the first, so that the graph behind a layer is freed with the layer's term.
        for column in reversed(range(len(terms))):
            parts = _gradients(terms.popitem()[1], parameters)
            for row, (part, gradient) in enumerate(zip(parts, whole, strict=True)):
                if part is not None and gradient is not None:
                    vector = _as_vector(part)
                    norms[row, column] = vector.norm()
                    products[row, column] = vector @ _as_vector(gradient)
            progress.update()
    return norms, products / total.square().unsqueeze(1), total


def _gradients(value: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)


def _as_vector(gradient: Tensor) -> Tensor:
    """All numbers of a gradient, in the type in which squares of small ones can be summed."""
    dense = gradient if gradient.layout == torch.strided else gradient.to_dense()
    real = torch.view_as_real(dense) if dense.is_complex() else dense
    return real.flatten().to(widest_float(real.device))


def _to_json(value: Any) -> Any:
    """Lists for tensors, and nothing where a number is undefined: JSON has no NaN."""
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, list):
        return [_to_json(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value
