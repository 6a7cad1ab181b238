"""Eigenvalues and trace of the Hessian of a network's mean loss."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_psp.analysis.batches import Loss, check_loss, cross_entropy
from lightning_psp.analysis.eigenpairs import largest_eigenpairs
from lightning_psp.analysis.hessian_products import HessianProducts
from lightning_psp.analysis.results import Result
from lightning_psp.functional.arguments import check_choice, check_data, check_integer, check_number
from lightning_psp.functional.progress import progress_bar
from lightning_psp.functional.reductions import REDUCTIONS, Reduction
from lightning_psp.recording.potentials import check_module


@dataclass(frozen=True, eq=False, repr=False)  # tensors have no single truth value
class HessianSpectrum(Result):
    """The largest eigenvalues of a Hessian.

    Given by :func:`hessian_eigenvalues`, which says what the numbers are.

    Args:
        values: ``[k]``, the eigenvalues θ in descending order, float64.
        residuals: ``[k]``, ‖Hv − θv‖ of each, float64.
        vectors: parameter name to ``[k, *shape]``: the eigenvectors v, which all parameters together have at length 1.
        products: the number of products of the Hessian with a vector that were computed.
    """

    values: Tensor
    residuals: Tensor
    vectors: dict[str, Tensor]
    products: int


@dataclass(frozen=True)
class TraceEstimate(Result):
    """An estimate of the trace of a Hessian.

    Given by :func:`hessian_trace`.

    Args:
        value: the estimate.
        standard_error: its standard error.
    """

    value: float
    standard_error: float


def hessian_eigenvalues(
    module: nn.Module,
    data: Iterable[Any],
    *,
    loss: Loss | None = None,
    k: int = 5,
    masks: Mapping[str, Tensor] | None = None,
    lam: float = 0.0,
    reduction: Reduction = "mean",
    tolerance: float = 1e-3,
    seed: int = 0,
) -> HessianSpectrum:
    r"""Finds the algebraically largest eigenvalues of the Hessian of a network's mean loss.

    They tell how sharp a minimum is (Tartaglione et al., 2020, Fig. 2 to 4). With :math:`n_b` samples in batch b,
    weights w and the penalty R of :func:`~lightning_psp.psp_penalty`, the Hessian is

    .. math:: H = \frac{\partial^2}{\partial w^2}\,
        \frac{\sum_b n_b \left(\mathcal{L}_b(w) + \lambda R_b(w)\right)}{\sum_b n_b}

    The eigenvalues θ and vectors v are those of Lanczos' method, with SciPy's implicit restarts where it takes many
    vectors, from exact products Hv: the gradient is differentiated a second time. A negative eigenvalue is smaller than
    any positive one, whatever its size. Each residual ‖Hv − θv‖ is computed from products. Where there are up to
    100,000 weights, a further search looks for what is missed of multiple eigenvalues, which networks have that are
    linear in their weights; with more, of eigenvalues closer than about `tolerance` · \|θ₁\| one may stand for all.

    The network is in ``eval()`` while this runs; it, gradients and random number generators are left as they were, also
    after an exception or Ctrl-C. Activations and gradients of all batches are kept in memory where they take no more
    than 2 GiB. Otherwise the data are read anew, and both computed anew, for each product. Batches are moved to the
    device of the network. Besides, up to 1 GiB and 2k + 2 vectors (8 at least) of the size of the weights are held on
    the CPU.

    Args:
        module: the network. Parameters that ask for a gradient count, one shared by several modules once.
        data: batches, iterated again and again, that hold the same samples each time.
        loss: gives the loss of a batch, a scalar: the mean over its samples. By default
            ``cross_entropy(module(batch[0]), batch[1])``.
        k: number of eigenvalues.
        masks: name of a parameter to a bool tensor of its shape, True where a weight counts. Of parameters that are not
            named all weights count. No weight is changed.
        lam: factor λ of the penalty.
        reduction: scale of the penalty, as in :func:`~lightning_psp.psp_penalty`.
        tolerance: largest residual, in units of \|θ₁\|.
        seed: of the vector that the method starts from, and of what is random in the data.

    Returns:
        Eigenvalues, residuals, eigenvectors and the number of products. Weights in half precision have products in
        half precision.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if an argument is not one of those allowed, no parameter asks for a gradient, or the loss does not
            depend on one, is no scalar or not finite.
        RuntimeError: if an eigenvalue has not converged; the message says which have, or the residuals reached.
        NotImplementedError: if the loss cannot be differentiated twice.
        ImportError: if SciPy is not installed (``lightning_psp[analysis]``).

    Example:
        The loss :math:`(w_1^2 + 3 w_2^2 - 5 w_3^2) / 2` curves upwards by 1 and 3.

        >>> import torch
        >>> network = nn.Linear(3, 1, bias=False)
        >>> curvature = torch.tensor([1.0, 3.0, -5.0])
        >>> spectrum = hessian_eigenvalues(
        ...     network, [torch.ones(4, 1)], loss=lambda network, batch: (curvature * network.weight**2).sum() / 2, k=2
        ... )
        >>> spectrum.values
        tensor([3., 1.], dtype=torch.float64)
        >>> spectrum.vectors["weight"].abs().flatten(1)
        tensor([[0., 1., 0.],
                [1., 0., 0.]])
    """
    check_integer("k", k, at_least=1)
    check_number("tolerance", tolerance, above=0)
    products = _products(module, data, loss, masks, lam, reduction, seed)
    if k > products.size:
        raise ValueError(
            f"Expected argument `k` to be at most {products.size}, the number of weights that count, but got {k}."
        )
    with progress_bar(None, "product", "Hessian") as progress, products.prepared():

        def multiply(vector: Any) -> Any:
            image = products(torch.from_numpy(vector)).numpy()
            progress.update()
            return image

        dtype = torch.empty(0, dtype=products.dtype, device="cpu").numpy().dtype
        pairs = largest_eigenpairs(multiply, products.size, k, tolerance, dtype, seed)
    return HessianSpectrum(
        values=torch.from_numpy(pairs.values),
        residuals=torch.from_numpy(pairs.residuals),
        vectors=products.named(torch.from_numpy(pairs.vectors.T.copy())),
        products=products.count,
    )


def hessian_trace(
    module: nn.Module,
    data: Iterable[Any],
    *,
    loss: Loss | None = None,
    masks: Mapping[str, Tensor] | None = None,
    lam: float = 0.0,
    reduction: Reduction = "mean",
    samples: int = 100,
    seed: int = 0,
) -> TraceEstimate:
    r"""Estimates the trace of the Hessian of a network's mean loss, the sum of its eigenvalues.

    With random vectors z whose entries are 1 or -1, :math:`\operatorname{tr} H = \mathrm{E}[z^\top H z]` (Hutchinson,
    1989). The estimate is the mean over `samples` vectors, exact where the Hessian is diagonal. What the Hessian is,
    how the products are computed and what is left as it was: see :func:`hessian_eigenvalues`.

    Args:
        module: as for :func:`hessian_eigenvalues`.
        data: as for :func:`hessian_eigenvalues`.
        loss: as for :func:`hessian_eigenvalues`.
        masks: as for :func:`hessian_eigenvalues`.
        lam: as for :func:`hessian_eigenvalues`.
        reduction: as for :func:`hessian_eigenvalues`.
        samples: number of random vectors, at least 2. The standard error falls with its square root.
        seed: of the random vectors, and of what is random in the data.

    Returns:
        The estimate and its standard error.

    Raises:
        TypeError: as :func:`hessian_eigenvalues`.
        ValueError: as :func:`hessian_eigenvalues`.
        NotImplementedError: as :func:`hessian_eigenvalues`.

    Example:
        >>> import torch
        >>> network = nn.Linear(3, 1, bias=False)
        >>> curvature = torch.tensor([1.0, 3.0, -5.0])
        >>> hessian_trace(
        ...     network, [torch.ones(4, 1)], loss=lambda network, batch: (curvature * network.weight**2).sum() / 2
        ... )
        TraceEstimate(value=-1.0, standard_error=0.0)
    """
    check_integer("samples", samples, at_least=2)
    products = _products(module, data, loss, masks, lam, reduction, seed)
    generator = torch.Generator().manual_seed(seed)
    terms: list[float] = []
    first: tuple[Tensor, Tensor] | None = None
    with progress_bar(samples, "vector", "Hessian") as progress, products.prepared():
        for _ in range(samples):
            signs = torch.randint(2, (products.size,), generator=generator, device="cpu").to(products.dtype)
            image = products(signs.mul_(2).sub_(1))
            terms.append(float(signs.double() @ image.double()))
            if first is None:
                first = signs, image
            elif len(terms) == 2:
                _check_symmetry(first, (signs, image), products.precision)
            progress.update()
    values = torch.tensor(terms, dtype=torch.float64, device="cpu")
    if not values.isfinite().all():
        raise ValueError("A product with the Hessian is not finite: there is NaN or infinity in weights or data.")
    return TraceEstimate(value=values.mean().item(), standard_error=values.std().item() / math.sqrt(samples))


def _check_symmetry(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], precision: float) -> None:
    """Raises an error unless two vectors and their products can be those of a symmetric matrix, as a Hessian is one."""
    difference = first[0].double() @ second[1].double() - second[0].double() @ first[1].double()
    # What rounding makes of inner products, with room.
    if difference.abs() > 10 * precision**0.5 * (first[1].norm() + second[1].norm()):
        raise RuntimeError(
            "The products are not those of a symmetric matrix: an operation of the network or loss has a wrong second"
            " derivative, autocast rounds what it computes, or the data are not the same in each pass."
        )


def _products(
    module: nn.Module,
    data: Iterable[Any],
    loss: Loss | None,
    masks: Mapping[str, Tensor] | None,
    lam: float,
    reduction: Reduction,
    seed: int,
) -> HessianProducts:
    """The products, once the arguments have been checked."""
    check_module(module)
    check_data(data)
    loss = cross_entropy if loss is None else loss
    check_loss(loss)
    check_number("lam", lam, at_least=0)
    check_choice("reduction", reduction, REDUCTIONS)
    check_integer("seed", seed, at_least=0)
    return HessianProducts(module, data, loss, masks, float(lam), reduction, seed)
